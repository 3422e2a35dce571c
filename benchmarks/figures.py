"""Figures from samples: percentiles, and a table that lines up."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Summary:
    """Milliseconds, over ``count`` samples."""

    count: int
    minimum: float
    median: float
    p99: float
    maximum: float


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that ``percent`` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def summarise(nanoseconds: Sequence[int]) -> Summary:
    """Return the summary of samples in nanoseconds."""
    milliseconds = [sample / 1e6 for sample in nanoseconds]
    return Summary(
        len(milliseconds),
        min(milliseconds),
        median(milliseconds),
        percentile(milliseconds, 99),
        max(milliseconds),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows in columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
