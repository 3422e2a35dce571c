"""The replay window: one `ReplayBuffer` an account, an ordered log of framed events.

Pure: time comes in as an argument (seconds of a monotonic clock). What lives here: order, indexes, bounds,
and what is known of dropped events. Nothing here knows who listens.

Operations and what they cost, with n events in the window, k inboxes asked for:

* append, drop the oldest: O(1); a frame, and the event's place in its inbox's order, are made when the fan-out takes
  the event, in its turn: so that a long list is stored in a short step
* read after a position: O(log n) for one inbox or all; k·O(log n) for k inboxes, or a walk where that is
  cheaper; each call is bounded by events, bytes and steps, so a long read is many short ones
* count between positions: k·O(log n), or a walk
* after an event was dropped its position stays for an hour, so that a gap can be counted exactly

A *position* is an integer that grows with each event of the account; positions are comparable, not dense.
A *cursor* is a position made opaque and bound to its account and to the run of the broker.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from math import inf
from operator import attrgetter
from typing import Final

from msgspec import Struct

from ..protocol.framing import text_frame
from ..protocol.messages import Entry, encode_event
from ..protocol.selection import NOTHING, Selection
from .costs import inbox_cost, name_cost, share_names
from .dropped import Dropped, DroppedBuckets, DroppedPositions

MAX_CURSOR_LENGTH: Final = 64
"""PROTOCOL, Names."""
_WALK_STEPS: Final = 2_048
"""What one call walks at most; so more inboxes than cost this much are walked, never merged: each call bisects anew."""
_WALK_FACTOR: Final = 16
"""A step of a walk is about this much cheaper than a bisection in one inbox."""

_COUNT_FACTOR: Final = 4
"""To look at an event's inbox is so much cheaper than to count those of an inbox."""

_inbox_of = attrgetter("inbox")
_position_of = attrgetter("position")
_stored_at_of = attrgetter("stored_at")
_wall_of = attrgetter("wall")


class Mark(Struct, frozen=True):
    """All that is known of an account whose events are gone: where it was, and when that was stored (both clocks)."""

    position: int = 0
    stored_at: float = -inf
    wall: float = -inf


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

    def put_first(self, entries: list[Entry]) -> None:
        """Put entries before all others: into the room of those that were dropped, if that is large enough."""
        start = self.start - len(entries)
        self.items[max(start, 0) : self.start] = entries
        self.start = max(start, 0)

    def after(self, position: int) -> int:
        """Return the index of the first entry after ``position``."""
        return bisect_right(self.items, position, lo=self.start, key=_position_of)

    def count(self, after: int, through: int) -> int:
        if through <= after or self.start == len(self.items):
            return 0
        if self.items[self.start].position > after and self.items[-1].position <= through:
            return len(self)
        return self.after(through) - self.after(after)


class Shared:
    """What the buffers of all accounts share: ``epoch``, the history that they are of, and what they cost together."""

    __slots__ = ("archive_seconds", "bytes", "dropped", "elsewhere", "epoch")

    def __init__(self, epoch: bytes) -> None:
        self.epoch = epoch
        self.archive_seconds: float | None = None
        """How far back the engine's archive reaches; None: it has none, and what is dropped is gone."""
        self.elsewhere = False
        """Whether the engine has the logs elsewhere: then it may put into these what they do not hold."""
        self.bytes = 0
        """Of all windows."""
        self.dropped = DroppedBuckets()


def cursor_prefix_of(account_id: str, epoch: bytes) -> str:
    """Return what the cursors of an account begin with: they are bound to it, and to a run of the log."""
    return f"c{blake2b(account_id.encode(), key=epoch, digest_size=8).hexdigest()}."


class ReplayBuffer:
    """One account's window. ``head`` is its newest position, ``dropped_through`` the newest dropped one.

    ``delivered`` is the fan-out's position, set by whoever fans out: what lies after it is not dropped yet, so
    that a burst larger than the window still reaches everybody who is connected. ``bytes`` counts what it was given.
    """

    __slots__ = (
        "_by_id",
        "_by_inbox",
        "_dropped",
        "_entries",
        "_latest_wall",
        "_shared",
        "_taken_in_through",
        "_twins",
        "account_id",
        "bytes",
        "cursor_prefix",
        "delivered",
        "dropped_through",
        "head",
    )

    def __init__(self, account_id: str, shared: Shared, start: Mark) -> None:
        self.account_id = account_id
        self._shared = shared
        self.cursor_prefix = cursor_prefix_of(account_id, shared.epoch)
        self._entries = _Run()
        self._by_inbox: dict[str, _Run] = {}
        self._by_id: dict[str, Entry] = {}
        self._twins: dict[str, dict[str, Entry]] = {}
        """By id and inbox, those whose id an event of another inbox had first: few, where all is well."""
        self._dropped = DroppedPositions(shared.dropped, start.position, start.stored_at, start.wall)
        self._latest_wall = start.wall
        self.bytes = 0
        self.head = self.delivered = self.dropped_through = self._taken_in_through = start.position

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def idle(self) -> bool:
        """Whether nothing is known here that could not be told by the last position alone."""
        return not self._entries and not self._dropped.bytes

    @property
    def archive_seconds(self) -> float | None:
        """How far back what was dropped here can be read elsewhere; None: what is dropped is gone."""
        return self._shared.archive_seconds

    @property
    def elsewhere(self) -> bool:
        """Whether the engine has the log elsewhere, and may put into this one what it does not hold."""
        return self._shared.elsewhere

    # --- cursors

    def cursor_at(self, position: int) -> str:
        """Return the cursor of a position."""
        return f"{self.cursor_prefix}{position}"

    def position_of(self, cursor: str) -> int | None:
        """Return the position of a cursor; None if it is not one of this account, this run and the past."""
        position = self.position_said(cursor)
        return position if position is not None and position <= self.head else None

    def position_said(self, cursor: str) -> int | None:
        """Return the same of one that may be of the future, too."""
        digits = cursor.removeprefix(self.cursor_prefix)
        if len(cursor) > MAX_CURSOR_LENGTH or digits == cursor or not (digits.isascii() and digits.isdigit()):
            return None
        return int(digits)

    def position_before(self, moment: float, *, by_wall: bool = False) -> int | None:
        """Return the position of the last event stored before a moment of either clock; None if it is forgotten.

        The wall clock may step back: then what was stored after the first event of ``moment`` or later counts as later.
        """
        run = self._entries
        index = bisect_left(run.items, moment, lo=run.start, key=_wall_of if by_wall else _stored_at_of)
        if index > run.start:
            return run.items[index - 1].position
        return self._dropped.position_before(moment, by_wall=by_wall)

    # --- what is in the window

    def find(self, inbox: str, event_id: str) -> Entry | None:
        """Return the event of this inbox and id, if the window still holds it."""
        entry = self._by_id.get(event_id)
        if entry is not None and entry.inbox == inbox:
            return entry
        twins = self._twins.get(event_id) if self._twins else None
        return None if twins is None else twins.get(inbox)

    def has_none_of(self, event_ids: Sequence[str]) -> bool:
        """Whether these ids are all different, and the window holds no event of any of them, whatever its inbox."""
        different = set(event_ids)
        return (
            len(different) == len(event_ids)
            and different.isdisjoint(self._by_id)
            and self._twins.keys().isdisjoint(different)
        )

    def of_id(self, event_id: str) -> Iterator[Entry]:
        """Yield the window's events of an id, whatever their inbox."""
        entry = self._by_id.get(event_id)
        if entry is not None:
            yield entry
        yield from tuple(self._twins.get(event_id, {}).values())

    def batch(self, *, max_events: int, max_bytes: int) -> list[Entry]:
        """Return the next events that the fan-out has not delivered, a bounded number; they count in ``bytes`` now."""
        start = self._entries.after(self.delivered)
        entries: list[Entry] = []
        size = taken = 0
        for entry in self._entries.items[start : start + max_events]:
            if entry.position > self._taken_in_through:
                taken += self._take_in(entry)
            size += len(entry.frame)
            if entries and size > max_bytes:
                break
            entries.append(entry)
        self._count(taken)
        return entries

    def first(self) -> Entry:
        """Return the oldest event. Raises IndexError if there is none."""
        return self._entries.items[self._entries.start]

    def stored_after(self, position: int) -> float | None:
        """Return when the window's first event after a position was stored; None if there is none."""
        run = self._entries
        index = run.after(position)
        return run.items[index].stored_at if index < len(run.items) else None

    def count(self, selection: Selection, after: int, through: int) -> int:
        """Count the window's events of a selection after one position and up to another."""
        self._take_in_through(through)
        if selection.inboxes is None:
            return self._entries.count(after, through) - self._count_of(selection.excluded, after, through)
        return self._count_of(selection.inboxes, after, through)

    def _count_of(self, inboxes: frozenset[str], after: int, through: int) -> int:
        """Count the events of some inboxes: inbox by inbox, or event by event where that is cheaper."""
        if not inboxes or through <= after:
            return 0
        start, end = self._entries.after(after), self._entries.after(through)
        if end - start < _COUNT_FACTOR * min(len(inboxes), len(self._by_inbox)):
            return sum(map(inboxes.__contains__, map(_inbox_of, islice(self._entries.items, start, end))))
        return sum(run.count(after, through) for run in self._runs(inboxes))

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
        self._take_in_through(through)
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

    def frame(self, entries: Iterable[Entry]) -> None:
        """Give events that were read elsewhere their frames, if they have none."""
        for entry in entries:
            if entry.event is not None:
                entry.frame = text_frame(encode_event(entry.event, self.cursor_at(entry.position)))
                entry.event = None

    # --- changing it

    def extend(self, entries: Sequence[Entry]) -> None:
        """Store events after the head; the window must not hold one of the same inbox and id."""
        by_id, wall = self._by_id, self._latest_wall
        for entry in entries:
            if entry.wall < wall:
                entry.wall = wall
            else:
                wall = entry.wall
            if by_id.setdefault(entry.event_id, entry) is not entry:
                self._twins.setdefault(entry.event_id, {})[entry.inbox] = entry
        if entries:
            self._entries.items += entries
            self._latest_wall, self.head = wall, entries[-1].position

    def take_in(self) -> None:
        """Take in all that was stored, as delivered to everybody already."""
        self._take_in_through(self.head)
        self.delivered = self.head

    def _take_in_through(self, through: int) -> None:
        """Take in the events up to a position that were not yet."""
        if through > self._taken_in_through:
            run = self._entries
            entries = run.items[run.after(self._taken_in_through) : run.after(through)]
            self._count(sum(map(self._take_in, entries)))

    def _take_in(self, entry: Entry) -> int:
        """Give the next event its frame and its place in its inbox's order. Returns what that is to be counted as."""
        if entry.event is not None:
            entry.frame = text_frame(encode_event(entry.event, self.cursor_at(entry.position)))
            entry.event = None
        cost = entry.cost
        of_inbox = self._by_inbox.get(entry.inbox)
        if of_inbox is None:
            of_inbox = self._by_inbox[entry.inbox] = _Run()
            cost += inbox_cost(entry.inbox) + name_cost(entry.type)
        else:
            before = of_inbox.items[-1]
            entry.inbox = before.inbox  # each event came with strings of its own
            if entry.type == before.type:
                entry.type = before.type
            else:
                cost += name_cost(entry.type)
        of_inbox.items.append(entry)
        self._taken_in_through = entry.position
        return cost

    def _count(self, bytes_more: int) -> None:
        self.bytes += bytes_more
        self._shared.bytes += bytes_more

    def drop_first(self, now: float) -> Entry:
        """Drop the oldest event; its position stays known for an hour. Raises IndexError if there is none."""
        self._take_in_through(self.first().position)
        entry = self._entries.drop_first()
        run = self._by_inbox[entry.inbox]
        run.drop_first()
        cost = entry.cost
        if not run:
            del self._by_inbox[entry.inbox]
            cost += inbox_cost(entry.inbox) + name_cost(entry.type)
        elif run.items[run.start].type != entry.type:  # else the next one has the string
            cost += name_cost(entry.type)
        if self._by_id.get(entry.event_id) is entry:
            del self._by_id[entry.event_id]
        else:
            twins = self._twins.get(entry.event_id, {})
            twins.pop(entry.inbox, None)
            if not twins:
                self._twins.pop(entry.event_id, None)
        self._count(-cost)
        self.dropped_through = entry.position
        self._dropped.add(entry.position, entry.inbox, entry.stored_at, entry.wall, now)
        return entry

    # --- what an engine changes that has the log elsewhere

    @property
    def known_after(self) -> int:
        """The position after which all is known, what was dropped included."""
        return self._dropped.forgotten_through

    @property
    def latest_at(self) -> float:
        """When the newest event was stored that the window holds (monotonic clock); long ago, if it holds none."""
        return self._entries.items[-1].stored_at if self._entries else -inf

    def prepend(self, entries: list[Entry], before: Mark) -> None:
        """Store events that come before all that the window holds, and end where it begins.

        ``before`` is where they begin: the position of the last event that is still not here, and times that it was
        stored at, or before. Raises ValueError if they are not between that and `dropped_through`.
        """
        if not before.position < entries[0].position <= entries[-1].position <= self.dropped_through:
            raise ValueError(f"they are not up to {self.dropped_through}")
        first = self.first() if self._entries else None
        latest_at, latest_wall = (inf, inf) if first is None else (first.stored_at, first.wall)
        runs: dict[str, list[Entry]] = {}
        cost = 0
        for entry in reversed(entries):
            latest_at = entry.stored_at = min(entry.stored_at, latest_at)
            latest_wall = entry.wall = min(entry.wall, latest_wall)
            if self._by_id.setdefault(entry.event_id, entry) is not entry:
                self._twins.setdefault(entry.event_id, {})[entry.inbox] = entry
        self.frame(entries)
        for entry in entries:
            runs.setdefault(entry.inbox, []).append(entry)
            cost += entry.cost
        for inbox, of_inbox in runs.items():
            run = self._by_inbox.get(inbox)
            if run is None:
                run = self._by_inbox[inbox] = _Run()
                cost += inbox_cost(inbox)
            cost += share_names(of_inbox, run.items[run.start] if run else None)
            run.put_first(of_inbox)
        if first is None:
            self._latest_wall = max(self._latest_wall, entries[-1].wall)
        self._entries.put_first(entries)
        self._dropped.take_back(before.position, before.stored_at, before.wall)
        self.dropped_through = before.position
        self._count(cost)

    def remember(self, dropped: Sequence[Dropped], before: Mark, now: float) -> None:
        """Know of events that are gone and come before all that is known, in order; ``before`` as `prepend` has it."""
        if dropped and not before.position < dropped[0].position <= dropped[-1].position <= self.known_after:
            raise ValueError(f"they are not up to {self.known_after}")
        self._dropped.add_before(dropped, before.position, before.stored_at, before.wall, now)

    def skip(self, dropped: Sequence[Dropped] | None, end: Mark, now: float) -> None:
        """Go on behind events that nobody has here, with an empty window.

        ``dropped`` are all of them up to ``end``, in order; None: nothing is known of them, nor of those before.
        """
        if self._entries:
            raise ValueError("the window holds events")
        if dropped is None:
            self._dropped.forget_all(end.position, end.stored_at, end.wall)
        for one in dropped or ():
            self._dropped.add(*one, now)
        self._go_to(end)

    def restart(self, start: Mark) -> None:
        """Be the log of another history, or of nothing, empty and after ``start``: no cursor of before is known."""
        self.cursor_prefix = cursor_prefix_of(self.account_id, self._shared.epoch)
        self._entries = _Run()
        self._by_inbox, self._by_id, self._twins = {}, {}, {}
        self._dropped.forget_all(start.position, start.stored_at, start.wall)
        self._count(-self.bytes)
        self._go_to(start)

    def _go_to(self, end: Mark) -> None:
        self._latest_wall = max(self._latest_wall, end.wall)
        self.head = self.delivered = self.dropped_through = self._taken_in_through = end.position

    @property
    def mark(self) -> Mark:
        """What is left of an idle buffer: its last position, and when that was stored."""
        return Mark(self.head, self._dropped.forgotten_stored_at, self._dropped.forgotten_wall)
