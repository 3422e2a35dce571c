"""churn: how many connections a second come, subscribe and go."""

from ..generator.churner import Churned, Churner
from ..generator.effort import why_refused
from ..generator.worker import Worker
from ..histograms import encoded, merged, milliseconds
from ..options import Options
from ..peers.adapter import Running
from ..profiles import profiled
from ..results import Column, Row
from .scenario import Case, Scenario, shares

SIZES, BRIEF_SIZES = (16, 64), (32,)


def cases(options: Options) -> list[Case]:
    """Return each peer at each number of connections at a time."""
    sizes = options.sizes(SIZES, BRIEF_SIZES)
    return [Case(peer, f"{size} at a time", size) for size in sizes for peer in options.compared]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one peer."""
    peer, where = options.peer(case.peer), options.where
    with (
        peer.open(where.servers, 1) as running,
        Worker(f"visitors of {case.peer}", Churner, peer, running, case.size, cores=where.generator) as visitors,
    ):
        visitors.hear()
        with profiled(options, f"churn-{case.peer}-{case.size}", running) as profile:
            churned: Churned = visitors.ask("churn", options.lasting(10, 3))
    return [profile.into(row_of_churned(case, running, where.generator_cores, churned))]


def row_of_churned(case: Case, running: Running, cores: int, *turns: Churned) -> Row:
    """Return the row of what one turn, or several together, came to; the generator had so many cores."""
    latency = merged(turn.latency for turn in turns)
    opened, failed = sum(turn.opened for turn in turns), sum(turn.failed for turn in turns)
    seconds = sum(turn.seconds for turn in turns)
    row = Row(
        peer=case.peer,
        case=case.case,
        size=case.size,
        latency=encoded(latency),
        seconds=seconds,
        generator=shares([turns[0].effort]),
        notes=running.notes,
        refused=next(filter(None, (why_refused([turn.effort], cores) for turn in turns)), ""),
        void=f"{failed} connections failed" if failed else "",
        figures={
            "per_second": opened / seconds,
            "p50_ms": milliseconds(latency, 50),
            "p99_ms": milliseconds(latency, 99),
        },
    )
    if running.process_ids and opened:
        row.figures["server_us"] = sum(turn.server_ns for turn in turns) / 1000 / opened
    return row


SCENARIO = Scenario(
    name="churn",
    title="Connections that come and go",
    what=(
        "A fixed number of connections is there at a time: each opens, subscribes, closes by a Close frame, and makes "
        "room for the next. The latency is from connect() until the subscription holds."
    ),
    columns=(
        Column("per_second", "connects/s", 0, "higher"),
        Column("p50_ms", "p50 ms", 2, "lower"),
        Column("p99_ms", "p99 ms", 2, "lower"),
        Column("server_us", "server µs each", 0, "lower"),
    ),
    headline="per_second",
    cases=cases,
    measure=measure,
)
