"""The I/O shell of one WebSocket: its nursery, its tasks, its deadlines, and its last words.

What a client may say and hear is `session`'s, how it is read from is `reading`'s, whether it lives is `life`'s; here is
who runs when. A connection has two tasks at rest: trio-websocket's reader, and the one that always takes messages from
it. A third, the catch-up writer, lives only while the client is not live; a fourth only while publishes wait for the
fan-out.

Its end stops all its tasks; then one place, `_say_last_words`, has the stream for itself. Nothing that fails in here
leaves: of the server, this is the one module that imports trio_websocket.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final

import trio
import trio_websocket
from msgspec import Raw, Struct

from ..access.keys import Key
from ..access.watched import Watch
from ..broker import Broker
from ..budget import Held
from ..commands.remembered import Outcome
from ..commands.requests import CommandRequest, PublishRequest
from ..errors import BUSY_RETRY_MS, CloseCode, RequestError, part_from_frames
from ..fanout.acknowledged import AckRequest
from ..fanout.acknowledging import Acknowledging
from ..fanout.listeners import Listener
from ..intake.publishing import Publishing
from ..observe.connections import ConnectionDetails, ConnectionStatistics, Ended, Link, Transport
from ..protocol.framing import close_frame
from ..protocol.messages import Command
from ..queues.asked import WorkAsked
from ..queues.queues import Queues
from ..queues.working import Working
from ..waiting.asked import Asked
from ..waiting.waits import MAX_OF_CONNECTION, Found
from .ending import CANCELLED, CLIENT_GONE, Ending, closed_by_broker
from .life import CLOSE_SECONDS, Admitted, Life
from .reading import LentStream
from .response import http_date
from .session import GRACE_SECONDS, Elsewhere, SubscribeRequest
from .stream import ClientStream

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
MAX_HELD_ANSWER_BYTES: Final = 4_096
"""Answers to what came in one read are held back, to be written together, up to this: some twenty."""
_BROKEN: Final = {1002: "broken framing", 1007: "text that is not UTF-8"}
"""What trio-websocket stops at without a word."""
_FOR_GOOD: Final = (CloseCode.NORMAL, CloseCode.GOING_AWAY)
"""With what a client closes that comes back to nothing: what it was to do is another's at once."""
_PEER_ENDED: Final = (trio_websocket.ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)


class Connection:
    """One client on one stream. ``head`` asks trio-websocket for what the client asks for."""

    transport: Final[Transport] = "websocket"

    def __init__(self, broker: Broker, stream: ClientStream, admitted: Admitted, head: bytes) -> None:
        self._stream = stream
        self._config = broker.settings
        self._commands = broker.commands
        self._lane = broker.commands.lane(admitted.key)
        self._publishing = Publishing(broker.intake, broker.bodies, broker.commands, self._lane)
        listener = Listener(stream.write_nowait, self.wake)
        stream.lend(listener)
        self._life = Life(broker, admitted, listener, self, broker.commands.count)
        self.id = self._life.id
        self.session = self._life.session
        self._buffer = admitted.account.buffer
        self._on_disk = broker.on_disk
        self._acknowledging: Acknowledging | None = None
        """Made when the first acknowledgement comes."""
        most = broker.config.limits.max_message_bytes
        self._lent = LentStream(stream, head, most, self._flush)
        self._nursery: trio.Nursery | None = None
        """Who reads and writes."""
        self._obeying: trio.Nursery | None = None
        """Who does what the client asks; inside of the other."""
        self._publisher: trio.CancelScope | None = None
        """Around who publishes what waits."""
        self._writing = False
        self._await = partial(broker.waits.wait, admitted.account)
        self._hold = partial(broker.bodies.hold, admitted.key.account_id)
        self._working = Working(broker.queues, admitted.opening.client_id or "")
        self._waits = 0
        """Of this client, under way."""

    # --- its life

    async def run(self, watch: Watch) -> None:
        """Serve the client, whose key is watched, until it ends. Raises nothing but Cancelled."""
        self._life.begin(watch)
        try:
            await self._live()
            if self._lent.opened:
                await self._say_last_words()
        finally:
            self._commands.leave(self._lane)
            self._life.finish()
            self._lent.let_go()

    async def _live(self) -> None:
        """Answer the upgrade, then do what the client asks, until it or somebody else ends the connection."""
        websocket = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    websocket = await self._open(nursery)
                    if websocket is not None:
                        await self._obey(websocket)
                finally:
                    # Whoever wakes it from here on, also while the nursery ends, begins no task in it.
                    self._life.leave(CANCELLED)
                    nursery.cancel_scope.cancel()
        except* _PEER_ENDED:
            self._life.ending = CLIENT_GONE
        except* Exception:
            logger.exception("connection %s failed", self.id)
            self._life.ending = closed_by_broker(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            if websocket is not None:
                _let_go(websocket)
            self._publishing.give_up()
            if self._acknowledging is not None:
                self._acknowledging.give_up()
            if self._life.ending.code is None and self._life.ending.close_code in _FOR_GOOD:
                self._working.leave()

    async def _open(self, nursery: trio.Nursery) -> trio_websocket.WebSocketConnection | None:
        """Answer the upgrade; None if that was not possible in time. Who was ended meanwhile stays so."""
        websocket = None
        with trio.move_on_after(HANDSHAKE_SECONDS):
            websocket = await self._handshake(nursery)
        if websocket is None:
            self._life.leave(Ending("the upgrade could not be answered"))
        else:
            await self._life.open()
        return websocket

    async def _obey(self, websocket: trio_websocket.WebSocketConnection) -> None:
        """Do what the client asks. At the end that stops at once; who is writing may end his frame."""
        if self._life.is_open:
            async with trio.open_nursery() as self._obeying:
                await self._guard(partial(self._serve, websocket))
        with trio.move_on_after(CLOSE_SECONDS):
            await self._stream.settle()

    async def _handshake(self, nursery: trio.Nursery) -> trio_websocket.WebSocketConnection:
        most = self._config.limits.max_message_bytes
        request = await trio_websocket.wrap_server_stream(nursery, self._lent, max_message_size=most)
        subprotocol = next(iter(request.proposed_subprotocols), None)
        date = http_date(int(datetime.now(UTC).timestamp()))
        websocket = await request.accept(subprotocol=subprotocol, extra_headers=[(b"Date", date.encode())])
        self._lent.open()
        return websocket

    async def _serve(self, websocket: trio_websocket.WebSocketConnection) -> None:
        """Take every message that the client sends, until there is none any more."""
        self.wake()
        try:
            while True:
                await self._receive(await websocket.get_message())
                if self.session.congested:
                    await self._life.until(lambda: not self.session.congested)
        except trio_websocket.ConnectionClosed as closed:
            ending = self._lent.ending
            if ending is None:
                # trio-websocket has stopped by itself: what still comes cannot be told apart.
                self._lent.close()
                ending = _ending_of(closed.reason)
            self._life.leave(ending)
            self.stop()

    async def _receive(self, message: str | bytes) -> None:
        if not self._life.settled():
            return
        action = self.session.receive(message, trio.current_time(), datetime.now(UTC))
        if isinstance(action, Command):
            proved = await self._commands.prove(self.session.key, action)
            action = self.session.obey(proved, trio.current_time(), datetime.now(UTC))
        while isinstance(action, SubscribeRequest):
            action = await self._subscribe(action)
        if isinstance(action, PublishRequest):
            self._publish(action)
        elif isinstance(action, CommandRequest):
            self._commands.submit(self._lane, action, partial(self._answer, action))
        elif isinstance(action, AckRequest):
            self._acknowledge(action)
        elif isinstance(action, Asked):
            self._wait(action)
        elif isinstance(action, WorkAsked):
            self._work(action)
        else:
            self._flush()
            if action is not None:
                self.end(action, "too many frames that are no commands")

    async def _subscribe(self, request: SubscribeRequest) -> Elsewhere | None:
        """Ask what is to be known of the past, then let the session do it. What the client says next waits for that."""
        try:
            reached = await self._life.reach(request.reach)
        except RequestError as error:
            self.session.naming.recount(self.session.key)
            self.session.answer(str(request.command.request_id), request.command.action, error)
            return None
        if not self._life.settled():
            return None
        return self.session.obey(request.command, trio.current_time(), datetime.now(UTC), reached)

    def end(self, code: CloseCode, why: str) -> None:
        """End the connection with a close code. The first call counts."""
        self._life.end(code, why)

    def hush(self) -> None:
        """Publish nothing more of what waits."""
        if self._publisher is not None:
            self._publisher.cancel()

    def stop(self) -> None:
        """Obey no more, and wait for nothing."""
        if self._obeying is not None:
            self._obeying.cancel_scope.cancel()

    async def _say_last_words(self) -> None:
        """Turn the reason why it ended into the last bytes that the client sees, and wait until it has seen them.

        What it had begun to publish is answered before: a client that has only ended its own side reads that.
        """
        with trio.move_on_after(CLOSE_SECONDS):
            await self._publishing.all_told()
        with trio.move_on_after(CLOSE_SECONDS):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                answers, close = self.session.take_answers(), self._life.ending.close
                if close is None:
                    await self._stream.send_frames(answers)
                else:
                    await self._stream.send_last(answers, close_frame(close))
                    await self._lent.discard()
            await self._stream.aclose()

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run one of the connection's tasks; whatever fails in it ends this connection only."""
        try:
            await task()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._life.end_for(CLIENT_GONE)
        except Exception:
            self._life.fail()

    # --- writing

    def wake(self) -> None:
        """Let the catch-up writer run, if it does not yet."""
        if not self._writing and self._life.is_open:
            self._writing = True
            assert self._nursery is not None
            self._nursery.start_soon(self._guard, self._catch_up)

    async def _catch_up(self) -> None:
        """Write all that lies between the client's position and the fan-out, then let the fan-out do it."""
        try:
            await self._stream.come_in()
            while await self._stream.write_from(self._take):
                self._life.changed()
                await self._stream.come_in()
        finally:
            self._writing = False
            self._life.changed()
        assert self._nursery is not None
        self._life.feed(self._nursery, self.wake)

    def _take(self) -> bytes | None:
        return self.session.take() if self._life.settled() else None

    def _flush(self) -> None:
        """Write waiting answers: at once if the client is live and takes them, else by the catch-up writer."""
        if not self._writing and self.session.waiting_bytes:
            self.session.flush(self._stream.write_nowait)
            if self.session.waiting_bytes:
                self.wake()

    # --- commands

    def _answer(self, request: CommandRequest, outcome: Outcome) -> None:
        """Answer a command of this client; called from whatever task came to the outcome."""
        answer = Raw(outcome.result) if outcome.error is None else outcome.error
        self._say_answer(request.request_id, request.command.action, answer, duplicate=outcome.duplicate)

    def _say_answer(
        self, request_id: str, action: str, answer: Raw | Struct | RequestError, *, duplicate: bool = False
    ) -> None:
        self.session.answer(request_id, action, answer, duplicate=duplicate)
        if not self._lent.handing_out or self.session.waiting_bytes > MAX_HELD_ANSWER_BYTES:
            self._flush()
        self._life.changed()

    def _publish(self, publish: PublishRequest) -> None:
        if self._publishing.submit(publish, partial(self._answer, publish.request)):
            assert self._obeying is not None
            self._obeying.start_soon(self._guard, self._publish_waiting)

    async def _publish_waiting(self) -> None:
        with trio.CancelScope() as self._publisher:
            if self._life.is_open:
                await self._publishing.do_waiting()

    def _acknowledge(self, request: AckRequest) -> None:
        if self._acknowledging is None:
            self._acknowledging = Acknowledging(self._buffer, self.session.follower, self._on_disk)
        if self._acknowledging.submit(request, partial(self._say_answer, request.request_id, request.action)):
            assert self._obeying is not None
            self._obeying.start_soon(self._guard, self._acknowledging.do_waiting)

    def _wait(self, asked: Asked) -> None:
        try:
            if self._waits >= MAX_OF_CONNECTION:
                message = f"{MAX_OF_CONNECTION} waits of this connection are under way"
                raise RequestError("rate_limited", message, retry_after_ms=BUSY_RETRY_MS)
            held = self._hold(asked.size)
        except RequestError as error:
            self.session.answer(asked.request_id, "wait_for", error)
            self._flush()
            return
        self._waits += 1
        assert self._obeying is not None
        self._obeying.start_soon(self._guard, partial(self._do_wait, asked, held))

    async def _do_wait(self, asked: Asked, held: Held) -> None:
        outcome: Found | RequestError
        try:
            with held:
                outcome = await self._await(asked.selection, asked.params, self._judge)
        except RequestError as error:
            outcome = part_from_frames(error)
        finally:
            self._waits -= 1
        self.session.answer(asked.request_id, "wait_for", outcome)
        self._flush()
        self._life.changed()

    def _work(self, asked: WorkAsked) -> None:
        try:
            queues = self._working.admit(asked)
        except RequestError as error:
            self._say_answer(asked.request_id, asked.action, error)
            return
        assert self._obeying is not None
        self._obeying.start_soon(self._guard, partial(self._do_work, queues, asked))

    async def _do_work(self, queues: Queues, asked: WorkAsked) -> None:
        outcome = await self._working.do(queues, asked, self._judge)
        self._say_answer(asked.request_id, asked.action, outcome)

    def _judge(self) -> Key:
        self._life.settled()
        return self.session.key

    # --- its key

    def change_key(self, key: Key | None) -> None:
        """Go on with what its key reaches now; end the connection if the key is gone (PROTOCOL section 8)."""
        self._life.change_key(key, self._adapt)

    def _adapt(self, key: Key) -> None:
        self._commands.change_key(self._lane, key)
        self.session.change_key(key)
        self._flush()

    # --- heartbeats and draining

    def last_heard(self) -> float:
        """Return when a byte was last read from the client."""
        return self._stream.last_read

    def ask_for_life(self) -> None:
        """Ping the client out of turn."""
        self.session.ping()
        self._flush()

    def lived_since(self, moment: float) -> bool:
        """Whether a byte was read since then, or its TCP owes no acknowledgement of before.

        One that is not open yet has its own deadline, and passes.
        """
        if not self._life.is_open or self._stream.last_read > moment:
            return True
        unacknowledged = self._stream.unacknowledged_seconds()
        return unacknowledged is not None and unacknowledged < trio.current_time() - moment

    def beat(self, now: float) -> float | None:
        """Ping the client, or end the connection if it is dead. Returns when to be called again; None: never."""
        if self._life.is_over:
            return None
        if not self._life.is_open:
            return now + self._config.limits.heartbeat_seconds
        session, patience = self.session, self.session.patience_seconds
        silent, owed = now - self._stream.last_read, self._lent.owed_seconds(now) or 0.0
        unacknowledged = self._stream.unacknowledged_seconds() if silent > patience else None
        if session.overdue(silent, unacknowledged):
            self.end(CloseCode.HEARTBEAT_MISSED, "heartbeat missed")
            return None
        if owed > patience:
            self.end(CloseCode.HEARTBEAT_MISSED, "a message that was begun was not finished")
            return None
        session.heartbeat()
        self._flush()
        soonest = min([left for left in (patience - silent, patience - owed) if left > 0], default=math.inf)
        return now + min(self._config.limits.heartbeat_seconds, soonest + 0.001)

    def beat_late(self, now: float) -> float | None:
        """Ping the client, and judge it later: this process was away, and what was said meanwhile was not read yet."""
        if self._life.is_over:
            return None
        if self._life.is_open:
            self.ask_for_life()
        return now + GRACE_SECONDS

    async def drain(self, reconnect_after_ms: int, deadline: float) -> None:
        """Say that the server goes, send everything up to the head, and close with 1012, until ``deadline``."""
        await self._life.drain(reconnect_after_ms, deadline, self._flush, self._written)

    def _written(self) -> bool:
        """Whether no command is under way and the catch-up writer has nothing left, nor waits for any."""
        busy = self._writing or self._life.feeding or self._acknowledging
        return not (busy or self._lane.waiting or self._waits or self._working)

    def statistics(self) -> ConnectionStatistics:
        """Return what this connection is and holds."""
        return self._life.statistics(len(self._lane.waiting), self._stream.statistics().remainder_bytes)

    def details(self) -> ConnectionDetails:
        """Return what is told of this connection alone."""
        return self._life.details([run.identity[2] for run in self._lane.waiting.values() if run.identity is not None])

    def link(self) -> Link:
        """Ask the kernel for what it knows of the client's TCP."""
        return self._stream.link()

    def ended(self) -> Ended:
        """Return what it had done by its end."""
        return self._life.ended()


def _let_go(websocket: trio_websocket.WebSocketConnection) -> None:
    """End wsproto's parser: a generator that holds who holds it would be left to the garbage collector."""
    connection = websocket._wsproto.connection
    if connection is not None:
        with suppress(AttributeError):  # another version may have none
            connection._proto._parse_more.close()


def _ending_of(reason: trio_websocket.CloseReason | None) -> Ending:
    """Return why trio-websocket has stopped by itself."""
    code = None if reason is None else reason.code
    return closed_by_broker(CloseCode(code), _BROKEN[code]) if code in _BROKEN else CLIENT_GONE
