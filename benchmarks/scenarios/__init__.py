"""The scenarios, by name, in the order of the report."""

from . import (
    churn,
    cluster,
    commands,
    fanout,
    hostile,
    idle,
    inboxes,
    ingest,
    neighbour,
    overhead,
    reconnect,
    slow,
    tls,
    waits,
    webhooks,
)
from .scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        fanout,
        overhead,
        inboxes,
        ingest,
        reconnect,
        slow,
        neighbour,
        hostile,
        idle,
        churn,
        tls,
        commands,
        waits,
        webhooks,
        cluster,
    )
}
