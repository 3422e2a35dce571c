"""The bars: ratios that must hold, and whether they do. They are kept in bars.toml."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from .cells import why_not
from .results import Row, Table

BARS = Path(__file__).with_name("bars.toml")


class Bar(Struct, frozen=True, forbid_unknown_fields=True):
    """One bar."""

    says: str
    """What it promises."""
    scenario: str
    figure: str
    """The key of the figure: the greatest of the scenario's rows that have it."""
    at_most: float
    runs: int
    subscribers: int = 0
    """0: as the scenario has it."""
    cases: tuple[str, ...] = ()
    """Those that are measured; none: all."""

    @property
    def measured_by(self) -> tuple[str, int, tuple[str, ...], int]:
        """Scenario, subscribers, cases and runs: bars that have the same share a measurement."""
        return self.scenario, self.subscribers, self.cases, self.runs


@dataclass(frozen=True)
class Verdict:
    """Whether a bar holds. ``value`` None: it could not be measured, which is as bad."""

    bar: Bar
    value: float | None
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.value is not None and not self.why and self.value <= self.bar.at_most


def read(path: Path = BARS) -> list[Bar]:
    """Return the bars of a file."""
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8"))["bars"], list[Bar])


def judge(bar: Bar, table: Table) -> Verdict:
    """Return whether a bar holds by what was measured; a spoiled row anywhere in the table spoils it."""
    spoiled = next((why_not(row) for row in table.rows if why_not(row)), "")
    value = _value(bar.figure, table.rows)
    if value is None and not spoiled:
        spoiled = f"{bar.scenario} has no figure {bar.figure}"
    return Verdict(bar, value, spoiled)


def _value(figure: str, rows: Sequence[Row]) -> float | None:
    return max((row.figures[figure] for row in rows if figure in row.figures), default=None)
