"""The log on disk at work: one thread that writes, in groups, and a few that read. The loop never waits for the disk.

What is begun is written in the order in which it was begun, account by account, and told after the commit. While one
group is synced the next one gathers, so a commit costs as much for one as for a thousand. Each piece of work stands in
a savepoint: one that is at fault takes nothing with it. If the disk is full or does not answer, the whole group is told
`unavailable`, nothing of it is stored, and the next group tries again. A damaged file ends the process.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Generic, TypeVar

import trio
from msgspec import Struct

from ..durations import Durations, DurationsStatistics
from ..errors import BUSY_RETRY_MS, RequestError
from .database import Database, LastRun, Room, Synchronous, connect, open_database
from .shares import Shares, goes_on
from .writing import DAMAGES, LOOK_SECONDS, OUTAGES, Begun, InParts, Work, Writer, damaged, is_fault_of_work

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

GROUP_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048)
MIN_FREE_BYTES: Final = 67_108_864
_READERS: Final = 4
_TELL_SECONDS: Final = 0.0005
"""Of telling outcomes before others have their turn."""
_STOP_SECONDS: Final = 10.0
"""How long the end waits for what was begun."""


class StorageStatistics(Struct, frozen=True):
    """What the log on disk takes and has done."""

    commit_seconds: DurationsStatistics
    """How long groups took to write, with the commit."""
    groups: tuple[int, ...]
    """Commits by how many pieces of work they had: one for each of `GROUP_SIZES`, and of larger ones."""
    works: int
    """Pieces of work in them, since the start."""
    waiting: int
    """Pieces of work that are begun and not committed."""
    bytes: int
    """What the file and its WAL take."""
    free_bytes: int
    """What is free where they lie."""
    short_of_room: bool
    """Whether that is less than must stay free: then no event is stored."""
    errors: Mapping[str, int]
    """Groups that were not stored, and reads that failed, since the start: `full`, `io`, `busy`, `memory`."""


class _Told(Generic[T]):
    """What became of a piece of work, for who waits for it."""

    def __init__(self) -> None:
        self._ended = trio.Event()
        self._outcomes: list[T | RequestError] = []

    def tell(self, outcome: T | RequestError) -> None:
        self._outcomes.append(outcome)
        self._ended.set()

    async def wait(self) -> T:
        await self._ended.wait()
        [outcome] = self._outcomes
        if isinstance(outcome, RequestError):
            raise outcome.again()
        return outcome


class Storage:
    """A log on disk at work. Made by `open_storage`; its owner lets `run` run."""

    def __init__(self, database: Database, min_free_bytes: int) -> None:
        self.last_run: LastRun = database.last_run
        self.epoch = database.epoch
        self.path = database.path
        self._database = database
        self._writer = Writer(database, min_free_bytes)
        self._queue: queue.SimpleQueue[Begun | None] = queue.SimpleQueue()
        self._told: deque[Begun] = deque()
        self._left: list[Begun] = []
        self._wakeup = trio.Event()
        self._ended = trio.Event()
        self._closing = False
        self._failure: Exception | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._limiter = trio.CapacityLimiter(_READERS)
        self._readers: deque[sqlite3.Connection] = deque()
        self._waiting = 0
        self._works = 0
        self._commit_seconds = Durations()
        self._groups = [0] * (len(GROUP_SIZES) + 1)
        self._errors = Counter[str]()

    @property
    def short_of_room(self) -> bool:
        """Whether less is free than must stay so."""
        return self._writer.short_of_room

    @property
    def is_stuck(self) -> bool:
        """Whether the disk does not answer."""
        return self._writer.is_stuck

    # --- for who writes and reads

    def begin_write(self, work: Work[T], done: Callable[[T | RequestError], None]) -> None:
        """Do ``work`` in the writer's thread; ``done`` hears in the loop what it returned, after the commit.

        Or why nothing of it is stored: a `RequestError` that it raised itself, `unavailable`, or `internal` for any
        other exception, which is logged. Called once for each, in the order of all that was begun by this.
        """
        self._begin(Begun(None, work, done))

    def begin_together(
        self,
        write: Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T | RequestError]],
        item: Item,
        done: Callable[[T | RequestError], None],
        weight: int = 1,
        owners: Sequence[str] = (),
    ) -> None:
        """Write an item together with those beside it that have the same ``write``: one call for many of them.

        It returns what became of each. What it raises all of them are told. ``weight`` is about how many rows it is,
        ``owners`` are the accounts of which it is: the order of the begun is kept for each, and for all that has none.
        """
        self._begin(Begun(write, item, done, weight, owners))

    def begin_in_parts(
        self, work: InParts, done: Callable[[T | RequestError], None], weight: int, owners: Sequence[str]
    ) -> None:
        """Do work that is long part by part: while somebody else waits, who goes between, a part in each commit."""
        self._begin(Begun(None, work, done, weight, owners, is_in_parts=True))

    async def write(self, work: Work[T]) -> T:
        """Do ``work`` in the writer's thread; return what it returned after the commit. Raises `RequestError`.

        Who is cancelled meanwhile loses the answer only.
        """
        told = _Told[T]()
        self.begin_write(work, told.tell)
        return await told.wait()

    async def write_together(
        self,
        write: Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T | RequestError]],
        item: Item,
        weight: int = 1,
        owners: Sequence[str] = (),
    ) -> T:
        """Write an item as `begin_together` does; return what became of it after the commit. Raises `RequestError`."""
        told = _Told[T]()
        self.begin_together(write, item, told.tell, weight, owners)
        return await told.wait()

    async def read(self, work: Work[T]) -> T:
        """Do ``work``, which reads a bounded amount, in a thread of its own; it sees all that was told as stored.

        Raises `RequestError` (`unavailable`). Who is cancelled waits for no disk, but its place is taken until then.
        """
        return await trio.to_thread.run_sync(self._read, work, limiter=self._limiter, abandon_on_cancel=True)

    def _read(self, work: Work[T]) -> T:
        connection = None
        try:
            connection = self._readers.pop() if self._readers else connect(self.path, read_only=True)
            connection.execute("BEGIN")
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error) and not is_fault_of_work(error):
                raise self._unreadable(error) from None
            raise
        self._readers.append(connection)
        return result

    def _unreadable(self, error: sqlite3.Error) -> RequestError:
        """Return what is told whose read failed. A damaged file ends `run`."""
        code = error.sqlite_errorcode & 0xFF
        if code in DAMAGES:
            self._in_loop(self._fail, damaged(self.path, error))
        else:
            self._in_loop(self._errors.update, [OUTAGES[code]])
        return RequestError("unavailable", "The broker cannot read its log now", retry_after_ms=BUSY_RETRY_MS)

    def statistics(self) -> StorageStatistics:
        """Return what it takes and has done."""
        return StorageStatistics(
            self._commit_seconds.statistics(),
            tuple(self._groups),
            self._works,
            self._waiting,
            self._writer.bytes,
            self._writer.free_bytes,
            self.short_of_room,
            {kind: self._errors[kind] for kind in dict.fromkeys(OUTAGES.values())},
        )

    # --- its life, in the loop

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let the writer write, for ever; what was begun before the end is still committed.

        Raises `StorageError` if the file is damaged.
        """
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._work, name="log writer", daemon=True).start()
        task_status.started()
        try:
            while self._failure is None:
                await self._wakeup.wait()
                self._wakeup = trio.Event()
                while self._tell():
                    await trio.lowlevel.checkpoint()
            raise self._failure
        finally:
            self._closing = True
            self._queue.put(None)
            with trio.move_on_after(_STOP_SECONDS, shield=True):
                await self._ended.wait()
            self._tell_last()

    def _tell_last(self) -> None:
        """Tell whoever still waits what became of it: the writer has ended."""
        for begun in self._left:
            begun.outcome = RequestError("unavailable", "The broker has ended before this was stored")
        for begun in (*self._told, *self._left):
            try:
                begun.done(begun.outcome)
            except Exception as error:  # who is told may have ended, too
                logger.debug("at the end: %r", error)
        self._told.clear()
        self._left.clear()

    def look(self) -> None:
        """Look how much room there is. Raises `StorageError` if the file is not where it was. For a thread."""
        self._writer.look()

    def close(self) -> None:
        """Let go of the file, after `run` has ended. For a thread."""
        while self._readers:
            self._readers.pop().close()
        if self._token is None or self._ended.is_set():  # else the writer still has it: the process ends with it
            self._database.close(clean=self._failure is None)

    def _begin(self, begun: Begun) -> None:
        if self._closing:
            begun.done(RequestError("draining", "The broker is draining"))
            return
        self._waiting += 1
        self._queue.put(begun)

    def _committed(self, group: list[Begun], seconds: float, error: str | None) -> None:
        """Take over what the writer is through with, and tell at once what one step bears."""
        if error is None:
            self._commit_seconds.add(seconds)
            self._works += len(group)
            self._groups[sum(len(group) > size for size in GROUP_SIZES)] += 1
        else:
            self._errors[error] += 1
        self._told.extend(group)
        if self._tell():
            self._wakeup.set()

    def _tell(self) -> bool:
        """Tell outcomes, as many as one step bears. Returns whether there are more; what goes wrong ends `run`."""
        until = time.perf_counter() + _TELL_SECONDS
        while self._told and not self._closing:
            begun = self._told.popleft()
            self._waiting -= 1
            try:
                begun.done(begun.outcome)
            except Exception as error:
                self._fail(error)
                return False
            if time.perf_counter() >= until:
                return bool(self._told)
        return False

    def _end(self, left: list[Begun]) -> None:
        """Hear that the writer has ended, and what it has not written."""
        with suppress(queue.Empty):
            while True:
                begun = self._queue.get_nowait()
                if begun is not None:
                    left.append(begun)
        self._left = left
        self._ended.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._wakeup.set()

    def _in_loop(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the loop, from a thread; the loop may be gone."""
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)

    # --- the writer's thread

    def _work(self) -> None:
        shares = Shares()
        waiting: list[Begun] = []
        group: list[Begun] = []
        long: Begun | None = None
        was_last = False

        def more() -> list[Begun]:
            """Return what else is written in this commit: of others, but not after such."""
            nonlocal waiting, was_last
            if long is None and not goes_on(group):
                return []
            was_last = self._gather(waiting, seconds=0) or was_last
            chosen, waiting = shares.choose(waiting, () if long is None else long.owners, short=True)
            return chosen

        try:
            while waiting or long is not None or not was_last:
                if long is None:
                    was_last = was_last or self._gather(waiting, seconds=0 if waiting else LOOK_SECONDS)
                    group, waiting = shares.choose(waiting)
                    long = group.pop() if group and group[-1].is_in_parts else None
                    if group:
                        has_room = waiting and long is None and goes_on(group)
                        self._in_loop(self._committed, group, *self._writer.write(group, more if has_room else None))
                else:
                    written = self._writer.write_parts(long, group, more)
                    long = None if long in group else long
                    self._in_loop(self._committed, group, *written)
                group = []
                self._writer.look_around()
        except Exception as error:
            self._in_loop(self._fail, error)
        finally:
            self._in_loop(self._end, [*group, *([] if long is None else [long]), *waiting])

    def _gather(self, waiting: list[Begun], *, seconds: float) -> bool:
        """Take over what was begun meanwhile, waiting so long for the first. Returns whether that was the last."""
        with suppress(queue.Empty):
            begun = self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
            while begun is not None:
                waiting.append(begun)
                begun = self._queue.get_nowait()
            return True
        return False


@asynccontextmanager
async def open_storage(
    path: str,
    *,
    synchronous: Synchronous = "full",
    rooms: Sequence[Room] = (),
    min_free_bytes: int = MIN_FREE_BYTES,
) -> AsyncIterator[Storage]:
    """Open the log at ``path`` for this process, and close it when the block ends; inside it `Storage.run` is to run.

    Raises `StorageError`, which names the file.
    """
    database = await trio.to_thread.run_sync(open_database, path, synchronous, rooms)
    storage = Storage(database, min_free_bytes)
    try:
        await trio.to_thread.run_sync(storage.look)
        yield storage
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOP_SECONDS):
            await trio.to_thread.run_sync(storage.close)
