"""What letters and jobs have in common, as rows of the log on disk. For the writer's thread."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

PAGE: Final = 256
"""Rows that one piece of work looks at."""
STRIDE: Final = 4_096
"""Rows that it goes through to find these, about a millisecond: what is beside them may be any number."""

ALONE, HEAD, BEHIND = 0, 1, 2
"""Where a row stands (``line``): in no line, at the head of its own, or behind it."""


class Kind(NamedTuple):
    """Which rows: the names of their table, of the column and the table of their owners, of what their line is by."""

    table: str
    owner: str
    owners: str
    by: str
    move_up: Callable[[sqlite3.Connection, int, Any], None]
    """Lets the next of an owner's line be its head, if it has none."""


class Of(NamedTuple):
    """Whose rows are looked for by their events' ids: these events, of the first of them what lies after a position."""

    owner: int
    """The number of an endpoint or a queue."""
    event_ids: Sequence[str]
    """Each is there once."""
    after: int = 0


def page_of(connection: sqlite3.Connection, statement: str, of: Of) -> tuple[list[Any], Of | None]:
    """Return a page of rows of events, and with what to go on; None: that were all.

    ``statement`` is given the owner, an event's id, the position and how many rows at most: it selects the rows of that
    event after the position, in their order, and the position first. In how many inboxes an id is, is the publisher's
    choice; one without rows is looked for, too, and counts as one.
    """
    rows: list[Any] = []
    looked, after = 0, of.after
    for index, event_id in enumerate(of.event_ids):
        if looked == PAGE:
            return rows, Of(of.owner, of.event_ids[index:])
        found = connection.execute(statement, (of.owner, event_id, after, PAGE - looked)).fetchall()
        rows += found
        if len(found) == PAGE - looked:
            return rows, Of(of.owner, of.event_ids[index:], found[-1][0])
        looked, after = looked + max(1, len(found)), 0
    return rows, None


def take_back(
    connection: sqlite3.Connection, kind: Kind, account_id: str, first: int, most: int
) -> tuple[int, list[int]]:
    """Forget an account's rows from a position on, the last ones first: their events did not become the log's.

    So many at most. Whoever stands behind them moves up; returns how many those were, and the owners of whom that is.
    """
    gone, moved_up = 0, []
    owners = connection.execute(f"SELECT number FROM {kind.owners} WHERE account = ?", (account_id,)).fetchall()
    for (owner,) in owners:
        rows = connection.execute(
            f"SELECT position, line, {kind.by} FROM {kind.table} WHERE {kind.owner} = ? AND position >= ?"
            " ORDER BY position DESC LIMIT ?",
            (owner, first, most - gone),
        ).fetchall()
        if rows:
            connection.execute(
                f"DELETE FROM {kind.table} WHERE {kind.owner} = ? AND position >= ?", (owner, rows[-1][0])
            )
            heads = dict.fromkeys(by for _, line, by in rows if line == HEAD)
            for by in heads:
                kind.move_up(connection, owner, by)
            if heads:
                moved_up.append(owner)
            gone += len(rows)
    return gone, moved_up
