"""What the tests of logs share: events, entries and buffers, made by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import trio

from broker.log.engines import Engine, Log, Stored
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
    """Store events with an engine that does so at once."""
    outcomes = []
    engine.begin({account_id: events}, outcomes.append)
    [stored] = outcomes
    return list(stored[account_id])
