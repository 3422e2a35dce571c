"""The thread that writes a log on disk: groups, each one transaction, each piece of work in a savepoint of its own.

For the writer's thread alone: it has the one connection that writes. What one piece of work does wrong takes nothing
else with it; what the disk does not take is refused with the whole group, and the next group tries again.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from math import inf
from typing import Any, Final, Protocol, TypeVar

from ..errors import BUSY_RETRY_MS, RequestError, StorageError
from .database import Database, file_bytes, free_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], T]
"""What is done in a thread, within a transaction that is not its own: it neither begins nor commits."""

PARTS: Final = 8
"""Of a long piece of work, of one commit while nobody else waits: who comes meanwhile waits for its sync, too."""
LOOK_SECONDS: Final = 1.0
"""How often it is looked how much room there is."""
_ALIVE_SECONDS: Final = 10.0
STUCK_SECONDS: Final = 10.0
"""A commit that takes longer is of a disk that does not answer: what comes then is refused, and does not gather."""
OUTAGES: Final = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "io",
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_READONLY: "io",
    sqlite3.SQLITE_CANTOPEN: "io",
    sqlite3.SQLITE_NOMEM: "memory",
}
"""What may pass, by SQLite's primary code."""
DAMAGES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class InParts(Protocol):
    """Work that may be spread over several commits, with others' work between. To be called where one does."""

    def __call__(self, connection: sqlite3.Connection, /) -> Any:
        """Do all of it."""

    def write_part(self, connection: sqlite3.Connection) -> bool:
        """Do the next part. Returns whether there are more."""

    def pause(self, connection: sqlite3.Connection) -> None:
        """Be committed as it is, before the rest. May raise as a part does."""

    def give_up(self, refusal: RequestError) -> bool:
        """Hear that what was done of it since the last commit is not: something went wrong.

        Returns whether there are parts to be done yet, before it has its outcome, and is told of it.
        """

    @property
    def outcome(self) -> Any:
        """What came of it, after the last part: a `RequestError` if it failed."""


class Begun:
    """A piece of work. ``write`` None: the item is to be called; else it is one of those that are written together.

    ``is_in_parts``: the item is `InParts`.
    """

    __slots__ = ("done", "is_in_parts", "item", "outcome", "owners", "weight", "write")

    def __init__(
        self,
        write: Callable[..., Any] | None,
        item: Any,
        done: Callable[[Any], None],
        weight: int = 1,
        owners: Sequence[str] = (),
        *,
        is_in_parts: bool = False,
    ) -> None:
        self.is_in_parts = is_in_parts
        self.write = write
        self.item = item
        self.done = done
        self.weight = weight
        self.owners = owners
        self.outcome: Any = None


class Writer:
    """Writes to a database. ``min_free_bytes`` must stay free where that lies."""

    def __init__(self, database: Database, min_free_bytes: int) -> None:
        self._path = database.path
        self._database = database
        self._connection = database.connection
        self._min_free_bytes = min_free_bytes
        self._outage: str | None = None
        self._looked_at = self._alive_at = time.monotonic()
        self.began_at = inf
        """By the monotonic clock: when what is written now was begun; infinite: nothing is."""
        self.bytes = 0
        """What the file and its WAL take."""
        self.free_bytes = min_free_bytes
        """What is free where they lie."""

    @property
    def short_of_room(self) -> bool:
        """Whether less is free than must stay so."""
        return self.free_bytes < self._min_free_bytes

    @property
    def is_stuck(self) -> bool:
        """Whether the disk does not answer: what is written now was begun long ago."""
        return time.monotonic() - self.began_at > STUCK_SECONDS

    def write(self, group: list[Begun], more: Callable[[], Sequence[Begun]] | None = None) -> tuple[float, str | None]:
        """Write a group in one transaction; each then has its outcome.

        ``more`` returns what else is to be written in it, if anything: it is called again after that, and that is in
        the group, too. Returns how many seconds that took, and what kind of outage there was, if it could not be
        stored. Raises `StorageError` if the file is damaged.
        """
        if more is None:
            return self._transact(group, partial(self._write_group, group, is_all=True))

        def write() -> None:
            self._write_group(group, is_all=True)
            while self._connection.in_transaction and (chosen := more()):
                group.extend(chosen)
                together = group[0].write is not None and all(begun.write == group[0].write for begun in group)
                self._write_group(chosen, is_all=together)
                if not self._connection.in_transaction:  # what is written together fails together
                    for begun in group:
                        begun.outcome = chosen[0].outcome

        return self._transact(group, write)

    def write_parts(
        self, long: Begun, group: list[Begun], more: Callable[[], Sequence[Begun]]
    ) -> tuple[float, str | None]:
        """Write some parts of a long piece of work, until somebody else waits, and then what does, in one transaction.

        ``more`` returns that, and is called after each part; it is then in the group, and the long piece as well when
        it has its outcome. Returns what `write` does.
        """
        is_left = True

        def write() -> None:
            nonlocal is_left
            is_left = self._write_some(long, group, more)
            if group and not self._connection.in_transaction:  # it failed, and took its own with it
                self._connection.execute("BEGIN IMMEDIATE")
            self._write_group(group)

        seconds, outage = self._transact([long], write)
        if outage is not None:
            is_left = long.item.give_up(long.outcome)
            for begun in group:
                begun.outcome = long.outcome
        if not is_left:
            long.outcome = long.item.outcome
            group.insert(0, long)
        return seconds, outage

    def _write_some(self, long: Begun, group: list[Begun], more: Callable[[], Sequence[Begun]]) -> bool:
        """Write some parts, until somebody waits, who then is in the group; return whether there are more."""

        def parts(connection: sqlite3.Connection) -> bool:
            for _ in range(PARTS):
                if not long.item.write_part(connection):
                    return False
                group.extend(more())
                if group:
                    break
            long.item.pause(connection)
            return True

        outcome = self._alone(parts)
        return long.item.give_up(outcome) if isinstance(outcome, RequestError) else bool(outcome)

    def _transact(self, group: Sequence[Begun], write: Callable[[], None]) -> tuple[float, str | None]:
        """Do what gives each of a group its outcome in one transaction; if that cannot be stored, that is theirs."""
        started = self.began_at = time.monotonic()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            write()
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            refusal = self._outage_of(error)
            for begun in group:
                begun.outcome = refusal
        else:
            if self._outage is not None:
                logger.warning("%s: it can be written again", self._path)
            self._outage = None
        finally:
            self.began_at = inf
        return time.monotonic() - started, self._outage

    def _write_group(self, group: Sequence[Begun], *, is_all: bool = False) -> None:
        """Write a group; ``is_all``: there is nothing in the transaction that is to stay if this fails."""
        runs = [(write, list(run)) for write, run in groupby(group, key=lambda begun: begun.write)]
        if is_all and len(runs) == 1 and (len(group) == 1 or runs[0][0] is not None):
            self._write_run(*runs[0], self._alone)
        else:
            for write, run in runs:
                self._write_run(write, run, self._in_savepoint)

    def _write_run(
        self, write: Callable[..., Any] | None, run: list[Begun], attempt: Callable[[Work[Any]], Any]
    ) -> None:
        if write is None:
            for begun in run:
                begun.outcome = attempt(begun.item)
            return
        items = [begun.item for begun in run]
        outcomes = attempt(lambda connection: write(connection, items))
        if isinstance(outcomes, RequestError):
            outcomes = [outcomes] * len(run)
        for begun, outcome in zip(run, outcomes, strict=True):
            begun.outcome = outcome

    def _in_savepoint(self, work: Work[Any]) -> Any:
        """Return what a piece of work returns; or its refusal, and then nothing of it is stored."""
        self._connection.execute("SAVEPOINT work")
        outcome = self._attempt(work, "ROLLBACK TO work")
        self._connection.execute("RELEASE work")
        return outcome

    def _alone(self, work: Work[Any]) -> Any:
        """Return the same of work that has the transaction for itself."""
        return self._attempt(work, "ROLLBACK")

    def _attempt(self, work: Work[Any], undo: str) -> Any:
        try:
            return work(self._connection)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not is_fault_of_work(error):
                raise
            self._connection.execute(undo)
            if isinstance(error, RequestError):
                return error
            logger.exception("a piece of work for the log on disk failed")
            return RequestError("internal", "The log on disk could not take this")

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # it is rolled back already, or the next BEGIN says what is wrong

    def _outage_of(self, error: sqlite3.Error) -> RequestError:
        """Return what those are told whose group was not stored. Raises `StorageError` if the file is damaged."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in DAMAGES:
            raise damaged(self._path, error) from None
        kind = OUTAGES.get(code, "io")
        if self._outage != kind:
            logger.error("%s: it cannot be written: %s", self._path, error)
            self._outage = kind
        return RequestError("unavailable", "The broker cannot write its log now", retry_after_ms=BUSY_RETRY_MS)

    def look_around(self) -> None:
        """Look how much room there is, and write down that the process lives, if it is time for that."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self.look()
        if now - self._alive_at >= _ALIVE_SECONDS:
            self._alive_at = now
            self.write([Begun(None, lambda _: self._database.keep_alive(), lambda _: None)])

    def look(self) -> None:
        """Look how much room there is. Raises `StorageError` if the file is not where it was. For a thread."""
        if not self._database.is_in_its_place():
            raise StorageError(f"{self._path}: it was moved, deleted or replaced while a broker had it")
        was_short = self.short_of_room
        try:
            self.bytes, self.free_bytes = file_bytes(self._path), free_bytes(self._path)
        except OSError:
            return  # what cannot be looked at cannot be written either, and that is told
        if self.short_of_room != was_short:
            least = f"{self._min_free_bytes:,} bytes must stay free, {self.free_bytes:,} are"
            logger.log(
                logging.ERROR if self.short_of_room else logging.WARNING,
                "%s: %s: %s",
                self._path,
                least,
                "no event is stored" if self.short_of_room else "events are stored again",
            )


def is_fault_of_work(error: sqlite3.Error) -> bool:
    """Whether it is the work that is wrong (a constraint, a statement), not the disk or the file."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or not (code & 0xFF in OUTAGES or code & 0xFF in DAMAGES)


def damaged(path: str, error: sqlite3.Error) -> StorageError:
    """Return what ends the process: what a damaged file says could be wrong."""
    return StorageError(f"{path}: it is damaged: {error}")
