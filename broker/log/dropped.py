"""What is known of events that left the replay window: their positions, for an hour.

Pure. So a gap says exactly how many events a subscriber missed. Positions lie in buckets of some minutes, each
with the order of the account and that of each inbox (8 bytes a position and order, 8 for its time), and are
forgotten a bucket at once.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from typing import Final

from ..protocol.selection import Selection

REMEMBER_SECONDS: Final = 3_600.0
_BUCKET_SECONDS: Final = 600.0
_BUCKET_POSITIONS: Final = 100_000
MAX_POSITIONS: Final = 1_000_000
"""For each account: about 24 MB."""


class _DroppedBucket:
    """Positions of events dropped within some minutes: of all, with their times, and for each inbox."""

    __slots__ = ("by_inbox", "last_dropped_at", "opened_at", "positions", "times")

    def __init__(self, now: float) -> None:
        self.opened_at = now
        self.last_dropped_at = now
        self.positions = array("q")
        self.times = array("d")
        self.by_inbox: dict[str, array[int]] = {}

    def add(self, position: int, inbox: str, stored_at: float, now: float) -> None:
        self.last_dropped_at = now
        self.positions.append(position)
        self.times.append(stored_at)
        run = self.by_inbox.get(inbox)
        if run is None:
            run = self.by_inbox[inbox] = array("q")
        run.append(position)


def _count(positions: "array[int]", after: int, through: int) -> int:
    return bisect_right(positions, through) - bisect_right(positions, after)


class DroppedPositions:
    """The dropped positions of one account, all after ``start``, whose event was stored at ``start_stored_at``.

    ``forgotten_through`` is the newest position of which nothing is known any more.
    """

    __slots__ = ("_buckets", "count", "forgotten_stored_at", "forgotten_through")

    def __init__(self, start: int, start_stored_at: float) -> None:
        self._buckets: deque[_DroppedBucket] = deque()
        self.count = 0
        self.forgotten_through = start
        self.forgotten_stored_at = start_stored_at

    def add(self, position: int, inbox: str, stored_at: float, now: float) -> None:
        """Remember an event that was dropped at ``now``; positions and times never go back."""
        bucket = self._buckets[-1] if self._buckets else None
        if bucket is None or now - bucket.opened_at > _BUCKET_SECONDS or len(bucket.positions) >= _BUCKET_POSITIONS:
            bucket = _DroppedBucket(now)
            self._buckets.append(bucket)
        bucket.add(position, inbox, stored_at, now)
        self.count += 1
        while self.count > MAX_POSITIONS:
            self._forget_oldest()

    def forget(self, now: float) -> None:
        """Forget what was dropped more than an hour ago (in steps of a bucket, never early)."""
        while self._buckets and self._buckets[0].last_dropped_at < now - REMEMBER_SECONDS:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        bucket = self._buckets.popleft()
        self.count -= len(bucket.positions)
        self.forgotten_through = bucket.positions[-1]
        self.forgotten_stored_at = bucket.times[-1]

    def count_between(self, selection: Selection, after: int, through: int) -> int | None:
        """Count the dropped events of a selection; None if some of them may be forgotten."""
        if after < self.forgotten_through:
            return None
        total = 0
        for bucket in self._buckets:
            if bucket.positions[-1] > after:
                total += self._count_in(bucket, selection, after, through)
        return total

    @staticmethod
    def _count_in(bucket: _DroppedBucket, selection: Selection, after: int, through: int) -> int:
        if selection.inboxes is None:
            runs = [bucket.by_inbox[inbox] for inbox in selection.excluded if inbox in bucket.by_inbox]
            return _count(bucket.positions, after, through) - sum(_count(r, after, through) for r in runs)
        small, large = sorted((selection.inboxes, bucket.by_inbox.keys()), key=len)
        return sum(_count(bucket.by_inbox[i], after, through) for i in small if i in large)

    def position_before(self, stored_at: float) -> int | None:
        """Return the last position dropped that was stored before ``stored_at``; None if it is forgotten."""
        for bucket in reversed(self._buckets):
            index = bisect_left(bucket.times, stored_at)
            if index:
                return bucket.positions[index - 1]
        return self.forgotten_through if self.forgotten_stored_at < stored_at else None
