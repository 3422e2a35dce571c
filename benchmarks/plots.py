"""The plots of a report: SVG files beside it, by matplotlib."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from .cells import cases, why_not
from .histograms import decoded, milliseconds, percentile_curve
from .results import Row, Table

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures make the same file

_NINES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)


def draw(table: Table, directory: Path) -> list[str]:
    """Draw all that a table has figures for; return the names of the files."""
    drawn: list[str] = []
    for case, rows in cases(table):
        shown = [row for row in rows if row.latency and not why_not(row)]
        if shown:
            stem = f"{table.scenario}-{_slug(case)}"
            drawn.append(_percentiles(table, case, shown, directory / f"{stem}-percentiles.svg"))
            if any(row.slices for row in shown):
                drawn.append(_over_time(table, case, shown, directory / f"{stem}-over-time.svg"))
    sizes = {row.size for row in table.rows if not why_not(row)}
    if table.scale and len(sizes) > 1:
        drawn.append(_scaling(table, directory / f"{table.scenario}-scaling.svg"))
    return drawn


def _percentiles(table: Table, case: str, rows: Sequence[Row], path: Path) -> str:
    """Latency by percentile; the axis gives each nine the same room."""
    with _plot(path, f"{table.title}: {case}", "percentile", "latency, ms") as axes:
        for row in rows:
            curve = percentile_curve(decoded(row.latency))
            axes.plot([1 / (1 - percent / 100) for percent, _ in curve], [ms for _, ms in curve], label=row.peer)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([1 / (1 - percent / 100) for percent in _NINES], [f"{percent:g}" for percent in _NINES])
        axes.minorticks_off()
    return path.name


def _over_time(table: Table, case: str, rows: Sequence[Row], path: Path) -> str:
    """The p99 of each part of the measured time."""
    with _plot(path, f"{table.title}: {case}", "s", "p99 of each part, ms") as axes:
        for row in rows:
            parts = [decoded(part) for part in row.slices]
            points = [
                ((number + 0.5) * row.seconds / len(parts), milliseconds(part, 99))
                for number, part in enumerate(parts)
                if part.total_count
            ]
            axes.plot([second for second, _ in points], [ms for _, ms in points], label=row.peer)
        axes.set_yscale("log")
    return path.name


def _scaling(table: Table, path: Path) -> str:
    """The headline over the size, both logarithmic."""
    column = next(column for column in table.columns if column.key == table.headline)
    with _plot(path, table.title, table.scale, column.heading) as axes:
        for peer in dict.fromkeys(row.peer for row in table.rows):
            points = sorted(
                (row.size, row.figures[column.key])
                for row in table.rows
                if row.peer == peer and not why_not(row) and column.key in row.figures
            )
            if points:
                axes.plot([size for size, _ in points], [value for _, value in points], marker="o", label=peer)
        axes.set_xscale("log")
        axes.set_yscale("log")
    return path.name


@contextmanager
def _plot(path: Path, title: str, x: str, y: str) -> Iterator[Any]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, which="both", alpha=0.25)
    yield axes
    axes.yaxis.set_major_formatter("{x:g}")
    if axes.get_yscale() == "log":
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def _slug(text: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())
