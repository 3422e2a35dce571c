"""What a thousand clients of one key may do all at once, over WebSockets and event streams."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from .client import UnexpectedError, WebSocket, command, connected, cut, opened, send
from .row import MEBIBYTE, WINDOW_BYTES, Row
from .subscribing import EVENTS, event, publish
from .target import LISTENER, Target

CLIENTS = 1_000
PIECE_BYTES = 65_536
UNREAD = 20
UNREAD_BYTES = MEBIBYTE
"""What the broker and its kernel may keep of what one client does not read."""


class EventStream:
    """A client of an event stream. What comes is looked at only for what is waited for."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def until(self, words: bytes, times: int = 1) -> None:
        """Read until these words came so many times. Raises `UnexpectedError` at the end."""
        tail = b""
        while times > 0:
            data = await self.stream.receive_some(PIECE_BYTES)
            if not data:
                raise UnexpectedError(f"the event stream ended before {words!r} came: {tail[:200]!r}")
            tail += data
            times -= tail.count(words)
            tail = tail[tail.rfind(words) + len(words) :] if words in tail else tail[-len(words) :]


@asynccontextmanager
async def event_stream(target: Target, query: str = "") -> AsyncIterator[EventStream]:
    """Open an event stream, and read until it is ready. Raises `UnexpectedError` if it is refused."""
    lines = [f"GET /v1/events/stream{query} HTTP/1.1", f"Host: {target.host}", f"Authorization: Bearer {LISTENER}"]
    async with connected(target) as stream:
        await send(stream, "\r\n".join([*lines, "", ""]).encode())
        opened_one = EventStream(stream)
        await opened_one.until(b"connection.ready")
        yield opened_one


async def event_streams(stack: AsyncExitStack, target: Target, count: int, query: str = "") -> list[EventStream]:
    """Open so many event streams, until the stack is closed."""
    return [await stack.enter_async_context(event_stream(target, query)) for _ in range(count)]


async def all_read(streams: Sequence[EventStream], words: bytes, times: int) -> None:
    """Let each read until these words came to it so many times."""
    async with trio.open_nursery() as nursery:
        for one in streams:
            nursery.start_soon(one.until, words, times)


async def cut_event_streams(target: Target) -> None:
    """Open event streams, and cut them all at once."""
    async with AsyncExitStack() as stack:
        cut([one.stream for one in await event_streams(stack, target, CLIENTS)])


async def fed_event_streams(target: Target, events: int = 20) -> None:
    """Publish events that go to 1,000 event streams each."""
    async with AsyncExitStack() as stack:
        streams = await event_streams(stack, target, CLIENTS, "?inbox_ids=in_1")
        for _ in range(events):
            await publish(target, event("in_1"))
        await all_read(streams, b"payload", events)


async def unread_event_streams(target: Target) -> None:
    """Have the whole window replayed to event streams, and read nothing of it."""
    for _ in range(3):
        await publish(target, [event("in_1", text="x" * 5_000) for _ in range(1_000)])
    async with AsyncExitStack() as stack:
        await event_streams(stack, target, UNREAD, "?inbox_ids=in_1&since=5m")
        await trio.sleep(1)


async def filtered_event_streams(target: Target, streams: int = 100) -> None:
    """Have 10,000 events replayed to each of 100 event streams, of which none passes its filter."""
    await publish(target, [event("in_1") for _ in range(EVENTS)])
    async with AsyncExitStack() as stack:
        for number in range(streams):
            query = f"?inbox_ids=in_1&since=5m&event_types=n{number}.*,last"
            await stack.enter_async_context(event_stream(target, query))
        await trio.sleep(0.5)


async def websockets(stack: AsyncExitStack, target: Target) -> list[WebSocket]:
    """Open 1,000 WebSockets, until the stack is closed."""
    return [await stack.enter_async_context(opened(target, LISTENER)) for _ in range(CLIENTS)]


async def say_at_once(clients: Sequence[WebSocket], frame: bytes) -> None:
    """Send a command on all of them, and then read its answers."""
    for websocket in clients:
        await send(websocket.stream, frame)
    for websocket in clients:
        await websocket.answer("r")


async def pings_at_once(target: Target, times: int = 5) -> None:
    """Ask for a pong on 1,000 WebSockets at once, five times."""
    async with AsyncExitStack() as stack:
        clients = await websockets(stack, target)
        for _ in range(times):
            await say_at_once(clients, command(action="ping", request_id="r"))


async def replays_at_once(target: Target, events: int = 500) -> None:
    """Ask for a replay of 500 events on 1,000 WebSockets at once."""
    await publish(target, [event("in_1", text="x" * 200) for _ in range(events)])
    async with AsyncExitStack() as stack:
        clients = await websockets(stack, target)
        await say_at_once(clients, command(action="subscribe", request_id="r", inbox_ids=["in_1"], since="5m"))


ROWS = [
    Row("cut-event-streams", "subscribe key: 1,000 event streams, cut at once", cut_event_streams),
    Row("fed-event-streams", "subscribe key: 20 events for 1,000 event streams each", fed_event_streams),
    Row(
        "unread-event-streams",
        "subscribe key: 20 event streams replay 15 MB, and nothing is read",
        unread_event_streams,
        may_hold_bytes=WINDOW_BYTES + UNREAD * UNREAD_BYTES,
    ),
    Row(
        "filtered-event-streams",
        "subscribe key: 100 event streams over 10,000 events that are filtered",
        filtered_event_streams,
    ),
    Row("pings-at-once", "subscribe key: a ping on 1,000 streams at once", pings_at_once),
    Row("replays-at-once", "subscribe key: a replay of 500 events on 1,000 streams at once", replays_at_once),
]
