"""Statements that take many rows at once, and those that look for an event wherever it may be.

Pure. SQLite gives the interpreter's lock away at each step, and waits to get it back: a row by itself may cost as much
as thousands in one statement.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Final

SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Rows of one statement."""
LATEST: Final = 2**63 - 1
"""After every position."""


def inserts(into: str, columns: int, beside: str = "") -> dict[int, str]:
    """Return the statements that insert so many rows, but for those of NULL, by how many these are.

    ``beside`` is what each row has beside the values that are given, at its end: `, 'waiting'`.
    """
    row = f"({','.join('?' * columns)})"
    return {
        size: f"{into} SELECT *{beside} FROM (VALUES {','.join([row] * size)}) WHERE column1 IS NOT NULL"
        for size in SIZES
    }


def in_statements(values: Sequence[Any], columns: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield for how many rows each statement is that takes some of these values, and what it is given.

    The last one is filled up with rows of NULL: one step more would cost more than many of these.
    """
    most = SIZES[-1] * columns
    for start in range(0, len(values), most):
        some = values[start : start + most]
        size = SIZES[bisect_left(SIZES, len(some) // columns)]
        missing = size * columns - len(some)
        yield size, [*some, *[None] * missing] if missing else some


def content_of(columns: str, places: Sequence[str], owners: str) -> str:
    """Return the statement that reads an event from the tables where it may be: one of the account of who owns it.

    It is given the event's position, and the owner's number in the table ``owners``.
    """
    this = f"position = ?1 AND account = (SELECT account FROM {owners} WHERE number = ?2)"
    return " UNION ALL ".join(f"SELECT {columns} FROM {place} WHERE {this}" for place in places)


def in_log(owners: str, number: str = "?1") -> str:
    """Return the condition that a row's event is the log's, and not of a list that is still being written.

    Whose rows these are is known by its ``number`` in the table ``owners``. No index is chosen for it.
    """
    account = f"(SELECT account FROM {owners} WHERE number = {number})"
    return f"+position < ifnull((SELECT first FROM unfinished WHERE account = {account}), {LATEST})"


def has_content(places: Sequence[str], rows: str, owner: str, owners: str) -> str:
    """Return the condition that the event of one of ``rows`` is in a place, whose column ``owner`` says who owns it."""
    account = f"(SELECT account FROM {owners} WHERE number = {rows}.{owner})"
    return "({})".format(
        " OR ".join(
            f"EXISTS (SELECT 1 FROM {place} WHERE {place}.position = {rows}.position AND {place}.account = {account})"
            for place in places
        )
    )
