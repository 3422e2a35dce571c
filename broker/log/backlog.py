"""What workers are to do, for the loop: which events are jobs of which queues, and who is to be woken.

`jobs` has the rows and their states; an event is a job by the intakes that stand here.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence

from ..protocol.messages import Entry
from . import jobs
from .jobs import Intake
from .owing import Due, Owing
from .storage import Storage


class Backlog(Owing[Intake]):
    """The jobs of all accounts."""

    def __init__(self, storage: Storage, wall_clock: Callable[[], float] = time.time) -> None:
        super().__init__(jobs.KIND, storage, wall_clock)
        self.woken: Callable[[int], None] = _nobody
        """Called in the loop with the number of a queue that has a new job."""

    def take_in(self, account_id: str, intakes: Sequence[Intake]) -> None:
        """Let these be all intakes of an account."""
        self._let_get(account_id, intakes)

    def _add(self, connection: sqlite3.Connection, wanting: Sequence[Intake], entries: Sequence[Entry]) -> Due:
        return dict.fromkeys(jobs.add(connection, wanting, entries, self.wall_clock()), 0.0)

    def _wake(self, due: Due) -> None:
        for queue in due:
            self.woken(queue)


def _nobody(queue: int) -> None:
    """Wake nobody."""
