"""HTTP/1.1 on one client's stream (RFC 9112): one exchange after another, with their deadlines.

Here lives what every exchange needs whatever it is about. Not here: what a request is and how an answer is written
(parsing, request, response), routes and credentials (endpoints), listeners and who closes the stream (server).

Costs: an idle connection holds one head's parser and no timer but its deadline. An exchange holds at most one head,
one read of what comes after it, one body and one answer, or one piece of it.
"""

import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, closing, nullcontext
from typing import TypeAlias, TypeVar

import trio
from msgspec import Struct

from ..errors import RequestError
from .parsing import Body, HeadParser, LengthBody, body_of
from .request import Request
from .response import CONTINUE, LAST_CHUNK, Response, chunk_of, error_response, has_content, head_of
from .stream import ClientStream

logger = logging.getLogger(__name__)

_READ_BYTES = 65_536
"""One read: trio's own default, so a whole body of 8 MiB is 128 of them."""
_NOTHING = nullcontext()

T = TypeVar("T")


class HttpLimits(Struct, frozen=True):
    """How much, and how long, one connection may take. Each time is a deadline for the whole of its act."""

    max_head_bytes: int = 16_384
    """Request line and headers."""
    head_seconds: float = 10.0
    """From a head's first byte, or the opening of the connection, to the head's end: nobody types it by hand."""
    idle_seconds: float = 75.0
    """Waiting for the next request: longer than the 60 s for which common proxies keep a connection."""
    body_seconds: float = 30.0
    """A whole body: 8 MiB at 280 kB/s."""


class PeerGoneError(Exception):
    """The client left, or took too long to read: nobody is there to answer. An ordinary end; let it pass."""


def _tell_nobody(_: RequestError) -> None:
    pass


Handler: TypeAlias = Callable[[Request], Awaitable[Response | T]]
"""Answers a request, or takes its connection over by returning anything that is no `Response`."""


async def serve_http(
    stream: ClientStream,
    handle: Handler[T],
    limits: HttpLimits,
    under_way: AbstractContextManager[None] = _NOTHING,
    refused: Callable[[RequestError], None] = _tell_nobody,
) -> tuple[T, bytes] | None:
    """Serve exchanges on ``stream`` until it ends, or until ``handle`` takes it over.

    Returns None after the end: the client left, a deadline passed, or an answer closed the connection. Returns
    the object if ``handle`` returned no `Response`, with what was read after its head: then nothing was sent. The
    stream is left open: closing it well, so that the last answer is seen, is the caller's.

    A `RequestError` from ``handle`` is answered; any other exception is logged, answered with 500 and closes.
    ``under_way`` is entered again for each request, until the last piece of its answer is sent. ``refused`` is told of
    each head that was refused before there was a request.
    """
    connection = _Connection(stream, limits)
    try:
        return await _exchanges(connection, stream, handle, under_way, refused)
    except PeerGoneError:
        return None


async def _exchanges(
    connection: "_Connection",
    stream: ClientStream,
    handle: Handler[T],
    under_way: AbstractContextManager[None],
    refused: Callable[[RequestError], None],
) -> tuple[T, bytes] | None:
    while True:
        try:
            request = await connection.read_request()
        except RequestError as error:
            await stream.come_in()  # the time of thousands may be over at once
            refused(error)
            await connection.answer(None, error_response(error, close=True))
            return None
        if request is None:
            await stream.come_in()  # likewise
            return None
        with under_way, closing(request):
            answer = await _ask(handle, request)
            request.forget_body()
            if not isinstance(answer, Response):
                return answer, connection.take_rest()
            await stream.come_in()  # one event may be the answer to hundreds
            if not await connection.answer(request, answer):
                return None


async def _ask(handle: Handler[T], request: Request) -> Response | T:
    try:
        return await handle(request)
    except RequestError as error:
        return error_response(error)
    except PeerGoneError:
        raise
    except Exception:
        logger.exception("Answering %s %s failed", request.method, request.path)
        return error_response(RequestError("internal", "The broker failed at this request"), close=True)


class _Connection:
    """The stream, what was read of it and not yet used, and the request under way. It is that request's `Wire`."""

    def __init__(self, stream: ClientStream, limits: HttpLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._remote = stream.remote
        self._waiting = bytearray()
        self._body: Body = LengthBody(0)
        self._body_ends_by = math.inf
        self._client_waits = False
        """Whether it sends its body only after a 100."""
        self._left = False
        self._head_starts_by = self._head_ends_by = trio.current_time() + limits.head_seconds

    # --- requests

    async def read_request(self) -> Request | None:
        """Read the next head. None if no byte of it came in time; raises `RequestError` if it is bad or slow."""
        parser = HeadParser(self._limits.max_head_bytes)
        request = None
        if self._waiting:
            await trio.lowlevel.checkpoint()  # between requests that came together
            request = parser.take(self._waiting)
        if request is None:
            request = await self._receive_request(parser)
        if request is not None:
            self._head_starts_by, self._head_ends_by = math.inf, math.inf
            self._expect_body(request)
        return request

    async def _receive_request(self, parser: HeadParser) -> Request | None:
        request = await self._receive_request_in_time(parser)
        if request is None and self._stream.has_unread:
            # It came in time: it was this side that had so much to do.
            self._head_ends_by = trio.current_time() + self._limits.head_seconds
            self._head_starts_by = self._head_ends_by
            request = await self._receive_request_in_time(parser)
        if request is None and parser.begun:
            raise RequestError("timeout_reading", "The request's head came too slowly")
        return request

    async def _receive_request_in_time(self, parser: HeadParser) -> Request | None:
        request = None
        with trio.CancelScope(deadline=self._head_deadline() if parser.begun else self._head_starts_by) as reading:
            while request is None:
                begun = parser.begun
                await self._receive()
                request = parser.take(self._waiting)
                if request is None and parser.begun and not begun:
                    reading.deadline = self._head_deadline()
        return request

    def _head_deadline(self) -> float:
        return min(self._head_ends_by, trio.current_time() + self._limits.head_seconds)

    def _expect_body(self, request: Request) -> None:
        request.remote, request.wire = self._remote, self
        self._body = body_of(request, self._limits.max_head_bytes)
        self._body_ends_by = math.inf
        self._client_waits = b"100-continue" in request.tokens(b"expect") and request.http_version == "1.1"

    async def read_piece(self) -> bytes:
        """Return the next piece of the body, b"" at its end. Raises `RequestError`, `PeerGoneError`."""
        while not self._body.ended:
            piece = self._body.take(self._waiting)
            if piece is None:
                await self._receive_body()
            elif self._waiting:
                await trio.lowlevel.cancel_shielded_checkpoint()  # between steps, and nothing that was taken is lost
            if piece:
                return piece
        return b""

    async def _receive_body(self) -> None:
        if self._client_waits:
            await self._send(CONTINUE, self._limits.body_seconds)
            self._client_waits = False
        self._body_ends_by = min(self._body_ends_by, trio.current_time() + self._limits.body_seconds)
        with trio.move_on_at(self._body_ends_by) as reading:
            await self._receive()
        if reading.cancelled_caught and not await self._had_no_turn():
            raise RequestError("timeout_reading", "The request's body came too slowly")

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerGoneError from None
        if not data:
            raise PeerGoneError
        self._waiting += data

    async def _had_no_turn(self) -> bool:
        """Take what came in time, and waited for its turn when the time was over; return whether there was any."""
        if not self._stream.has_waiting:
            return False
        await self._stream.come_in()
        await self._receive()
        return True

    def take_rest(self) -> bytes:
        """Return what was read and not used: it is of the protocol that comes next."""
        rest = bytes(self._waiting)
        self._waiting.clear()
        return rest

    async def unless_client_leaves(self, act: Callable[[], Awaitable[T]]) -> T:
        """Return what ``act`` returns; cancel it and raise `PeerGoneError` if the client leaves meanwhile."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                result = await act()
            except Exception as error:  # leaves the nursery bare, not in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # its frames, of which this is one, hold the request
        if self._left:
            raise PeerGoneError
        return result

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Cancel a scope when the client leaves; of one that sends on, no more is read than a head's length."""
        try:
            while len(self._waiting) < self._limits.max_head_bytes:
                await self._receive()
        except PeerGoneError:
            self._left = True
            scope.cancel()

    # --- answers

    async def answer(self, request: Request | None, answer: Response) -> bool:
        """Send an answer; None stands for a request that was not understood. Returns whether the connection goes on."""
        goes_on = request is not None and not answer.close and self._may_go_on_after(request)
        chunked = request is not None and request.http_version == "1.1"
        head = head_of(answer, time.time(), close=not goes_on, chunked=chunked)
        with_body = has_content(answer) and not (request is not None and request.method == "HEAD")
        if isinstance(answer.body, bytes):
            await self._send_whole(head, answer.body if with_body else b"", answer.piece_seconds)
        else:
            async with aclosing(answer.body) as pieces:
                await self._send(head, answer.piece_seconds)
                goes_on = (not with_body or await self._pieces_sent(answer, pieces, chunked)) and goes_on
        self._head_starts_by = trio.current_time() + self._limits.idle_seconds
        return goes_on

    def _may_go_on_after(self, request: Request) -> bool:
        """Whether what comes next can be a request: the body was read, and the client goes on, and does so in HTTP."""
        closes = request.http_version == "1.0" or b"close" in request.tokens(b"connection")
        return self._body.ended and not closes and not request.asks_for(b"websocket")

    async def _pieces_sent(self, answer: Response, pieces: AsyncGenerator[bytes, None], chunked: bool) -> bool:
        """Send a body in pieces until it ends or the client leaves. Returns False if it broke off, which is logged."""

        async def send() -> None:
            async for piece in pieces:
                if piece:
                    await self._send(chunk_of(piece) if chunked else piece, answer.piece_seconds)
                await trio.lowlevel.checkpoint()
            if chunked:
                await self._send(LAST_CHUNK, answer.piece_seconds)

        try:
            await self.unless_client_leaves(send)
        except PeerGoneError:
            raise
        except Exception:
            logger.exception("An answer in pieces broke off")
            return False
        return True

    async def _send_whole(self, head: bytes, body: bytes, seconds: float) -> None:
        """Send a short answer in one write; a long body is not copied for that."""
        if len(body) > _READ_BYTES:
            await self._send(head, seconds)
            await self._send(body, seconds)
        else:
            await self._send(head + body, seconds)

    async def _send(self, data: bytes, seconds: float) -> None:
        """Send at once what the kernel takes at once: for a short answer this is no checkpoint."""
        taken = self._stream.write_nowait(data)
        if taken == len(data):
            return
        with trio.move_on_after(seconds) as sending:
            try:
                # What the kernel took a part of, the stream writes to its end.
                await self._stream.send_all(b"" if taken else data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise PeerGoneError from None
        if sending.cancelled_caught:
            raise PeerGoneError
