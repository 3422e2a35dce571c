"""tls: what TLS costs beside plain, for each delivery of a fan-out and each connection that comes: both, in turns."""

from contextlib import ExitStack

from ..generator.churner import Churned, Churner
from ..generator.schedule import Schedule
from ..generator.worker import Worker
from ..options import OURS, Options
from ..peers.adapter import Running
from ..peers.broker import OVER_TLS
from ..results import Column, Row
from ..sides import Crowd, Measurement, open_side
from .churn import row_of_churned
from .scenario import COST_COLUMNS, LAST_COLUMNS, LATENCY_COLUMNS, Case, Scenario, calm_rate, row_of, with_last

SIZES, BRIEF_SIZES = (100, 500), (100,)
BOTH = (OURS, OVER_TLS)
CONNECTS = "connects"
AT_ONCE = 16
TURN_SECONDS = 1.0


def cases(options: Options) -> list[Case]:
    """Return each size of a fan-out, and the connects; a deployment speaks one of the two only."""
    if options.url:
        return []
    sizes = options.sizes(SIZES, BRIEF_SIZES)
    return [*(Case(OURS, f"{size} subscribers", size) for size in sizes), Case(OURS, CONNECTS, AT_ONCE)]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure both in turns; the row of TLS has the ratio."""
    rows = (_connects if case.case == CONNECTS else _fan_out)(options, case)
    plain, sealed = rows
    sealed.figures["over_plain"] = sealed.figures["server_us"] / plain.figures["server_us"]
    sealed.refused, sealed.void = sealed.refused or plain.refused, sealed.void or plain.void
    return rows


def _turns(options: Options) -> int:
    return max(1, round(options.lasting(10, 4) / 2 / TURN_SECONDS))


def _fan_out(options: Options, case: Case) -> list[Row]:
    where, crowd, rate = options.where, Crowd([0] * case.size, options.processes), calm_rate(options, case.size)
    measured: dict[str, list[Measurement]] = {name: [] for name in BOTH}
    with ExitStack() as stack:
        sides = {}
        for name in BOTH:
            peer = options.peer(name)
            running = stack.enter_context(peer.open(where.servers, 1))
            sides[name] = stack.enter_context(open_side(peer, running, crowd, options.payload_bytes, where))
        for turn in range(_turns(options)):
            for name, side in sides.items():
                measured[name].append(side.measure(Schedule(rate, TURN_SECONDS, 2 / rate if turn == 0 else 0)))
    return [
        with_last(row_of(Case(name, case.case, case.size), side.running, *measured[name]), *measured[name])
        for name, side in sides.items()
    ]


def _connects(options: Options, case: Case) -> list[Row]:
    where = options.where
    churned: dict[str, list[Churned]] = {name: [] for name in BOTH}
    with ExitStack() as stack:
        visitors: dict[str, tuple[Running, Worker]] = {}
        for name in BOTH:
            peer = options.peer(name)
            running = stack.enter_context(peer.open(where.servers, 1))
            worker = Worker(f"visitors of {name}", Churner, peer, running, case.size, cores=where.generator)
            visitors[name] = running, stack.enter_context(worker)
            worker.hear()
        for _ in range(_turns(options)):
            for name, (_, worker) in visitors.items():
                churned[name].append(worker.ask("churn", TURN_SECONDS))
    return [
        row_of_churned(Case(name, case.case, case.size), running, where.generator_cores, *churned[name])
        for name, (running, _) in visitors.items()
    ]


SCENARIO = Scenario(
    name="tls",
    title="The broker over TLS beside plain",
    what=(
        "Two brokers, one with a certificate (ECDSA, P-256), have their clients and take turns of a second: a fan-out "
        "as in `fanout`, then connections that come and go as in `churn`, each with a whole handshake. The ratio is "
        "that of the processor time that the servers took for each delivery, or connection. Latencies hold the "
        "generator's own share of TLS, whose loop is slower than for plain."
    ),
    columns=(
        Column("over_plain", "over plain", 2, "lower"),
        *COST_COLUMNS,
        *LAST_COLUMNS,
        *LATENCY_COLUMNS[:2],
        Column("per_second", "deliveries, connects/s", 0),
    ),
    headline="server_us",
    cases=cases,
    measure=measure,
)
