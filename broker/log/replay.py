"""The replay window: one `ReplayBuffer` an account, an ordered log of framed events.

Pure: time comes in as an argument (seconds of a monotonic clock). What lives here: order, indexes, bounds,
and what is known of dropped events. Nothing here knows who listens.

Operations and what they cost, with n events in the window, k inboxes asked for:

* append, drop the oldest: O(1)
* read after a position: O(log n) for one inbox or all; k·O(log n) for k inboxes, or a walk where that is
  cheaper; each call is bounded by events, bytes and steps, so a long read is many short ones
* count between positions: k·O(log n), or a walk
* after an event was dropped its position stays for an hour, so that a gap can be counted exactly

A *position* is an integer that grows with each event of the account; positions are comparable, not dense.
A *cursor* is a position made opaque and bound to its account and to the run of the broker.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from hashlib import blake2b
from operator import attrgetter
from typing import Final

from ..protocol.framing import text_frame
from ..protocol.messages import Entry, PreparedEvent, encode_event
from ..protocol.selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection
from .dropped import DroppedPositions

MAX_CURSOR_LENGTH: Final = 64
"""PROTOCOL, Names."""
_WALK_STEPS: Final = 2_048
"""What one call walks at most; so more inboxes than cost this much are walked, never merged: each call bisects anew."""
_WALK_FACTOR: Final = 16
"""A step of a walk is about this much cheaper than a bisection in one inbox."""

_position_of = attrgetter("position")
_stored_at_of = attrgetter("stored_at")


class _Run:
    """A sequence that grows at its end and shrinks at its start, both in O(1), and can be bisected."""

    __slots__ = ("items", "start")

    def __init__(self) -> None:
        self.items: list[Entry] = []
        self.start = 0

    def __len__(self) -> int:
        return len(self.items) - self.start

    def drop_first(self) -> Entry:
        entry = self.items[self.start]
        self.items[self.start] = None  # type: ignore[call-overload]  # never read again; frees the entry now
        self.start += 1
        if self.start > 32 and self.start * 2 > len(self.items):
            del self.items[: self.start]
            self.start = 0
        return entry

    def after(self, position: int) -> int:
        """Return the index of the first entry after ``position``."""
        return bisect_right(self.items, position, lo=self.start, key=_position_of)

    def count(self, after: int, through: int) -> int:
        return self.after(through) - self.after(after) if through > after else 0


class ReplayBuffer:
    """One account's window. ``head`` is its newest position, ``dropped_through`` the newest dropped one.

    ``delivered`` is the fan-out's position, set by whoever fans out: what lies after it is not dropped yet, so
    that a burst larger than the window still reaches everybody who is connected.
    """

    __slots__ = (
        "_by_id",
        "_by_inbox",
        "_cursor_prefix",
        "_dropped",
        "_entries",
        "account_id",
        "bytes",
        "delivered",
        "dropped_through",
        "head",
    )

    def __init__(self, account_id: str, epoch: bytes, start: int, start_stored_at: float) -> None:
        self.account_id = account_id
        binding = blake2b(account_id.encode(), key=epoch, digest_size=8).hexdigest()
        self._cursor_prefix = f"c{binding}."
        self._entries = _Run()
        self._by_inbox: dict[str, _Run] = {}
        self._by_id: dict[str, Entry] = {}
        self._dropped = DroppedPositions(start, start_stored_at)
        self.bytes = 0
        self.head = self.delivered = self.dropped_through = start

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def idle(self) -> bool:
        """Whether nothing is known here that could not be told by the last position alone."""
        return not self._entries and not self._dropped.count

    # --- cursors

    def cursor_at(self, position: int) -> str:
        """Return the cursor of a position."""
        return f"{self._cursor_prefix}{position}"

    def position_of(self, cursor: str) -> int | None:
        """Return the position of a cursor; None if it is not one of this account, this run and the past."""
        digits = cursor.removeprefix(self._cursor_prefix)
        if len(cursor) > MAX_CURSOR_LENGTH or digits == cursor or not (digits.isascii() and digits.isdigit()):
            return None
        position = int(digits)
        return position if position <= self.head else None

    def position_before(self, stored_at: float) -> int | None:
        """Return the position of the last event stored before ``stored_at``; None if it is forgotten."""
        run = self._entries
        index = bisect_left(run.items, stored_at, lo=run.start, key=_stored_at_of)
        if index > run.start:
            return run.items[index - 1].position
        return self._dropped.position_before(stored_at)

    # --- what is in the window

    def find(self, event_id: str) -> Entry | None:
        """Return the event of this id, if the window still holds it."""
        return self._by_id.get(event_id)

    def batch(self, *, max_events: int, max_bytes: int) -> list[Entry]:
        """Return the next events that the fan-out has not delivered, a bounded number."""
        return self.read(EVERYTHING, self.delivered, self.head, max_events=max_events, max_bytes=max_bytes)[0]

    def first(self) -> Entry:
        """Return the oldest event. Raises IndexError if there is none."""
        return self._entries.items[self._entries.start]

    def count(self, selection: Selection, after: int, through: int) -> int:
        """Count the window's events of a selection after one position and up to another."""
        if selection.inboxes is None:
            excluded = sum(run.count(after, through) for run in self._runs(selection.excluded))
            return self._entries.count(after, through) - excluded
        return sum(run.count(after, through) for run in self._runs(selection.inboxes))

    def missed(self, selection: Selection, after: int, through: int) -> int | None:
        """Count a selection's dropped events after one position and up to another; None if that is not known."""
        through = min(through, self.dropped_through)
        if through <= after or selection == NOTHING:
            return 0
        return self._dropped.count_between(selection, after, through)

    def read(
        self, selection: Selection, after: int, through: int, *, max_events: int, max_bytes: int
    ) -> tuple[list[Entry], int]:
        """Read a selection's events after one position and up to another, in order, a bounded number at once.

        Returns the events and the position that they reach: nothing of the selection lies between ``after``
        and it that is not returned. Each call makes progress: a walk of no match still reaches further.
        """
        run = self._entries
        start, end = run.after(after), run.after(through)
        reached = through
        candidates: Iterable[Entry]
        if selection.inboxes is None or _WALK_FACTOR * len(selection.inboxes) >= min(end - start, _WALK_STEPS):
            stop = min(end, start + _WALK_STEPS)
            candidates = (entry for entry in run.items[start:stop] if entry.inbox in selection)
            if stop < end:
                reached = run.items[stop - 1].position
        else:
            candidates = self._merge(selection.inboxes, after, through, max_events + 1)
        entries: list[Entry] = []
        size = 0
        for entry in candidates:
            size += len(entry.frame)
            if entries and (size > max_bytes or len(entries) == max_events):
                return entries, entries[-1].position
            entries.append(entry)
        return entries, reached

    def _merge(self, inboxes: frozenset[str], after: int, through: int, most: int) -> Iterable[Entry]:
        """Return the events of a few inboxes in the account's order, at most so many of each."""
        slices = []
        for run in self._runs(inboxes):
            start = run.after(after)
            slices.append(run.items[start : min(run.after(through), start + most)])
        return slices[0] if len(slices) == 1 else heapq.merge(*slices, key=_position_of)

    def _runs(self, inboxes: frozenset[str]) -> list[_Run]:
        return [self._by_inbox[inbox] for inbox in inboxes if inbox in self._by_inbox]

    # --- changing it

    def append(self, event: PreparedEvent, position: int, now: float) -> Entry:
        """Store an event at a position after the head; its id must not be in the window. Returns its entry."""
        frame = text_frame(encode_event(event, self.cursor_at(position)))
        entry = Entry(position, now, event.type, event.inbox_id or ACCOUNT_EVENTS, event.event_id, frame)
        self._entries.items.append(entry)
        run = self._by_inbox.get(entry.inbox)
        if run is None:
            run = self._by_inbox[entry.inbox] = _Run()
        run.items.append(entry)
        self._by_id[entry.event_id] = entry
        self.bytes += entry.cost
        self.head = position
        return entry

    def drop_first(self, now: float) -> Entry:
        """Drop the oldest event; its position stays known for an hour. Raises IndexError if there is none."""
        entry = self._entries.drop_first()
        run = self._by_inbox[entry.inbox]
        run.drop_first()
        if not run:
            del self._by_inbox[entry.inbox]
        del self._by_id[entry.event_id]
        self.bytes -= entry.cost
        self.dropped_through = entry.position
        self._dropped.add(entry.position, entry.inbox, entry.stored_at, now)
        return entry

    def forget(self, now: float) -> None:
        """Forget positions that were dropped more than an hour ago."""
        self._dropped.forget(now)

    @property
    def last_stored_at(self) -> float:
        """When the newest dropped event that is forgotten was stored; for an idle buffer, its last event."""
        return self._dropped.forgotten_stored_at
