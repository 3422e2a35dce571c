"""cluster: nodes that share a Valkey: a fan-out and publishes in, beside Centrifugo, and what an engine costs."""

from dataclasses import replace

from ..generator.schedule import Schedule
from ..options import OURS, Options
from ..payload import message_of
from ..peers.adapter import Peer
from ..peers.shared import ALONE, CentrifugoNodes, Nodes
from ..results import Column, Row
from ..sides import Crowd, open_side
from . import sizing
from .asking import Load, ask
from .scenario import COST_COLUMNS, LAST_COLUMNS, LATENCY_COLUMNS, Case, Scenario, calm_rate, row_of, with_last

PEER = "centrifugo"
SIZES, BRIEF_SIZES = (1000,), (200,)
NODES, BRIEF_NODES = (ALONE, 1, 2, 4), (ALONE, 1, 2)
PUBLISHERS, WINDOW = 64, 1
"""Connections that publish, and how many events each has under way: the broker lets 64 of each wait for a stall."""
PUBLISHED = "published"


def cases(options: Options) -> list[Case]:
    """Return each number of nodes, for each number of subscribers and for what comes in; then what an engine costs."""
    if options.url:
        return []
    numbers = BRIEF_NODES if options.brief else NODES
    whats = [(f"{size} subscribers", size) for size in options.sizes(SIZES, BRIEF_SIZES)]
    compared = [
        Case(peer, f"{_said(number)}: {what}", size)
        for what, size in [*whats, (PUBLISHED, 0)]
        for number in numbers
        for peer in (OURS, PEER)
        if peer == OURS or (peer in options.compared and number != ALONE)
    ]
    return [*compared, *sizing.cases(options)]


def _said(nodes: int) -> str:
    if nodes == ALONE:
        return "no Valkey"
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one number of nodes, or one of the costs."""
    options = replace(options, punctual=True)  # nodes are on all cores, the publisher among them
    if case.case in sizing.MEASURED:
        return sizing.measure(options, case)
    [nodes] = [number for number in NODES if case.case.startswith(f"{_said(number)}:")]
    where = options.where
    peer: Peer = Nodes(nodes=nodes) if case.peer == OURS else CentrifugoNodes(nodes)
    with peer.open(where.servers, 1) as running:
        if not case.size:
            request = peer.publish(running, 0, message_of(options.payload_bytes))
            row = ask(options, case, running, Load(request, PUBLISHERS, WINDOW), f"cluster-{case.peer}-{nodes}")
            row.figures["published_per_second"] = row.figures.pop("per_second")
            return [row]
        crowd = Crowd([0] * case.size, options.processes)
        with open_side(peer, running, crowd, options.payload_bytes, where) as side:
            measurement = side.measure(Schedule(calm_rate(options, case.size), options.lasting(10, 4), 1.0))
    return [with_last(row_of(case, running, measurement), measurement)]


SCENARIO = Scenario(
    name="cluster",
    title="Nodes that share a Valkey",
    what=(
        "A fan-out to one account, and events published by 64 publishers at once, by one process that has its log in "
        "memory (no Valkey), and by nodes behind one port that share a Valkey; Centrifugo has the same Valkey, and as "
        "many cores as there are nodes. The processor time of these is that of all processes together, the Valkey's "
        "too. Then what an engine costs one node and its server: for events as they come in, for a node that does "
        "nothing, and for accounts that a node follows, and finds again after its link was cut."
    ),
    columns=(
        *LAST_COLUMNS,
        *LATENCY_COLUMNS,
        Column("per_second", "deliveries/s", 0),
        Column("published_per_second", "events/s in", 0, "higher"),
        *COST_COLUMNS,
        *sizing.COLUMNS,
    ),
    headline="p99_ms",
    cases=cases,
    measure=measure,
    document=sizing.document,
)
