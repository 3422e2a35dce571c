"""The table: all rows, by name."""

from . import acknowledging, bodies, crowds, frames, outside, polling, strangers, subscribing, waiting
from .row import Row

ROWS: dict[str, Row] = {
    row.name: row
    for module in (strangers, frames, bodies, subscribing, crowds, acknowledging, polling, waiting, outside)
    for row in module.ROWS
}
