"""What letters and jobs have in common, as rows of the log on disk. For the writer's thread."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

PAGE: Final = 256
"""Rows that one piece of work looks at."""
STRIDE: Final = 4_096
"""Rows that it goes through to find these, about a millisecond: what is beside them may be any number."""


class Of(NamedTuple):
    """Whose rows are looked for by their events' ids: these events, of the first of them what lies after a position."""

    owner: int
    """The number of an endpoint or a queue."""
    event_ids: Sequence[str]
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
