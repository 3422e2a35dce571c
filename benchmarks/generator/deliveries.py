"""What the arrivals mean: latencies, what was lost or came twice, and how long events were under way.

An event is known by the nanosecond at which it was due; no two events are due at the same one. So a connection
that has the right number of events with the right sum of these has each event exactly once.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

from ..histograms import empty, merged, of_nanoseconds

SLICES = 40
"""Parts of a measurement, for latency over time."""

Tally = tuple[int, int]
"""How many events, and the sum of the nanoseconds at which they were due."""


@dataclass(frozen=True)
class Expected:
    """What was published.

    Args:
        of_channel: the tally of each channel.
        begun: the nanosecond at which the measured events begin; the latency of earlier ones does not count.
        seconds: how long these go on.
    """

    of_channel: Mapping[int, Tally]
    begun: int
    seconds: float

    def slice_of(self, due: int) -> int:
        """Return the part of the measurement in which an event was due."""
        return min(SLICES - 1, int((due - self.begun) / (self.seconds * 1e9) * SLICES))


@dataclass
class Received:
    """What one process of subscribers had, or all together."""

    latency: HdrHistogram = field(default_factory=empty)
    """Of each delivery, from when the event was due."""
    slices: list[HdrHistogram] = field(default_factory=list)
    """The same, for each part of the measurement."""
    last: dict[int, int] = field(default_factory=dict)
    """When the last connection had each measured event, by when that was due."""
    deliveries: int = 0
    """All of them, those of the warm-up too."""
    lost: int = 0
    doubled: int = 0
    burst_seconds: float = 0.0
    """How long any event was between its first arrival and its last."""


def account(arrivals: "array[int]", channels: Sequence[int], expected: Expected) -> Received:
    """Return what ``arrivals`` (number of the connection, due, came, and so on) mean.

    Args:
        arrivals: in the order in which they came.
        channels: the channel of each connection.
        expected: what was published.
    """
    numbers, dues, cames = arrivals[0::3], arrivals[1::3], arrivals[2::3]
    lost, doubled = _differences(_tallies(numbers, dues), channels, expected)
    of_slice: defaultdict[int, list[int]] = defaultdict(list)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for due, came in zip(dues, cames, strict=True):
        first.setdefault(due, came)
        last[due] = came
        if due >= expected.begun:
            of_slice[expected.slice_of(due)].append(came - due)
    slices = [of_nanoseconds(of_slice[number]) for number in range(SLICES)]
    return Received(
        latency=merged(slices),
        slices=slices,
        last={due: came for due, came in last.items() if due >= expected.begun},
        deliveries=len(dues),
        lost=lost,
        doubled=doubled,
        burst_seconds=length_of_union((first[due], last[due]) for due in first) / 1e9,
    )


def _tallies(numbers: Sequence[int], dues: Sequence[int]) -> dict[int, Tally]:
    counts = Counter(numbers)
    sums: defaultdict[int, int] = defaultdict(int)
    for number, due in zip(numbers, dues, strict=True):
        sums[number] += due
    return {number: (count, sums[number]) for number, count in counts.items()}


def _differences(got: Mapping[int, Tally], channels: Sequence[int], expected: Expected) -> tuple[int, int]:
    """Return how many deliveries are missing, and how many nobody published so often."""
    lost = doubled = 0
    for number, channel in enumerate(channels):
        count, total = got.get(number, (0, 0))
        due_count, due_total = expected.of_channel.get(channel, (0, 0))
        lost += max(0, due_count - count)
        doubled += max(0, count - due_count)
        if count == due_count and total != due_total:
            lost, doubled = lost + 1, doubled + 1
    return lost, doubled


def length_of_union(spans: Iterable[tuple[int, int]]) -> int:
    """Return how much the spans (from, to) cover, what they share counted once."""
    covered, end = 0, None
    for start, stop in sorted(spans):
        if end is None or start > end:
            covered += stop - start
            end = stop
        elif stop > end:
            covered += stop - end
            end = stop
    return covered


def together(parts: Sequence[Received]) -> Received:
    """Return what all processes had."""
    last: dict[int, int] = {}
    for part in parts:
        for due, came in part.last.items():
            last[due] = max(came, last.get(due, came))
    return Received(
        latency=merged(part.latency for part in parts),
        slices=[merged(slices) for slices in zip(*(part.slices for part in parts), strict=True)],
        last=last,
        deliveries=sum(part.deliveries for part in parts),
        lost=sum(part.lost for part in parts),
        doubled=sum(part.doubled for part in parts),
        burst_seconds=max((part.burst_seconds for part in parts), default=0.0),
    )
