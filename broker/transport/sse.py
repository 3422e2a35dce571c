"""Server-Sent Events: the stream for clients that can only read (PROTOCOL section 6; the HTML standard, section 9.2).

An `EventStream` is a connection like any other: a slot, a watched key, a position in its account's log, a place in the
drain. What it says is `session`'s; only how that is written differs. It gives no commands. One task writes: the fan-out
wakes it, and it is fed from the log, so a client that stops reading costs nothing but its position.
"""

import re
from contextlib import suppress
from typing import Final

import trio

from ..access.keys import Key
from ..access.watched import Watch
from ..broker import Broker
from ..errors import CloseCode
from ..fanout.listeners import Listener, take_nothing
from ..observe.connections import ConnectionDetails, ConnectionStatistics, Ended, Link, Transport
from ..protocol.framing import frames_of
from .ending import CANCELLED, CLIENT_GONE
from .life import CLOSE_SECONDS, Admitted, Life
from .response import LAST_CHUNK, chunk_of
from .session import SILENT_SECONDS
from .stream import ClientStream

CONTENT_TYPE: Final = "text/event-stream"
HEADERS: Final = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
"""No proxy is to keep it, nor to hold it back until there is enough of it."""
RETRY_MS: Final = 1_000
"""How soon a browser comes back after a lost connection."""
COMMENT: Final = b":\n"
"""Without an empty line behind it: to some clients that would be an event without data."""
_READ_BYTES: Final = 4_096
_CURSOR: Final = re.compile(
    rb'\{"type":"[^"]*","(?:event_id":"[^"]*","(?:inbox_id":"[^"]*",")?created_at":"[^"]*","(?:traceparent":"[^"]*",")?)?cursor":"([^"]*)"'
)
"""In an event, and in `connection.cursor`: the names before it are of alphabets without quotes."""
_RECONNECT: Final = re.compile(rb'\{"type":"server\.draining","reconnect_after_ms":([0-9]+)')


def as_server_sent_events(frames: bytes) -> bytes:
    """Return what frames of our own say as Server-Sent Events: text as ``data``, with its cursor as ``id``.

    What a client must not resume from (ready, gaps) has no ``id``; a ping is a comment.
    """
    return b"".join([_event_of(payload) if is_text else COMMENT for is_text, payload in frames_of(frames)])


def _event_of(json: bytes) -> bytes:
    cursor = _CURSOR.match(json)
    if cursor is not None:
        return b"id: %b\ndata: %b\n\n" % (cursor[1], json)
    reconnect = _RECONNECT.match(json)
    if reconnect is not None:
        return b"retry: %b\ndata: %b\n\n" % (reconnect[1], json)
    return b"data: %b\n\n" % json


class EventStream:
    """One client that reads events over HTTP. ``head`` answers it; what follows is ``chunked`` or not."""

    transport: Final[Transport] = "sse"

    def __init__(self, broker: Broker, stream: ClientStream, admitted: Admitted, head: bytes, *, chunked: bool) -> None:
        self._stream = stream
        self._config = broker.settings
        self._head = head
        self._chunked = chunked
        self._life = Life(broker, admitted, Listener(take_nothing, self._wake_in_turn), self)
        self.id = self._life.id
        self.session = self._life.session
        self._serving = trio.CancelScope()
        self._woken = trio.Event()
        self._taken_at: float | None = None
        """Since when the client has been taking what is written now; None: nothing is."""
        self._last_taken = trio.current_time()

    # --- its life

    async def run(self, watch: Watch) -> None:
        """Serve the client, whose key is watched, until it ends. Raises nothing but Cancelled."""
        self._life.begin(watch)
        try:
            try:
                with self._serving:
                    await self._serve()
            except* Exception:
                self._life.fail()
            self._life.leave(CANCELLED)
            await self._say_last_words()
        finally:
            self._life.finish()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_client)
            try:
                await self._stream.send_frames(self._head)
                await self._life.open()
                await self._write(b"retry: %d\n" % RETRY_MS)
                await self._write_all(nursery)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._leave()  # raised out of the nursery, it and who is cancelled by it would refer to each other

    async def _watch_client(self) -> None:
        """End with the client; what it sends is not looked at."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self._stream.receive_some(_READ_BYTES):
                pass
        self._leave()

    def _leave(self) -> None:
        """End: the client is gone."""
        self._life.leave(CLIENT_GONE)
        self.stop()

    async def _write_all(self, nursery: trio.Nursery) -> None:
        """Write all that lies between the client's position and the fan-out, and wait for more, until the end."""
        while self._life.settled():
            self._woken = trio.Event()
            frames = self.session.take()
            if frames is None:
                self._life.feed(nursery, self.wake)
                self._life.changed()
                await self._woken.wait()
            elif frames:
                await self._write(as_server_sent_events(frames))
            else:
                await trio.lowlevel.checkpoint()

    async def _write(self, data: bytes) -> None:
        self._taken_at = trio.current_time()
        await self._stream.send_frames(chunk_of(data) if self._chunked else data)
        self._last_taken, self._taken_at = trio.current_time(), None

    def end(self, code: CloseCode, why: str) -> None:
        """End it; the code is for the log, its client sees the end. The first call counts."""
        self._life.end(code, why)

    def hush(self) -> None:
        """Nothing is stored for who only reads."""

    def stop(self) -> None:
        """Read and write no more."""
        self._serving.cancel()

    async def _say_last_words(self) -> None:
        """End the answer, and wait until the client has seen that."""
        with trio.move_on_after(CLOSE_SECONDS):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if self._life.ending is not CLIENT_GONE:
                    await self._stream.send_frames(LAST_CHUNK if self._chunked else b"")
            await self._stream.aclose()

    # --- its key

    def change_key(self, key: Key | None) -> None:
        """Go on with what its key reaches now; end if the key is gone (PROTOCOL section 8)."""
        self._life.change_key(key, self._adapt)

    def _adapt(self, key: Key) -> None:
        self.session.change_key(key)
        self._say()

    # --- heartbeats and draining

    def wake(self) -> None:
        """Let the writer look again, unless it is to be stopped."""
        if self._life.is_open:
            self._woken.set()

    def _wake_in_turn(self) -> None:
        """Do so, when it is its turn: a thousand may be woken by one event."""
        self._life.in_turn(self.wake)

    def _say(self) -> None:
        """Let the writer say what waits to be said."""
        if self.session.waiting_bytes:
            self.session.follower.pause()
            self.wake()

    def last_heard(self) -> float:
        """Return when the client last took something: it never says anything."""
        return self._last_taken if self._taken_at is not None else trio.current_time()

    def ask_for_life(self) -> None:
        """Write a comment out of turn."""
        self.session.ping()
        self._say()

    def lived_since(self, moment: float) -> bool:
        """Whether its TCP owes no acknowledgement of before then."""
        unacknowledged = self._stream.unacknowledged_seconds()
        return unacknowledged is not None and unacknowledged < trio.current_time() - moment

    def beat(self, now: float) -> float | None:
        """Write a comment, or end if the client is dead. Returns when to be called again; None: never."""
        if self._life.is_over:
            return None
        waited = 0.0 if self._taken_at is None else now - self._taken_at
        unacknowledged = self._stream.unacknowledged_seconds() or 0.0
        if unacknowledged > self.session.patience_seconds or waited > self.session.replay_seconds + SILENT_SECONDS:
            self.end(CloseCode.HEARTBEAT_MISSED, "heartbeat missed")
            return None
        if self._life.is_open:
            self.session.heartbeat()
            self._say()
        return now + self._config.limits.heartbeat_seconds

    async def drain(self, reconnect_after_ms: int, deadline: float) -> None:
        """Say that the server goes, send everything up to the head, and end the answer, until ``deadline``."""
        await self._life.drain(reconnect_after_ms, deadline, self._say, self._written)

    def _written(self) -> bool:
        """Whether the writer has nothing left."""
        return self.session.follower.live and not self.session.waiting_bytes

    def statistics(self) -> ConnectionStatistics:
        """Return what this connection is and holds."""
        return self._life.statistics(0, self._stream.statistics().remainder_bytes)

    def details(self) -> ConnectionDetails:
        """Return what is told of this connection alone: it gives no commands."""
        return self._life.details([])

    def link(self) -> Link:
        """Ask the kernel for what it knows of the client's TCP."""
        return self._stream.link()

    def ended(self) -> Ended:
        """Return what it had done by its end."""
        return self._life.ended()
