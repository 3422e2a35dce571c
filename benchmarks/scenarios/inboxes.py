"""inboxes: many inboxes with one subscriber each, which is what a mail platform really has."""

from ..generator.schedule import Schedule
from ..options import Options
from ..profiles import profiled
from ..results import Column, Row
from ..sides import Crowd, open_side
from .scenario import COST_COLUMNS, LATENCY_COLUMNS, Case, Scenario, row_of

SIZES, BRIEF_SIZES = (1000, 10_000), (2000,)
RATE = 500.0


def cases(options: Options) -> list[Case]:
    """Return each peer at each number of inboxes."""
    sizes = options.sizes(SIZES, BRIEF_SIZES)
    return [Case(peer, f"{size} inboxes", size) for size in sizes for peer in options.compared]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one peer."""
    peer, where = options.peer(case.peer), options.where
    channels = list(range(case.size))
    rate = options.rate or RATE
    # A stride that shares no factor with the sizes visits every inbox, and no two neighbours in a row.
    order = [number * 7919 % case.size for number in channels]
    schedule = Schedule(rate, options.lasting(10, 4), warm_up=1.0, channels=order)
    with (
        peer.open(where.servers, case.size) as running,
        open_side(peer, running, Crowd(channels, options.processes), options.payload_bytes, where) as side,
        profiled(options, f"inboxes-{case.peer}-{case.size}", running) as profile,
    ):
        measurement = side.measure(schedule)
    row = row_of(case, running, measurement)
    row.figures["per_second"] = measurement.received.latency.total_count / measurement.sent.expected.seconds
    return [profile.into(row)]


SCENARIO = Scenario(
    name="inboxes",
    title="Many inboxes, one subscriber each",
    what=(
        "Each event goes to another inbox, at fixed times, and one of the subscribers gets it. The latency counts "
        "from when the event was due."
    ),
    columns=(*LATENCY_COLUMNS, Column("per_second", "events/s", 0), *COST_COLUMNS),
    headline="p99_ms",
    cases=cases,
    measure=measure,
    scale="inboxes",
)
