"""What is measured, as it is kept: results.json. Its schema has a number; a file of another one is refused."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Struct

SCHEMA = 1

Better = Literal["lower", "higher", ""]


class ResultsError(Exception):
    """A file holds no results of this schema; the message says why."""


class Column(Struct, frozen=True):
    """A figure of a table: its key in `Row.figures`, its heading with the unit, its decimals, which is better.

    What is above ``at_most`` is shown as too much.
    """

    key: str
    heading: str
    decimals: int = 2
    better: Better = ""
    at_most: float | None = None


class Hot(Struct, frozen=True):
    """A function of a profile, and the part of the samples in which it was the innermost."""

    function: str
    share: float


class Row(Struct, kw_only=True):
    """One peer in one case: figures, or why there are none."""

    peer: str
    case: str
    size: float = 0
    """What the case scales with, for a plot: subscribers, connections."""
    figures: dict[str, float] = {}
    latency: str = ""
    """The latency of each delivery or answer, an HdrHistogram of microseconds (V2, compressed, base64)."""
    slices: list[str] = []
    """The same for each part of the measured time, equally long."""
    seconds: float = 0
    """The measured time."""
    generator: dict[str, float] = {}
    """The share of a core that each process of the generator used."""
    notes: dict[str, str] = {}
    skipped: str = ""
    """The peer is not here, and what to do."""
    refused: str = ""
    """The generator was saturated."""
    void: str = ""
    """Events were lost or doubled, or the run failed: the figures stand for something else than the others'."""
    profile: str = ""
    """The file beside the report with a profile of the server."""
    hot: list[Hot] = []
    """Where the server was, the most first."""


class Table(Struct, kw_only=True):
    """One scenario."""

    scenario: str
    title: str
    what: str
    columns: list[Column]
    headline: str
    """The key of the figure that peers are compared by."""
    scale: str = ""
    """What `Row.size` is, if a plot over it makes sense."""
    rows: list[Row] = []


class Results(Struct, kw_only=True):
    """A whole run."""

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    created_at: str
    machine: dict[str, str]
    versions: dict[str, str]
    does: dict[str, str]
    """What each peer does more or less than the broker."""
    options: dict[str, str]
    other_processes_cores: float = 0
    """How many cores others kept busy meanwhile."""
    tables: list[Table] = []


def now() -> str:
    """Return the time for `Results.created_at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(results: Results, path: Path) -> None:
    """Write results."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def load(path: Path) -> Results:
    """Read results. Raises `ResultsError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError) as error:
        raise ResultsError(f"{path}: {error}") from None
