"""hostile: how long an account waits for its answers and events while another client is in everybody's way.

The inputs are the rows of `benchmarks.hostile`. Their client runs in the background of the scheduler: in the world it
is another machine, here it would otherwise take the neighbour its processor.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

from ..cost import forget_peak, peak_bytes
from ..generator.attacker import Attacked, Attacker
from ..generator.publisher import Fixed, Sent
from ..generator.schedule import Schedule
from ..generator.worker import Worker
from ..histograms import encoded, merged, milliseconds
from ..hostile.table import ROWS
from ..hostile.target import NEIGHBOUR, Target, configuration
from ..options import OURS, Options
from ..peers.adapter import Running
from ..peers.broker import Broker, served
from ..peers.process import HOST, free_ports
from ..results import Column, Row
from ..sides import Crowd, Measurement, Side, open_publisher, open_side
from .scenario import Case, Scenario, shares

EVENT_RATE, PING_RATE = 50.0, 200.0
LONGEST_WAIT_MS = 20.0
BRIEF = (
    "header-lines",
    "empty-fragments",
    "after-close",
    "list-of-ones",
    "token-inboxes",
    "publish-ones",
    "empty-subscribes",
    "cut-streams",
    "shared-takeovers",
)
"""One of each kind."""
BEFORE_SECONDS = 0.5
"""The input begins so long before what is measured, and ends so long after."""


@dataclass(frozen=True)
class Waits:
    """What the neighbour waited for: its events, and the answers to its pings."""

    events: Measurement
    pings: Sent

    @property
    def latency(self) -> HdrHistogram:
        """All of its waits."""
        return merged([self.events.received.latency, self.pings.answer_latency])

    @property
    def void(self) -> str:
        """Why they mean nothing, "" if they do."""
        return self.events.void or (f"{self.pings.unanswered} pings not answered" if self.pings.unanswered else "")


@dataclass(frozen=True)
class Street:
    """A broker with the neighbour and the hostile client."""

    target: Target
    side: Side
    pinger: Worker
    attacker: Worker

    def wait(self, seconds: float) -> Waits:
        """Measure the neighbour's waits."""
        self.side.start(Schedule(EVENT_RATE, seconds, warm_up=BEFORE_SECONDS, jitter=1.0))
        self.pinger.tell("pace", Schedule(PING_RATE, seconds, warm_up=BEFORE_SECONDS, jitter=1.0))
        return Waits(self.side.finish(), self.pinger.hear())


def cases(options: Options) -> list[Case]:
    """Return each row of the table, or one of each kind; nobody is to do this to a deployment."""
    names = options.cases or (BRIEF if options.brief else tuple(ROWS))
    return [] if options.url else [Case(OURS, name) for name in names if name in ROWS]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure the neighbour's waits without and with one input, in one broker."""
    seconds = options.lasting(8, 2)
    with opened(options, case) as street:
        process_ids = street.side.running.process_ids
        alone = street.wait(seconds)
        forget_peak(process_ids)
        before = peak_bytes(process_ids)
        street.attacker.tell("attack", case.case, street.target, seconds + 2 * BEFORE_SECONDS)
        beside = street.wait(seconds)
        attacked: Attacked = street.attacker.hear()
        grown = peak_bytes(process_ids) - before
    return [_row(case, street.side.running, alone, beside, attacked, grown)]


@contextmanager
def opened(options: Options, case: Case) -> Iterator[Street]:
    """Start a broker as the row has it, and all who go to it."""
    row, where, neighbour = ROWS[case.case], options.where, Broker(key=NEIGHBOUR)
    port, api_port = free_ports(2)
    settings = configuration(port, api_port, row.settings, asks=row.asks)
    with ExitStack() as stack:
        process_id = stack.enter_context(served(settings, port, where.servers))
        running = neighbour.running(HOST, port, [process_id])
        side = stack.enter_context(open_side(neighbour, running, Crowd([0]), options.payload_bytes, where))
        pinged, ping = neighbour.pinging(running)
        pinger = stack.enter_context(open_publisher("pings", pinged, Fixed(ping), where, 1))
        target = Target(HOST, port, api_port)
        attacker = Worker("hostile client", Attacker, cores=where.generator, background=True)
        stack.enter_context(attacker).hear()
        yield Street(target, side, pinger, attacker)


def _row(case: Case, running: Running, alone: Waits, beside: Waits, attacked: Attacked, grown: int) -> Row:
    of_table = ROWS[case.case]
    worst, alone_worst = (milliseconds(waits.latency, 100) for waits in (beside, alone))
    row = Row(
        peer=case.peer,
        case=case.case,
        latency=encoded(beside.latency),
        seconds=beside.pings.seconds,
        generator=shares([*beside.events.efforts, beside.pings.effort]),
        notes=running.notes,
        void=alone.void or beside.void or attacked.unexpected,
        figures={
            "alone_p99_ms": milliseconds(alone.latency, 99),
            "alone_max_ms": alone_worst,
            "p50_ms": milliseconds(beside.latency, 50),
            "p99_ms": milliseconds(beside.latency, 99),
            "max_ms": worst,
            "added_ms": worst - alone_worst,
            "memory_mb": grown / 2**20,
            "times": attacked.times,
        },
    )
    if of_table.has_bound:
        row.figures |= {"most_mb": of_table.most_bytes / 2**20, "of_most": grown / of_table.most_bytes}
    return row


SCENARIO = Scenario(
    name="hostile",
    title="An account beside a hostile client",
    what=(
        "An account gets 50 events and gives 200 pings a second at random times: alone, and while another client does "
        "what the case says (`benchmarks/hostile`), again and again. The waits are those for its events and for the "
        "answers to its pings; what the worst one is longer than alone is what was added. Memory is how much the "
        "greatest resident size of the server grew meanwhile, and the part of what the input may make it hold."
    ),
    columns=(
        Column("alone_p99_ms", "alone p99 ms", 1, "lower"),
        Column("alone_max_ms", "alone worst ms", 1, "lower"),
        Column("p50_ms", "p50 ms", 1, "lower"),
        Column("p99_ms", "p99 ms", 1, "lower", at_most=LONGEST_WAIT_MS),
        Column("max_ms", "worst ms", 1, "lower"),
        Column("added_ms", "added ms", 1, "lower", at_most=LONGEST_WAIT_MS),
        Column("memory_mb", "+ MB", 1, "lower"),
        Column("most_mb", "of MB", 1),
        Column("of_most", "is", 2, "lower", at_most=1),
        Column("times", "done", 0),
    ),
    headline="max_ms",
    cases=cases,
    measure=measure,
)
