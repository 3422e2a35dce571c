"""The archive of the engine on disk: older events of one account, found by indexes, read in pages, counted.

A page costs what it brings, not what lies between: all inboxes, or a few, are read along an index; many are found on a
walk along the account's own, which ends after a number of steps. How many are missing is counted in what is `known`.
"""

import heapq
import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final

from ...protocol.messages import Entry
from ...protocol.selection import Selection
from ..archive import Kept, Older, Page
from ..storage import Storage
from . import rows

_FEW_INBOXES: Final = 32
"""These are read along their own index each; more are looked for along the account's."""
_WALK_STEPS: Final = 4_096
"""Of one page."""
_INBOXES_AT_ONCE: Final = 256
"""Counted by one statement."""


class SqliteArchive:
    """What a log on disk has of the accounts' events: an `Archive`."""

    def __init__(self, storage: Storage, keep_seconds: float) -> None:
        self._storage = storage
        self._keep_seconds = keep_seconds

    @property
    def keep_seconds(self) -> float:
        """How long an event is kept, if there is room."""
        return self._keep_seconds

    async def position_before(self, account_id: str, moment: float) -> int | None:
        """Return the position of the last event stored before a moment; 0: there was none; None: that is forgotten."""
        return await self._storage.read(partial(_position_before, account_id=account_id, moment=moment))

    async def count(self, account_id: str, selection: Selection, after: int | None, through: int) -> Kept:
        """Count events of a selection after one position (None: the oldest that is kept) and up to another."""
        return await self._storage.read(
            partial(_count, account_id=account_id, selection=selection, after=after, through=through)
        )

    async def read(self, account_id: str, older: Older, *, max_events: int, max_bytes: int) -> Page:
        """Read the next events of a selection, a bounded number at once."""
        return await self._storage.read(
            partial(_read, account_id=account_id, older=older, max_events=max_events, max_bytes=max_bytes)
        )


def _gone(connection: sqlite3.Connection, account_id: str) -> tuple[int, int]:
    """Return up to where an account's events have left, and up to where nothing is known of those."""
    row = connection.execute(
        "SELECT dropped_through, known_after FROM accounts WHERE account = ?", (account_id,)
    ).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def _position_before(connection: sqlite3.Connection, account_id: str, moment: float) -> int | None:
    for table in ("events", "known"):
        before = rows.first_since(connection, moment, table)
        (position,) = connection.execute(
            f"SELECT max(position) FROM {table} WHERE account = ?1 AND position < ?2"
            " AND position < ifnull((SELECT first FROM unfinished WHERE account = ?1), ?2)",
            (account_id, before),
        ).fetchone()
        if position is not None:
            return int(position)
    _, known_after = _gone(connection, account_id)
    return known_after if not known_after or _was_forgotten_before(connection, account_id, moment) else None


def _was_forgotten_before(connection: sqlite3.Connection, account_id: str, moment: float) -> bool:
    """Return whether all that nothing is known of any more of an account was stored before a moment.

    It was stored before all that is known of any account; and no later than the account's newest event.
    """
    times = connection.execute(
        "SELECT stored_at FROM (SELECT stored_at FROM known ORDER BY position LIMIT 1)"
        " UNION ALL SELECT stored_at FROM (SELECT stored_at FROM events ORDER BY position LIMIT 1)"
        " UNION ALL SELECT head_at FROM accounts WHERE account = ?",
        (account_id,),
    ).fetchall()
    return not times or min(stored_at for (stored_at,) in times) < moment


def _missed(
    connection: sqlite3.Connection, account_id: str, selection: Selection, after: int, gone: tuple[int, int]
) -> int | None:
    """Count a selection's events that have left, after a position; None if that is forgotten."""
    gone_through, known_after = gone
    if gone_through <= after:
        return 0
    if after < known_after:
        return None
    return _count_in(connection, "known", account_id, selection, after, gone_through)


def _count(
    connection: sqlite3.Connection, account_id: str, selection: Selection, after: int | None, through: int
) -> Kept:
    dropped_through, known_after = _gone(connection, account_id)
    gone_through = min(dropped_through, through)
    start = gone_through if after is None else max(after, gone_through)
    count = _count_in(connection, "events", account_id, selection, start, through)
    if after is None:
        return Kept(count, gone_through, None)
    return Kept(count, gone_through, _missed(connection, account_id, selection, after, (gone_through, known_after)))


def _count_in(
    connection: sqlite3.Connection, table: str, account_id: str, selection: Selection, after: int, through: int
) -> int:
    """Count a table's rows of a selection after one position and up to another."""
    between = (after, through)
    if selection.inboxes is not None:
        return _count_inboxes(connection, table, account_id, sorted(selection.inboxes), between)
    (count,) = connection.execute(
        f"SELECT count(*) FROM {table} WHERE account = ? AND position > ? AND position <= ?", (account_id, *between)
    ).fetchone()
    return int(count) - _count_inboxes(connection, table, account_id, sorted(selection.excluded), between)


def _count_inboxes(
    connection: sqlite3.Connection, table: str, account_id: str, inboxes: Sequence[str], between: tuple[int, int]
) -> int:
    total = 0
    for start in range(0, len(inboxes), _INBOXES_AT_ONCE):
        some = inboxes[start : start + _INBOXES_AT_ONCE]
        marks = ",".join("?" * len(some))
        (count,) = connection.execute(
            f"SELECT count(*) FROM {table} INDEXED BY {table}_by_inbox"
            f" WHERE account = ? AND inbox IN ({marks}) AND position > ? AND position <= ?",
            (account_id, *some, *between),
        ).fetchone()
        total += int(count)
    return total


def _read(connection: sqlite3.Connection, account_id: str, older: Older, max_events: int, max_bytes: int) -> Page:
    dropped_through, known_after = _gone(connection, account_id)
    gone_through = min(dropped_through, older.through)
    after = max(older.after, gone_through)
    selection = older.selection
    if selection.inboxes is not None and len(selection.inboxes) <= _FEW_INBOXES:
        places, reached = _along_inboxes(connection, account_id, older, after, max_events)
    else:
        places, reached = _along_account(connection, account_id, older, after, max_events)
    entries: list[Entry] = []
    size = 0
    for entry in rows.read_at(connection, places):
        assert entry.event is not None
        size += len(entry.event.payload)
        if entries and size > max_bytes:
            reached = entries[-1].position
            break
        entries.append(entry)
    missed = _missed(connection, account_id, selection, older.after, (gone_through, known_after))
    return Page(entries, reached, gone_through, missed)


def _along_inboxes(
    connection: sqlite3.Connection, account_id: str, older: Older, after: int, most: int
) -> tuple[list[int], int]:
    """Return the next places of a few inboxes, and how far they reach."""
    runs = [
        [
            position
            for (position,) in connection.execute(
                "SELECT position FROM events INDEXED BY events_by_inbox"
                " WHERE account = ? AND inbox = ? AND position > ? AND position <= ? ORDER BY position LIMIT ?",
                (account_id, inbox, after, older.through, most),
            )
        ]
        for inbox in older.selection.inboxes or ()
    ]
    places = list(islice(heapq.merge(*runs), most))
    return places, places[-1] if len(places) == most else older.through


def _along_account(
    connection: sqlite3.Connection, account_id: str, older: Older, after: int, most: int
) -> tuple[list[int], int]:
    """Return the next places of a selection on a walk of so many steps, and how far that came."""
    walked: Iterable[tuple[int, str]] = connection.execute(
        "SELECT position, inbox FROM events INDEXED BY events_by_account"
        " WHERE account = ? AND position > ? AND position <= ? ORDER BY position LIMIT ?",
        (account_id, after, older.through, _WALK_STEPS),
    )
    places: list[int] = []
    steps = position = 0
    for position, inbox in walked:
        steps += 1
        if inbox in older.selection:
            places.append(position)
            if len(places) == most:
                return places, position
    return places, position if steps == _WALK_STEPS else older.through
