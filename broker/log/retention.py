"""All accounts' replay buffers under one set of limits: age, events, bytes, and bytes in all.

Pure. The oldest events go first, over all accounts; what the fan-out has not delivered yet stays. A buffer that
holds nothing any more shrinks to a mark: its last position, so that a cursor of a quiet account stays good.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final

from msgspec import Struct

from ..config import ReplayConfig
from ..protocol.messages import Entry
from .dropped import Dropped
from .replay import Mark, ReplayBuffer, Shared

MAX_MARKS: Final = 100_000
"""Accounts whose last position is known though nothing else of them is."""
TRIM_EVENTS: Final = 512
"""Events that are dropped in one step because they are too many: about a millisecond."""


class ReplayStatistics(Struct, frozen=True):
    """What the replay window holds, over all accounts."""

    accounts: int
    """Accounts with a buffer."""
    events: int
    """Events in all windows."""
    bytes: int
    """What they cost in memory, as it counts against the limits."""
    dropped: int
    """Events that left a window since the start, for whatever reason."""
    dropped_early: int
    """Those of them that were not too old: a limit of events or bytes was reached."""
    squeezed_seconds: float | None
    """How long the window was for the last of these; None: there was none."""


class ReplayBuffers:
    """The replay buffers of all accounts. ``epoch`` (16 bytes or more) is this run of the broker."""

    def __init__(self, limits: ReplayConfig, epoch: bytes) -> None:
        self._limits = limits
        self._shared = Shared(epoch)
        self._buffers: dict[str, ReplayBuffer] = {}
        self._marks: OrderedDict[str, Mark] = OrderedDict()
        self._unmarked = Mark()
        # One item for each buffer with events: (when its oldest one was stored, a number, the buffer). The
        # time may be that of an event dropped since; it is put right when the item comes up. Of a buffer that got
        # older events since, the item that counts is the one whose number is listed.
        self._oldest: list[tuple[float, int, ReplayBuffer]] = []
        self._listed: dict[ReplayBuffer, int] = {}
        self._numbers = 0
        self._events = 0
        self._dropped = 0
        self._dropped_early = 0
        self._dropped_age = 0.0
        """Of the event that was dropped last."""
        self._squeezed_seconds: float | None = None
        self._no_expiry_before = -inf

    def archived(self, seconds: float) -> None:
        """Let all buffers know that what they drop can be read elsewhere, for so long."""
        self._shared.archive_seconds = seconds

    def open(self, account_id: str) -> ReplayBuffer:
        """Return the account's buffer; make it if there is none."""
        buffer = self._buffers.get(account_id)
        if buffer is None:
            mark = self._marks.pop(account_id, self._unmarked)
            buffer = self._buffers[account_id] = ReplayBuffer(account_id, self._shared, mark)
        return buffer

    def close(self, buffer: ReplayBuffer) -> None:
        """Keep nothing of an idle buffer but its mark."""
        del self._buffers[buffer.account_id]
        self._remember(buffer.account_id, buffer.mark)

    def _remember(self, account_id: str, mark: Mark) -> None:
        self._marks[account_id] = mark
        if len(self._marks) > MAX_MARKS:
            _, mark = self._marks.popitem(last=False)
            so_far = self._unmarked
            self._unmarked = Mark(
                max(so_far.position, mark.position),
                max(so_far.stored_at, mark.stored_at),
                max(so_far.wall, mark.wall),
            )

    def restore(self, marks: Mapping[str, Mark], until: float) -> None:
        """Begin where another run of the broker has ended: with the last positions of accounts that are not open yet.

        What is restored of their events expires not before ``until``.
        """
        for account_id, mark in marks.items():
            self._remember(account_id, mark)
        self._no_expiry_before = until

    def restore_events(self, account_id: str, entries: list[Entry], now: float) -> None:
        """Take the next events of an account from where another run has ended: they were delivered then."""
        buffer = self.open(account_id)
        self.append(buffer, entries)
        buffer.take_in()
        while self.trim(buffer, now):
            pass

    @property
    def oldest_at(self) -> float:
        """A moment before which nothing was stored that is held (monotonic clock); infinite if nothing is."""
        return self._oldest[0][0] if self._oldest else inf

    def append(self, buffer: ReplayBuffer, entries: list[Entry]) -> None:
        """Store events in one of these buffers. `trim` is to be called when some are delivered."""
        buffer.extend(entries)
        self._events += len(entries)
        if entries and buffer not in self._listed:
            self._push(buffer)

    # --- for engines that have the logs elsewhere

    def begin_elsewhere(self, position: int) -> None:
        """Let accounts stand at a position, beyond all others, while nothing of them is kept here."""
        self._unmarked = Mark(position)
        self._shared.elsewhere = True

    def prepend(self, buffer: ReplayBuffer, entries: list[Entry], before: Mark) -> None:
        """Store older events in one of these buffers, as its `prepend` has it. `trim` is to be called then."""
        buffer.prepend(entries, before)
        self._events += len(entries)
        self._push(buffer)

    def remember(self, buffer: ReplayBuffer, dropped: Sequence[Dropped], before: Mark, now: float) -> None:
        """Know of older events that are gone, as the buffer's `remember` has it."""
        buffer.remember(dropped, before, now)

    def empty(self, buffer: ReplayBuffer, now: float, *, most: int) -> bool:
        """Drop the oldest events of a buffer, at most so many. Returns whether the fan-out needs none of the rest."""
        while len(buffer) and most and self._drop_first(buffer, now):
            most -= 1
        return not len(buffer) or not most

    def restart(self, buffer: ReplayBuffer, start: Mark, epoch: bytes) -> None:
        """Let a buffer be the log of another history (``epoch``), empty and after ``start``; others follow."""
        self._shared.epoch = epoch
        self._events -= len(buffer)
        buffer.restart(start)

    def trim(self, buffer: ReplayBuffer, now: float) -> bool:
        """Drop what is too much: this account's oldest events, then the oldest of all accounts; at most `TRIM_EVENTS`.

        So what an account has too much of costs no other account anything. Returns whether there is more to drop.
        """
        before = self._dropped
        more = self._drop_of_account(buffer, now)
        if not more and self._shared.bytes > self._limits.max_bytes_total:
            most = TRIM_EVENTS - (self._dropped - before)
            more = self._drop_oldest(lambda _: self._shared.bytes > self._limits.max_bytes_total, now, most=most)
        if self._dropped > before:
            self._dropped_early += self._dropped - before
            self._squeezed_seconds = self._dropped_age
        return more

    def _drop_of_account(self, buffer: ReplayBuffer, now: float) -> bool:
        """Drop what this account has too much of. Returns whether there is more."""
        limits = self._limits
        dropped = 0
        while len(buffer) > limits.max_events_per_account or buffer.bytes > limits.max_bytes_per_account:
            if dropped == TRIM_EVENTS:
                return True
            if not self._drop_first(buffer, now):
                break
            dropped += 1
        return False

    def expire(self, now: float, *, most: int) -> bool:
        """Drop events that are too old, at most so many. Returns whether there is more to do."""
        if now < self._no_expiry_before:
            return False
        limit = now - self._limits.seconds
        return self._drop_oldest(lambda stored_at: stored_at < limit, now, most=most)

    def forget(self, now: float) -> bool:
        """Forget some positions that were dropped more than an hour ago. Returns whether there may be more."""
        return self._shared.dropped.forget(now)

    def statistics(self) -> ReplayStatistics:
        """Return what is held now."""
        return ReplayStatistics(
            len(self._buffers),
            self._events,
            self._shared.bytes,
            self._dropped,
            self._dropped_early,
            self._squeezed_seconds,
        )

    def _push(self, buffer: ReplayBuffer) -> None:
        self._numbers += 1
        self._listed[buffer] = self._numbers
        heapq.heappush(self._oldest, (buffer.first().stored_at, self._numbers, buffer))

    def _drop_oldest(self, too_much: Callable[[float], bool], now: float, *, most: int) -> bool:
        """Drop the oldest events of all accounts while ``too_much(stored_at)``; True if ``most`` stopped it."""
        dropped = 0
        while self._oldest and too_much(self._oldest[0][0]):
            if dropped >= most:
                return True
            stored_at, number, buffer = heapq.heappop(self._oldest)
            if self._listed.get(buffer) != number:
                continue
            del self._listed[buffer]
            pinned = False
            if len(buffer) and buffer.first().stored_at == stored_at:
                pinned = not self._drop_first(buffer, now)
                dropped += 1
            if len(buffer):
                self._push(buffer)
            if pinned:
                return False
        return False

    def _drop_first(self, buffer: ReplayBuffer, now: float) -> bool:
        """Drop a buffer's oldest event, unless the fan-out still needs it."""
        if not len(buffer) or buffer.first().position > buffer.delivered:
            return False
        self._dropped_age = now - buffer.drop_first(now).stored_at
        self._events -= 1
        self._dropped += 1
        return True
