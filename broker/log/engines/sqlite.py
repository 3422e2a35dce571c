"""The engine on disk: an event is stored when its commit is, and what a restart finds there is the log as it was.

A publish goes to the storage's writer with those beside it, and is told, and given to the log in memory, after the
commit, in the order of the commits. Positions are one counter over all accounts that begins at the time of day in
microseconds: so none is used twice, not after a lost tail, nor after a backup was put back. Memory has the newest
events, within its limits; what is older stays on disk for `keep_seconds`, within `max_bytes`.
"""

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from itertools import compress
from math import inf
from typing import Final

import trio
from msgspec import Struct

from ...config import StorageConfig
from ...errors import BUSY_RETRY_MS, RequestError
from ...protocol.messages import Entry
from ..engines import Answer, Done, EngineStatistics, EventsByAccount, Log
from ..replay import Mark
from ..retention import ReplayBuffers
from ..shares import LONG
from ..storage import Storage
from . import rows
from .answers import publish_answer, write_answers
from .lists import Lists, LongList, first_unfinished, take_back
from .pages import SqliteArchive

logger = logging.getLogger(__name__)

TRIM_ROWS: Final = 128
"""Events that leave in one transaction."""
_TRIM_SECONDS: Final = 1.0
_RECOVER_ROWS: Final = 512
"""Events that are taken back in one step: about two milliseconds, before anybody is served."""
_RECOVER_ACCOUNTS: Final = 1_000
_KNOWN_SECONDS: Final = 3_600.0
"""How long it is known of an event that it was there, beyond the time for which it is kept (PROTOCOL section 3)."""
_ATTACHED: Final = nullcontext()


class Beside(Struct, frozen=True):
    """Rows that somebody wants in an event's own transaction."""

    write: Callable[[sqlite3.Connection, str, Sequence[Entry]], None]
    """Called in it, with an account and new events of it. What it raises refuses the publishes that brought them.

    These may be a part of a list: until ``finish`` nobody may see the rows.
    """
    rows_of: Callable[[str], int]
    """Called in the loop: returns how many rows an event of an account has there at most; 0: none are to be written."""
    needed_from: Callable[[sqlite3.Connection], int | None] = lambda _: None
    """Called in the writer's thread: returns the first position whose event must stay; None: none must."""
    finish: Callable[[str], None] = lambda _: None
    """Called in the last transaction of what was written, with its account: after that the events are the log's."""
    take_back: Callable[[sqlite3.Connection, str, int, int], int] = lambda *_: 0
    """Called with an account and a position, from which on its events did not become the log's: the rows go, too.

    So many at most, as it is called with; returns how many. It is called again while it returns as many.
    """


class SqliteEngine:
    """Stores to a log on disk. ``clock`` returns monotonic seconds, ``wall_clock`` seconds since 1970, in any thread.

    ``beside`` may be added to before `run`.
    """

    away: Final = False

    def __init__(
        self,
        buffers: ReplayBuffers,
        log: Log,
        storage: Storage,
        config: StorageConfig,
        replay_seconds: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.archive = SqliteArchive(storage, config.keep_seconds)
        self.beside: list[Beside] = []
        self._buffers = buffers
        self._log = log
        self._storage = storage
        self._config = config
        self._replay_seconds = replay_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        self._next = 0
        self._wall = 0.0
        """Of the event that was stored last: times never go back along positions."""
        self._trims_from = inf
        """By the monotonic clock: what was restored stays for a while."""
        self._moments = deque[tuple[float, int]]()
        """Moments of the monotonic clock, each with a position: what was stored later than then lies from there on."""
        self._is_full = False
        self._lists = Lists(self._write_part, self._finish, self._take_part_back)
        self._shut: set[str] = set()
        """Accounts of which something is to be taken back before anything else is stored, as far as is known here."""
        self._ids: rows.Ids | None = None
        """None: what is on disk was not taken back yet."""

    @property
    def refusal(self) -> RequestError | None:
        """Why nothing can be stored now: the disk does not answer or is almost full, or the log has no room left."""
        if self._storage.is_stuck:
            return _unavailable("The broker's disk does not answer")
        if self._storage.short_of_room:
            return _unavailable("The broker's disk is almost full")
        return _unavailable("The broker's log is as large as it may be") if self._is_full else None

    def begin(self, by_account: EventsByAccount, done: Done, answer: Answer | None = None) -> None:
        """Have events stored, and say so after the commit."""
        refusal = self.refusal
        if refusal is not None:
            done(refusal)
            return
        prefixes = {account_id: self._buffers.open(account_id).cursor_prefix for account_id in by_account}
        publish, owners = rows.Publish(by_account, prefixes, answer), tuple(by_account)
        rows_of = {account_id: self._rows_of(account_id) for account_id in by_account}
        weight = sum(len(events) * rows_of[account_id] for account_id, events in by_account.items())
        if weight >= LONG or not self._shut.isdisjoint(owners):
            work = self._lists.of(publish, max(rows_of.values()))
            self._storage.begin_in_parts(work, partial(self._list_ended, work, done), max(weight, LONG), owners)
        else:
            self._storage.begin_together(self._write, publish, partial(self._stored, done), weight, owners)

    def _rows_of(self, account_id: str) -> int:
        """Return how many rows an event of an account is, with those beside it."""
        return 1 + sum(beside.rows_of(account_id) for beside in self.beside)

    def _write(
        self, connection: sqlite3.Connection, publishes: Sequence[rows.Publish]
    ) -> Sequence[rows.Written | RequestError]:
        """Store what some publishes bring, in the writer's thread; but not where something is to be taken back."""
        shut = self._lists.shut(connection)
        if not shut:
            return self._write_all(connection, publishes)
        may_go = [shut.isdisjoint(publish.by_account) for publish in publishes]
        written = iter(self._write_all(connection, [*compress(publishes, may_go)]))
        return [next(written) if may else _unavailable("The broker cannot write its log now") for may in may_go]

    def _write_all(self, connection: sqlite3.Connection, publishes: Sequence[rows.Publish]) -> list[rows.Written]:
        written, heads = self._write_rows(connection, publishes)
        rows.write_heads(connection, heads, self._wall)
        self._write_answers(connection, publishes, written)
        self._write_beside(connection, written)
        self._finish_beside(written)
        return written

    def _write_beside(self, connection: sqlite3.Connection, written: Sequence[rows.Written]) -> None:
        for beside in self.beside:
            for outcome in written:
                for account_id, entries in outcome.fresh.items():
                    beside.write(connection, account_id, entries)

    def _finish_beside(self, written: Sequence[rows.Written]) -> None:
        for beside in self.beside:
            for account_id in dict.fromkeys(account_id for outcome in written for account_id in outcome.fresh):
                beside.finish(account_id)

    def _take_part_back(self, connection: sqlite3.Connection) -> bool:
        return take_back(connection, [beside.take_back for beside in self.beside])

    def _write_rows(
        self, connection: sqlite3.Connection, publishes: Sequence[rows.Publish]
    ) -> tuple[list[rows.Written], dict[str, int]]:
        """Store the events of some publishes behind the heads of their accounts; return these heads, too."""
        assert self._ids is not None
        now, self._wall = self._clock(), max(self._wall, self._wall_clock())
        written, heads, self._next = rows.write_events(connection, self._ids, publishes, self._next, now, self._wall)
        return written, heads

    def _write_part(self, connection: sqlite3.Connection, part: rows.Publish) -> tuple[rows.Written, dict[str, int]]:
        [written], heads = self._write_rows(connection, [part])
        self._write_beside(connection, [written])
        return written, heads

    def _finish(
        self, connection: sqlite3.Connection, publish: rows.Publish, written: rows.Written, heads: dict[str, int]
    ) -> None:
        rows.write_heads(connection, heads, self._wall)
        self._write_answers(connection, [publish], [written])
        self._finish_beside([written])

    def _write_answers(
        self, connection: sqlite3.Connection, publishes: Sequence[rows.Publish], written: Sequence[rows.Written]
    ) -> None:
        kept = [
            publish_answer(account_id, publish.answer, stored, self._wall)
            for publish, outcome in zip(publishes, written, strict=True)
            if publish.answer is not None
            for account_id, stored in outcome.stored.items()  # a client's own account, and no other
        ]
        if kept:
            write_answers(connection, kept)

    def _list_ended(self, work: LongList, done: Done, outcome: rows.Written | RequestError) -> None:
        """Hear after the commit what became of a list, and whether anything that it has written is left."""
        if work.has_left:
            self._shut |= work.accounts
        elif not isinstance(outcome, RequestError):
            self._shut -= work.accounts
        self._stored(done, outcome)

    def _stored(self, done: Done, outcome: rows.Written | RequestError) -> None:
        """Give the log what is new, wake the fan-out, and tell the publisher: in one step, after the commit."""
        if isinstance(outcome, RequestError):
            done(outcome)
            return
        for account_id, entries in outcome.fresh.items():
            self._log.store(account_id, entries)
        done(outcome.stored)

    def statistics(self) -> EngineStatistics | None:
        """It shares nothing."""
        return None

    def attach(self, account_id: str) -> AbstractAsyncContextManager[None]:
        """Every account's log is kept here."""
        return _ATTACHED

    async def reach(self, account_id: str, since: str | int) -> None:
        """What is older than the log in memory is not read into it."""

    # --- its life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take back what is on disk, unless that was done, and trim it, for ever."""
        if self._ids is None:
            await self.recover()
        task_status.started()
        while True:
            await trio.sleep(_TRIM_SECONDS)
            await self._trim()

    async def recover(self) -> None:
        """Let the logs in memory be as they were when the last run ended: within their limits, the cursors good.

        To be done once, before anything is begun. Raises `RequestError` (`unavailable`) if it cannot be read.
        """
        storage = self._storage
        while await storage.write(self._take_part_back):
            pass
        self._ids = await storage.write(rows.Ids)
        last, last_at = await storage.read(rows.last_position)
        now, wall = self._clock(), self._wall_clock()
        self._next = max(last + 1, int(wall * 1_000_000))
        self._wall = last_at
        ended_at = max(storage.last_run.alive_at, last_at)
        cutoff = ended_at - self._replay_seconds
        first = await storage.read(partial(rows.first_since, moment=cutoff))
        self._trims_from = now + self._replay_seconds
        self._moments.append((-inf, first))
        await self._recover_marks(first, cutoff, now - wall)
        await self._recover_events(first - 1, now, now - wall)

    async def _recover_marks(self, first: int, cutoff: float, offset: float) -> None:
        """Restore where each account's log was, and from which position on memory has it."""
        after = ""
        while True:
            accounts = await self._storage.read(
                partial(rows.read_accounts, after=after, before=first, most=_RECOVER_ACCOUNTS)
            )
            if not accounts:
                return
            after = accounts[-1].account_id
            self._buffers.restore({row.account_id: _mark(row, cutoff, offset) for row in accounts}, self._trims_from)

    async def _recover_events(self, after: int, now: float, offset: float) -> None:
        restored: set[str] = set()
        events = 0
        while page := await self._storage.read(partial(rows.read_events, after=after, most=_RECOVER_ROWS)):
            by_account: dict[str, list[Entry]] = {}
            for account_id, entry in page:
                entry.stored_at = min(now, entry.wall + offset)
                by_account.setdefault(account_id, []).append(entry)
            for account_id, entries in by_account.items():
                self._buffers.restore_events(account_id, entries, now)
            restored |= by_account.keys()
            after = page[-1][1].position
            events += len(page)
        for account_id in restored:
            self._log.store(account_id, [])
        if events:
            took = self._clock() - now
            logger.debug("taken back from disk: events %d, accounts %d, in %.1f s", events, len(restored), took)

    async def _trim(self) -> None:
        """Let go what is too old, or too much, in short transactions; what cannot be written now waits."""
        position = self._next
        now = self._clock()
        if position > self._moments[-1][1]:
            self._moments.append((now, position))
        if now < self._trims_from:
            return
        while len(self._moments) > 1 and self._moments[1][0] < self._buffers.oldest_at:
            self._moments.popleft()
        step = partial(self._trim_step, in_memory_from=self._moments[0][1])
        try:
            while await self._storage.write(step):
                pass
        except RequestError:
            pass  # the storage has said why

    def _trim_step(self, connection: sqlite3.Connection, in_memory_from: int) -> bool:
        """Let go a few, in the writer's thread, none that memory holds or somebody needs. Returns whether to go on."""
        assert self._ids is not None
        if self._lists.tidy(connection):
            return True
        wall = self._wall_clock()
        too_old = wall - self._config.keep_seconds
        is_over = rows.used_bytes(connection) > self._config.max_bytes
        keep_from = min(in_memory_from, first_unfinished(connection) or in_memory_from)
        for beside in self.beside:
            needed_from = beside.needed_from(connection)
            if needed_from is not None:
                keep_from = min(keep_from, needed_from)
        gone = rows.trim_events(connection, inf if is_over else too_old, keep_from, TRIM_ROWS)
        lacks_room = is_over and not gone  # then what is known of events that are gone goes, too, and at last their ids
        too_old_to_know = min(too_old - _KNOWN_SECONDS, wall - rows.ID_SECONDS)
        forgotten = rows.trim_known(connection, inf if lacks_room else too_old_to_know, TRIM_ROWS)
        ids_gone = lacks_room and not forgotten and self._ids.forget_older(connection)
        self._is_full = lacks_room and not forgotten and not ids_gone
        return ids_gone or max(gone, forgotten) == TRIM_ROWS


def _mark(row: rows.AccountRow, cutoff: float, offset: float) -> Mark:
    """Return what is known of an account before the events that memory takes back: all of those it holds are later."""
    if row.gone_through == 0:
        return Mark()
    wall = row.head_at if row.gone_through == row.head else cutoff
    return Mark(row.gone_through, wall + offset, wall)


def _unavailable(message: str) -> RequestError:
    return RequestError("unavailable", message, retry_after_ms=BUSY_RETRY_MS)
