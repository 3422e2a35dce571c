"""Statements that take many rows at once.

Pure. SQLite gives the interpreter's lock away at each step, and waits to get it back: a row by itself may cost as much
as thousands in one statement.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Final

SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Rows of one statement."""


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
