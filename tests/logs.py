"""What the tests of logs share: events, entries and buffers made by hand, and an engine that must wait."""

import os
import shutil
import tempfile
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import trio

from broker.address import parse_address
from broker.config import StorageConfig
from broker.errors import RequestError
from broker.log.archive import Kept, Older, Page
from broker.log.database import open_database
from broker.log.dropped import Dropped
from broker.log.engines import Answer, Done, Engine, EventsByAccount, Log, Stored
from broker.log.engines.memory import MemoryEngine
from broker.log.engines.rows import EVENTS
from broker.log.engines.sqlite import SqliteEngine
from broker.log.engines.valkey.engine import ValkeyEngine
from broker.log.replay import Mark, ReplayBuffer, Shared, cursor_prefix_of
from broker.log.retention import ReplayBuffers
from broker.log.storage import Storage
from broker.protocol.framing import text_frame
from broker.protocol.messages import Entry, PreparedEvent, encode_event
from broker.protocol.selection import ACCOUNT_EVENTS, Selection

_NODES = count(1)
EPOCH = b"sixteen bytes..."
FAR = 1 << 53
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

    async def reach(self, account_id: str, since: str | int) -> None:
        self.reached.append((account_id, since))
        await trio.lowlevel.checkpoint()


class ListArchive:
    """An archive in lists, which answers after some checkpoints, of the moment at which it answers."""

    def __init__(self, keep_seconds: float = 86_400.0) -> None:
        self.keep_seconds = keep_seconds
        self.kept: dict[str, list[tuple[Entry, PreparedEvent]]] = {}
        self.gone: dict[str, list[Entry]] = {}
        self.remembers_gone = True
        """Whether it knows what it has let go."""
        self.error: RequestError | None = None
        """What it answers from now on."""
        self.answering = trio.Event()
        self.answering.set()
        """Set while it answers."""
        self.free = 0
        """So many answers are given though it is not set."""
        self.asked: list[object] = []

    def add(self, account_id: str, entries: Sequence[Entry]) -> None:
        """Take events that are about to be stored in a log, or are read back."""
        for entry in entries:
            assert entry.event is not None
            self.kept.setdefault(account_id, []).append((entry, entry.event))

    def let_go(self, account_id: str, through: int) -> None:
        """Let go what is there up to a position."""
        kept = self.kept.get(account_id, [])
        self.gone.setdefault(account_id, []).extend(entry for entry, _ in kept if entry.position <= through)
        self.kept[account_id] = [(entry, event) for entry, event in kept if entry.position > through]

    def let_go_first(self, account_id: str, number: int, dropped_through: int) -> None:
        """Let go its first events, but none that memory holds."""
        first = [entry.position for entry, _ in self.kept.get(account_id, [])][:number]
        if first:
            self.let_go(account_id, min(first[-1], dropped_through))

    async def _answer(self, asked: object) -> None:
        self.asked.append(asked)
        await trio.lowlevel.checkpoint()
        if self.free:
            self.free -= 1
        else:
            await self.answering.wait()
        if self.error is not None:
            raise self.error

    def gone_through(self, account_id: str, through: int) -> int:
        gone = self.gone.get(account_id)
        return min(gone[-1].position, through) if gone else 0

    def missed(self, account_id: str, selection: Selection, after: int, through: int) -> int | None:
        if not self.remembers_gone:
            return None if self.gone_through(account_id, through) > after else 0
        gone = self.gone.get(account_id, [])
        return sum(entry.inbox in selection for entry in gone if after < entry.position <= through)

    async def position_before(self, account_id: str, moment: float) -> int | None:
        await self._answer((account_id, moment))
        return self.position_before_now(account_id, moment)

    def position_before_now(self, account_id: str, moment: float) -> int | None:
        kept = [entry for entry, _ in self.kept.get(account_id, [])]
        gone = self.gone.get(account_id, [])
        known = gone + kept if self.remembers_gone else gone[-1:] + kept
        later = next((index for index, entry in enumerate(known) if entry.wall >= moment), len(known))
        if later:
            return known[later - 1].position
        return 0 if self.remembers_gone or not gone else None

    async def count(self, account_id: str, selection: Selection, after: int | None, through: int) -> Kept:
        await self._answer((account_id, selection, after, through))
        return self.count_now(account_id, selection, after, through)

    def count_now(self, account_id: str, selection: Selection, after: int | None, through: int) -> Kept:
        gone_through = self.gone_through(account_id, through)
        start = gone_through if after is None else after
        count = sum(
            entry.inbox in selection for entry, _ in self.kept.get(account_id, []) if start < entry.position <= through
        )
        missed = None if after is None else self.missed(account_id, selection, after, gone_through)
        return Kept(count, gone_through, missed)

    async def read(self, account_id: str, older: Older, *, max_events: int, max_bytes: int) -> Page:
        await self._answer((account_id, older))
        return self.read_now(account_id, older, max_events, max_bytes)

    def read_now(self, account_id: str, older: Older, max_events: int, max_bytes: int) -> Page:
        gone_through = self.gone_through(account_id, older.through)
        entries: list[Entry] = []
        size, reached = 0, older.through
        for entry, event in self.kept.get(account_id, []):
            if older.after < entry.position <= older.through and entry.inbox in older.selection:
                size += len(event.payload)
                if entries and (size > max_bytes or len(entries) == max_events):
                    reached = entries[-1].position
                    break
                inbox, event_id = entry.inbox, entry.event_id
                entries.append(Entry(entry.position, 0.0, event.type, inbox, event_id, wall=entry.wall, event=event))
        missed = self.missed(account_id, older.selection, older.after, gone_through)
        return Page(entries, reached, gone_through, missed)


class ArchivingEngine(MemoryEngine):
    """An engine that keeps what memory drops. Its wall clock goes with trio's."""

    def __init__(self, buffers: ReplayBuffers, log: Log) -> None:
        super().__init__(buffers, self, trio.current_time, lambda: wall_at(trio.current_time()).timestamp())
        self._filled = log
        self.archive = ListArchive()  # type: ignore[misc]  # the other has none, for ever

    def store(self, account_id: str, entries: list[Entry]) -> None:
        self.archive.add(account_id, entries)
        self._filled.store(account_id, entries)


class Elsewhere:
    """Logs that several engines share: what each account has, in order, and from where on it holds it."""

    def __init__(self) -> None:
        self.epoch = EPOCH
        self.entries: dict[str, list[Entry]] = {}
        self.gone: dict[str, list[Dropped]] = {}
        self.head: dict[str, int] = {}
        self.birth: dict[str, int] = {}
        self.engines: list[TailingEngine] = []
        self.now = 0

    def position(self, account_id: str) -> int:
        """Where an account is, which begins now if it was not there."""
        if account_id not in self.head:
            self.now += 1_000
            self.birth[account_id] = self.head[account_id] = self.now
        return self.head[account_id]

    def let_go(self, account_id: str, number: int) -> None:
        """Hold an account's first events no longer."""
        entries = self.entries[account_id]
        for entry in entries[:number]:
            one = Dropped(entry.position, entry.inbox, entry.stored_at, entry.wall)
            self.gone.setdefault(account_id, []).append(one)
        del entries[:number]

    def lose(self) -> None:
        """Lose everything, and begin another history."""
        self.epoch = bytes([self.epoch[0] ^ 1, *self.epoch[1:]])
        self.entries, self.gone, self.head, self.birth = {}, {}, {}, {}
        self.now += 1_000_000


class TailingEngine(MemoryEngine):
    """An engine that has its logs elsewhere, and keeps those of attached accounts here, each from its head on."""

    PAGE = 3

    def __init__(self, buffers: ReplayBuffers, log: Log, elsewhere: Elsewhere | None = None) -> None:
        super().__init__(buffers, log, trio.current_time, lambda: wall_at(trio.current_time()).timestamp())
        self.buffers, self.log = buffers, log
        self.elsewhere = elsewhere or Elsewhere()
        self.elsewhere.engines.append(self)
        self.attached = Counter[str]()
        self.is_deaf = False
        self.reads = 0
        buffers.begin_elsewhere(FAR)

    def begin(self, by_account: EventsByAccount, done: Done, answer: Answer | None = None) -> None:
        outcome = {account_id: self.append(account_id, events) for account_id, events in by_account.items()}
        for engine in self.elsewhere.engines:
            for account_id in by_account:
                engine.arrive(account_id)
        done(outcome)

    def append(self, account_id: str, events: Sequence[PreparedEvent]) -> list[Stored]:
        elsewhere, now, wall = self.elsewhere, self._clock(), self._wall_clock()
        position, entries = elsewhere.position(account_id), elsewhere.entries.setdefault(account_id, [])
        prefix, stored = cursor_prefix_of(account_id, elsewhere.epoch), []
        for event in events:
            inbox = event.inbox_id or ACCOUNT_EVENTS
            found = [entry for entry in entries if (entry.inbox, entry.event_id) == (inbox, event.event_id)]
            if not found:
                position += 1
                entries.append(Entry(position, now, event.type, inbox, event.event_id, b"", wall, event))
            stored.append(Stored(event.event_id, found[0].position if found else position, prefix, bool(found)))
        elsewhere.head[account_id] = position
        fresh = sum(not one.duplicate for one in stored)
        if fresh:
            elsewhere.let_go(account_id, max(0, len(entries) - max(fresh, self.buffers._limits.max_events_per_account)))
        return stored

    def arrive(self, account_id: str) -> None:
        """Take what is new of an account that is attached."""
        buffer, elsewhere = self.buffers.open(account_id), self.elsewhere
        if not self.attached[account_id] or self.is_deaf:
            return
        entries = [copy(entry) for entry in elsewhere.entries.get(account_id, []) if entry.position > buffer.head]
        if not entries:
            return
        if entries[0].position > buffer.head + 1:
            gone = [one for one in elsewhere.gone.get(account_id, []) if one.position > buffer.head]
            while len(buffer):
                self.buffers.empty(buffer, self._clock(), most=2)
            self.log.skip(account_id, gone, Mark(*gone[-1][:1], *gone[-1][2:]))
        self.log.store(account_id, entries)

    def hear(self) -> None:
        """Hear again, of another history, too."""
        self.is_deaf = False
        for account_id in self.attached:
            buffer = self.buffers.open(account_id)
            if buffer.cursor_prefix != cursor_prefix_of(account_id, self.elsewhere.epoch):
                self._restart(account_id)
            self.arrive(account_id)

    def _restart(self, account_id: str) -> None:
        start = Mark(self.elsewhere.position(account_id), self._clock(), self._wall_clock())
        self.log.restart(account_id, start, self.elsewhere.epoch, fed=True)

    @asynccontextmanager
    async def attach(self, account_id: str) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        self.attach_now(account_id)
        yield
        self.detach(account_id)

    def attach_now(self, account_id: str) -> None:
        self.attached[account_id] += 1
        if self.attached[account_id] == 1:
            self._restart(account_id)

    def detach(self, account_id: str) -> None:
        self.attached[account_id] -= 1
        if not self.attached[account_id]:
            self.log.restart(account_id, Mark(FAR), self.elsewhere.epoch, fed=False)

    async def reach(self, account_id: str, since: str | int) -> None:
        buffer, elsewhere = self.buffers.open(account_id), self.elsewhere
        await trio.lowlevel.checkpoint()
        while held := [e for e in elsewhere.entries.get(account_id, []) if e.position <= buffer.dropped_through]:
            self.reads += 1
            page = [copy(entry) for entry in held[-self.PAGE :]]
            self.log.prepend(account_id, page, Mark(page[0].position - 1, page[0].stored_at, page[0].wall))
            if buffer.dropped_through >= page[0].position:
                break  # there is no room for older ones
        gone = [one for one in elsewhere.gone.get(account_id, []) if one.position <= buffer.known_after]
        self.log.remember(account_id, gone, Mark(elsewhere.birth[account_id]))


class StorageInStep(Storage):
    """A log on disk that does everything in the caller's thread, in the step in which it is begun."""

    def _begin(self, begun) -> None:
        self._waiting += 1
        self._committed([begun], *self._writer.write([begun]))

    def _in_loop(self, function, *args) -> None:
        function(*args)

    async def write(self, work):
        return await self.write_together(lambda connection, works: [work(connection) for work in works], work)

    async def write_together(self, write, item, weight=1, owners=()):
        outcomes: list[Any] = []
        self.begin_together(write, item, outcomes.append, weight, owners)
        [outcome] = outcomes
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def read(self, work):
        return self._read(work)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Do what waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits")


def sqlite_engine(buffers: ReplayBuffers, log: Log) -> SqliteEngine:
    """An engine on disk by trio's clock; everything in one step. Its file is gone when it is."""
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    clock = trio.lowlevel.current_clock().current_time
    wall_clock = lambda: wall_at(clock()).timestamp()  # noqa: E731
    storage = StorageInStep(open_database(f"{folder}/broker.db", "normal", (EVENTS,), wall_clock), 0)
    engine = SqliteEngine(buffers, log, storage, StorageConfig(), 300, clock, wall_clock)
    at_once(engine.recover())
    weakref.finalize(engine, _remove, storage, folder)
    return engine


def valkey_engine(buffers: ReplayBuffers, log: Log, url: str) -> ValkeyEngine:
    """An engine whose logs are on a server; it is to be run."""
    return ValkeyEngine(buffers, log, parse_address(url), f"node{next(_NODES)}", buffers._limits)


def _remove(storage: Storage, folder: str) -> None:
    storage.close()
    shutil.rmtree(folder)


def settle(engine: Engine) -> None:
    """Let an engine store all that was begun."""
    if isinstance(engine, WaitingEngine):
        engine.commit(len(engine.begun))
