"""What is known of events that left the replay window: their positions, for an hour.

Pure. So a gap says exactly how many events a subscriber missed, and a time finds its place. Positions lie in buckets of
some minutes, each with the order of the account and that of each inbox, and are forgotten a bucket at once. All
accounts' buckets are counted in bytes: an account that has too many forgets its oldest, and so do all together.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import Final, NamedTuple

from ..protocol.selection import Selection

REMEMBER_SECONDS: Final = 3_600.0
MAX_BYTES: Final = 268_435_456
"""For all accounts together."""
MAX_BYTES_OF_ACCOUNT: Final = 33_554_432
"""A million positions where the inboxes are few; 70,000 where each has an inbox with a long name of its own."""
_BUCKET_SECONDS: Final = 600.0
_BUCKET_BYTES: Final = 2_097_152
"""So much is freed in one step: about a millisecond."""
_POSITION_BYTES: Final = 32
"""A position, its two times, and the position once more in its inbox's order."""
_INBOX_BYTES: Final = 180
"""What an inbox costs in a bucket beside its name."""


class Dropped(NamedTuple):
    """An event that is in no window any more: where it was, whose inbox's, and when it was stored (both clocks)."""

    position: int
    inbox: str
    stored_at: float
    wall: float


class _DroppedBucket:
    """Positions of events dropped within some minutes: of all, with their times, and for each inbox."""

    __slots__ = (
        "by_inbox",
        "bytes",
        "forgotten",
        "last_dropped_at",
        "opened_at",
        "owner",
        "positions",
        "times",
        "walls",
    )

    def __init__(self, owner: "DroppedPositions", now: float) -> None:
        self.owner = owner
        self.opened_at = now
        self.last_dropped_at = now
        self.positions = array("q")
        self.times = array("d")
        self.walls = array("d")
        self.by_inbox: dict[str, array[int]] = {}
        self.bytes = 0
        self.forgotten = False

    def add(self, position: int, inbox: str, stored_at: float, wall: float, now: float) -> int:
        """Add a position; return what that costs in bytes."""
        self.last_dropped_at = now
        self.positions.append(position)
        self.times.append(stored_at)
        self.walls.append(wall)
        cost = _POSITION_BYTES
        run = self.by_inbox.get(inbox)
        if run is None:
            run = self.by_inbox[inbox] = array("q")
            cost += _INBOX_BYTES + len(inbox)
        run.append(position)
        self.bytes += cost
        return cost

    def take_back(self, after: int) -> int:
        """Know nothing of the positions after one any more; return what that frees in bytes."""
        keep = bisect_right(self.positions, after)
        freed = _POSITION_BYTES * (len(self.positions) - keep)
        del self.positions[keep:], self.times[keep:], self.walls[keep:]
        for inbox, run in [(inbox, run) for inbox, run in self.by_inbox.items() if run[-1] > after]:
            del run[bisect_right(run, after) :]
            if not run:
                del self.by_inbox[inbox]
                freed += _INBOX_BYTES + len(inbox)
        self.bytes -= freed
        return freed

    def count(self, selection: Selection, after: int, through: int) -> int:
        """Count the positions of a selection after one and up to another."""
        if selection.inboxes is None:
            return self._count_in([self.positions], after, through) - self._count_of(selection.excluded, after, through)
        return self._count_of(selection.inboxes, after, through)

    def _count_of(self, inboxes: frozenset[str], after: int, through: int) -> int:
        """Count the positions of some inboxes: all in C, a tenth of a microsecond for each inbox, or half of one."""
        by_inbox = self.by_inbox
        if len(inboxes) >= len(by_inbox) and by_inbox.keys() <= inboxes:
            return self._count_in([self.positions], after, through)
        here = inboxes if len(inboxes) < len(by_inbox) else by_inbox.keys() & inboxes
        return self._count_in([run for run in map(by_inbox.get, here) if run is not None], after, through)

    def _count_in(self, runs: "Sequence[array[int]]", after: int, through: int) -> int:
        """Count positions in the orders of some inboxes, or of all; only where the bucket is cut they are searched."""
        begun_before, goes_on = self.positions[0] <= after, self.positions[-1] > through
        counted = sum(map(bisect_right, runs, repeat(through))) if goes_on else sum(map(len, runs))
        return counted - sum(map(bisect_right, runs, repeat(after))) if begun_before else counted


class DroppedBuckets:
    """The buckets of all accounts, under one budget, in the order in which they were opened."""

    def __init__(self) -> None:
        self.bytes = 0
        """What all of them cost in memory."""
        self._buckets: deque[_DroppedBucket] = deque()

    def open(self, owner: "DroppedPositions", now: float) -> _DroppedBucket:
        """Return a new bucket of an account."""
        bucket = _DroppedBucket(owner, now)
        self._buckets.append(bucket)
        return bucket

    def grow(self, cost: int) -> None:
        """Count what was added to an account's newest bucket; if it is too much, the oldest of all are forgotten."""
        self.bytes += cost
        while self.bytes > MAX_BYTES and len(self._buckets) > 1:
            self._forget_oldest()

    def forget(self, now: float) -> bool:
        """Forget one bucket if all in it was dropped more than an hour ago. Returns whether there may be another."""
        if not self._buckets or self._buckets[0].last_dropped_at >= now - REMEMBER_SECONDS:
            return False
        self._forget_oldest()
        return True

    def _forget_oldest(self) -> None:
        bucket = self._buckets.popleft()
        bucket.owner.forget_through(bucket)


class DroppedPositions:
    """The dropped positions of one account, all after ``start``, whose event was stored at these two times.

    ``forgotten_through`` is the newest position of which nothing is known any more. Times are of the monotonic clock;
    ``wall`` is the time of day (seconds since 1970).
    """

    __slots__ = ("_all", "_buckets", "bytes", "forgotten_stored_at", "forgotten_through", "forgotten_wall")

    def __init__(self, all_buckets: DroppedBuckets, start: int, start_stored_at: float, start_wall: float) -> None:
        self._all = all_buckets
        self._buckets: deque[_DroppedBucket] = deque()
        self.bytes = 0
        self.forgotten_through = start
        self.forgotten_stored_at = start_stored_at
        self.forgotten_wall = start_wall

    def add(self, position: int, inbox: str, stored_at: float, wall: float, now: float) -> None:
        """Remember an event that was dropped at ``now``; positions and times never go back."""
        bucket = self._buckets[-1] if self._buckets else None
        if bucket is None or now - bucket.opened_at > _BUCKET_SECONDS or bucket.bytes >= _BUCKET_BYTES:
            bucket = self._all.open(self, now)
            self._buckets.append(bucket)
        cost = bucket.add(position, inbox, stored_at, wall, now)
        self.bytes += cost
        while self.bytes > MAX_BYTES_OF_ACCOUNT and len(self._buckets) > 1:
            self.forget_through(self._buckets[0])
        self._all.grow(cost)

    def forget_through(self, bucket: _DroppedBucket) -> None:
        """Forget a bucket, unless it was forgotten before, and all that have older positions."""
        while not bucket.forgotten:
            oldest = self._buckets.popleft()
            self.forgotten_through = oldest.positions[-1]
            self.forgotten_stored_at = oldest.times[-1]
            self.forgotten_wall = oldest.walls[-1]
            self._let_go(oldest)

    def _let_go(self, bucket: _DroppedBucket) -> None:
        bucket.forgotten = True
        self.bytes -= bucket.bytes
        self._all.bytes -= bucket.bytes
        bucket.bytes = 0
        bucket.by_inbox.clear()
        del bucket.positions[:], bucket.times[:], bucket.walls[:]

    def forget_all(self, position: int, stored_at: float, wall: float) -> None:
        """Know nothing but that an event at this position, stored at these times, is the last one that is gone."""
        while self._buckets:
            self._let_go(self._buckets.pop())
        self.forgotten_through, self.forgotten_stored_at, self.forgotten_wall = position, stored_at, wall

    def take_back(self, after: int, stored_at: float, wall: float) -> None:
        """Know nothing of what was after a position any more: it is not dropped. Up to it all is as it was.

        If nothing is known of what lies before it, its event was stored at these times, or earlier.
        """
        while self._buckets and self._buckets[-1].positions[-1] > after:
            bucket = self._buckets[-1]
            if bucket.positions[0] > after:
                self._let_go(self._buckets.pop())
            else:
                freed = bucket.take_back(after)
                self.bytes -= freed
                self._all.bytes -= freed
        if after < self.forgotten_through:
            self.forgotten_through, self.forgotten_stored_at, self.forgotten_wall = after, stored_at, wall

    def add_before(self, dropped: Sequence[Dropped], position: int, stored_at: float, wall: float, now: float) -> None:
        """Remember events, in order, that were dropped before all that are known, and after one at ``position``.

        That one was stored at these times, or earlier. It costs what a page costs: a bucket is made of it.
        """
        if dropped:
            bucket = self._all.open(self, now)
            cost = sum([bucket.add(*one, now) for one in dropped])
            self._buckets.appendleft(bucket)
            self.bytes += cost
        self.forgotten_through, self.forgotten_stored_at, self.forgotten_wall = position, stored_at, wall
        if dropped:
            if self.bytes > MAX_BYTES_OF_ACCOUNT:
                self.forget_through(self._buckets[0])
            self._all.grow(cost)

    def count_between(self, selection: Selection, after: int, through: int) -> int | None:
        """Count the dropped events of a selection; None if some of them may be forgotten."""
        if after < self.forgotten_through:
            return None
        total = 0
        for bucket in self._buckets:
            if bucket.positions[-1] > after:
                total += bucket.count(selection, after, through)
        return total

    def position_before(self, moment: float, *, by_wall: bool = False) -> int | None:
        """Return the last position dropped that was stored before a moment of either clock; None if it is forgotten."""
        for bucket in reversed(self._buckets):
            index = bisect_left(bucket.walls if by_wall else bucket.times, moment)
            if index:
                return bucket.positions[index - 1]
        forgotten = self.forgotten_wall if by_wall else self.forgotten_stored_at
        return self.forgotten_through if forgotten < moment else None
