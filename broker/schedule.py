"""Who is to be called when: one task for all, however many; it works in slices and yields between them."""

import heapq
from collections.abc import Callable
from typing import Final

import trio

_SLICE: Final = 64

Call = Callable[[float], float | None]
"""Called with the time; returns when to call it again, or None for never."""


class _Item:
    """When somebody is to be called; ``call`` None: it was removed."""

    __slots__ = ("call", "due", "number")

    def __init__(self, due: float, number: int, call: Call) -> None:
        self.due = due
        self.number = number
        self.call: Call | None = call

    def __lt__(self, other: "_Item") -> bool:
        return (self.due, self.number) < (other.due, other.number)


class Schedule:
    """Everybody who is to be called."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._numbers = 0
        self._added = trio.Event()

    def add(self, due: float, call: Call) -> Callable[[], None]:
        """Call ``call`` at ``due`` (seconds of trio's clock), and then whenever it asks for.

        Returns what removes it again; nothing is kept of it from then on.
        """
        self._numbers += 1
        item = _Item(due, self._numbers, call)
        heapq.heappush(self._items, item)
        if self._items[0] is item:
            self._added.set()

        def remove() -> None:
            item.call = None

        return remove

    async def run(self) -> None:
        """Call everybody in time, for ever."""
        while True:
            self._added = trio.Event()
            with trio.move_on_at(self._items[0].due if self._items else float("inf")):
                await self._added.wait()
            await self._call_all_due()

    async def _call_all_due(self) -> None:
        called = 0
        now = trio.current_time()
        while self._items and self._items[0].due <= now:
            item = heapq.heappop(self._items)
            again = None if item.call is None else item.call(now)
            if again is not None:
                item.due = again
                heapq.heappush(self._items, item)
            called += 1
            if called % _SLICE == 0:
                await trio.lowlevel.checkpoint()
