"""A broker's figures for Prometheus: made of its statistics when they are scraped, and of nothing else.

Names and units are as Prometheus has them (base units, `_total`). No account, inbox, key or connection is a label: what
a label may be is a list of our own, so that the number of series does not grow with clients. docs/operations.md has
a line for each.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ..config import Config
from ..durations import BOUNDS, DurationsStatistics
from ..log.engines import EngineStatistics
from ..log.jobs import STATES as JOB_STATES
from ..log.kept import KeeperStatistics
from ..log.letters import STATES
from ..log.past import PastStatistics
from ..log.storage import GROUP_SIZES, StorageStatistics
from ..queues.queues import QueuesStatistics
from ..version import __version__
from ..webhooks.webhooks import WebhooksStatistics
from .connections import Survey
from .statistics import BrokerStatistics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import HistogramMetricFamily, Metric

TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"
_EDGES: Final = (*map(str, BOUNDS), "+Inf")


class Reading(Struct, frozen=True):
    """All that a scrape tells of: read in one moment, but for the survey, which takes a step for each slice."""

    statistics: BrokerStatistics
    survey: Survey
    config: Config


def exposition(reading: Reading) -> bytes:
    """Return a reading in Prometheus' text format (`TEXT_FORMAT`)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(reading))
    return generate_latest(registry)


class Collector:
    """Hands a reading to a registry of prometheus_client."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def describe(self) -> list["Metric"]:
        """Return nothing: the registry need not know names in advance."""
        return []

    def collect(self) -> Iterator["Metric"]:
        """Yield every metric."""
        statistics, config = self._reading.statistics, self._reading.config
        yield from _about(statistics)
        yield from _connections(statistics, self._reading.survey)
        yield from _events(statistics)
        yield from _window(statistics, config)
        yield from _commands(statistics, config)
        yield from _delays(statistics)
        if statistics.storage is not None:
            yield from _storage(statistics.storage)
        if statistics.engine is not None:
            yield from _engine(statistics.engine)
        if statistics.keeper is not None:
            yield from _keeper(statistics.keeper)
        if statistics.past is not None:
            yield from _past(statistics.past)
        if statistics.webhooks is not None:
            yield from _webhooks(statistics.webhooks)
        if statistics.queues is not None:
            yield from _queues(statistics.queues)


def _about(statistics: BrokerStatistics) -> Iterator["Metric"]:
    yield _gauge("build_info", "The broker's version", {(__version__,): 1}, "version")
    yield _gauge("workers", "Processes of the broker that these figures are of", 1)
    yield _gauge("draining", "1 while the broker drains", statistics.draining)
    yield _gauge("accounts", "Accounts of which a log or a subscriber is kept", statistics.hub.accounts)
    yield _gauge("keys_watched", "Keys with live connections", statistics.keyring.watched)
    yield _counter("log_lines_dropped", "Lines of the log that were dropped", statistics.log_lines_dropped)


def _connections(statistics: BrokerStatistics, survey: Survey) -> Iterator["Metric"]:
    connections = statistics.connections
    yield _gauge("connections", "Open connections", connections.open, "tier", "transport")
    yield _gauge("connections_watching", "Of these, looks, which no tier counts", connections.watching)
    yield _gauge("connections_behind", "Connections that are fed from the replay buffer", survey.behind)
    yield _gauge("connections_held_bytes", "Bytes of frames that kernels did not take yet", survey.held_bytes)
    yield _counter("connections_opened", "Connections opened", _by_one(connections.opened), "transport")
    yield _counter(
        "connections_closed", "Connections ended, by the broker's close code", _by_one(connections.closed), "code"
    )
    yield _counter("requests_refused", "HTTP requests and openings refused", _by_one(connections.refused), "reason")


def _events(statistics: BrokerStatistics) -> Iterator["Metric"]:
    hub = statistics.hub
    yield _counter("events_published", "Events stored", statistics.published)
    yield _counter("events_duplicate", "Events published again, and not stored", statistics.duplicates)
    yield _counter("events_delivered", "Events given to subscribers, once for each subscriber", hub.events)
    yield _counter("fanout_writes", "Writes of the fan-out: one for each batch and subscriber", hub.delivered)
    yield _counter("fanout_fell_behind", "Writes that a subscriber did not take whole", hub.fell_behind)
    yield _gauge("fanout_queued_accounts", "Accounts that wait for a turn of the fan-out", hub.queued_accounts)
    yield _counter("gaps", "Gaps said to subscribers", hub.gaps)
    yield _gauge("acknowledged_clients", "Clients whose position is known", statistics.acknowledged.clients)
    yield _counter(
        "acknowledged_forgotten", "Positions of clients forgotten for want of room", statistics.acknowledged.forgotten
    )
    yield _counter("gap_events", "Events that subscribers missed, as far as counted", hub.missed)


def _window(statistics: BrokerStatistics, config: Config) -> Iterator["Metric"]:
    replay = statistics.replay
    dropped: Values = {("age",): replay.dropped - replay.dropped_early, ("limit",): replay.dropped_early}
    yield _gauge("window_events", "Events in all replay windows", replay.events)
    yield _gauge("window_bytes", "Memory that they take", replay.bytes)
    yield _gauge(
        "window_limit_bytes", "Memory that they may take: replay.max_bytes_total", config.replay.max_bytes_total
    )
    yield _gauge("window_seconds", "How far back a window reaches: replay.seconds", config.replay.seconds)
    yield _counter("window_dropped_events", "Events that left a window", dropped, "reason")
    if replay.squeezed_seconds is not None:
        help_text = "How far back the window reached that last lost an event to a limit"
        yield _gauge("window_squeezed_seconds", help_text, replay.squeezed_seconds)


def _commands(statistics: BrokerStatistics, config: Config) -> Iterator["Metric"]:
    commands = statistics.commands
    yield _counter("commands", "Commands answered", commands.answered, "action", "outcome")
    yield _gauge("commands_under_way", "Handlers at work", commands.under_way)
    yield _gauge("bodies_bytes", "Bytes of requests and answers under way", statistics.bodies_bytes)
    yield _gauge("bodies_limit_bytes", "How many there may be: limits.max_bodies_bytes", config.limits.max_bodies_bytes)
    yield _gauge("names_bytes", "Bytes of the inboxes that connections name", statistics.names_bytes)
    yield _gauge("names_limit_bytes", "How many there may be: limits.max_names_bytes", config.limits.max_names_bytes)


def _delays(statistics: BrokerStatistics) -> Iterator["Metric"]:
    hub = statistics.hub
    first = "From publish to when the fan-out begins to write a batch"
    last = "From publish to when the kernel has it for the last live subscriber"
    yield _histogram("fanout_first_delivery_seconds", first, {(): hub.first_delivery})
    yield _histogram("fanout_last_delivery_seconds", last, {(): hub.last_delivery})
    yield _histogram("event_loop_lag_seconds", "How late a task wakes, each half second", {(): statistics.loop_lag})
    callouts: Mapping[tuple[str, ...], DurationsStatistics] = {
        (section, outcome): durations
        for section, callout in statistics.callouts.items()
        for outcome, durations in callout.durations.items()
    }
    yield _histogram("callout_duration_seconds", "Questions to the operator's API", callouts, "section", "outcome")


def _storage(storage: StorageStatistics) -> Iterator["Metric"]:
    from prometheus_client.metrics_core import HistogramMetricFamily

    yield _histogram("storage_commit_seconds", "Commits of the log on disk", {(): storage.commit_seconds})
    groups = HistogramMetricFamily("broker_storage_group_events", "Publishes and other work that one commit had")
    edges = (*map(str, GROUP_SIZES), "+Inf")
    groups.add_metric((), list(zip(edges, accumulate(storage.groups), strict=True)), storage.works)
    yield groups
    yield _gauge("storage_bytes", "What the log on disk takes, with its WAL", storage.bytes)
    yield _gauge("storage_free_bytes", "What is free on its disk", storage.free_bytes)
    yield _counter("storage_errors", "Commits and reads that failed", _by_one(storage.errors), "kind")


def _engine(engine: EngineStatistics) -> Iterator["Metric"]:
    yield _gauge("engine_away", "1 while the shared engine cannot be reached", engine.away)
    yield _gauge("engine_full", "1 while it takes nothing in", engine.full)
    yield _counter("engine_losses", "Times that it was lost", engine.losses)
    yield _gauge("engine_accounts", "Accounts that this node follows", engine.attached)
    yield _gauge("engine_publishes_waiting", "Publishes that it was not told of yet", engine.waiting)
    yield _counter("engine_calls", "Calls that stored events", engine.calls)
    yield _counter("engine_call_events", "Events that went with them", engine.events)
    yield _counter("engine_reads", "Pages that were read because a message was missing, or too large", engine.reads)


def _keeper(keeper: KeeperStatistics) -> Iterator["Metric"]:
    yield _gauge("keeper", "1: this node keeps webhooks and queues; 0: it stands by", keeper.held)
    yield _gauge("keeper_accounts", "Accounts that it follows for their endpoints and queues", keeper.accounts)
    yield _counter("keeper_events", "Events that it took in for them", keeper.events)
    yield _counter("keeper_gaps", "Times that events had left the engine before it took them in", keeper.gaps)
    yield _counter("keeper_events_missed", "Events in these gaps, as far as they could be counted", keeper.missed)


def _past(past: PastStatistics) -> Iterator["Metric"]:
    yield _counter("older_reads", "Questions to the log on disk for what memory no longer holds", past.questions)
    yield _counter("older_reads_shared", "Answers that came to others who asked the same", past.shared)
    yield _counter("older_events", "Events that were read for subscribers", past.events)
    yield _gauge("older_reads_under_way", "Questions that have no answer yet", past.asking)


def _queues(statistics: QueuesStatistics) -> Iterator["Metric"]:
    yield _gauge("queues", "Queues", _by_one(statistics.queues), "status")
    jobs: dict[str, float] = {state: statistics.jobs.get(state, 0) for state in JOB_STATES}
    yield _gauge("queue_deliveries", "Events of queues", _by_one(jobs), "state")
    yield _gauge("queue_oldest_waiting_seconds", "Since when the oldest waits", statistics.oldest_waiting_seconds)
    yield _counter(
        "queue_leases", "Events that workers were given, and what became", _by_one(statistics.leases), "outcome"
    )
    yield _gauge("queue_workers_waiting", "Workers that wait for events", statistics.waiters)


def _webhooks(statistics: WebhooksStatistics) -> Iterator["Metric"]:
    posting = statistics.posting
    yield _counter("webhook_attempts", "Posts to endpoints", _by_one(posting.attempts), "outcome")
    yield _histogram("webhook_seconds", "How long they took", {(): posting.seconds})
    claims = {"webhook": posting.claimed, "client": statistics.acknowledged}
    yield _counter("webhook_claims", "Events at endpoints by who took them first", _by_one(claims), "by")
    letters: dict[str, float] = {state: statistics.letters.get(state, 0) for state in STATES}
    yield _gauge("webhook_deliveries", "Events at endpoints", _by_one(letters), "state")
    yield _gauge("webhook_oldest_waiting_seconds", "Since when the oldest waits", statistics.oldest_waiting_seconds)
    yield _gauge("webhook_endpoints", "Endpoints", _by_one(statistics.endpoints), "status")


Values = Mapping[tuple[str, ...], float]


def _by_one(values: Mapping[str, float]) -> Values:
    return {(label,): value for label, value in values.items()}


def _gauge(name: str, help_text: str, values: Values | float, *labels: str) -> "Metric":
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(f"broker_{name}", help_text, labels=labels)
    for label_values, value in _items(values):
        family.add_metric(label_values, value)
    return family


def _counter(name: str, help_text: str, values: Values | float, *labels: str) -> "Metric":
    from prometheus_client.metrics_core import CounterMetricFamily

    family = CounterMetricFamily(f"broker_{name}", help_text, labels=labels)
    for label_values, value in _items(values):
        family.add_metric(label_values, value)
    return family


def _items(values: Values | float) -> Iterable[tuple[tuple[str, ...], float]]:
    return values.items() if isinstance(values, Mapping) else [((), values)]


def _histogram(
    name: str, help_text: str, values: Mapping[tuple[str, ...], DurationsStatistics], *labels: str
) -> "HistogramMetricFamily":
    from prometheus_client.metrics_core import HistogramMetricFamily

    family = HistogramMetricFamily(f"broker_{name}", help_text, labels=labels)
    for label_values, durations in values.items():
        family.add_metric(label_values, list(zip(_EDGES, accumulate(durations.counts), strict=True)), durations.seconds)
    return family
