"""fanout: one event to N subscribers, until each of them, and until the last of them, has it."""

from ..generator.schedule import Schedule
from ..options import Options
from ..profiles import profiled
from ..results import Column, Row
from ..sides import Crowd, open_side
from .scenario import COST_COLUMNS, LAST_COLUMNS, LATENCY_COLUMNS, Case, Scenario, calm_rate, row_of, with_last

SIZES, BRIEF_SIZES = (1, 10, 100, 1000, 5000, 10_000), (1, 100, 1000, 5000)


def cases(options: Options) -> list[Case]:
    """Return each peer at each size, the peers of one size one after the other."""
    sizes = options.sizes(SIZES, BRIEF_SIZES)
    return [Case(peer, f"{size} subscribers", size) for size in sizes for peer in options.compared]


def schedule_for(options: Options, subscribers: int) -> Schedule:
    """Return when events are due, for so many subscribers."""
    rate = calm_rate(options, subscribers)
    return Schedule(rate, options.lasting(10, 4), warm_up=max(0.5, 2 / rate))


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one peer at one size."""
    peer, where = options.peer(case.peer), options.where
    crowd = Crowd([0] * case.size, options.processes)
    with (
        peer.open(where.servers, 1) as running,
        open_side(peer, running, crowd, options.payload_bytes, where) as side,
        profiled(options, f"fanout-{case.peer}-{case.size}", running) as profile,
    ):
        measurement = side.measure(schedule_for(options, case.size))
    return [profile.into(with_last(row_of(case, running, measurement), measurement))]


SCENARIO = Scenario(
    name="fanout",
    title="One event to N subscribers",
    what=(
        "Events are published to one channel at fixed times; N subscribers get each. The latency of a delivery counts "
        "from when the event was due; `last` is the time until the last of the N has it."
    ),
    columns=(
        *LAST_COLUMNS,
        *LATENCY_COLUMNS,
        Column("per_second", "deliveries/s", 0),
        *COST_COLUMNS,
    ),
    headline="last_p50_ms",
    cases=cases,
    measure=measure,
    scale="subscribers",
)
