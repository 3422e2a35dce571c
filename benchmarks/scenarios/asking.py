"""What answers requests: how many a second it answers at most, and how soon at half of that.

The first is a closed loop, and says nothing of latency: each request waits for an answer before it. The second is an
open loop, and its latency counts from when a request was due.
"""

from dataclasses import dataclass

from ..generator.effort import why_late, why_refused
from ..generator.publisher import Fixed, Sent
from ..generator.schedule import Schedule
from ..histograms import encoded, milliseconds
from ..options import Options
from ..peers.adapter import Running
from ..profiles import profiled
from ..results import Column, Row
from ..sides import open_publisher
from .scenario import Case, shares

PART_OF_CAPACITY = 0.5
LOWEST_RATE = 1.0

LATENCY_AT_HALF = (
    Column("p50_ms", "p50 ms at half", 2, "lower"),
    Column("p99_ms", "p99 ms at half", 2, "lower"),
    Column("server_us", "server µs each", 1, "lower"),
)


@dataclass(frozen=True)
class Load:
    """How requests are made.

    Args:
        request: the bytes of one, with places for when it was due.
        connections: how many take turns.
        window: how many of each connection are under way in the closed loop.
        batch: how many events one request holds.
    """

    request: bytes
    connections: int
    window: int
    batch: int = 1


def ask(options: Options, case: Case, running: Running, load: Load, profile_name: str) -> Row:
    """Measure capacity, then latency at half of it. Figures each and a second are of events, not of requests."""
    where, seconds = options.where, options.lasting(10, 3)
    with open_publisher(case.peer, running, Fixed(load.request), where, load.connections) as publisher:
        with profiled(options, profile_name, running) as profile:
            pressed: Sent = publisher.ask("press", load.window, seconds)
        capacity = pressed.requests / pressed.seconds
        rate = options.rate or max(LOWEST_RATE, capacity * PART_OF_CAPACITY)
        paced: Sent = publisher.ask("pace", Schedule(rate, seconds))
    row = _row(case, running, pressed, paced, where.generator_cores)
    row.figures["per_second"] = capacity * load.batch
    if running.process_ids and pressed.requests:
        row.figures["server_us"] = pressed.server_ns / 1000 / (pressed.requests * load.batch)
    return profile.into(row)


def _row(case: Case, running: Running, pressed: Sent, paced: Sent, cores: int) -> Row:
    late, latency = milliseconds(paced.late, 99), milliseconds(paced.answer_latency, 99)
    refused = why_refused([pressed.effort], cores) or why_refused([paced.effort], cores) or why_late(late, latency)
    unanswered = pressed.unanswered + paced.unanswered
    return Row(
        peer=case.peer,
        case=case.case,
        size=case.size,
        latency=encoded(paced.answer_latency),
        seconds=paced.seconds,
        generator=shares([pressed.effort]),
        notes=running.notes,
        refused=refused,
        void=f"{unanswered} requests got no good answer" if unanswered else "",
        figures={
            "p50_ms": milliseconds(paced.answer_latency, 50),
            "p99_ms": milliseconds(paced.answer_latency, 99),
        },
    )
