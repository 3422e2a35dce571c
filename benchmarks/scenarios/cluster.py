"""cluster: a fan-out and publishes in, by one process and by several workers that share a private server."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.errors import ConfigError
from broker.workers.private import find_server

from ..generator.schedule import Schedule
from ..options import OURS, Options
from ..payload import message_of
from ..peers.adapter import PeerMissingError, Running
from ..peers.broker import Broker, configuration, served
from ..peers.process import HOST, free_ports
from ..results import Column, Row
from ..sides import Crowd, open_side
from .asking import Load, ask
from .scenario import COST_COLUMNS, LAST_COLUMNS, LATENCY_COLUMNS, Case, Scenario, calm_rate, row_of, with_last

SIZES, BRIEF_SIZES = (1000,), (200,)
WORKERS, BRIEF_WORKERS = (1, 2, 4), (1, 2)
"""1: one process, which has the log in its memory."""
START_SECONDS = 30.0


@dataclass(frozen=True)
class BrokerOfWorkers(Broker):
    """Our broker as so many processes behind one port."""

    workers: int = 1

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start `broker serve`, and wait until all its processes are there."""
        try:
            find_server()
        except ConfigError as error:
            raise PeerMissingError(str(error)) from None
        [port] = free_ports(1)
        with served(configuration(port, f"workers = {self.workers}\n"), port, cores) as parent:
            processes = self.workers + 1 if self.workers > 1 else 0  # with their server
            yield self.running(HOST, port, [parent, *_children(parent, processes)])


def _children(parent: int, number: int) -> list[int]:
    """Return the processes below another, when there are so many."""
    until = time.monotonic() + START_SECONDS
    while len(found := _below(parent)) < number:
        if time.monotonic() > until:
            raise PeerMissingError(f"{len(found)} of {number} processes have started")
        time.sleep(0.05)
    return found


def _below(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in path.read_text().split()] if os.path.exists(path) else []


def cases(options: Options) -> list[Case]:
    """Return each number of workers, for each number of subscribers, and for what comes in."""
    if options.url:
        return []
    workers = BRIEF_WORKERS if options.brief else WORKERS
    sizes = options.sizes(SIZES, BRIEF_SIZES)
    return [
        *(Case(OURS, f"{_said(number)}, {size} subscribers", size) for size in sizes for number in workers),
        *(Case(OURS, f"{_said(number)}, published") for number in workers),
    ]


def _said(workers: int) -> str:
    return "one process" if workers == 1 else f"{workers} workers"


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one number of workers."""
    [number] = [number for number in WORKERS if case.case.startswith(_said(number))]
    broker, where = BrokerOfWorkers(workers=number), options.where
    with broker.open(where.servers, 1) as running:
        if not case.size:
            request = broker.publish(running, 0, message_of(options.payload_bytes))
            row = ask(options, case, running, Load(request, 8, 8), f"cluster-{number}-published")
            row.figures["published_per_second"] = row.figures.pop("per_second")
            return [row]
        crowd = Crowd([0] * case.size, options.processes)
        with open_side(broker, running, crowd, options.payload_bytes, where) as side:
            measurement = side.measure(Schedule(calm_rate(options, case.size), options.lasting(10, 4), 1.0))
    return [with_last(row_of(case, running, measurement), measurement)]


SCENARIO = Scenario(
    name="cluster",
    title="One process, and workers that share a Valkey",
    what=(
        "The same fan-out, and the same publishes in, by one process with the log in its memory, and by several "
        "workers with a private server. The processor time is that of all of them together, the server's too."
    ),
    columns=(
        *LAST_COLUMNS,
        *LATENCY_COLUMNS,
        Column("per_second", "deliveries/s", 0),
        Column("published_per_second", "events/s in", 0, "higher"),
        *COST_COLUMNS,
    ),
    headline="p99_ms",
    cases=cases,
    measure=measure,
)
