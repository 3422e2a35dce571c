"""Who is to be called when: one task for all, however many; it works in slices and yields between them."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from math import inf
from typing import Final

import trio
from msgspec import Struct

_SLICE: Final = 64

Call = Callable[[float], float | None]
"""Called with the time; returns when to call it again, or None for never."""


class _Item:
    """Somebody who is to be called; ``call`` None: it was removed."""

    __slots__ = ("call", "due", "number")

    def __init__(self, due: float, number: int, call: Call) -> None:
        self.due = due
        self.number = number
        self.call: Call | None = call


class ScheduleStatistics(Struct, frozen=True):
    """Who waits to be called."""

    waiting: int
    """Calls that are to come."""


class Schedule:
    """Everybody who is to be called.

    A sorted list: at a hundred thousand it costs what a heap costs, and what is removed leaves nothing in it.
    """

    def __init__(self) -> None:
        self._items: list[tuple[float, int, _Item]] = []
        """By when they are due, those due together in the order of their coming."""
        self._numbers = 0
        self._added = trio.Event()

    def add(self, due: float, call: Call) -> Callable[[], None]:
        """Call ``call`` at ``due`` (seconds of trio's clock), and then whenever it asks for.

        Returns what removes it again; nothing is kept of it from then on.
        """
        self._numbers += 1
        item = _Item(due, self._numbers, call)
        self._insert(item)
        if self._items[0][2] is item:
            self._added.set()

        def remove() -> None:
            item.call = None
            index = bisect_left(self._items, (item.due, item.number))
            # One that is being called is not in the list.
            if index < len(self._items) and self._items[index][2] is item:
                del self._items[index]

        return remove

    def _insert(self, item: _Item) -> None:
        insort(self._items, (item.due, item.number, item))

    async def run(self) -> None:
        """Call everybody in time, for ever."""
        while True:
            self._added = trio.Event()
            with trio.move_on_at(self._items[0][0] if self._items else inf):
                await self._added.wait()
            await self._call_all_due()

    async def _call_all_due(self) -> None:
        now = trio.current_time()
        while due := self._take_due(now):
            for item in due:
                again = None if item.call is None else item.call(now)
                if again is not None and item.call is not None:
                    item.due = again
                    self._insert(item)
            await trio.lowlevel.checkpoint()

    def _take_due(self, now: float) -> list[_Item]:
        """Take the next slice of those that are due out of the list."""
        end = bisect_right(self._items, (now, inf), hi=min(_SLICE, len(self._items)))
        taken = [item for _, _, item in self._items[:end]]
        del self._items[:end]
        return taken

    def statistics(self) -> ScheduleStatistics:
        """Return who waits."""
        return ScheduleStatistics(len(self._items))


class Alarm:
    """One call that is to come, at the earliest of the times that it was set for; it may be set again and again."""

    __slots__ = ("_remove", "at")

    def __init__(self) -> None:
        self.at: float | None = None
        """When (trio's clock); None: it is not set."""
        self._remove: Callable[[], None] | None = None

    def set(self, schedule: Schedule, at: float, ring: Callable[[], None]) -> None:
        """Let ``ring`` be called at a time, unless the alarm rings earlier anyway."""
        if self.at is not None and self.at <= at:
            return
        self.clear()

        def call(now: float) -> None:
            self.at = self._remove = None
            ring()

        self.at = at
        self._remove = schedule.add(at, call)

    def clear(self) -> None:
        """Let nothing be called."""
        if self._remove is not None:
            self._remove()
        self.at = self._remove = None
