"""overhead: what the broker adds to the kernel's own cost of a fan-out: both at once, taking turns."""

from contextlib import ExitStack

from ..generator.schedule import Schedule
from ..options import OURS, Options
from ..peers import PEERS
from ..peers.broker import ENVELOPE_BYTES
from ..results import Column, Row
from ..sides import Crowd, Measurement, open_side
from .scenario import COST_COLUMNS, LAST_COLUMNS, Case, Scenario, calm_rate, row_of, with_last

FLOOR = "floor"
SIZES, BRIEF_SIZES = (100, 1000), (1000,)
TURN_SECONDS = 1.0


def cases(options: Options) -> list[Case]:
    """Return each size; a deployment has no floor beside it."""
    sizes = () if options.url else options.sizes(SIZES, BRIEF_SIZES)
    return [Case(OURS, f"{size} subscribers", size) for size in sizes]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure both sides in turns; the broker's row has the ratio."""
    where, crowd = options.where, Crowd([0] * case.size, options.processes)
    rate = calm_rate(options, case.size)
    turns = max(1, round(options.lasting(20, 6) / 2 / TURN_SECONDS))
    measured: dict[str, list[Measurement]] = {FLOOR: [], OURS: []}
    with ExitStack() as stack:
        sides = {}
        for name, peer, size in (
            (FLOOR, PEERS[FLOOR], options.payload_bytes + ENVELOPE_BYTES),
            (OURS, options.broker(), options.payload_bytes),
        ):
            running = stack.enter_context(peer.open(where.servers, 1))
            sides[name] = stack.enter_context(open_side(peer, running, crowd, size, where))
        for turn in range(turns):
            for name, side in sides.items():
                measured[name].append(side.measure(Schedule(rate, TURN_SECONDS, 2 / rate if turn == 0 else 0)))
    rows = {
        name: with_last(row_of(Case(name, case.case, case.size), side.running, *measured[name]), *measured[name])
        for name, side in sides.items()
    }
    ours, floor = rows[OURS], rows[FLOOR]
    ours.figures["over_floor"] = ours.figures["last_p50_ms"] / floor.figures["last_p50_ms"]
    ours.refused, ours.void = ours.refused or floor.refused, ours.void or floor.void
    return [ours, floor]


SCENARIO = Scenario(
    name="overhead",
    title="The broker beside the kernel's floor",
    what=(
        "The broker, and a C program that does nothing but `send()`, both have their subscribers and take turns of a "
        "second, with frames of the same length. The ratio is that of the medians of the time to the last subscriber."
    ),
    columns=(Column("over_floor", "over the floor", 3, "lower"), *LAST_COLUMNS, *COST_COLUMNS),
    headline="last_p50_ms",
    cases=cases,
    measure=measure,
)
