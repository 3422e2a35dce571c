"""What a soak is held against: a subscriber that counts what it is told, and figures that must stay flat.

Each event bears its number in its account and its number in its inbox, both from 1. So a subscriber that began at the
very first knows at each event how many came before it that it was not told of, and keeps nothing but a number an inbox.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

GROWTH = 0.05
"""By what part of it a figure of the last third may be above the first's, and by what is below."""
MORE_THINGS = 50
"""Descriptors, or tasks: of how many connections there are by chance."""
MORE_BYTES = 4 * 2**20
REMEMBERED_BYTES = 64
"""For each event that left the window: its position is known for an hour, so that gaps are counted."""
MIB = 2**20


@dataclass
class Subscriber:
    """One subscriber over all of its connections.

    Args:
        account_id: whose it is.
        inboxes: that it holds.
        everything: whether it asks for ``*``.
        cursor: with which it comes next; first that of the time before the first event.
    """

    account_id: str
    inboxes: frozenset[str]
    everything: bool
    cursor: str
    events: int = 0
    gaps: int = 0
    told_missing: int = 0
    """Events that gaps said it missed."""
    wrong: list[str] = field(default_factory=list)
    _missed: int = 0
    _number: int = 0
    _reached: dict[str, int] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """With which it opens its next connection."""
        return f"inbox_ids={'*' if self.everything else ','.join(sorted(self.inboxes))}&since={self.cursor}"

    def take(self, frame: Mapping[str, Any]) -> None:
        """Judge a frame that came."""
        if frame["type"] == "replay.gap":
            self._take_gap(frame)
        elif "payload" in frame:
            self._take_event(frame["inbox_id"], frame["payload"])
        self.cursor = frame.get("cursor", self.cursor)

    def _take_gap(self, gap: Mapping[str, Any]) -> None:
        self.gaps += 1
        self.cursor = gap["to"]
        if gap["from"] is None or gap["count"] is None:
            self.wrong.append(f"a gap that does not say how much is missing: {gap}")
        self.told_missing += gap["count"] or 0

    def _take_event(self, inbox: str, payload: Mapping[str, Any]) -> None:
        self.events += 1
        if payload["account"] != self.account_id or inbox not in self.inboxes:
            self.wrong.append(f"an event of {payload['account']}, {inbox}, came to {self.account_id}")
            return
        number, before = payload["in_inbox"], self._reached.get(inbox, 0)
        if number <= before or payload["number"] <= self._number:
            self.wrong.append(f"event {number} of {inbox} came after {before}: twice, or out of order")
            return
        self._number, self._reached[inbox] = payload["number"], number
        self._missed += number - before - 1
        if self._missed > self.told_missing:
            self.wrong.append(f"before event {number} of {inbox} some are missing after {before}, and no gap said so")
            self._missed = self.told_missing

    def owed(self, published: Mapping[str, int]) -> int:
        """Return how many events of what was published, by inbox, it neither has nor was told to miss: 0 at the end.

        Less than 0: gaps told of more than was missed.
        """
        after = sum(published[inbox] - self._reached.get(inbox, 0) for inbox in self.inboxes)
        return self._missed + after - self.told_missing


@dataclass(frozen=True)
class Sample:
    """How much the broker held at a time."""

    second: float
    dropped: int
    """Events that had left the window."""
    resident_bytes: int
    descriptors: int
    tasks: int


def not_flat(samples: Sequence[Sample]) -> list[str]:
    """Return what grew from the first third of these samples to the last, by their medians."""
    third = len(samples) // 3
    if third == 0:
        return [f"only {len(samples)} times it was looked at what the broker holds"]
    first, last = samples[:third], samples[-third:]
    dropped = int(median(s.dropped for s in last) - median(s.dropped for s in first))
    return [
        *_grown("resident bytes", [s.resident_bytes for s in first], [s.resident_bytes for s in last],
                MORE_BYTES + REMEMBERED_BYTES * dropped),
        *_grown("descriptors", [s.descriptors for s in first], [s.descriptors for s in last], MORE_THINGS),
        *_grown("tasks", [s.tasks for s in first], [s.tasks for s in last], MORE_THINGS),
    ]  # fmt: skip


def _grown(name: str, first: Sequence[int], last: Sequence[int], more: int) -> list[str]:
    before, now = median(first), median(last)
    most = before * (1 + GROWTH) + more
    return [f"{name} grew from {before:,.0f} to {now:,.0f}, above {most:,.0f}"] if now > most else []
