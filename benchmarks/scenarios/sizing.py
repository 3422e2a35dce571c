"""What an engine costs a node and the server that nodes share, row by row; and the table of it that the docs have."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..cost import processor_ns
from ..generator.following import Followed, Following, Spent
from ..generator.publisher import Fixed, Sent
from ..generator.schedule import Schedule
from ..generator.worker import Worker
from ..options import OURS, Options
from ..payload import message_of
from ..peers.adapter import Running
from ..peers.broker import ENVELOPE_BYTES
from ..peers.shared import Nodes, Store, open_store
from ..results import Column, Row
from ..sides import Crowd, open_publisher, open_side
from .scenario import Case, row_of, shares

COLUMNS = (
    Column("node_us", "node µs", 1, "lower"),
    Column("store_us", "Valkey µs", 1, "lower"),
    Column("node_kb", "node KB", 1, "lower"),
    Column("store_kb", "Valkey KB", 1, "lower"),
    Column("seconds", "s", 2, "lower"),
)
ACCOUNTS, BRIEF_ACCOUNTS = 10_000, 1_000
OTHER_NODE, IDLE = "to another node", "an idle node"
FOLLOWED, RESTING, AGAIN = "an account followed", "all of them, idle", "all of them again"
RATE = 100.0
"""Of events that are heard at another node."""


@dataclass(frozen=True)
class Publishes:
    """How events come in: on so many connections, so many of each under way, so many in a list."""

    says: str
    connections: int = 1
    window: int = 1
    batch: int = 1


AT_ONCE = "64 at once"
WITHOUT = "no Valkey: published"
"""The case in which as many publish to a broker without an engine."""
PUBLISHES = {
    "one event after the other": Publishes("an event, published alone, one after the other"),
    AT_ONCE: Publishes("an event of 64 publishers at once: what waits goes together", 64),
    "lists of 10": Publishes("an event in lists of 10", batch=10),
    "lists of 100": Publishes("an event in lists of 100", batch=100),
}
"""By their cases; what the docs say of each."""
MEASURED = (*PUBLISHES, OTHER_NODE, IDLE, FOLLOWED)


def cases(options: Options) -> list[Case]:
    """Return all of them."""
    accounts = BRIEF_ACCOUNTS if options.brief else ACCOUNTS
    return [Case(OURS, name, accounts if name == FOLLOWED else 0) for name in MEASURED]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one of them; accounts in three states."""
    if case.case == FOLLOWED:
        return _follow(options, case)
    with open_store(options.where.servers) as store:
        if case.case == OTHER_NODE:
            return [_hear_elsewhere(options, case, store)]
        with Nodes().beside(store, options.where.servers) as running:
            if case.case == IDLE:
                return [_rest(options, case, store, running)]
            return [_publish(options, case, store, running)]


def _publish(options: Options, case: Case, store: Store, running: Running) -> Row:
    """Publish as fast as it is answered, and see what an event costs on both sides."""
    how, seconds = PUBLISHES[case.case], options.lasting(8, 2)
    broker = Nodes(by="http" if how.batch > 1 else "socket", batch=how.batch)
    seen = broker.seen(running)
    request = broker.publish(seen, 0, message_of(options.payload_bytes))
    with open_publisher(case.case, seen, Fixed(request), options.where, how.connections) as publisher:
        publisher.ask("press", how.window, 0.5)
        before = processor_ns(running.process_ids), processor_ns([store.process_id])
        pressed: Sent = publisher.ask("press", how.window, seconds, 0.0)
        node = processor_ns(running.process_ids) - before[0]
        server = processor_ns([store.process_id]) - before[1]
    events = pressed.requests * how.batch
    return Row(
        peer=case.peer,
        case=case.case,
        seconds=pressed.seconds,
        generator=shares([pressed.effort]),
        notes=running.notes,
        void=f"{pressed.unanswered} requests got no good answer" if pressed.unanswered else "",
        figures={
            "published_per_second": events / pressed.seconds,
            "node_us": node / 1000 / events,
            "store_us": server / 1000 / events,
        },
    )


def _hear_elsewhere(options: Options, case: Case, store: Store) -> Row:
    """Let one client at one node hear what is published at another."""
    cores, schedule = options.where.servers, Schedule(RATE, options.lasting(10, 3), 1.0, jitter=1.0)
    nodes = Nodes()
    with nodes.beside(store, cores) as one, nodes.beside(store, cores) as other:
        both = Running(
            other.host, other.port, [*one.process_ids, *other.process_ids], one.publication, dict(other.notes)
        )
        with open_side(nodes, both, Crowd([0]), options.payload_bytes, options.where) as side:
            measurement = side.measure(schedule)
    return row_of(case, both, measurement)


def _rest(options: Options, case: Case, store: Store, running: Running) -> Row:
    """See what a node costs that does nothing; a second of that is a microsecond's part of it."""
    before, began = (processor_ns(running.process_ids), processor_ns([store.process_id])), time.monotonic()
    time.sleep(options.lasting(10, 3))
    seconds = time.monotonic() - began
    node = processor_ns(running.process_ids) - before[0]
    server = processor_ns([store.process_id]) - before[1]
    figures = {"node_us": node / 1000 / seconds, "store_us": server / 1000 / seconds}
    return Row(peer=case.peer, case=case.case, seconds=seconds, notes=running.notes, figures=figures)


def _follow(options: Options, case: Case) -> list[Row]:
    """Let a node follow many accounts, do nothing but that, and find all of them again."""
    seconds = options.lasting(10, 3)
    with (
        open_store(options.where.servers) as store,
        Worker("node", Following, store, cores=options.where.servers) as node,
    ):
        node.hear()
        followed: Followed = node.ask("follow", int(case.size), seconds)
    accounts = int(case.size)

    def row(name: str, spent: Spent, parts: float, *, memory: bool = False) -> Row:
        figures = {
            "node_us": spent.node_ns / 1000 / parts,
            "store_us": spent.store_ns / 1000 / parts,
            "seconds": spent.seconds,
        }
        if memory:
            figures |= {"node_kb": spent.node_bytes / 1024 / parts, "store_kb": spent.store_bytes / 1024 / parts}
        return Row(peer=case.peer, case=name, size=accounts, seconds=spent.seconds, figures=figures)

    return [
        row(FOLLOWED, followed.begun, accounts, memory=True),
        row(RESTING, followed.idle, followed.idle.seconds),
        row(AGAIN, followed.again, accounts),
    ]


# --- the docs' table ---------------------------------------------------------


def document(rows: Sequence[Row], payload_bytes: int) -> list[str]:
    """Return the sizing table of docs/cluster.md, in Markdown, of what was measured whole."""
    found = {row.case: row for row in rows if row.peer == OURS and not (row.skipped or row.refused or row.void)}
    lines = [f"Processor time; of events whose JSON has {payload_bytes + ENVELOPE_BYTES} bytes:", ""]
    lines += ["| | the server | the node |", "|---|---|---|"]
    for name, how in PUBLISHES.items():
        if name in found:
            node = _us(found[name], "node_us")
            if name == AT_ONCE and WITHOUT in found:
                node += f" (without an engine: {found[WITHOUT].figures['server_us']:.0f})"
            lines.append(f"| {how.says} | {_us(found[name], 'store_us')} | {node} |")
    if FOLLOWED in found:
        row = found[FOLLOWED]
        cells = (f"{_us(row, side + '_us')}, {row.figures[side + '_kb']:.1f} KB" for side in ("store", "node"))
        lines.append(f"| an account that a node begins to follow | {' | '.join(cells)} |")
    for name, says in ((IDLE, "nothing to do, a node"), (RESTING, "nothing to do, a node that follows {:,} accounts")):
        if name in found:
            row = found[name]
            cells = (f"{row.figures[side + '_us'] / 1e4:.1f} % of a core" for side in ("store", "node"))
            lines.append(f"| {says.format(int(row.size))} | {' | '.join(cells)} |")
    lines.append("")
    if OTHER_NODE in found:
        figures = found[OTHER_NODE].figures
        lines.append(
            f"* An event is at a client of another node after {figures['p50_ms']:.1f} ms in the middle, "
            f"{figures['p99_ms']:.1f} ms at p99."
        )
    if FOLLOWED in found and AGAIN in found:
        row, again = found[FOLLOWED], found[AGAIN]
        lines.append(
            f"* {int(row.size):,} accounts were followed after {row.figures['seconds']:.1f} s, and again after "
            f"{again.figures['seconds']:.1f} s when the link had been cut."
        )
    return lines


def _us(row: Row, key: str) -> str:
    return f"{row.figures[key]:.0f} µs"
