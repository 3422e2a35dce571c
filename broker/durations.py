"""How long things took: counted by buckets, so that any number of them costs the same.

Pure. Adding one is a search among fourteen bounds and two additions.
"""

from bisect import bisect_left
from typing import Final

from msgspec import Struct

BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: the upper bounds of the buckets; what is longer is in one more."""


class DurationsStatistics(Struct, frozen=True):
    """What was counted since the start."""

    counts: tuple[int, ...]
    """One for each of `BOUNDS`, of what was longer than the bound before; and of what was longer than all."""
    seconds: float
    """All durations together."""


class Durations:
    """Durations of one kind."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def statistics(self) -> DurationsStatistics:
        """Return what was counted."""
        return DurationsStatistics(tuple(self._counts), self._seconds)
