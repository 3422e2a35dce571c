"""What is owed for events, for the loop: to whom, as what stands here says, and who is woken when it is there.

The engine adds it in the events' own transaction (`Owing.write`), as rows of the log on disk; where nobody is owed
anything that costs nothing.
"""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar, cast

import trio

from ..protocol.messages import Entry
from . import owed
from .kept import Followed
from .owed import Kind
from .storage import Storage
from .writing import Work


class Wanting(Protocol):
    """Who gets events of an account."""

    def wants(self, entry: Entry) -> bool:
        """Whether an event is for it. For any thread."""
        ...


W = TypeVar("W", bound=Wanting)
P = TypeVar("P")
Due = Mapping[int, float]
"""When something may be due at the soonest, by the number of whom it is for."""


class Owing(ABC, Generic[W]):
    """What is owed for the events of all accounts, as rows of one kind.

    ``wall_clock`` returns seconds since 1970, in any thread.
    """

    def __init__(self, kind: Kind, storage: Storage, wall_clock: Callable[[], float]) -> None:
        self._kind = kind
        self.storage = storage
        self.wall_clock = wall_clock
        self.followed = Followed()
        """Who has the events of accounts of whom somebody gets any."""
        self._wanting: dict[str, tuple[W, ...]] = {}
        """By account. Read in the writer's thread: an account's are replaced whole."""
        self._loop: trio.lowlevel.TrioToken | None = None
        self._due: dict[str, dict[int, float]] = {}
        """By account, of what was added, and nobody is woken for yet. For the writer's thread."""

    def _let_get(self, account_id: str, wanting: Sequence[W]) -> None:
        """Let these, and no others, get an account's events."""
        self._loop = trio.lowlevel.current_trio_token()
        self._wanting[account_id] = tuple(wanting)
        if not wanting:
            del self._wanting[account_id]
        self.followed.changed(account_id)

    def wants(self, account_id: str, entry: Entry) -> bool:
        """Whether an event of an account is for anybody here. For any thread."""
        return any(one.wants(entry) for one in self._wanting.get(account_id, ()))

    def has(self, account_id: str) -> bool:
        """Whether anybody here gets events of an account."""
        return account_id in self._wanting

    def rows_of(self, account_id: str) -> int:
        """Return how many rows an event of an account may be here."""
        return len(self._wanting.get(account_id, ()))

    async def again(self, first: P, work: Callable[[P, float], Work[tuple[int, P | None]]]) -> int:
        """Let rows be done again, a page in a step, as others' work comes between; return how many these are.

        ``work`` returns what does a page, of where that begins, and the time; this returns how many they are, and with
        what to go on; None: that were all. Raises `RequestError`.
        """
        done, page = 0, cast("P | None", first)
        while page is not None:
            count, page = await self.storage.write(work(page, self.wall_clock()))
            done += count
        return done

    # --- in the events' transaction, in the writer's thread

    def add(self, connection: sqlite3.Connection, account_id: str, entries: Sequence[Entry]) -> None:
        """Add the rows of events that an account has just got, in their own transaction, and wake for them."""
        self.write(connection, account_id, entries)
        self.finish(account_id)

    def write(self, connection: sqlite3.Connection, account_id: str, entries: Sequence[Entry]) -> None:
        """Add the rows, in the transaction of their events: these may be a part of a list, and not the log's yet."""
        wanting = self._wanting.get(account_id)
        if wanting:
            due = self._due.setdefault(account_id, {})
            for number, due_at in self._add(connection, wanting, entries).items():
                due[number] = min(due_at, due.get(number, due_at))

    def finish(self, account_id: str) -> None:
        """Wake for the rows that were added, in the transaction after which their events are the log's."""
        due = self._due.pop(account_id, None)
        if due and self._loop is not None:
            # Whoever is woken asks the same writer, whose turn for that comes after this commit.
            with suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(self._wake, due)

    def take_back(self, connection: sqlite3.Connection, account_id: str, first: int, most: int) -> int:
        """Forget rows of an account's events from a position on, which did not become the log's; so many at most.

        Returns how many those were.
        """
        gone, moved_up = owed.take_back(connection, self._kind, account_id, first, most)
        self._due[account_id] = dict.fromkeys(moved_up, 0.0)
        self.finish(account_id)
        return gone

    # --- what it is that is owed

    @abstractmethod
    def _add(self, connection: sqlite3.Connection, wanting: Sequence[W], entries: Sequence[Entry]) -> Due:
        """Add rows for events, in the writer's thread; return for whom, and when these are due."""

    @abstractmethod
    def _wake(self, due: Due) -> None:
        """Wake whoever is owed something, in the loop."""
