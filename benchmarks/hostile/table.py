"""The table: all rows, by name."""

from . import (
    acknowledging,
    bodies,
    crowds,
    frames,
    older,
    outside,
    polling,
    queueing,
    sharing,
    strangers,
    subscribing,
    waiting,
    webhooks,
)
from .row import Row

ROWS: dict[str, Row] = {
    row.name: row
    for module in (
        strangers,
        frames,
        bodies,
        subscribing,
        crowds,
        acknowledging,
        older,
        polling,
        waiting,
        webhooks,
        queueing,
        sharing,
        outside,
    )
    for row in module.ROWS
}
