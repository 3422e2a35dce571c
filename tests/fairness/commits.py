"""What a neighbour waits for at a log on disk: the steps that SQLite takes before it looks who else is there."""

from collections.abc import Callable
from typing import Any

from logs import StorageInStep

from broker.log.writing import Begun

EACH = 100
"""SQLite tells of its steps by so many."""


class Waits(StorageInStep):
    """A log on disk in step. It counts how many steps of SQLite somebody would wait for who came at the worst time."""

    def __init__(self, database: Any, min_free_bytes: int) -> None:
        super().__init__(database, min_free_bytes)
        self.longest = 0
        """Steps between two moments in which somebody else's commit may come."""
        self._steps = 0
        database.connection.set_progress_handler(self._count, EACH)

    def _count(self) -> None:
        self._steps += EACH

    def _look(self) -> list[Begun]:
        self.longest, self._steps = max(self.longest, self._steps), 0
        return []

    def _begin(self, begun: Begun) -> None:
        if not begun.is_in_parts:
            super()._begin(begun)
        else:
            self._waiting += 1
            group: list[Begun] = []
            while begun not in group:
                self._committed(group := [], *self._writer.write_parts(begun, group, self._look))
                self._look()
        self._look()

    def of(self, work: Callable[[], object]) -> int:
        """Return the longest wait in some work."""
        self._look()
        self.longest = 0
        work()
        return self.longest
