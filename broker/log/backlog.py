"""What workers are to do, for the loop: which events are jobs of which queues, and who is to be woken.

`jobs` has the rows and their states. The engine adds them in its events' own transaction (`Backlog.write`), by the
intakes that stand here; without queues that costs nothing.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import trio

from ..protocol.messages import Entry
from . import jobbook, jobs
from .jobs import Intake
from .kept import Followed
from .storage import Storage


class Backlog:
    """The jobs of all accounts. ``wall_clock`` returns seconds since 1970, in any thread."""

    def __init__(self, storage: Storage, wall_clock: Callable[[], float] = time.time) -> None:
        self.storage = storage
        self.wall_clock = wall_clock
        self.woken: Callable[[int], None] = _nobody
        """Called in the loop with the number of a queue that has a new job."""
        self._intakes: dict[str, tuple[Intake, ...]] = {}
        """By account. Read in the writer's thread: an account's intakes are replaced whole."""
        self._loop: trio.lowlevel.TrioToken | None = None
        self._queues: dict[str, dict[int, None]] = {}
        """By account, those that have new jobs and are not woken yet. For the writer's thread."""
        self.followed = Followed()
        """Who has the events of accounts that have intakes."""

    def take_in(self, account_id: str, intakes: Sequence[Intake]) -> None:
        """Let these be all intakes of an account."""
        self._loop = trio.lowlevel.current_trio_token()
        self._intakes[account_id] = tuple(intakes)
        if not intakes:
            del self._intakes[account_id]
        self.followed.changed(account_id)

    def wants(self, account_id: str, entry: Entry) -> bool:
        """Whether an event of an account is for any of its queues. For any thread."""
        return any(intake.wants(entry) for intake in self._intakes.get(account_id, ()))

    def has(self, account_id: str) -> bool:
        """Whether an account has a queue."""
        return account_id in self._intakes

    def rows_of(self, account_id: str) -> int:
        """Return how many jobs an event of an account may be."""
        return len(self._intakes.get(account_id, ()))

    def add(self, connection: sqlite3.Connection, account_id: str, entries: Sequence[Entry]) -> None:
        """Add the jobs of events that an account has just got, in their own transaction, and wake for them."""
        self.write(connection, account_id, entries)
        self.finish(account_id)

    def write(self, connection: sqlite3.Connection, account_id: str, entries: Sequence[Entry]) -> None:
        """Add the jobs, in the transaction of their events: these may be a part of a list, and not the log's yet."""
        intakes = self._intakes.get(account_id)
        if intakes:
            queues = jobs.add(connection, intakes, entries, self.wall_clock())
            self._queues.setdefault(account_id, {}).update(dict.fromkeys(queues))

    def finish(self, account_id: str) -> None:
        """Wake for the jobs that were added, in the transaction after which their events are the log's."""
        queues = self._queues.pop(account_id, None)
        if queues and self._loop is not None:
            # Whoever is woken asks the same writer, whose turn for that comes after this commit.
            with suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(self._wake, queues)

    def take_back(self, connection: sqlite3.Connection, account_id: str, first: int) -> None:
        """Forget the jobs of an account's events from a position on, which did not become the log's."""
        self._queues[account_id] = dict.fromkeys(jobbook.take_back(connection, account_id, first))
        self.finish(account_id)

    def _wake(self, queues: Iterable[int]) -> None:
        for queue in queues:
            self.woken(queue)


def _nobody(queue: int) -> None:
    """Wake nobody."""
