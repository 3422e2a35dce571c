"""A limit that many share, so that none of them keeps the others out."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio
from msgspec import Struct

Holder = Hashable | None
"""Whoever places are counted for; None: nobody in particular, bounded by the total alone."""


class FairLimiterStatistics(Struct, frozen=True):
    """Who is in, and who waits."""

    free: int
    """Places that nobody has."""
    holders: int
    """Those who have one."""
    waiting: int
    """Those who want one and wait for it."""


class FairLimiter:
    """Gives ``total`` places. Those who wait for one have their turns, one after the other.

    Three quarters go to whoever wants them; of the last quarter a holder gets one only while he has fewer than half
    as many as are free. So whoever comes finds a place at once, however much others want and however long they stay.
    """

    def __init__(self, total: int) -> None:
        self._free = total
        self._reserve = total // 4
        self._taken: dict[Holder, int] = {}
        self._waiting: OrderedDict[Holder, trio.lowlevel.ParkingLot] = OrderedDict()
        """In the order of their turns."""

    @asynccontextmanager
    async def place(self, holder: Holder) -> AsyncIterator[None]:
        """Have a place for as long as the block lasts; wait for it if there is none for this holder."""
        await self.take(holder)
        try:
            yield
        finally:
            self.give_back(holder)

    async def take(self, holder: Holder) -> None:
        """Take a place, and wait for it if there is none for this holder; `give_back` it in the end."""
        if not self.take_nowait(holder):
            await self._wait(holder)

    def take_nowait(self, holder: Holder) -> bool:
        """Take a place if there is one for this holder, and say so; `give_back` it in the end."""
        if self._waiting.get(holder) or not self._has_room_for(holder):
            return False
        self._take(holder)
        return True

    def give_back(self, holder: Holder) -> None:
        """Give a place back; whoever waits and may have it has it from this step on."""
        self._free += 1
        self._taken[holder] -= 1
        if not self._taken[holder]:
            del self._taken[holder]
        while self._free and self._let_one_in():
            pass

    def _let_one_in(self) -> bool:
        """Give a place to the next in turn who may have one. Those passed over have places already: they are few."""
        for holder, lot in self._waiting.items():
            if lot and self._has_room_for(holder):
                self._take(holder)
                lot.unpark()
                self._waiting.move_to_end(holder)
                return True
        return False

    def _has_room_for(self, holder: Holder) -> bool:
        if holder is None or self._free > self._reserve:
            return self._free > 0
        return self._taken.get(holder, 0) < self._free / 2

    def _take(self, holder: Holder) -> None:
        self._free -= 1
        self._taken[holder] = self._taken.get(holder, 0) + 1

    async def _wait(self, holder: Holder) -> None:
        """Wait until `give_back` has taken a place for this holder."""
        lot = self._waiting.setdefault(holder, trio.lowlevel.ParkingLot())
        try:
            await lot.park()
        finally:
            if not lot and self._waiting.get(holder) is lot:
                del self._waiting[holder]

    def statistics(self) -> FairLimiterStatistics:
        """Return who is in, and who waits."""
        return FairLimiterStatistics(self._free, len(self._taken), sum(map(len, self._waiting.values())))
