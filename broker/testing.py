"""A broker's clients without a network, for the tests of a program that embeds a broker.

    async with open_broker(config()) as broker, connect(broker) as client:
        await broker.publish(ACCOUNT, {"type": "message.received", "inbox_id": "inbox_a", "payload": {}})
        event = await client.receive()

The bytes are those of a real connection, over a pair of streams in memory. Nothing here sleeps: under a
`trio.testing.MockClock` that jumps by itself minutes pass in no time.
"""

import json
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote, urlencode

import trio
import trio_websocket
from trio.testing import memory_stream_pair

from .broker import Broker
from .config import AccountConfig, Config, KeyConfig
from .errors import RequestError, first_of
from .keys import hash_key
from .transport.server import serve_stream

ACCOUNT: Final = "acct_test"
KEY: Final = "dm_live_for_tests"
"""Reaches the whole of `ACCOUNT`."""
CLOSE_SECONDS: Final = 1.0


def config(**sections: Any) -> Config:
    """Return a configuration with `ACCOUNT`, of the tier `enterprise`, and its `KEY`; ``sections`` are the others."""
    account = AccountConfig(id=ACCOUNT, tier="enterprise", keys=(KeyConfig(id="key_test", sha256=hash_key(KEY)),))
    return Config(**({"accounts": (account,)} | sections))


_UNREAD: Final = 1_000_000
"""Frames that a test may leave unread: its client still answers pings, as a socket's kernel acknowledges them."""


class SlowStream(trio.abc.HalfCloseableStream):
    """A stream that writes only as much as it may, as a socket whose peer does not read.

    ``room_bytes`` is what it takes; then a writer waits until `take` or `flow` make more room. Reading is not slowed.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream, room_bytes: float = math.inf) -> None:
        self._stream = stream
        self._room = room_bytes
        self._changed = trio.lowlevel.ParkingLot()

    def stall(self) -> None:
        """Take nothing more, from now on."""
        self._room = 0

    def take(self, size: int) -> None:
        """Take so many more bytes."""
        self._room += size
        self._changed.unpark_all()

    def flow(self) -> None:
        """Take whatever comes."""
        self._room = math.inf
        self._changed.unpark_all()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write ``data``, as much at once as there is room for."""
        await self._stream.send_all(b"")  # a closed stream is one without room, too
        rest = memoryview(data)
        while rest:
            while self._room <= 0:
                await self._changed.park()
            part = rest[: int(min(self._room, len(rest)))]
            self._room -= len(part)
            await self._stream.send_all(bytes(part))
            rest = rest[len(part) :]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        while self._room <= 0:
            await self._changed.park()
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read as the stream itself does."""
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """End this side of the stream."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream, and let who waits for room find that out."""
        self.flow()
        await self._stream.aclose()


class Client:
    """A client of a broker, connected. Made by `connect`."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection, link: SlowStream) -> None:
        self._websocket = websocket
        self._kept: deque[dict[str, Any]] = deque()
        self._asked = 0
        self.link = link
        """What the broker writes to: stall it, and this client has stopped reading."""
        self.ready: dict[str, Any] = {}
        """Its `connection.ready`."""

    def __aiter__(self) -> "Client":
        return self

    async def __anext__(self) -> dict[str, Any]:
        try:
            return await self.receive()
        except trio_websocket.ConnectionClosed:
            raise StopAsyncIteration from None

    @property
    def close_code(self) -> int | None:
        """The code that the connection was closed with (PROTOCOL section 5); None while it is open."""
        return None if self._websocket.closed is None else int(self._websocket.closed.code)

    async def receive(self) -> dict[str, Any]:
        """Return the next frame. Raises `trio_websocket.ConnectionClosed`; iterating ends instead."""
        return self._kept.popleft() if self._kept else await self._next()

    async def _next(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self._websocket.get_message())
        return frame

    async def send(self, command: Mapping[str, Any]) -> None:
        """Send a command as it is; its answer is one of the frames."""
        await self._websocket.send_message(json.dumps(command))

    async def ask(self, action: str, params: Mapping[str, Any] | None = None, **envelope: Any) -> Any:
        """Give a command and return its result. Raises `RequestError` with the code that it was refused with.

        ``envelope``: ``inbox_id``, ``request_id`` (one is made unless given). Frames that come meanwhile are kept for
        `receive`.
        """
        self._asked += 1
        request_id = envelope.setdefault("request_id", f"ask_{self._asked}")
        await self.send({"action": action, "params": params or {}, **envelope})
        while True:
            frame = await self._next()
            if frame.get("request_id") == request_id:
                break
            self._kept.append(frame)
        if "error" in frame:
            raise _refusal(frame["error"])
        return frame["result"]

    async def aclose(self) -> None:
        """Close the connection, and wait a moment for the broker's answer."""
        with trio.move_on_after(CLOSE_SECONDS):
            await self._websocket.aclose()


@asynccontextmanager
async def connect(
    broker: Broker, key: str = KEY, *, room_bytes: float = math.inf, **query: str
) -> AsyncIterator[Client]:
    """Open a stream to a broker in this process, as a client with a key (or a token) does.

    ``query`` is that of PROTOCOL section 2 (``inbox_ids="*"`` unless given); ``room_bytes``: how much the client takes
    before it stops reading, its opening's answer not counted. Raises `RequestError` if the broker refuses it.
    """
    ours, theirs = memory_stream_pair()
    link = SlowStream(theirs)
    wanted = {"inbox_ids": "*"} | query
    target = f"/v1/stream?{urlencode({name: value for name, value in wanted.items() if value}, quote_via=quote)}"
    rejected = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, broker, link)
            client = Client(await _handshake(nursery, ours, target, key), link)
            client.ready = await client.receive()
            if room_bytes < math.inf:
                link.stall()
                link.take(int(room_bytes))
            yield client
            link.flow()
            await client.aclose()
            nursery.cancel_scope.cancel()
    except* trio_websocket.ConnectionRejected as group:
        rejected = first_of(group)
    if isinstance(rejected, trio_websocket.ConnectionRejected):
        raise _refusal(json.loads(rejected.body or b"")["error"])


async def _handshake(
    nursery: trio.Nursery, stream: trio.abc.HalfCloseableStream, target: str, key: str
) -> trio_websocket.WebSocketConnection:
    sockets_stream: Any = stream  # what trio-websocket's annotation asks for; any stream will do
    headers = [(b"Authorization", f"Bearer {key}".encode())]
    return await trio_websocket.wrap_client_stream(
        nursery,
        sockets_stream,
        "broker.test",
        target,
        extra_headers=headers,
        message_queue_size=_UNREAD,
    )


def _refusal(error: Mapping[str, Any]) -> RequestError:
    return RequestError(error["code"], error["message"], retry_after_ms=error.get("retry_after_ms"))
