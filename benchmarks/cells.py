"""The cells of a table: what the terminal and the report show alike, and who is ahead."""

from collections.abc import Sequence
from itertools import groupby

from .options import OURS, REFERENCES
from .results import Column, Row, Table


def heading(table: Table) -> list[str]:
    """Return the heads of the columns."""
    return ["case", "peer", *(column.heading for column in table.columns)]


def cells(table: Table, row: Row) -> list[str]:
    """Return the cells of a row; a row without figures that can be trusted says why in the third."""
    start = [row.case, row.peer]
    why = why_not(row)
    if why:
        return [*start, why]
    return [*start, *(figure(column, row) for column in table.columns)]


def why_not(row: Row) -> str:
    """Return why a row's figures are not shown, "" if they are."""
    if row.skipped:
        return f"skipped: {row.skipped}"
    if row.refused:
        return f"refused: {row.refused}"
    return f"void: {row.void}" if row.void else ""


def figure(column: Column, row: Row) -> str:
    """Return one figure as text."""
    if column.key not in row.figures:
        return "-"
    return f"{row.figures[column.key]:,.{column.decimals}f}"


def too_much(table: Table, row: Row) -> list[bool]:
    """Return of each of the row's cells whether it shows more than may be."""
    start = [False, False]
    if why_not(row):
        return [*start, bool(row.void)]
    return [
        *start,
        *(column.at_most is not None and row.figures.get(column.key, 0) > column.at_most for column in table.columns),
    ]


def cases(table: Table) -> list[tuple[str, list[Row]]]:
    """Return the rows of each case, cases in their order."""
    order = list(dict.fromkeys(row.case for row in table.rows))
    ordered = sorted(table.rows, key=lambda row: order.index(row.case))
    return [(case, list(rows)) for case, rows in groupby(ordered, key=lambda row: row.case)]


def ahead_of_us(table: Table) -> list[tuple[Row, list[Row]]]:
    """Return our row and those that are ahead of it by the headline, for each case in which there are any.

    References are nobody's peers: they do what no broker can do without.
    """
    column = next(column for column in table.columns if column.key == table.headline)
    found = []
    for _, rows in cases(table):
        shown = [row for row in rows if not why_not(row) and column.key in row.figures]
        ours = next((row for row in shown if row.peer == OURS), None)
        if ours is not None:
            ahead = [row for row in shown if row.peer not in (OURS, *REFERENCES) and _is_better(column, row, ours)]
            if ahead:
                found.append((ours, ahead))
    return found


def _is_better(column: Column, one: Row, other: Row) -> bool:
    a, b = one.figures[column.key], other.figures[column.key]
    return a < b if column.better == "lower" else a > b


def notes(rows: Sequence[Row]) -> dict[str, str]:
    """Return what each peer was measured with, in a line."""
    return {row.peer: ", ".join(f"{name}: {value}" for name, value in row.notes.items()) for row in rows if row.notes}
