"""A small client of the stream protocol, for the command line and the demo: it comes back by itself.

After a lost connection it opens the stream again with the last cursor it saw, so nothing is missed within the
replay window. It says why it waits, and for how long.
"""

import json
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import trio
import trio_websocket
from msgspec import Struct

from ..errors import BrokerError, CloseCode, first_of
from .exact import read_json

CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 1.0
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Between two tries: shorter than a library's, for a person looks on."""
RESEND_SECONDS: Final = 0.1
MAX_MESSAGE_BYTES: Final = 16_777_216
STAY_AWAY_STATUSES: Final = frozenset({400, 401, 403, 404, 426})
"""After these a try is of no use, here as in every client library (clients/README.md)."""
STAY_AWAY_CODES: Final = frozenset(int(code) for code in CloseCode if not code.come_back)

Say = Callable[[str], None]


class RefusedError(BrokerError):
    """The server will not have this client: ``status`` is of HTTP, or a close code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class LostError(BrokerError):
    """There is no connection now, but may be later: why, and after how long it is worth a try."""

    def __init__(self, why: str, pause_seconds: float | None = None) -> None:
        super().__init__(why)
        self.pause_seconds = pause_seconds


class StreamRequest(Struct, frozen=True):
    """What to open: the server (``ws://host:port``), the key, and the query of PROTOCOL section 2.

    ``trust`` says whose certificates are taken at ``wss://``; None: those of the system's authorities.
    """

    url: str
    key: str
    inbox_ids: tuple[str, ...] = ("*",)
    since: str | None = None
    event_types: tuple[str, ...] = ()
    trust: ssl.SSLContext | None = None

    def at(self, cursor: str | None) -> str:
        """Return the URL that opens this stream, after ``cursor`` if there is one."""
        query = {"inbox_ids": ",".join(self.inbox_ids), "event_types": ",".join(self.event_types)}
        query["since"] = cursor or self.since or ""
        present = {name: value for name, value in query.items() if value}
        return f"{self.url.rstrip('/')}/v1/stream?{urlencode(present, quote_via=quote, safe=':,*@')}"


class _Progress(Struct):
    """What a client must know to come back: the last cursor, how often it failed, and how long it was told to wait."""

    cursor: str | None = None
    failures: int = 0
    pause_ms: int = 0

    def note(self, frame: dict[str, Any]) -> None:
        self.failures = 0
        after = frame.get("to") if frame.get("type") == "replay.gap" else frame.get("cursor")
        self.cursor = after or self.cursor
        self.pause_ms = frame.get("reconnect_after_ms", self.pause_ms)

    def seconds_to_wait(self, asked_seconds: float = 0.0) -> float:
        """Return a random time, up to twice as long after each failure, and at least what is asked for."""
        self.failures += 1
        pause_ms, self.pause_ms = self.pause_ms, 0
        if pause_ms:
            return float(pause_ms) / 1000
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 30))
        return asked_seconds + random.uniform(0, longest)


class Stream:
    """A stream that is kept open. Iterate over it to get frames; answers to commands are among them."""

    def __init__(self, frames: trio.MemoryReceiveChannel[dict[str, Any]]) -> None:
        self._frames = frames
        self._websocket: trio_websocket.WebSocketConnection | None = None
        self._connected = trio.Event()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await self._frames.receive()

    async def send(self, command: dict[str, Any]) -> None:
        """Send a command as soon as there is a connection. With a `request_id` it may be sent again without fear."""
        while True:
            await self._connected.wait()
            assert self._websocket is not None
            try:
                return await self._websocket.send_message(json.dumps(command))
            except trio_websocket.ConnectionClosed:
                await trio.sleep(RESEND_SECONDS)

    @contextmanager
    def over(self, websocket: trio_websocket.WebSocketConnection) -> Iterator[None]:
        """Send over this connection for as long as it lasts."""
        self._websocket = websocket
        self._connected.set()
        try:
            yield
        finally:
            self._connected = trio.Event()
            self._websocket = None


@asynccontextmanager
async def open_stream(request: StreamRequest, say: Say, *, retry: bool = True) -> AsyncIterator[Stream]:
    """Keep a stream open for as long as the block lasts, over as many connections as it takes.

    ``say`` gets why there is none, and when the next try is. Raises, in an exception group, `RefusedError` if the
    server will not have this client, and, without ``retry``, `LostError` where another would be tried.
    """
    send, receive = trio.open_memory_channel[dict[str, Any]](0)
    stream = Stream(receive)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_open, request, stream, send, say, retry)
        yield stream
        nursery.cancel_scope.cancel()


async def _keep_open(
    request: StreamRequest, stream: Stream, frames: trio.MemorySendChannel[dict[str, Any]], say: Say, retry: bool
) -> None:
    progress = _Progress()
    while True:
        try:
            with _as_broker_errors(request.url):
                await _receive(request, stream, progress, frames)
        except LostError as lost:
            if not retry:
                raise
            seconds = progress.seconds_to_wait(lost.pause_seconds or 0.0)
            say(f"{lost}; the next try is in {seconds:.1f} s")
            await trio.sleep(seconds)


@contextmanager
def _as_broker_errors(url: str) -> Iterator[None]:
    """Turn all that ends a connection, or keeps it from being made, into `RefusedError` or `LostError`."""
    try:
        yield
    except trio_websocket.ConnectionRejected as rejected:
        raise _refusal(rejected) from None
    except trio_websocket.ConnectionClosed as closed:
        code = None if closed.reason is None else closed.reason.code
        why = (closed.reason and closed.reason.reason) or "the connection was lost"
        if code in STAY_AWAY_CODES:
            raise RefusedError(int(code or 0), why) from None
        raise LostError(why if code is None else f"{code}: {why}") from None
    except (trio_websocket.ConnectionTimeout, trio.TooSlowError):
        raise LostError(f"{url} did not answer within {CONNECT_SECONDS:g} s") from None
    except (trio_websocket.HandshakeError, trio.BrokenResourceError, OSError) as error:
        raise LostError(f"{url}: {_words(error)}") from None


class SingleConnection:
    """One connection, for who looks at it closely: it does not come back. All raise `RefusedError` or `LostError`."""

    def __init__(self, url: str, websocket: trio_websocket.WebSocketConnection) -> None:
        self._url = url
        self._websocket = websocket

    async def next(self) -> dict[str, Any]:
        """Return the next frame."""
        with _as_broker_errors(self._url):
            frame: dict[str, Any] = json.loads(await self._websocket.get_message())
            return frame

    async def say(self, **fields: Any) -> None:
        """Send a command."""
        with _as_broker_errors(self._url):
            await self._websocket.send_message(json.dumps(fields))


@asynccontextmanager
async def open_single(
    request: StreamRequest, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], **query: str
) -> AsyncIterator[SingleConnection]:
    """Open a stream once, over a connection that is made already; it is cut, without a goodbye, when the block ends.

    ``query`` is added to that of the request. Raises `RefusedError` or `LostError`.
    """
    where = urlsplit(request.at(None))
    resource = f"{where.path}?{'&'.join(filter(None, [where.query, urlencode(query)]))}"
    try:
        async with trio.open_nursery() as nursery:
            try:
                with _as_broker_errors(request.url), trio.fail_after(CONNECT_SECONDS):
                    websocket = await trio_websocket.wrap_client_stream(
                        nursery,
                        stream,
                        where.netloc,
                        resource,
                        extra_headers=[(b"Authorization", f"Bearer {request.key}".encode())],
                        max_message_size=MAX_MESSAGE_BYTES,
                    )
                yield SingleConnection(request.url, websocket)
            finally:
                await trio.aclose_forcefully(stream)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        with _as_broker_errors(request.url):
            raise first_of(group) from None


async def _receive(
    request: StreamRequest, stream: Stream, progress: _Progress, frames: trio.MemorySendChannel[dict[str, Any]]
) -> None:
    """Hand on the frames of one connection until it is lost, which raises."""
    over_tls = request.url.startswith("wss:")
    if over_tls:
        await _require_tls(request)
    async with trio_websocket.open_websocket_url(
        request.at(progress.cursor),
        ssl_context=request.trust if over_tls else None,
        extra_headers=[(b"Authorization", f"Bearer {request.key}".encode())],
        max_message_size=MAX_MESSAGE_BYTES,
        connect_timeout=CONNECT_SECONDS,
        disconnect_timeout=CLOSE_SECONDS,
    ) as websocket:
        with stream.over(websocket):
            try:
                while True:
                    frame = read_json(await websocket.get_message())
                    await frames.send(frame)
                    progress.note(frame)
            except trio.Cancelled:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await websocket.aclose()  # a goodbye, so that the server need not guess
                raise


async def _require_tls(request: StreamRequest) -> None:
    """Shake hands on a connection of its own: where that fails, trio-websocket does not say why, and waits in vain."""
    where, trust = urlsplit(request.url), request.trust or ssl.create_default_context()
    with trio.fail_after(CONNECT_SECONDS):
        stream = await trio.open_ssl_over_tcp_stream(
            where.hostname or "", where.port or 443, ssl_context=trust, https_compatible=True
        )
        try:
            await stream.do_handshake()
        finally:
            await trio.aclose_forcefully(stream)


def _refusal(rejected: trio_websocket.ConnectionRejected) -> RefusedError | LostError:
    """Return what an answer of HTTP means for a client."""
    status = rejected.status_code
    try:
        message = str(json.loads(rejected.body or b"")["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = "the server there will not open a stream; is it a broker?"
    if status in STAY_AWAY_STATUSES:
        return RefusedError(status, message)
    after = dict(rejected.headers or ()).get(b"retry-after", b"")
    return LostError(f"{status}: {message}", float(after) if after.isdigit() else None)


def _words(error: BaseException) -> str:
    """Return why there is no connection, from under what trio and trio-websocket wrapped around it."""
    cause = error
    while cause.__cause__ is not None or isinstance(cause, BaseExceptionGroup):
        cause = first_of(cause.__cause__ or cause)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, trio.BrokenResourceError):
        return "the connection broke"
    words = getattr(cause, "strerror", None) or "what answers there is no WebSocket server"
    return str(words).rpartition(": ")[2]
