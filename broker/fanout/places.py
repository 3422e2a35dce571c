"""Room before the fan-out: how many publishes, and how many bytes of them, it may be behind in one account.

Who publishes takes a place before anything is stored, and leaves it to the fan-out until that is delivered. So a client
that publishes faster than its account's listeners are written to waits, and what the log holds beyond the replay window
is bounded.
"""

from collections import deque
from typing import Final

import trio

MAX_PLACES: Final = 16
"""Publish calls of one account that the fan-out may be behind; the next one waits."""
MAX_BYTES: Final = 16_777_216
"""Bytes of these; one call with more than that waits until nothing else is there."""


class Place:
    """One publish call's place. Leaving the block gives it back, unless it was handed on."""

    __slots__ = ("_places", "size")

    def __init__(self, places: "Places", size: int) -> None:
        self._places: Places | None = places
        self.size = size

    def hand_on(self, position: int) -> None:
        """Leave the place to the fan-out, until everything up to a position is delivered."""
        places, self._places = self._places, None
        if places is not None:
            places.hold_until(position, self.size)

    def give_back(self) -> None:
        """Give the place back, unless that was done or it was handed on."""
        places, self._places = self._places, None
        if places is not None:
            places.free(self.size)

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()


class _Waiter:
    """Somebody who waits for a place."""

    __slots__ = ("granted", "place", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = trio.Event()
        self.place: Place | None = None


class Places:
    """The places of one account, of which the fan-out has delivered everything up to ``delivered``."""

    __slots__ = ("_bytes", "_delivered", "_handed_on", "_taken", "_waiting")

    def __init__(self, delivered: int) -> None:
        self._delivered = delivered
        self._taken = 0
        self._bytes = 0
        self._handed_on: deque[tuple[int, int]] = deque()
        self._waiting: deque[_Waiter] = deque()

    @property
    def in_use(self) -> bool:
        """Whether any is taken."""
        return self._taken > 0

    def take_nowait(self, size: int) -> Place | None:
        """Take a place for so many bytes, if there is one and nobody waits."""
        return None if self._waiting or not self._has_room(size) else self._take(size)

    async def take(self, size: int) -> Place:
        """Take a place for so many bytes; wait until there is one, behind those who wait already."""
        waiter = _Waiter(size)
        self._waiting.append(waiter)
        self._grant()
        try:
            await waiter.granted.wait()
        except trio.Cancelled:
            if waiter.place is None:
                self._waiting.remove(waiter)
                self._grant()
            else:
                waiter.place.give_back()
            raise
        assert waiter.place is not None
        return waiter.place

    def delivered(self, position: int) -> None:
        """Free the places of all that the fan-out has passed."""
        self._delivered = position
        while self._handed_on and self._handed_on[0][0] <= position:
            self.free(self._handed_on.popleft()[1])

    def hold_until(self, position: int, size: int) -> None:
        """Free a place when everything up to a position is delivered. `Place` does this."""
        if position <= self._delivered:
            self.free(size)
        else:
            self._handed_on.append((position, size))

    def free(self, size: int) -> None:
        """Free a place now. `Place` does this."""
        self._taken -= 1
        self._bytes -= size
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._has_room(self._waiting[0].size):
            waiter = self._waiting.popleft()
            waiter.place = self._take(waiter.size)
            waiter.granted.set()

    def _has_room(self, size: int) -> bool:
        return self._taken < MAX_PLACES and (not self._taken or self._bytes + size <= MAX_BYTES)

    def _take(self, size: int) -> Place:
        self._taken += 1
        self._bytes += size
        return Place(self, size)
