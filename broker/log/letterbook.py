"""Letters in the long run: looked up, sent again on demand, given up when their time is over, forgotten.

`letters` has the table and what happens from day to day. Each piece of work looks at a page at most, and says whether
there is more.
"""

import sqlite3
from collections.abc import Iterable
from typing import Final

from .letters import KEPT_SECONDS, PLACES, Seen, State, drop, end, move_up, tidy
from .owed import ALONE, BEHIND, PAGE, STRIDE, Of, page_of
from .statements import LATEST, has_content, in_log

WALK: Final = 10_000
"""Letters that are gone through to find a page of those in one state."""
_SEEN: Final = "position, event_id, type, state, attempts, due_at, tried_at, status, error, duration_ms, acked_by"
_IN_LOG: Final = in_log("webhooks")
_BY_ID: Final = "letters INDEXED BY letters_id"
"""Left to itself SQLite goes through all letters of the endpoint."""
_NEXT: Final = f"FROM letters WHERE webhook = ? AND position > ? ORDER BY position LIMIT {STRIDE}"
_WAITING: Final = (
    f"SELECT position, inbox, attempts FROM (SELECT position, inbox, attempts, state {_NEXT})"
    f" WHERE state = 'waiting' LIMIT {PAGE}"
)
_GONE_THROUGH: Final = f"SELECT count(*), max(position) FROM (SELECT position {_NEXT})"
_HAS_CONTENT: Final = has_content(PLACES, "letters", "webhook", "webhooks")
_OF_ID: Final = (
    f"SELECT position, inbox, state IN ('delivered', 'acked', 'dead') AND {_HAS_CONTENT} FROM {_BY_ID}"
    " WHERE webhook = ? AND event_id = ? AND position > ? ORDER BY position LIMIT ?"
)
_DEAD: Final = (
    f"SELECT position, inbox, ended_at >= ?2 AND {_HAS_CONTENT} FROM letters INDEXED BY letters_dead"
    " WHERE webhook = ?1 AND state = 'dead' AND position > ?3 ORDER BY position LIMIT ?4"
)


def look_up(
    connection: sqlite3.Connection,
    webhook: int,
    *,
    state: State | None = None,
    event_id: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> tuple[list[Seen], int | None]:
    """Return an endpoint's letters, the newest first, and before which position to go on; None: that were all.

    Of one state it goes through `WALK` letters at most, so a page may have few, or none.
    """
    before = LATEST if before is None else before
    letters, of_it, its = ("letters", "", ()) if event_id is None else (_BY_ID, " AND event_id = ?", (event_id,))
    these, values = f"FROM {letters} WHERE webhook = ?{of_it} AND position < ?", (webhook, *its, before)
    statement = (
        f"SELECT {_SEEN} FROM (SELECT * {these} AND {_IN_LOG} ORDER BY position DESC LIMIT ?)"
        " WHERE ifnull(state = ?, 1) LIMIT ?"
    )
    walked = WALK if state is not None else limit
    seen = [Seen(*row) for row in connection.execute(statement, (*values, walked, state, limit))]
    if len(seen) == limit:
        return seen, seen[-1].position
    statement = f"SELECT position {these} ORDER BY position DESC LIMIT 1 OFFSET ?"
    last = connection.execute(statement, (*values, walked - 1)).fetchone()
    return seen, None if last is None else last[0]


def send_again(connection: sqlite3.Connection, of: Of, now: float, *, in_order: bool) -> tuple[int, Of | None]:
    """Let an endpoint's letters that have ended wait again, if what they brought is still there: of a page of these.

    Returns how many those are, and with what to go on; None: that were all.
    """
    found, rest = page_of(connection, _OF_ID, of)
    return _again(connection, of.owner, found, now, in_order=in_order), rest


def send_dead_again(
    connection: sqlite3.Connection, webhook: int, since: float, after: int, now: float, *, in_order: bool
) -> tuple[int, int | None]:
    """Let dead letters wait again that died at a time or later, of a page of those after a position.

    Returns how many those are, and after which position to go on; None: that were all.
    """
    found = connection.execute(_DEAD, (webhook, since, after, PAGE)).fetchall()
    sent = _again(connection, webhook, found, now, in_order=in_order)
    return sent, found[-1][0] if len(found) == PAGE else None


def _again(
    connection: sqlite3.Connection, webhook: int, found: Iterable[tuple[int, str, int]], now: float, *, in_order: bool
) -> int:
    """Let those of some letters wait again that are to; return how many those are."""
    again = [(position, inbox) for position, inbox, is_to in found if is_to]
    for position, inbox in again:
        connection.execute(
            "UPDATE letters SET state = 'waiting', line = ?, due_at = ?, born_at = ?, attempts = 0,"
            " failing_since = NULL, acked_at = NULL, acked_by = NULL, ended_at = NULL"
            " WHERE webhook = ? AND position = ?",
            (BEHIND if in_order else ALONE, now, now, webhook, position),
        )
        if in_order:
            move_up(connection, webhook, inbox)
    return len(again)


def put_in_line(connection: sqlite3.Connection, webhook: int, after: int, *, in_order: bool) -> int | None:
    """Let letters that wait stand in line, or in none; return after which to go on, None: that were all."""
    rows, reached = _waiting(connection, webhook, after)
    for position, inbox, _ in rows:
        connection.execute(
            "UPDATE letters SET line = ? WHERE webhook = ? AND position = ?",
            (BEHIND if in_order else ALONE, webhook, position),
        )
        if in_order:
            move_up(connection, webhook, inbox)
    return reached


def hurry(connection: sqlite3.Connection, webhook: int, after: int, now: float) -> int | None:
    """Let letters that wait for another attempt be due at once; return after which to go on, None: that were all."""
    rows, reached = _waiting(connection, webhook, after)
    for position, _, attempts in rows:
        if attempts:
            connection.execute(
                "UPDATE letters SET due_at = min(due_at, ?) WHERE webhook = ? AND position = ?",
                (now, webhook, position),
            )
    return reached


def _waiting(connection: sqlite3.Connection, webhook: int, after: int) -> tuple[list[tuple[int, str, int]], int | None]:
    """Return a page of letters that wait after a position, and after which to go on; None: that were all."""
    rows = connection.execute(_WAITING, (webhook, after)).fetchall()
    if len(rows) == PAGE:
        return rows, rows[-1][0]
    gone_through, last = connection.execute(_GONE_THROUGH, (webhook, after)).fetchone()
    return rows, last if gone_through == STRIDE else None


def recover(connection: sqlite3.Connection, now: float) -> bool:
    """Let what was being sent when a process ended wait again, due at once. Returns whether there is more."""
    rows = connection.execute(
        "SELECT webhook, position FROM letters WHERE state = 'sending' LIMIT ?", (PAGE,)
    ).fetchall()
    for webhook, position in rows:
        connection.execute(
            "UPDATE letters SET state = CASE WHEN acked_at IS NULL THEN 'waiting' ELSE 'acked' END, due_at = ?"
            " WHERE webhook = ? AND position = ?",
            (now, webhook, position),
        )
        tidy(connection, webhook, position, now)
    return len(rows) == PAGE


def expire(connection: sqlite3.Connection, born_before: float, now: float) -> tuple[int, bool]:
    """Let letters be dead that were born before a time; return how many, and whether there are more."""
    rows = connection.execute(
        "SELECT webhook, position FROM letters WHERE state = 'waiting' AND born_at < ? ORDER BY born_at LIMIT ?",
        (born_before, PAGE),
    ).fetchall()
    for webhook, position in rows:
        end(connection, webhook, position, "dead", now)
    return len(rows), len(rows) == PAGE


def forget(connection: sqlite3.Connection, now: float) -> bool:
    """Forget letters that ended long ago. Returns whether there are more."""
    rows = connection.execute(
        "SELECT webhook, position FROM letters WHERE ended_at < ? ORDER BY ended_at LIMIT ?",
        (now - KEPT_SECONDS, PAGE),
    ).fetchall()
    connection.executemany("DELETE FROM letters WHERE webhook = ? AND position = ?", rows)
    return len(rows) == PAGE


def shed_dead(connection: sqlite3.Connection) -> int:
    """Forget a page of dead letters for want of room, the oldest of all; return how many."""
    rows = connection.execute(
        "SELECT webhook, position FROM letters INDEXED BY letters_died WHERE state = 'dead' ORDER BY ended_at LIMIT ?",
        (PAGE,),
    ).fetchall()
    connection.executemany("DELETE FROM letters WHERE webhook = ? AND position = ?", rows)
    return len(rows)


def shed_waiting(connection: sqlite3.Connection) -> int:
    """Forget a page of letters that wait, for want of room: those due first of the endpoint that is owed most."""
    statement = "SELECT webhook FROM letter_counts WHERE state = 'waiting' AND n > 0 ORDER BY n DESC LIMIT 1"
    most = connection.execute(statement).fetchone()
    gone = 0
    while most is not None and gone < PAGE:
        rows = connection.execute(
            "SELECT webhook, position FROM letters WHERE webhook = ? AND state = 'waiting' AND line < 2"
            " ORDER BY due_at, position LIMIT ?",
            (*most, PAGE - gone),
        ).fetchall()
        if not rows:
            break
        for webhook, position in rows:
            drop(connection, webhook, position, 0.0)
        gone += len(rows)
    return gone


def forget_contents(connection: sqlite3.Connection, after: int) -> int | None:
    """Forget what no letter needs any more, of contents after a position; return after which to go on, None: all."""
    rows = connection.execute(
        "SELECT position, EXISTS (SELECT 1 FROM letters WHERE webhook IN"
        " (SELECT number FROM webhooks WHERE account = contents.account) AND letters.position = contents.position"
        " AND state IN ('waiting', 'sending', 'dead')) FROM contents WHERE position > ? ORDER BY position LIMIT ?",
        (after, PAGE),
    ).fetchall()
    connection.executemany(
        "DELETE FROM contents WHERE position = ?", [(position,) for position, is_needed in rows if not is_needed]
    )
    return rows[-1][0] if len(rows) == PAGE else None


def remove(connection: sqlite3.Connection, webhook: int) -> bool:
    """Forget a page of an endpoint's letters, in the end itself. Returns whether there is more."""
    gone = connection.execute(
        "DELETE FROM letters WHERE webhook = ?1 AND position IN"
        " (SELECT position FROM letters WHERE webhook = ?1 ORDER BY position LIMIT ?2)",
        (webhook, PAGE),
    ).rowcount
    if gone < PAGE:
        connection.execute("DELETE FROM letter_counts WHERE webhook = ?", (webhook,))
        connection.execute("DELETE FROM webhooks WHERE number = ?", (webhook,))
    return gone == PAGE


def counts(connection: sqlite3.Connection, webhook: int | None = None) -> dict[State, int]:
    """Return how many letters there are in each state, of one endpoint or of all."""
    which = "" if webhook is None else " WHERE webhook = ?"
    values = () if webhook is None else (webhook,)
    statement = f"SELECT state, sum(n) FROM letter_counts{which} GROUP BY state"
    return dict(connection.execute(statement, values).fetchall())


def oldest_waiting(connection: sqlite3.Connection) -> float | None:
    """Return since when the oldest letter waits; None: none does."""
    [born_at] = connection.execute("SELECT min(born_at) FROM letters WHERE state = 'waiting'").fetchone()
    return None if born_at is None else float(born_at)
