"""HTTP/1.1 on one trio stream, by h11 (RFC 9112): heads, bodies, answers, deadlines.

Here lives what every exchange needs whatever it is about. Not here: routes, credentials and what an
answer says (endpoints), listeners and who closes the stream (server), WebSocket frames (trio-websocket).

One head, one judge: h11 parses the head here; an accepted upgrade's bytes (`Request.raw`) are then put back
for trio-websocket, which parses them again with wsproto.

Costs: an idle connection holds one h11 parser and no timer but its deadline. An exchange holds at most one head,
one read, one body (``max_body_bytes``) and one answer. Nothing of a header or a query is ever logged: keys are there.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote

import h11
import msgspec
import trio
from msgspec import Struct

from ..errors import RequestError

logger = logging.getLogger(__name__)

_READ_BYTES = 65_536
"""One read: trio's own default, so a whole body of 8 MiB is 128 of them."""

_WITHOUT_CONTENT = frozenset({204, 304})

T = TypeVar("T")


class HttpLimits(Struct, frozen=True):
    """How much, and how long, one connection may take. Each time is a deadline for the whole of its act."""

    max_head_bytes: int = 16_384
    """Request line and headers: h11's own default, and what wsproto will take behind us."""
    max_body_bytes: int = 8_388_608
    """A request's body (PROTOCOL section 7, ``limits.max_body_bytes``)."""
    head_seconds: float = 10.0
    """From a head's first byte, or the opening of the connection, to the head's end: nobody types it by hand."""
    idle_seconds: float = 75.0
    """Waiting for the next request: longer than the 60 s for which common proxies keep a connection."""
    body_seconds: float = 30.0
    """A whole body: 8 MiB at 280 kB/s."""
    send_seconds: float = 10.0
    """A whole answer, to a client that may not read it."""
    linger_seconds: float = 2.0
    """Reading on after the last answer: a round trip or two, so that the client sees it and no reset."""


class Response(Struct, frozen=True):
    """An answer. Content-Length, Content-Type and Cache-Control are added when it is sent."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"


class PeerGoneError(Exception):
    """The client left, or took too long to read: nobody is there to answer. An ordinary end; let it pass."""


async def _no_body() -> bytes:
    return b""


@dataclass(slots=True, eq=False)
class Request:
    """One request, its head parsed and its body not yet read.

    ``path`` and ``query_string`` are as sent, not decoded; header names are lower-case. ``raw`` starts with this
    head's exact bytes and ends with the last byte read so far: for an upgrade it is what the next parser must be given.
    """

    method: str
    path: str
    query_string: str = field(default="", repr=False)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list, repr=False)
    http_version: bytes = b"1.1"
    raw: bytes = field(default=b"", repr=False)
    head_bytes: int = 0
    remote: str | None = None
    """The client's address, if it is known."""
    read_body: Callable[[], Awaitable[bytes]] = field(default=_no_body, repr=False)
    _query: dict[str, str] | None = field(default=None, repr=False)

    def header(self, name: bytes) -> bytes | None:
        """Return the only value of a header (``name`` in lower case), or None. Two of it raise `RequestError`."""
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise RequestError("bad_request", f"The header {name.decode('ascii')} stands twice")
        return values[0] if values else None

    def query(self) -> dict[str, str]:
        """Return the query, percent-decoded strictly as UTF-8; '+' stays '+'. Parsed once.

        Raises `RequestError` naming the field if one stands twice (PROTOCOL section 1) or is not UTF-8.
        """
        if self._query is None:
            self._query = _parse_query(self.query_string)
        return self._query

    async def body(self) -> bytes:
        """Read the whole body, asking for it with 100-continue if the client waits for that (RFC 9110 section 10.1.1).

        Raises `RequestError`: ``too_large`` (before anything is read if Content-Length says so), ``timeout_reading``,
        ``bad_request`` if its framing is broken; `PeerGoneError` if the client leaves. May be called again.
        """
        return await self.read_body()

    def has_body(self) -> bool:
        """Whether the head announces a body (RFC 9112 section 6.3); Content-Length 0 is none."""
        length = self.header(b"content-length")
        return self.header(b"transfer-encoding") is not None or int(length or 0) != 0


Handler: TypeAlias = Callable[[Request], Awaitable[Response | T]]
"""Answers a request, or takes its connection over by returning anything that is no `Response`."""


async def serve_http(
    stream: trio.abc.Stream, handle: Handler[T], limits: HttpLimits, remote: str | None = None
) -> tuple[Request, T] | None:
    """Serve exchanges on ``stream`` until it ends, or until ``handle`` takes it over.

    Returns None after the end: the client left, a deadline passed, or an answer closed the connection. Returns
    the request and the object if ``handle`` returned no `Response`: then nothing was sent, and ``request.raw``
    is to be put back. Never closes ``stream`` but for the half-close after a last answer.

    A `RequestError` from ``handle`` is answered; any other exception is logged, answered with 500 and closes.
    """
    connection = _Connection(stream, limits, remote)
    try:
        return await _exchanges(connection, handle)
    except PeerGoneError:
        return None


def json_response(result: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return ``{"result": ...}`` (PROTOCOL, preface), encoded by msgspec."""
    return Response(status, msgspec.json.encode({"result": result}), headers)


def error_response(error: RequestError) -> Response:
    """Return ``{"error": ...}`` with the error's status and headers, and Retry-After (whole seconds, rounded up)."""
    headers = error.headers
    if error.retry_after_ms is not None and not any(name.lower() == "retry-after" for name, _ in headers):
        headers = (*headers, ("Retry-After", str(-(-error.retry_after_ms // 1000))))
    return Response(error.status, msgspec.json.encode({"error": error.as_json()}), headers)


def _parse_query(query_string: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for pair in filter(None, query_string.split("&")):
        encoded_name, _, encoded_value = pair.partition("=")
        name = unquote(encoded_name, errors="backslashreplace")
        try:
            unquote(encoded_name, errors="strict")
            value = unquote(encoded_value, errors="strict")
        except UnicodeDecodeError:
            raise RequestError("bad_request", f"The query's {name!r} is not UTF-8") from None
        if name in fields:
            raise RequestError("bad_request", f"The query's {name!r} stands twice")
        fields[name] = value
    return fields


async def _exchanges(connection: "_Connection", handle: Handler[T]) -> tuple[Request, T] | None:
    answer: Response | T
    while True:
        try:
            request = await connection.read_head()
        except RequestError as error:
            answer = error_response(error)
        else:
            if request is None:
                return None
            answer = await _ask(handle, request)
            if not isinstance(answer, Response):
                return request, answer
        await connection.send(answer)
        if not connection.start_next_cycle():
            await connection.linger()
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
        message = "The broker failed at this request"
        return error_response(RequestError("internal", message, headers=(("Connection", "close"),)))


class _Connection:
    """The stream, h11's state of it, and the head and the body of the request under way."""

    def __init__(self, stream: trio.abc.Stream, limits: HttpLimits, remote: str | None) -> None:
        self._stream = stream
        self._limits = limits
        self._remote = remote
        self._h11 = h11.Connection(h11.SERVER, limits.max_head_bytes)
        self._head_starts_by = self._head_ends_by = trio.current_time() + limits.head_seconds
        self._raw = bytearray()
        self._body = bytearray()
        self._method = b""

    async def read_head(self) -> Request | None:
        """Read the next head. None if no byte of it came in time; raises `RequestError` if it is bad or slow."""
        if not self._raw:
            with trio.move_on_at(self._head_starts_by) as waiting:
                self._raw += await self._receive()
            if waiting.cancelled_caught:
                return None
        with trio.move_on_at(min(self._head_ends_by, trio.current_time() + self._limits.head_seconds)) as reading:
            while (event := self._next_event()) is h11.NEED_DATA:
                self._raw += await self._receive()
        if reading.cancelled_caught:
            raise RequestError("timeout_reading", "The request's head came too slowly")
        assert isinstance(event, h11.Request)
        return self._make_request(event)

    def _make_request(self, head: h11.Request) -> Request:
        self._method = head.method
        head_bytes = len(self._raw) - len(self._h11.trailing_data[0])
        if head_bytes > self._limits.max_head_bytes:
            # h11 looks at the limit only while a head is incomplete
            raise RequestError("head_too_large", f"A head may have {self._limits.max_head_bytes} bytes")
        path, _, query_string = head.target.decode("ascii").partition("?")
        request = Request(
            method=head.method.decode("ascii"),
            path=path,
            query_string=query_string,
            headers=list(head.headers),
            http_version=head.http_version,
            raw=bytes(self._raw),
            head_bytes=head_bytes,
            remote=self._remote,
        )
        length = request.header(b"content-length")
        if head.method == b"CONNECT" or (length and request.header(b"transfer-encoding")):
            # a proxy before us might see another body's end than h11 does (RFC 9112 section 6.1)
            raise RequestError("bad_request", "No CONNECT, and no Content-Length beside Transfer-Encoding")
        if request.has_body():
            request.read_body = partial(self._read_body, int(length or 0))
        else:
            self._next_event()
        return request

    async def _read_body(self, announced_bytes: int) -> bytes:
        too_large = RequestError("too_large", f"A body may have {self._limits.max_body_bytes} bytes")
        if announced_bytes > self._limits.max_body_bytes:
            raise too_large
        with trio.move_on_after(self._limits.body_seconds) as reading:
            while self._h11.their_state in (h11.SEND_BODY, h11.ERROR):
                await self._read_body_event()
                # one read may hold 10,000 one-byte chunks, 9 µs each: others get their turn between them
                await trio.lowlevel.checkpoint()
                if len(self._body) > self._limits.max_body_bytes:
                    raise too_large
        if reading.cancelled_caught:
            raise RequestError("timeout_reading", "The request's body came too slowly")
        return bytes(self._body)

    async def _read_body_event(self) -> None:
        event = self._next_event()
        if isinstance(event, h11.Data):
            self._body += event.data
        elif event is h11.NEED_DATA:
            if self._h11.they_are_waiting_for_100_continue:
                await self._send_bytes(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))
            await self._receive()

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        in_head = self._h11.their_state is h11.IDLE
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            # h11's messages quote the header at fault, and with it keys
            if in_head and error.error_status_hint == 431:
                raise RequestError("head_too_large", "The request's head is too large") from None
            raise RequestError("bad_request", "The request is not well-formed HTTP/1.1") from None

    async def _receive(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(_READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerGoneError from None
        if not data:
            raise PeerGoneError
        self._h11.receive_data(data)
        return data

    async def send(self, answer: Response) -> None:
        """Send an answer whole, with Connection: close if the request was not read to its end."""
        headers = [("Cache-Control", "no-store"), *answer.headers]
        if answer.status not in _WITHOUT_CONTENT:
            headers += [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        if self._h11.their_state in (h11.IDLE, h11.SEND_BODY, h11.ERROR):
            headers.append(("Connection", "close"))
        data = self._h11.send(h11.Response(status_code=answer.status, headers=headers))
        if answer.status not in _WITHOUT_CONTENT and self._method != b"HEAD":
            data += self._h11.send(h11.Data(data=answer.body))
        await self._send_bytes(data + self._h11.send(h11.EndOfMessage()))

    async def _send_bytes(self, data: bytes) -> None:
        with trio.move_on_after(self._limits.send_seconds) as sending:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise PeerGoneError from None
        if sending.cancelled_caught:
            raise PeerGoneError

    def start_next_cycle(self) -> bool:
        """Make ready for the next request. Returns False if the connection must end."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        self._head_starts_by = trio.current_time() + self._limits.idle_seconds
        self._head_ends_by = math.inf
        self._raw = bytearray(self._h11.trailing_data[0])
        self._body = bytearray()
        return True

    async def linger(self) -> None:
        """Half-close and read on for a while: closing over unread bytes resets the answer (RFC 9112 section 9.6)."""
        with trio.move_on_after(self._limits.linger_seconds):
            try:
                if isinstance(self._stream, trio.abc.HalfCloseableStream):
                    await self._stream.send_eof()
                while await self._stream.receive_some(_READ_BYTES):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
