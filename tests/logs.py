"""What the tests of logs share: events, entries and buffers made by hand, and an engine that must wait."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import trio

from broker.errors import RequestError
from broker.log.engines import Answer, Done, Engine, EventsByAccount, Log, Stored
from broker.log.engines.memory import MemoryEngine
from broker.log.replay import Mark, ReplayBuffer, Shared
from broker.log.retention import ReplayBuffers
from broker.protocol.framing import text_frame
from broker.protocol.messages import Entry, PreparedEvent, encode_event
from broker.protocol.selection import ACCOUNT_EVENTS

EPOCH = b"sixteen bytes..."
START = datetime(2026, 11, 23, 10, tzinfo=UTC)


def wall_at(now: float) -> datetime:
    """The time of day at a moment of the test's monotonic clock."""
    return START + timedelta(seconds=now)


def prepared(event_id: str, inbox: str = "i1", payload: bytes = b"{}", event_type: str = "x") -> PreparedEvent:
    return PreparedEvent(event_type, inbox or None, event_id, "2026-11-23T10:00:00.000Z", payload, None)


def make_buffer(account_id: str = "acct_a", epoch: bytes = EPOCH, start: Mark | None = None) -> ReplayBuffer:
    return ReplayBuffer(account_id, Shared(epoch), start or Mark())


def entry_of(event: PreparedEvent, position: int, now: float, wall: float | None = None) -> Entry:
    """An entry as `MemoryEngine` makes it: its frame is made when the fan-out takes it."""
    if wall is None:
        wall = wall_at(now).timestamp()
    inbox = event.inbox_id or ACCOUNT_EVENTS
    return Entry(position, now, event.type, inbox, event.event_id, wall=wall, event=event)


def append(buffer: ReplayBuffer, event: PreparedEvent, position: int, now: float, wall: float | None = None) -> Entry:
    """Append an event, its frame made already, as an engine may; return its entry."""
    entry = entry_of(event, position, now, wall)
    entry.frame, entry.event = text_frame(encode_event(event, buffer.cursor_at(position))), None
    buffer.extend([entry])
    return entry


def memory_engine(buffers: ReplayBuffers, log: Log) -> MemoryEngine:
    """An engine by trio's clock, and a wall clock that goes with it."""
    return MemoryEngine(buffers, log, trio.current_time, lambda: wall_at(trio.current_time()).timestamp())


def begin(engine: Engine, account_id: str, events: Sequence[PreparedEvent]) -> list[Stored]:
    """Store events, and have it stored."""
    outcomes = []
    engine.begin({account_id: events}, outcomes.append)
    settle(engine)
    [stored] = outcomes
    return list(stored[account_id])


class WaitingEngine(MemoryEngine):
    """An engine that must wait: what was begun is stored when the test says so, in the order in which it was begun."""

    def __init__(self, buffers: ReplayBuffers, log: Log) -> None:
        super().__init__(buffers, log, trio.current_time, lambda: wall_at(trio.current_time()).timestamp())
        self.begun: deque[tuple[EventsByAccount, Done, Answer | None]] = deque()
        self.answers: dict[tuple[str, str, str], bytes] = {}
        """The digests of the answers that are remembered, by who gets them."""
        self.is_away = False
        self.attaching = trio.Event()
        self.attaching.set()
        """Set while accounts are attached at once."""
        self.reached: list[tuple[str, str]] = []

    @property
    def away(self) -> bool:
        return self.is_away

    def begin(self, by_account: EventsByAccount, done: Done, answer: Answer | None = None) -> None:
        self.begun.append((by_account, done, answer))

    def commit(self, number: int = 1) -> None:
        """Store what was begun first."""
        for _ in range(number):
            by_account, done, answer = self.begun.popleft()
            if answer is not None:
                self.answers[answer.identity] = answer.digest
            super().begin(by_account, done, answer)

    def refuse(self, error: RequestError) -> None:
        """Store nothing of what was begun first."""
        _, done, _ = self.begun.popleft()
        done(error)

    @asynccontextmanager
    async def attach(self, account_id: str) -> AsyncIterator[None]:
        await self.attaching.wait()
        yield

    async def reach(self, account_id: str, since: str) -> None:
        self.reached.append((account_id, since))
        await trio.lowlevel.checkpoint()


def settle(engine: Engine) -> None:
    """Let an engine store all that was begun."""
    if isinstance(engine, WaitingEngine):
        engine.commit(len(engine.begun))
