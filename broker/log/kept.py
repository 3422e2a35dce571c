"""What is kept of events whose log is elsewhere, as rows of a log on disk. For the writer's thread.

Of an account that is followed it is known up to where it was taken in (``followed``), and of its events those are kept
(``kept``) that somebody here wants: in one transaction with what they are wanted for. So nothing is taken in twice, and
an event that comes again in another history of the log is known by its id.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

from msgspec import Struct

from ..protocol.messages import Entry

KEPT_TABLES: Final = (
    "CREATE TABLE followed (account TEXT PRIMARY KEY, cursor TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE kept (number INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL, position INTEGER NOT NULL,"
    " inbox TEXT NOT NULL, type TEXT NOT NULL, event_id TEXT NOT NULL, created_at TEXT NOT NULL,"
    " payload BLOB NOT NULL, traceparent TEXT, kept_at REAL NOT NULL, UNIQUE (account, position)) STRICT",
    "CREATE INDEX kept_by_id ON kept (account, event_id)",
)
PAGE: Final = 256
"""Events that one piece of work looks at."""

_KEEP: Final = (
    "INSERT INTO kept (account, position, inbox, type, event_id, created_at, payload, traceparent, kept_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REACHED: Final = "INSERT INTO followed VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET cursor = excluded.cursor"
_OF_LETTERS: Final = "position = ?2 AND webhook IN (SELECT number FROM webhooks WHERE account = ?1) AND state IN ({})"
_OF_JOBS: Final = "position = ?2 AND queue IN (SELECT number FROM queues WHERE account = ?1) AND state IN ({})"
_NEEDED: Final = ("SELECT EXISTS (SELECT 1 FROM letters WHERE {}) OR EXISTS (SELECT 1 FROM jobs WHERE {})").format(
    _OF_LETTERS.format("'waiting', 'sending', 'dead'"), _OF_JOBS.format("'waiting', 'leased', 'dead'")
)
_FORGET_LETTERS: Final = "DELETE FROM letters WHERE " + _OF_LETTERS.format("'delivered', 'acked'")
_FORGET_JOBS: Final = "DELETE FROM jobs WHERE " + _OF_JOBS.format("'acked'")

Add = Callable[[sqlite3.Connection, str, Sequence[Entry]], None]
"""Adds what events of an account are wanted for, in the transaction in which they are kept."""


class Followed:
    """How the events of accounts come to what is kept here. This: with the log, which is here, too, by themselves."""

    def beginning(self, account_id: str) -> AbstractAsyncContextManager[None]:
        """Let what an account is published from the block's start on come here, for who is there when it ends.

        Raises `RequestError` (`unavailable`) if that cannot be.
        """
        return nullcontext()

    def changed(self, account_id: str) -> None:
        """Hear that there is somebody now, or nobody any more, for whom an account's events are."""

    def is_settled(self, account_id: str) -> bool:
        """Whether it is known what clients of an account have acknowledged until now, wherever they are."""
        return True

    async def make_room(self) -> None:
        """Forget what is kept and nobody waits for. Raises `RequestError`."""

    def require(self) -> None:
        """Raise `RequestError` (`unavailable`) if they come to another node."""


class KeeperStatistics(Struct, frozen=True):
    """How the keeper does."""

    held: bool
    """Whether this node is the keeper; else it stands by."""
    accounts: int
    """That are followed."""
    events: int
    """Taken in since the start, for endpoints or queues."""
    gaps: int
    """That were found since the start: events that had left the engine before they were taken in."""
    missed: int
    """Events in them, as far as they could be counted."""


class Taken(Struct, frozen=True):
    """Events of an account in their order, as its log elsewhere has them, and the cursor that they reach."""

    account_id: str
    cursor: str
    entries: Sequence[Entry]
    """Each with its event."""


def take_in(
    connection: sqlite3.Connection, taken: Taken, wanted: Callable[[Entry], bool], add: Sequence[Add], wall: float
) -> int:
    """Keep those events that are ``wanted`` and not kept yet, and ``add`` what they are for; return how many these are.

    ``wall`` is when, in seconds since 1970.
    """
    account_id = taken.account_id
    fresh: dict[tuple[str, str], Entry] = {}
    for entry in taken.entries:
        identity = (entry.inbox, entry.event_id)
        if identity not in fresh and wanted(entry) and not _is_kept(connection, account_id, identity):
            fresh[identity] = entry
    entries = list(fresh.values())
    connection.executemany(_KEEP, [_row(account_id, entry, wall) for entry in entries])
    if entries:
        for each in add:
            each(connection, account_id, entries)
    connection.execute(_REACHED, (account_id, taken.cursor))
    return len(entries)


def _is_kept(connection: sqlite3.Connection, account_id: str, identity: tuple[str, str]) -> bool:
    statement = "SELECT inbox FROM kept WHERE account = ? AND event_id = ?"
    return (identity[0],) in connection.execute(statement, (account_id, identity[1])).fetchall()


def _row(account_id: str, entry: Entry, wall: float) -> tuple[object, ...]:
    event = entry.event
    assert event is not None
    place = (account_id, entry.position, entry.inbox, entry.type, entry.event_id)
    return (*place, event.created_at, event.payload, event.traceparent, wall)


def read_cursors(connection: sqlite3.Connection) -> dict[str, str]:
    """Return up to where each account that was followed was taken in."""
    return dict(connection.execute("SELECT account, cursor FROM followed").fetchall())


def forget_cursor(connection: sqlite3.Connection, account_id: str) -> None:
    """Follow an account no longer: who follows it again begins anew."""
    connection.execute("DELETE FROM followed WHERE account = ?", (account_id,))


def forget(connection: sqlite3.Connection, kept_before: float, after: int) -> int | None:
    """Forget events that were kept before a moment and that nobody waits for, with what is known of them.

    A page of them; ``after`` is where the last one ended, 0 at first. Returns where this one does, None: that were all.
    """
    rows = connection.execute(
        "SELECT number, account, position, kept_at FROM kept WHERE number > ? ORDER BY number LIMIT ?", (after, PAGE)
    ).fetchall()
    for number, account_id, position, kept_at in rows:
        if kept_at >= kept_before:
            return None
        place = (account_id, position)
        if not connection.execute(_NEEDED, place).fetchone()[0]:
            connection.execute(_FORGET_LETTERS, place)
            connection.execute(_FORGET_JOBS, place)
            connection.execute("DELETE FROM kept WHERE number = ?", (number,))
    return rows[-1][0] if len(rows) == PAGE else None
