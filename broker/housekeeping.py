"""What is done by the clock: heartbeats, the expiry of the window, forgetting the idle.

Two tasks for all connections and accounts, however many; each works in slices and yields between them.
"""

import heapq
from collections.abc import Callable
from typing import Final

import trio

from .commands import Commands
from .hub import Hub
from .retention import ReplayBuffers

_SLICE: Final = 64
_EXPIRE_SLICE: Final = 512
MAX_EXPIRY_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 30.0

Beat = Callable[[float], float | None]
"""Called with the time; returns when to call it again, or None for never."""


class _Item:
    """When somebody is to be called; ``beat`` None: it was removed."""

    __slots__ = ("beat", "due", "number")

    def __init__(self, due: float, number: int, beat: Beat) -> None:
        self.due = due
        self.number = number
        self.beat: Beat | None = beat

    def __lt__(self, other: "_Item") -> bool:
        return (self.due, self.number) < (other.due, other.number)


class Heartbeats:
    """Everybody who is to be called at times."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._numbers = 0
        self._added = trio.Event()

    def add(self, due: float, beat: Beat) -> Callable[[], None]:
        """Call ``beat`` at ``due`` (seconds of trio's clock), and then whenever it asks for.

        Returns what removes it again; nothing is kept of it from then on.
        """
        self._numbers += 1
        item = _Item(due, self._numbers, beat)
        heapq.heappush(self._items, item)
        if self._items[0] is item:
            self._added.set()

        def remove() -> None:
            item.beat = None

        return remove

    async def run(self) -> None:
        """Call everybody in time, for ever."""
        while True:
            self._added = trio.Event()
            with trio.move_on_at(self._items[0].due if self._items else float("inf")):
                await self._added.wait()
            await self._call_due()

    async def _call_due(self) -> None:
        called = 0
        now = trio.current_time()
        while self._items and self._items[0].due <= now:
            item = heapq.heappop(self._items)
            again = None if item.beat is None else item.beat(now)
            if again is not None:
                item.due = again
                heapq.heappush(self._items, item)
            called += 1
            if called % _SLICE == 0:
                await trio.lowlevel.checkpoint()


async def expire_and_forget(hub: Hub, buffers: ReplayBuffers, commands: Commands, window_seconds: float) -> None:
    """Drop what is too old, and forget accounts of which nothing is left, for ever."""
    interval = min(MAX_EXPIRY_SECONDS, window_seconds / 4)
    forget_at = trio.current_time() + FORGET_SECONDS
    while True:
        await trio.sleep(interval)
        while buffers.expire(trio.current_time(), most=_EXPIRE_SLICE):
            await trio.lowlevel.checkpoint()
        if trio.current_time() >= forget_at:
            forget_at = trio.current_time() + FORGET_SECONDS
            commands.forget_idle(trio.current_time())
            for number, account in enumerate(hub.accounts()):
                hub.forget_idle(account, trio.current_time())
                if number % _SLICE == 0:
                    await trio.lowlevel.checkpoint()
