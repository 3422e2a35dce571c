"""The report: Markdown with its plots beside it, made from results alone, so that it can be made again."""

from collections.abc import Iterator
from pathlib import Path

from .cells import ahead_of_us, cases, cells, figure, heading, notes, too_much, why_not
from .results import Results, Row, Table

REPORT = "report.md"
RESULTS = "results.json"


def write(results: Results, directory: Path) -> Path:
    """Write the report and its plots into a directory; return where the report is."""
    from . import plots  # slow to import

    directory.mkdir(parents=True, exist_ok=True)
    lines = list(_top(results))
    for table in results.tables:
        lines += _section(table, plots.draw(table, directory))
    lines += _behind(results)
    path = directory / REPORT
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _top(results: Results) -> Iterator[str]:
    machine = ", ".join(
        f"{value} {'cores' if name == 'cores' else ''}".strip() for name, value in results.machine.items()
    )
    yield from ["# Benchmarks", "", f"{results.created_at}, on {machine}.", ""]
    crowd = results.other_processes_cores
    yield from [f"Meanwhile other processes kept {crowd:.2f} of {results.machine['cores']} cores busy.", ""]
    yield "The peers of a table were measured in one run on one machine, in turns: read ratios, not milliseconds."
    yield "Where the generator was saturated, or an event was lost or doubled, the reason stands instead of figures."
    yield ""
    options = ", ".join(
        f"{name}: {value}" for name, value in results.options.items() if value not in ("", "()", "None")
    )
    yield from [f"Options: {options}.", ""]
    yield from _markdown(
        ["peer", "version", "what it does"],
        [[name, version, results.does.get(name, "")] for name, version in results.versions.items()],
    )


def _section(table: Table, files: list[str]) -> Iterator[str]:
    yield from [f"## {table.scenario}: {table.title.lower()}", "", table.what, ""]
    rows = []
    for _, of_case in cases(table):
        for row in of_case:
            of_row = [
                f"**{cell}**" if above else cell
                for cell, above in zip(cells(table, row), too_much(table, row), strict=True)
            ]
            rows.append(of_row + [""] * (len(heading(table)) - len(of_row)))
    yield from _markdown(heading(table), rows)
    for peer, note in notes(table.rows).items():
        yield f"* {peer}: {note}"
    yield from ["", *_efforts(table), ""]
    for file in files:
        yield from [f"![{file}]({file})", ""]


def _efforts(table: Table) -> Iterator[str]:
    """How busy the generator was: a reader need not trust that it was not the bottleneck."""
    busiest = max((share for row in table.rows for share in row.generator.values()), default=0.0)
    if busiest:
        yield f"The busiest process of the generator used {busiest:.0%} of a core."


def _behind(results: Results) -> Iterator[str]:
    """Where a peer is ahead of the broker, and where the broker's time goes."""
    yield from ["## Where a peer is ahead", ""]
    found = [(table, ours, ahead) for table in results.tables for ours, ahead in ahead_of_us(table)]
    if not found:
        yield "Nowhere, by the first column of each table that says which is better."
    for table, ours, ahead in found:
        column = next(column for column in table.columns if column.key == table.headline)
        others = ", ".join(f"{row.peer} {figure(column, row)}" for row in ahead)
        what = f"{table.scenario}, {ours.case} ({column.heading})"
        yield f"* {what}: broker {figure(column, ours)}; {others}.{_hot(ours)}"
    yield ""
    profiled = [(table, row) for table in results.tables for row in table.rows if row.hot and not why_not(row)]
    if profiled:
        yield from ["## Profiles", "", "The innermost functions, by their part of the samples.", ""]
    for table, row in profiled:
        yield from _profile(table, row)


def _hot(row: Row) -> str:
    """Return where the time goes, if there is a profile."""
    if not row.hot:
        return ""
    functions = ", ".join(f"`{hot.function}` {hot.share:.0%}" for hot in row.hot[:3])
    return f" Most of its samples: {functions} ([profile]({row.profile}))."


def _profile(table: Table, row: Row) -> Iterator[str]:
    yield from [
        f"### {table.scenario}, {row.case}: {row.peer}",
        "",
        f"Collapsed stacks: [{row.profile}]({row.profile})",
        "",
    ]
    yield from _markdown(["function", "share"], [[f"`{hot.function}`", f"{hot.share:.0%}"] for hot in row.hot])


def _markdown(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Return a table: text to the left, figures to the right."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---" if number < 2 else "---:" for number in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""
