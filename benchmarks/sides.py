"""A side of a comparison: a server, its subscribers and a publisher, each in processes of their own.

Where they run: without pinning the kernel places them, as in production. With it the server has the first core,
the generator the others: the rule is the same for every peer.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .cost import processor_ns
from .generator.deliveries import Expected, Received, together
from .generator.effort import Effort, why_refused
from .generator.publisher import Publisher, Sent, Template
from .generator.schedule import Schedule
from .generator.subscribers import Subscribers
from .generator.worker import Worker
from .payload import message_of
from .peers.adapter import Peer, Running

LONGEST_WAIT_SECONDS = 15.0
"""For the last delivery, after the last event was sent: what has not come then is lost."""


@dataclass(frozen=True)
class Placement:
    """The cores of servers and of the generator; None: the kernel decides.

    With ``punctual`` a publisher on schedule goes before all others even where it shares its core with a server: where
    servers are on all cores it would be late for that alone.
    """

    servers: set[int] | None = None
    generator: set[int] | None = None
    punctual: bool = False

    @property
    def generator_cores(self) -> int:
        """How many cores the generator may use."""
        return len(self.generator or os.sched_getaffinity(0))


def placement(pin: bool) -> Placement:
    """Return where servers and generator run."""
    cores = sorted(os.sched_getaffinity(0))
    if not pin or len(cores) < 2:
        return Placement()
    return Placement({cores[0]}, set(cores[1:]))


@dataclass(frozen=True)
class Crowd:
    """Subscribers: the channel of each, the processes that hold them, and whether these give way to all others."""

    channels: Sequence[int]
    processes: int = 1
    background: bool = False

    def parts(self) -> list[list[int]]:
        """Return the channels of each process; one that would have none is left out."""
        parts = [list(self.channels[start :: self.processes]) for start in range(self.processes)]
        return [part for part in parts if part]


@dataclass(frozen=True)
class Measurement:
    """One measurement of a side."""

    sent: Sent
    received: Received
    efforts: Sequence[Effort]
    server_ns: int
    """Processor time of the server, the warm-up's too."""
    seconds: float
    """The wall time that ``server_ns`` is of."""
    refused: str
    """Why the figures are the generator's own and not the server's, but for its lateness; "": they are the server's."""

    @property
    def to_last(self) -> list[int]:
        """The nanoseconds from when each measured event was due until the last subscriber had it."""
        return [came - due for due, came in self.received.last.items()]

    @property
    def void(self) -> str:
        """Why the figures mean nothing: what was lost or doubled; "" if every event came exactly once."""
        received, sent = self.received, self.sent
        parts = [(received.lost, "deliveries lost"), (received.doubled, "doubled"), (sent.unanswered, "not answered")]
        return ", ".join(f"{count} {what}" for count, what in parts if count)


class Side:
    """A server that runs, with its subscribers and its publisher.

    Args:
        running: the server.
        subscribers: the processes.
        channels: what each process's connections subscribe to.
        publisher: the process.
        cores: how many the generator has.
    """

    def __init__(
        self,
        running: Running,
        subscribers: Sequence[Worker],
        parts: Sequence[Sequence[int]],
        publisher: Worker,
        cores: int,
    ) -> None:
        self.running = running
        self._subscribers = subscribers
        self._parts = parts
        self._publisher = self._at_work = publisher
        self._cores = cores
        self._used, self._begun = 0, 0.0

    def measure(self, schedule: Schedule) -> Measurement:
        """Publish on schedule, and wait until every subscriber has everything."""
        self.start(schedule)
        return self.finish()

    def start(self, schedule: Schedule, publisher: Worker | None = None) -> None:
        """Begin to publish, perhaps by another publisher; `finish` waits for the end."""
        self._at_work = publisher or self._publisher
        for worker in self._subscribers:
            worker.ask("reset")
        self._used, self._begun = processor_ns(self.running.process_ids), time.monotonic()
        self._at_work.tell("pace", schedule)

    def finish(self) -> Measurement:
        """Wait until every subscriber has everything that `start` began."""
        sent: Sent = self._at_work.hear()
        received, efforts = self.collect(sent.expected)
        efforts = [sent.effort, *efforts]
        return Measurement(
            sent=sent,
            received=received,
            efforts=efforts,
            server_ns=processor_ns(self.running.process_ids) - self._used,
            seconds=time.monotonic() - self._begun,
            refused=why_refused(efforts, self._cores),
        )

    def collect(self, expected: Expected) -> tuple[Received, list[Effort]]:
        """Wait until the subscribers have what is expected; return what they had, and their efforts."""
        for worker, channels in zip(self._subscribers, self._parts, strict=True):
            deliveries = sum(expected.of_channel.get(channel, (0, 0))[0] for channel in channels)
            worker.tell("collect", expected, deliveries, LONGEST_WAIT_SECONDS)
        collected: list[tuple[Received, Effort]] = [worker.hear() for worker in self._subscribers]
        return together([part for part, _ in collected]), [effort for _, effort in collected]


@contextmanager
def open_side(
    peer: Peer, running: Running, crowd: Crowd, payload_bytes: int, where: Placement, connections: int = 1
) -> Iterator[Side]:
    """Yield a running server with all its subscribers ready, and a publisher of so many connections."""
    parts = crowd.parts()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker(
                    f"subscribers of {peer.name}",
                    Subscribers,
                    peer,
                    running,
                    channels,
                    cores=where.generator,
                    background=crowd.background,
                )
            )
            for channels in parts
        ]
        template = PeerTemplate(peer, running, payload_bytes)
        publisher = stack.enter_context(open_publisher(peer.name, running, template, where, connections))
        for worker in workers:
            worker.hear()
        yield Side(running, workers, parts, publisher, where.generator_cores)


@contextmanager
def open_publisher(
    name: str, running: Running, template: Template, where: Placement, connections: int
) -> Iterator[Worker]:
    """Yield a process that publishes over so many connections."""
    cores, first = where.generator, where.punctual or where.generator is not None
    with Worker(f"publisher to {name}", make_publisher, running, template, connections, first, cores=cores) as worker:
        worker.hear()
        yield worker


@dataclass(frozen=True)
class PeerTemplate:
    """What publishes to a channel of a peer; it can be sent to another process."""

    peer: Peer
    running: Running
    payload_bytes: int

    def __call__(self, channel: int) -> bytes:
        return self.peer.publish(self.running, channel, message_of(self.payload_bytes))


def make_publisher(running: Running, template: Template, connections: int, first: bool, *, control: int) -> Publisher:
    """Return a publisher, in its process; it listens to nothing between calls."""
    return Publisher(running, template, connections, first=first)
