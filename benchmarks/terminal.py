"""The terminal: a bar on standard error while it measures, tables on standard output."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from .bars import Verdict
from .cells import cells, heading, too_much, why_not
from .results import Results, Table
from .runner import Say

_NARROWEST = 132
"""A pipe has no width; figures are not to be cut."""


@contextmanager
def progress(steps: int) -> Iterator[Say]:
    """Show a bar of so many steps meanwhile; yield what tells it that the next one begins."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=-1)

        def say(what: str) -> None:
            bar.update(task, description=what, advance=1)

        yield say
        bar.update(task, description="done", completed=steps)


def show(results: Results) -> None:
    """Print all tables."""
    console = Console(width=max(_NARROWEST, shutil.get_terminal_size().columns))
    for table in results.tables:
        console.print(_rich(table))
        for row in table.rows:
            if why := why_not(row):
                console.print(Text(f"{row.peer}, {row.case}: {why}", style="yellow"))
        console.print()
    crowd = results.other_processes_cores
    console.print(f"Meanwhile other processes kept {crowd:.2f} of {results.machine['cores']} cores busy.")


def show_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print which bars hold."""
    shown = RichTable(title="Bars", title_justify="left")
    for head in ("", "figure", "is", "at most", "bar"):
        shown.add_column(head, justify="right" if head in ("is", "at most") else "left")
    for verdict in verdicts:
        bar = verdict.bar
        value = verdict.why or ("-" if verdict.value is None else f"{verdict.value:.3f}")
        word = Text("holds", "green") if verdict.holds else Text("DOES NOT HOLD", "red")
        shown.add_row(word, f"{bar.scenario} {bar.figure}", value, f"{bar.at_most:g}", bar.says)
    Console(width=max(_NARROWEST, shutil.get_terminal_size().columns)).print(shown)


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left")
    for number, head in enumerate(heading(table)):
        shown.add_column(head, justify="left" if number < 2 else "right")
    previous = ""
    for row in table.rows:
        if row.case != previous and previous:
            shown.add_section()
        previous = row.case
        if why_not(row):
            shown.add_row(row.case, row.peer, why_not(row).partition(":")[0])
        else:
            of_row = zip(cells(table, row), too_much(table, row), strict=True)
            shown.add_row(*(Text(cell, "red") if above else cell for cell, above in of_row))
    return shown
