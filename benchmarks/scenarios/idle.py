"""idle: what a connection costs that is open and gets nothing: memory, and processor time for its heartbeats."""

import time

from ..bare import NAME
from ..cost import memory_bytes, processor_ns
from ..generator.subscribers import Subscribers
from ..generator.worker import Worker
from ..options import Options
from ..results import Column, Row
from .scenario import Case, Scenario

SIZES, BRIEF_SIZES = (1000, 5000), (1000,)
HEARTBEAT_SECONDS = 30.0
_FIRST = 10
"""Connections that come and go before the count, so that what is loaded with the first is not counted."""
_SETTLING_SECONDS = 0.5


def cases(options: Options) -> list[Case]:
    """Return each peer, and the broker's own library, at each number; of a deployment nothing can be seen."""
    if options.url:
        return []
    ours, *peers = options.compared
    sizes = options.sizes(SIZES, BRIEF_SIZES)
    return [Case(peer, f"{size} connections", size) for size in sizes for peer in (ours, NAME, *peers)]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one peer."""
    peer, where, seconds = options.peer(case.peer), options.where, options.lasting(HEARTBEAT_SECONDS + 2, 4)
    # Each has a channel of its own, as an agent has an inbox.
    channels = list(range(case.size))
    with peer.open(where.servers, case.size) as running:
        process_ids = running.process_ids
        with Worker("the first", Subscribers, peer, running, channels[:_FIRST], cores=where.generator) as first:
            first.hear()
        time.sleep(_SETTLING_SECONDS)
        empty = memory_bytes(process_ids)
        with Worker("the idle", Subscribers, peer, running, channels, cores=where.generator) as idle:
            idle.hear()
            time.sleep(_SETTLING_SECONDS)
            memory, used = memory_bytes(process_ids) - empty, processor_ns(process_ids)
            time.sleep(seconds)
            used = processor_ns(process_ids) - used
            idle.ask("reset")  # fails if a connection was ended meanwhile
    figures = {
        "memory_kb": memory / 1024 / case.size,
        "empty_mb": empty / 2**20,
        "processor_us": used / 1000 / case.size / seconds,
    }
    return [Row(peer=case.peer, case=case.case, size=case.size, seconds=seconds, notes=running.notes, figures=figures)]


SCENARIO = Scenario(
    name="idle",
    title="Idle connections",
    what=(
        "Connections are open, each subscribed to a channel of its own, and nothing is published. Memory is the growth "
        "of the proportional set size of the server's processes, without the kernel's buffers. The processor time is "
        "that of heartbeats: measured for less than the 30 s between two of them, it is only a part. "
        f"{NAME} is a bare server on the broker's own WebSocket library: what is above it is the broker's own."
    ),
    columns=(
        Column("memory_kb", "KB each", 1, "lower"),
        Column("processor_us", "µs/s each", 1, "lower"),
        Column("empty_mb", "MB without", 1),
    ),
    headline="memory_kb",
    cases=cases,
    measure=measure,
    scale="connections",
)
