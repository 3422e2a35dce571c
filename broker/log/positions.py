"""How far clients have acknowledged, as rows of the log on disk. For threads.

A client is an account and 16 bytes that stand for its key and its name. A row lives as long as it is moved from time to
time: `KEPT_SECONDS` after that it goes. An account of which a client was forgotten for want of room has one more row,
with no bytes for the client: it says so for as long as that one would have lived. One row is of no account: it has the
epoch of the log that the positions are of.
"""

import sqlite3
from collections.abc import Sequence
from math import inf
from typing import Final

from msgspec import Struct

from .database import Room

_NO_ACCOUNT: Final = ""
KEPT_SECONDS: Final = 7 * 86_400.0
PAGE: Final = 512
"""Rows that one piece of work looks at."""

POSITIONS: Final = Room(
    "positions",
    (
        (
            "CREATE TABLE positions (account TEXT NOT NULL, client BLOB NOT NULL, position INTEGER NOT NULL,"
            " moved_at REAL NOT NULL, PRIMARY KEY (account, client)) STRICT, WITHOUT ROWID",
            "CREATE INDEX positions_moved ON positions (moved_at, account, client)",
        ),
    ),
)


class Moved(Struct, frozen=True):
    """Where a client is now; None: nowhere any more. ``moved_at`` in seconds since 1970."""

    account_id: str
    client: bytes
    position: int | None
    moved_at: float = 0.0


def check_epoch(connection: sqlite3.Connection, epoch: bytes, now: float) -> bool:
    """Forget all clients if the positions are of another log than that of this epoch; return whether they are.

    Then some events after them may be gone, and nobody knows which: each account has one that was forgotten.
    """
    known = connection.execute("SELECT client FROM positions WHERE account = ?", (_NO_ACCOUNT,)).fetchone()
    if known == (epoch,):
        return False
    connection.execute(
        "INSERT INTO positions SELECT DISTINCT account, x'', 0, ? FROM positions WHERE account <> ?"
        " ON CONFLICT DO NOTHING",
        (now, _NO_ACCOUNT),
    )
    connection.execute("DELETE FROM positions WHERE client <> x''")
    connection.execute("INSERT INTO positions VALUES (?, ?, 0, ?)", (_NO_ACCOUNT, epoch, inf))
    return known is not None


def write_positions(connection: sqlite3.Connection, moved: Sequence[Moved]) -> list[None]:
    """Write down moves, in their order."""
    latest = {(move.account_id, move.client): move for move in moved}
    gone = [key for key, move in latest.items() if move.position is None]
    if gone:
        connection.executemany("DELETE FROM positions WHERE account = ? AND client = ?", gone)
    connection.executemany(
        "INSERT INTO positions VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET position = excluded.position, moved_at = excluded.moved_at",
        [(*key, move.position, move.moved_at) for key, move in latest.items() if move.position is not None],
    )
    return [None] * len(moved)


def read_positions(connection: sqlite3.Connection, after: Moved | None) -> list[Moved]:
    """Return a page of all positions after one of them (None: the first), those that were moved longest ago first."""
    start = (-1.0, "", b"") if after is None else (after.moved_at, after.account_id, after.client)
    rows = connection.execute(
        "SELECT account, client, position, moved_at FROM positions WHERE (moved_at, account, client) > (?, ?, ?)"
        " AND account <> ? ORDER BY moved_at, account, client LIMIT ?",
        (*start, _NO_ACCOUNT, PAGE),
    )
    return [Moved(*row) for row in rows]


def expire_positions(connection: sqlite3.Connection, moved_before: float) -> list[Moved]:
    """Forget a page of positions that were not moved since a time; return them. Less than a page: that were all."""
    rows = connection.execute(
        "SELECT account, client, position, moved_at FROM positions WHERE moved_at < ? ORDER BY moved_at LIMIT ?",
        (moved_before, PAGE),
    ).fetchall()
    connection.executemany("DELETE FROM positions WHERE account = ? AND client = ?", [row[:2] for row in rows])
    return [Moved(*row) for row in rows]
