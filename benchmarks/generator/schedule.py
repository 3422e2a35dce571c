"""When events are due: fixed before the first is sent, so that no stalled server moves them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice


@dataclass(frozen=True)
class Schedule:
    """An open loop of events.

    Args:
        rate: events a second.
        seconds: how long events are measured.
        warm_up: seconds of events before that, which are delivered and counted, but whose latency is not.
        channels: where events go, in turn.
        jitter: the part of the interval by which each event is moved, at random, so that nothing beats in step.
    """

    rate: float
    seconds: float
    warm_up: float = 0.5
    channels: Sequence[int] = (0,)
    jitter: float = 0.0
    seed: int = 0

    @property
    def warm_up_events(self) -> int:
        """How many events come before the measured ones."""
        return round(self.rate * self.warm_up)

    @property
    def events(self) -> int:
        """How many events there are in all: at least one that is measured."""
        return self.warm_up_events + max(1, round(self.rate * self.seconds))

    def dues(self, start: int) -> list[int]:
        """Return the nanosecond of each event, rising strictly, none before ``start``."""
        interval = 1e9 / self.rate
        chance = random.Random(self.seed)
        moved = [chance.random() * self.jitter * interval if self.jitter else 0.0 for _ in range(self.events)]
        dues = [start + int(number * interval + move) for number, move in enumerate(moved)]
        for place in range(1, len(dues)):
            dues[place] = max(dues[place], dues[place - 1] + 1)
        return dues

    def channel_of_each(self) -> list[int]:
        """Return the channel of each event."""
        return list(islice(cycle(self.channels), self.events))
