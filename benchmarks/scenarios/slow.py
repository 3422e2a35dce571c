"""slow: a share of the subscribers stops reading: what that does to the others, and to the server's memory."""

from contextlib import ExitStack

from ..cost import memory_bytes
from ..generator.schedule import Schedule
from ..generator.stalled import Stalled
from ..generator.worker import Worker
from ..options import OURS, Options
from ..results import Column, Row
from ..sides import Crowd, Measurement, PeerTemplate, Side, open_publisher, open_side
from .scenario import LATENCY_COLUMNS, Case, Scenario, row_of

SIZES, BRIEF_SIZES = (500,), (200,)
STALLED_SHARE = 0.2
"""Of the readers' number: so many more are connected, and do not read."""
WITHOUT, WITH = "all read", "some do not read"
TURNS = 3
RATE = 50.0
FILLER = Schedule(rate=100, seconds=1.0, warm_up=0)
FILLER_BYTES = 8192
"""What is published first fills every buffer of the kernel's on the way to those that do not read."""


def cases(options: Options) -> list[Case]:
    """Return each number of readers."""
    return [Case(OURS, f"{size} readers", size) for size in options.sizes(SIZES, BRIEF_SIZES)]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure the readers' latency with and without the others, in turns."""
    broker, where = options.broker(), options.where
    schedule = Schedule(options.rate or RATE, options.lasting(24, 6) / TURNS / 2)
    stalled = max(1, round(case.size * STALLED_SHARE))
    measured: dict[str, list[Measurement]] = {WITHOUT: [], WITH: []}
    grown = {WITHOUT: 0, WITH: 0}
    with ExitStack() as stack:
        running = stack.enter_context(broker.open(where.servers, 1))
        crowd = Crowd([0] * case.size, options.processes)
        side = stack.enter_context(open_side(broker, running, crowd, options.payload_bytes, where))
        template = PeerTemplate(broker, running, FILLER_BYTES)
        filler = stack.enter_context(open_publisher("filler", running, template, where, 1))
        for _ in range(TURNS):
            grown[WITHOUT] += _turn(side, filler, schedule, measured[WITHOUT])
            with Worker("stalled", Stalled, broker, running, [0] * stalled, cores=where.generator) as worker:
                worker.hear()
                grown[WITH] += _turn(side, filler, schedule, measured[WITH])
    return _rows(side, measured, (grown[WITH] - grown[WITHOUT]) / TURNS / stalled)


def _turn(side: Side, filler: Worker, schedule: Schedule, into: list[Measurement]) -> int:
    """Fill the buffers on the way of who does not read, then measure; return the bytes the server has grown by."""
    before = memory_bytes(side.running.process_ids)
    side.start(FILLER, filler)
    side.finish()
    into.append(side.measure(schedule))
    return memory_bytes(side.running.process_ids) - before


def _rows(side: Side, measured: dict[str, list[Measurement]], bytes_each: float) -> list[Row]:
    rows = {state: row_of(Case(OURS, state), side.running, *turns) for state, turns in measured.items()}
    with_them, without = rows[WITH], rows[WITHOUT]
    with_them.figures["p99_ratio"] = with_them.figures["p99_ms"] / without.figures["p99_ms"]
    if side.running.process_ids:
        with_them.figures["memory_kb"] = bytes_each / 1024
    return [without, with_them]


SCENARIO = Scenario(
    name="slow",
    title="Subscribers that stop reading",
    what=(
        f"Readers get events at fixed times; beside them, {STALLED_SHARE:.0%} as many connections subscribe to the "
        "same and read nothing, until no buffer on their way takes any more. In turns, with and without them. Memory "
        "is what the server grew by more with them than without, for each that does not read."
    ),
    columns=(
        *LATENCY_COLUMNS,
        Column("p99_ratio", "p99 with / without", 2, "lower"),
        Column("memory_kb", "KB for each stalled", 1, "lower"),
    ),
    headline="p99_ms",
    cases=cases,
    measure=measure,
)
