"""webhooks: an account's latency alone, and while another account's events are posted to slow endpoints."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..generator.endpoints import Endpoints
from ..generator.schedule import Schedule
from ..generator.worker import Worker
from ..options import OURS, Options
from ..peers.adapter import Running
from ..peers.broker import Broker, configuration, key_of, served
from ..peers.process import HOST, free_ports
from ..results import Column, Row
from ..sides import Crowd, Measurement, PeerTemplate, open_publisher, open_side
from .scenario import LATENCY_COLUMNS, Case, Scenario, row_of

SIZES, BRIEF_SIZES = (100,), (100,)
ALONE, BESIDE = "alone", "beside 200 posts a second"
ENDPOINTS = 8
POSTS_PER_SECOND = 200.0
ANSWER_SECONDS = 0.15
"""So slow are the endpoints: 30 posts are under way."""
RATE = 50.0
TURNS = 3
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True)
class BrokerWithWebhooks(Broker):
    """Our broker with a log on disk; the events of its second account are posted to these ports."""

    ports: tuple[int, ...] = ()

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start `broker serve` on a free port."""
        [port] = free_ports(1)
        with TemporaryDirectory(prefix="broker-bench-webhooks-") as directory:
            log = Path(directory) / "broker.db"
            with served(with_webhooks(port, self.ports, log), port, cores) as process_id:
                yield self.running(HOST, port, [process_id])


def with_webhooks(port: int, ports: Sequence[int], log: Path) -> str:
    """Return the TOML of a broker whose second account has an endpoint at each of ``ports``."""
    sections = [configuration(port)]  # its last account is the second one
    sections += [
        f'[[accounts.webhooks]]\nid = "wh_{number}"\nurl = "http://{HOST}:{other}/"\nsecret = "{SECRET}"'
        for number, other in enumerate(ports)
    ]
    sections.append('[webhooks]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]')
    sections.append(f'[storage]\npath = "{log}"')
    return "\n".join(sections)


def cases(options: Options) -> list[Case]:
    """Return each number of subscribers; a deployment would have to have the endpoints."""
    sizes = () if options.url else options.sizes(SIZES, BRIEF_SIZES)
    return [Case(OURS, f"{size} subscribers", size) for size in sizes]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure both states in turns, so that what else the machine does hits both alike."""
    where = options.where
    seconds = options.lasting(30, 6) / TURNS / 2
    schedule = Schedule(options.rate or RATE, seconds)
    measured: dict[str, list[Measurement]] = {ALONE: [], BESIDE: []}
    posts = 0
    with ExitStack() as stack:
        endpoints = stack.enter_context(
            Worker("endpoints", Endpoints, ENDPOINTS, ANSWER_SECONDS, cores=where.generator)
        )
        endpoints.hear()
        broker = BrokerWithWebhooks(ports=endpoints.ask("ports"))
        running = stack.enter_context(broker.open(where.servers, 1))
        crowd = Crowd([0] * case.size, options.processes)
        side = stack.enter_context(open_side(broker, running, crowd, options.payload_bytes, where))
        other = replace(broker, key=key_of("neighbour"))
        posted = other.seen(running)
        template = PeerTemplate(other, posted, options.payload_bytes)
        publisher = stack.enter_context(open_publisher("webhooks", posted, template, where, 1))
        for _ in range(TURNS):
            measured[ALONE].append(side.measure(schedule))
            publisher.tell("pace", Schedule(POSTS_PER_SECOND / ENDPOINTS, seconds + 2.0))
            endpoints.ask("taken")
            measured[BESIDE].append(side.measure(schedule))
            posts += endpoints.ask("taken")
            publisher.hear()
            endpoints.ask("settle")
    return _rows(running, measured, posts)


def _rows(running: Running, measured: dict[str, list[Measurement]], posts: int) -> list[Row]:
    rows = {state: row_of(Case(OURS, state), running, *turns) for state, turns in measured.items()}
    alone, beside = rows[ALONE], rows[BESIDE]
    beside.figures["added_p99_ms"] = beside.figures["p99_ms"] - alone.figures["p99_ms"]
    beside.figures["posts_per_second"] = posts / sum(turn.seconds for turn in measured[BESIDE])
    if not posts:
        beside.void = beside.void or "nothing was posted"
    return list(rows.values())


SCENARIO = Scenario(
    name="webhooks",
    title="Subscribers beside webhooks",
    what=(
        "An account's subscribers get events at fixed times, from a broker with a log on disk: alone, and while "
        f"another account's events are posted to {ENDPOINTS} endpoints, {POSTS_PER_SECOND:.0f} posts a second in "
        f"all, each answered after {ANSWER_SECONDS * 1000:.0f} ms. In turns."
    ),
    columns=(
        *LATENCY_COLUMNS,
        Column("added_p99_ms", "added to p99, ms", 2, "lower"),
        Column("posts_per_second", "posts/s", 0),
    ),
    headline="p99_ms",
    cases=cases,
    measure=measure,
)
