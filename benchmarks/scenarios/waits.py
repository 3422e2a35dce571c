"""waits: one event to N subscribers, alone and while a thousand clients of the same account wait for one event each."""

from contextlib import ExitStack

from ..generator.schedule import Schedule
from ..generator.waiting import Waiting
from ..generator.worker import Worker
from ..options import OURS, Options
from ..results import Column, Row
from ..sides import Crowd, Measurement, open_side
from .scenario import COST_COLUMNS, LAST_COLUMNS, LATENCY_COLUMNS, Case, Scenario, row_of, with_last

SIZES, BRIEF_SIZES = (100,), (100,)
WAITS = 1_000
ALONE, BESIDE, LOOKING = "alone", "beside waits for other inboxes", "beside waits that look at each event"
INBOX_OF = {ALONE: None, BESIDE: None, LOOKING: 0}
"""What the waits are for: each for an inbox of its own, or all for that of the subscribers."""
RATE = 10.0
"""Of events: few, so that each is told by itself."""
TURNS = 4


def cases(options: Options) -> list[Case]:
    """Return each number of subscribers; nobody is to let a thousand clients wait at a deployment."""
    sizes = () if options.url else options.sizes(SIZES, BRIEF_SIZES)
    return [Case(OURS, f"{size} subscribers", size) for size in sizes]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure the three states in turns, so that what else the machine does hits all alike."""
    broker, where = options.broker(), options.where
    schedule = Schedule(options.rate or RATE, options.lasting(48, 12) / TURNS / len(INBOX_OF), warm_up=0.5)
    measured: dict[str, list[Measurement]] = {state: [] for state in INBOX_OF}
    with ExitStack() as stack:
        running = stack.enter_context(broker.open(where.servers, 1))
        crowd = Crowd([0] * case.size, options.processes)
        side = stack.enter_context(open_side(broker, running, crowd, options.payload_bytes, where))
        for _ in range(TURNS):
            for state, inbox in INBOX_OF.items():
                with ExitStack() as turn:
                    if state != ALONE:
                        worker = Worker("waits", Waiting, broker, running, WAITS, inbox, cores=where.generator)
                        turn.enter_context(worker).hear()
                    measured[state].append(side.measure(schedule))
    rows = {
        state: with_last(row_of(Case(OURS, state, case.size), side.running, *turns), *turns)
        for state, turns in measured.items()
    }
    alone = rows[ALONE].figures
    for state, name in ((BESIDE, "last_ratio"), (LOOKING, "looking_ratio")):
        rows[state].figures[name] = rows[state].figures["last_p50_ms"] / alone["last_p50_ms"]
    return list(rows.values())


SCENARIO = Scenario(
    name="waits",
    title=f"A fan-out beside {WAITS:,} waits of the same account",
    what=(
        f"Events are published at fixed times; N subscribers get each: alone; while {WAITS:,} clients of the same "
        "account wait, each for an event of an inbox of its own; and while as many wait for an event of the "
        "subscribers' inbox, each for a text of its own that none has, so that all look at each event. In turns; the "
        "ratios are of the median of the time to the last subscriber to the same alone."
    ),
    columns=(
        *LAST_COLUMNS,
        *LATENCY_COLUMNS,
        Column("last_ratio", "last p50 / alone", 2, "lower"),
        Column("looking_ratio", "looking, last p50 / alone", 2, "lower"),
        *COST_COLUMNS,
    ),
    headline="last_p50_ms",
    cases=cases,
    measure=measure,
)
