"""ingest: how many events a second go in, one by one and in batches, over sockets and by HTTP."""

from dataclasses import replace

from ..options import OURS, Options
from ..payload import message_of
from ..peers.broker import Way
from ..results import Column, Row
from .asking import LATENCY_AT_HALF, Load, ask
from .scenario import Case, Scenario

BATCH = 100
WAYS: dict[str, tuple[Way, int]] = {
    "single, socket": ("socket", 1),
    "single, http": ("http", 1),
    "batched, socket": ("socket", BATCH),
    "batched, http": ("http", BATCH),
}
"""Ours, by the name of the case."""
PEERS_CASE = "single"
"""A peer's, until its protocol is known."""
_SOCKETS, _EXCHANGES = (8, 8), (32, 1)
"""Connections, and requests under way on each: what is pipelined over a socket takes turns by HTTP."""


def cases(options: Options) -> list[Case]:
    """Return the broker's four ways, and the one of each peer."""
    ours = [Case(OURS, case) for case in WAYS]
    return [*ours, *(Case(peer, PEERS_CASE) for peer in options.compared[1:])]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one way in."""
    return [_ours(options, case) if case.peer == OURS else _peers(options, case)]


def _ours(options: Options, case: Case) -> Row:
    by, batch = WAYS[case.case]
    broker = replace(options.broker(), by=by, batch=batch)
    connections, window = _SOCKETS if by == "socket" else _EXCHANGES
    if batch > 1:
        connections, window = (4, 2) if by == "socket" else (8, 1)
    with broker.open(options.where.servers, 1) as running:
        request = broker.publish(running, 0, message_of(options.payload_bytes))
        load = Load(request, connections, window, batch)
        return ask(options, case, running, load, f"ingest-{by}-{batch}")


def _peers(options: Options, case: Case) -> Row:
    peer = options.peer(case.peer)
    with peer.open(options.where.servers, 1) as running:
        if not running.publication.acknowledged:
            return Row(peer=case.peer, case=case.case, skipped="it does not answer publishers")
        request = peer.publish(running, 0, message_of(options.payload_bytes))
        by_http = request.startswith(b"POST")
        connections, window = _EXCHANGES if by_http else _SOCKETS
        named = replace(case, case=f"{case.case}, {'http' if by_http else 'socket'}")
        return ask(options, named, running, Load(request, connections, window), f"ingest-{case.peer}")


SCENARIO = Scenario(
    name="ingest",
    title="Events in, answered",
    what=(
        "Publishers keep a fixed number of requests under way, which finds how many events a second are stored and "
        "answered; nobody subscribes. Then events are due at fixed times, half as many, and the time until the answer "
        f"counts from when each was due. A batch holds {BATCH} events."
    ),
    columns=(Column("per_second", "events/s", 0, "higher"), *LATENCY_AT_HALF),
    headline="per_second",
    cases=cases,
    measure=measure,
)
