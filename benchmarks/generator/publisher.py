"""The publisher: each event goes when it is due, whatever the server does; or as fast as the server answers."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

from ..cost import processor_ns
from ..histograms import of_nanoseconds
from ..payload import patched
from ..peers.adapter import Running
from .deliveries import Expected, Tally
from .effort import Effort
from .requests import Requests
from .schedule import Schedule

_AHEAD_NS = 20_000_000
"""The first event is due so long after the schedule is known."""

Template = Callable[[int], bytes]
"""Returns what publishes to a channel, with places left for when the event was due."""


@dataclass(frozen=True)
class Sent:
    """What was published.

    Args:
        expected: what subscribers must have.
        last_due: when the last event was due, in an open loop.
        requests: how many there were, the warm-up's too in an open loop, without it in a closed one.
        unanswered: how many of all got no good answer; 0 where nothing is answered.
        answer_latency: from when each was due (open loop), or queued (closed loop), until its answer.
        late: how late the publisher took up each event.
        seconds: how long the measured part took.
        server_ns: the processor time that the server used while ``requests`` were made.
        effort: of this process.
    """

    expected: Expected
    last_due: int
    requests: int
    unanswered: int
    answer_latency: HdrHistogram
    late: HdrHistogram
    seconds: float
    server_ns: int
    effort: Effort


@dataclass(frozen=True)
class Fixed:
    """A template that is the same for all channels."""

    request: bytes

    def __call__(self, channel: int) -> bytes:
        return self.request


class Publisher:
    """Publishes over its own connections, in turn.

    Args:
        running: what it publishes to.
        template: what it sends.
        connections: how many.
        first: whether this process goes before all others on its core while it publishes on schedule.
    """

    def __init__(self, running: Running, template: Template, connections: int = 1, *, first: bool = False) -> None:
        self._first = first
        self._server = running.process_ids
        self._requests = Requests(running, connections)
        self._template = template
        self._templates: dict[int, bytes] = {}

    def _bytes_for(self, channel: int) -> bytes:
        template = self._templates.get(channel)
        if template is None:
            template = self._templates[channel] = self._template(channel)
        return template

    def pace(self, schedule: Schedule) -> Sent:
        """Open loop: send each event when it is due; what the kernel does not take waits, and grows late."""
        channels = schedule.channel_of_each()
        templates = [self._bytes_for(channel) for channel in channels]
        requests = self._requests
        requests.begin()
        used = processor_ns(self._server)
        with at_once() if self._first else nullcontext():
            dues = schedule.dues(time.monotonic_ns() + _AHEAD_NS)
            late = self._send_when_due(dues, templates)
        effort = requests.effort(pressing=False)
        unanswered = requests.settle()
        first = schedule.warm_up_events
        return Sent(
            expected=Expected(_tallies(channels, dues), dues[first], schedule.seconds),
            last_due=dues[-1],
            requests=len(dues),
            unanswered=unanswered,
            answer_latency=of_nanoseconds(requests.latencies()),
            late=of_nanoseconds(late[first:]),
            seconds=schedule.seconds,
            server_ns=processor_ns(self._server) - used,
            effort=effort,
        )

    def _send_when_due(self, dues: Sequence[int], templates: Sequence[bytes]) -> list[int]:
        """Return how late each event was taken up."""
        requests, connections, clock = self._requests, self._requests.connections, time.monotonic_ns
        late: list[int] = []
        while len(late) < len(dues):
            now = clock()
            while len(late) < len(dues) and (due := dues[len(late)]) <= now:
                connections[len(late) % len(connections)].ask(patched(templates[len(late)], due), due)
                late.append(now - due)
            requests.turn(dues[len(late)] if len(late) < len(dues) else now)
        return late

    def press(self, window: int, seconds: float, warm_up: float = 0.5) -> Sent:
        """Closed loop: keep ``window`` requests of each connection under way, all to channel 0."""
        requests = self._requests
        requests.begin()
        self._keep_asking(window, time.monotonic_ns() + int(warm_up * 1e9))
        requests.begin()
        begun, used = time.monotonic_ns(), processor_ns(self._server)
        answered = self._keep_asking(window, begun + int(seconds * 1e9))
        lasted = (time.monotonic_ns() - begun) / 1e9
        effort, used = requests.effort(pressing=True), processor_ns(self._server) - used
        latency = of_nanoseconds(requests.latencies())
        return Sent(
            expected=Expected({}, begun, lasted),
            last_due=0,
            requests=answered,
            unanswered=requests.settle(),
            answer_latency=latency,
            late=of_nanoseconds([]),
            seconds=lasted,
            server_ns=used,
            effort=effort,
        )

    def _keep_asking(self, window: int, until: int) -> int:
        """Return how many answers came."""
        template, clock, answered = self._bytes_for(0), time.monotonic_ns, 0
        while (now := clock()) < until:
            for connection in self._requests.connections:
                for ahead in range(window - len(connection.waiting)):
                    connection.ask(patched(template, now + ahead), now)
            answered += self._requests.turn(until)
        return answered


@contextmanager
def at_once() -> Iterator[None]:
    """Run before everything else on this core meanwhile, where that is allowed.

    Others on the same core would otherwise make events late by their slice of some milliseconds.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _tallies(channels: Sequence[int], dues: Sequence[int]) -> dict[int, Tally]:
    tallies: dict[int, Tally] = {}
    for channel, due in zip(channels, dues, strict=True):
        count, total = tallies.get(channel, (0, 0))
        tallies[channel] = (count + 1, total + due)
    return tallies
