"""neighbour: an account's latency alone, and while another account of the same broker broadcasts.

Between the two, the same broadcast comes from the floor, a process of its own: what a busy machine costs, whatever the
broker does. The broadcast's subscribers run in the background of the scheduler: in the world they are other machines,
here they would otherwise take the neighbour's one subscriber its processor.
"""

from contextlib import ExitStack
from dataclasses import replace

from ..generator.schedule import Schedule
from ..options import OURS, Options
from ..peers import PEERS
from ..peers.adapter import Running
from ..peers.broker import ENVELOPE_BYTES, key_of
from ..results import Column, Row
from ..sides import Crowd, Measurement, open_side
from .scenario import LATENCY_COLUMNS, Case, Scenario, row_of

SIZES, BRIEF_SIZES = (1000,), (1000,)
ALONE, BESIDE_FLOOR, BESIDE_BROADCAST = "alone", "beside the floor's broadcast", "beside the broker's broadcast"
STATES = (ALONE, BESIDE_FLOOR, BESIDE_BROADCAST)
QUIET_RATE = 100.0
LOUD_DELIVERIES_PER_SECOND = 40_000
TURNS = 4


def cases(options: Options) -> list[Case]:
    """Return each size of the broadcast; a deployment would have to give keys of two accounts."""
    sizes = () if options.url else options.sizes(SIZES, BRIEF_SIZES)
    return [Case(OURS, f"{size} subscribers", size) for size in sizes]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure the three states in turns, so that what else the machine does hits all alike."""
    where, crowd = options.where, Crowd([0] * case.size, options.processes, background=True)
    broker, floor = options.broker(), PEERS["floor"]
    quiet = replace(broker, key=key_of("neighbour"))
    seconds = options.lasting(30, 9) / TURNS / 3
    measured: dict[str, list[Measurement]] = {state: [] for state in STATES}
    broadcasts: dict[str, list[Measurement]] = {state: [] for state in STATES}
    with ExitStack() as stack:
        running = stack.enter_context(broker.open(where.servers, 1))
        beside = stack.enter_context(floor.open(where.servers, 1))
        one = stack.enter_context(open_side(quiet, quiet.seen(running), Crowd([0]), options.payload_bytes, where))
        size = options.payload_bytes + ENVELOPE_BYTES
        loud = {
            BESIDE_FLOOR: stack.enter_context(open_side(floor, beside, crowd, size, where)),
            BESIDE_BROADCAST: stack.enter_context(open_side(broker, running, crowd, options.payload_bytes, where)),
        }
        rate = options.rate or LOUD_DELIVERIES_PER_SECOND / case.size
        for turn in range(TURNS):
            schedule = Schedule(QUIET_RATE, seconds, warm_up=0.5, jitter=1.0, seed=turn)
            measured[ALONE].append(one.measure(schedule))
            for state, side in loud.items():
                side.start(Schedule(rate, seconds + 1.0))
                measured[state].append(one.measure(schedule))
                broadcasts[state].append(side.finish())
    return _rows(one.running, measured, broadcasts)


def _rows(
    running: Running, measured: dict[str, list[Measurement]], broadcasts: dict[str, list[Measurement]]
) -> list[Row]:
    rows = {state: row_of(Case(OURS, state), running, *turns) for state, turns in measured.items()}
    for state, row in rows.items():
        row.figures["added_p99_ms"] = row.figures["p99_ms"] - rows[ALONE].figures["p99_ms"]
        row.void = row.void or next((f"the broadcast: {turn.void}" for turn in broadcasts[state] if turn.void), "")
        row.figures["broadcast_per_second"] = sum(
            turn.received.latency.total_count / turn.sent.expected.seconds for turn in broadcasts[state]
        ) / len(measured[state])
    busy, control = rows[BESIDE_BROADCAST], rows[BESIDE_FLOOR]
    for key, other in (("over_alone", rows[ALONE]), ("over_floor", control)):
        if other.figures["p99_ms"]:
            busy.figures[key] = busy.figures["p99_ms"] / other.figures["p99_ms"]
    return list(rows.values())


SCENARIO = Scenario(
    name="neighbour",
    title="An account beside another one's broadcast",
    what=(
        "An account with one subscriber gets events at random times: alone; while a process that is not the broker, "
        "the floor, broadcasts on the same cores; and while the broker itself broadcasts as much for another account. "
        "The ratios are of the p99 of the third to that of the first, and to that of the second, which is what a busy "
        "machine costs anyway."
    ),
    columns=(
        *LATENCY_COLUMNS,
        Column("added_p99_ms", "added to p99, ms", 2, "lower"),
        Column("over_alone", "p99 / alone", 2, "lower"),
        Column("over_floor", "p99 / floor's", 2, "lower"),
        Column("broadcast_per_second", "broadcast deliveries/s", 0),
    ),
    headline="p99_ms",
    cases=cases,
    measure=measure,
)
