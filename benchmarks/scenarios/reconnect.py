"""reconnect: all clients are cut at once and come back with their cursor: how long until the last has caught up."""

from ..cost import processor_ns
from ..generator.deliveries import Expected
from ..generator.effort import why_refused
from ..generator.publisher import Sent
from ..generator.returning import CaughtUp, Returning
from ..generator.schedule import Schedule
from ..generator.worker import Worker
from ..histograms import encoded, milliseconds
from ..options import OURS, Options
from ..profiles import profiled
from ..results import Column, Row
from ..sides import PeerTemplate, open_publisher
from .scenario import Case, Scenario, shares

SIZES, BRIEF_SIZES = (1000,), (500,)
MISSED = 300
BEFORE = Schedule(rate=20, seconds=0.5, warm_up=0)
AWAY = Schedule(rate=1000, seconds=MISSED / 1000, warm_up=0)
AFTER = Schedule(rate=10, seconds=1.0, warm_up=0)
"""Events before the cut, while nobody is there, and while all come back: the seams are in what is counted."""
LONGEST_WAIT_SECONDS = 60.0


def cases(options: Options) -> list[Case]:
    """Return each number of clients."""
    return [Case(OURS, f"{size} clients", size) for size in options.sizes(SIZES, BRIEF_SIZES)]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure one number of clients."""
    broker, where = options.broker(), options.where
    with (
        broker.open(where.servers, 1) as running,
        Worker("clients", Returning, broker, running, [0] * case.size, cores=where.generator) as clients,
        open_publisher(OURS, running, PeerTemplate(broker, running, options.payload_bytes), where, 1) as publisher,
    ):
        clients.hear()
        before: Sent = publisher.ask("pace", BEFORE)
        clients.ask("collect", before.expected, before.requests * case.size, LONGEST_WAIT_SECONDS)
        cursors = clients.ask("cut")
        missed: Sent = publisher.ask("pace", AWAY)
        used = processor_ns(running.process_ids)
        with profiled(options, f"reconnect-{case.size}", running) as profile:
            publisher.tell("pace", AFTER)
            clients.ask("come_back", cursors)
            after: Sent = publisher.hear()
            expected = _all_of(before, missed, after)
            deliveries = expected.of_channel[0][0] * case.size
            caught_up: CaughtUp = clients.ask("caught_up", missed.last_due, expected, deliveries, LONGEST_WAIT_SECONDS)
        used = processor_ns(running.process_ids) - used
    received, took, effort = caught_up
    row = Row(
        peer=OURS,
        case=case.case,
        size=case.size,
        latency=encoded(took),
        generator=shares([effort]),
        notes=running.notes,
        refused=why_refused([effort], where.generator_cores),
        figures={
            "caught_up_ms": milliseconds(took, 100),
            "p50_ms": milliseconds(took, 50),
            "missed": missed.requests,
            "lost": received.lost,
            "doubled": received.doubled,
        },
    )
    if running.process_ids:
        row.figures["server_us"] = used / 1000 / (case.size * (missed.requests + after.requests))
    if received.lost or received.doubled:
        row.void = f"{received.lost} events lost, {received.doubled} doubled"
    return [profile.into(row)]


def _all_of(*parts: Sent) -> Expected:
    """Return what every client must have had in the end, all of channel 0."""
    tallies = [part.expected.of_channel[0] for part in parts]
    return Expected({0: (sum(count for count, _ in tallies), sum(total for _, total in tallies))}, 0, 1)


SCENARIO = Scenario(
    name="reconnect",
    title="All clients cut at once come back",
    what=(
        f"All connections of one account are reset at once, {MISSED} events are published while nobody is there, then "
        "all connect at once with `since` and their last cursor, while more events are published. Counted from the "
        "first connect() until a client has the last event it missed; each must have every event exactly once, before, "
        "between and after."
    ),
    columns=(
        Column("caught_up_ms", "last caught up, ms", 0, "lower"),
        Column("p50_ms", "half of them, ms", 0, "lower"),
        Column("missed", "missed by each", 0),
        Column("lost", "lost", 0, "lower"),
        Column("doubled", "doubled", 0, "lower"),
        Column("server_us", "server µs each", 1, "lower"),
    ),
    headline="caught_up_ms",
    cases=cases,
    measure=measure,
)
