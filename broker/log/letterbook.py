"""Letters in the long run: looked up, sent again on demand, given up when their time is over, forgotten.

`letters` has the table and what happens from day to day. Each piece of work looks at a page at most, and says whether
there is more.
"""

import sqlite3
from collections.abc import Collection
from typing import Final

from .letters import ALONE, BEHIND, HEAD, KEPT_SECONDS, PAGE, PLACES, Seen, State, drop, end, move_up, tidy
from .statements import LATEST, has_content, in_log

WALK: Final = 10_000
"""Letters that are gone through to find a page of those in one state."""
_SEEN: Final = "position, event_id, type, state, attempts, due_at, tried_at, status, error, duration_ms, acked_by"
_IN_LOG: Final = in_log("webhooks")
_BY_ID: Final = "letters INDEXED BY letters_id"
"""Left to itself SQLite goes through all letters of the endpoint."""
_WAITING: Final = (
    "SELECT position, inbox, attempts FROM letters WHERE webhook = ? AND position > ? AND state = 'waiting'"
    " ORDER BY position LIMIT ?"
)
_HAS_CONTENT: Final = has_content(PLACES, "letters", "webhook", "webhooks")


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
    if event_id is not None:
        statement = f"SELECT {_SEEN} FROM {_BY_ID} WHERE webhook = ? AND event_id = ? AND position < ? AND {_IN_LOG}"
        found = [Seen(*row) for row in connection.execute(statement, (webhook, event_id, before))]
        return sorted((s for s in found if state in (None, s.state)), key=lambda s: -s.position)[:limit], None
    statement = (
        f"SELECT {_SEEN} FROM (SELECT * FROM letters WHERE webhook = ? AND position < ? AND {_IN_LOG}"
        " ORDER BY position DESC LIMIT ?) WHERE ?4 IS NULL OR state = ?4 LIMIT ?5"
    )
    walked = WALK if state is not None else limit
    seen = [Seen(*row) for row in connection.execute(statement, (webhook, before, walked, state, limit))]
    if len(seen) == limit:
        return seen, seen[-1].position
    statement = (
        "SELECT position FROM letters WHERE webhook = ? AND position < ? ORDER BY position DESC LIMIT 1 OFFSET ?"
    )
    last = connection.execute(statement, (webhook, before, walked - 1)).fetchone()
    return seen, None if last is None else last[0]


def send_again(
    connection: sqlite3.Connection, webhook: int, event_ids: Collection[str], now: float, *, in_order: bool
) -> int:
    """Let letters that have ended wait again, if what they brought is still there; return how many those are."""
    which = f"event_id = ? AND state IN ('delivered', 'acked', 'dead') AND {_HAS_CONTENT}"
    return sum(
        _again(connection, webhook, which, (event_id,), now, in_order=in_order, letters=_BY_ID)
        for event_id in event_ids
    )


def send_dead_again(
    connection: sqlite3.Connection, webhook: int, since: float, now: float, *, in_order: bool
) -> tuple[int, bool]:
    """Let dead letters wait again that died at a time or later; return how many, and whether there may be more."""
    sent = _again(
        connection,
        webhook,
        f"state = 'dead' AND ended_at >= ? AND {_HAS_CONTENT}",
        (since,),
        now,
        in_order=in_order,
    )
    return sent, sent == PAGE


def _again(
    connection: sqlite3.Connection,
    webhook: int,
    which: str,
    values: tuple[object, ...],
    now: float,
    *,
    in_order: bool,
    letters: str = "letters",
) -> int:
    statement = f"SELECT position, inbox FROM {letters} WHERE webhook = ? AND {which} ORDER BY position LIMIT {PAGE}"
    rows = connection.execute(statement, (webhook, *values)).fetchall()
    for position, inbox in rows:
        connection.execute(
            "UPDATE letters SET state = 'waiting', line = ?, due_at = ?, born_at = ?, attempts = 0,"
            " failing_since = NULL, acked_at = NULL, acked_by = NULL, ended_at = NULL"
            " WHERE webhook = ? AND position = ?",
            (BEHIND if in_order else ALONE, now, now, webhook, position),
        )
        if in_order:
            move_up(connection, webhook, inbox)
    return len(rows)


def put_in_line(connection: sqlite3.Connection, webhook: int, after: int, *, in_order: bool) -> int | None:
    """Let letters that wait stand in line, or in none; return after which to go on, None: that were all."""
    rows = connection.execute(_WAITING, (webhook, after, PAGE)).fetchall()
    for position, inbox, _ in rows:
        connection.execute(
            "UPDATE letters SET line = ? WHERE webhook = ? AND position = ?",
            (BEHIND if in_order else ALONE, webhook, position),
        )
        if in_order:
            move_up(connection, webhook, inbox)
    return rows[-1][0] if len(rows) == PAGE else None


def hurry(connection: sqlite3.Connection, webhook: int, after: int, now: float) -> int | None:
    """Let letters that wait for another attempt be due at once; return after which to go on, None: that were all."""
    rows = connection.execute(_WAITING, (webhook, after, PAGE)).fetchall()
    for position, _, attempts in rows:
        if attempts:
            connection.execute(
                "UPDATE letters SET due_at = min(due_at, ?) WHERE webhook = ? AND position = ?",
                (now, webhook, position),
            )
    return rows[-1][0] if len(rows) == PAGE else None


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
        "SELECT webhook, position FROM letters WHERE ended_at IS NOT NULL AND state = 'dead' ORDER BY ended_at LIMIT ?",
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


def take_back(connection: sqlite3.Connection, account_id: str, first: int) -> list[int]:
    """Forget an account's letters from a position on: their events did not become the log's.

    Whoever stands behind them moves up; returns the endpoints of whom that is.
    """
    these = "webhook IN (SELECT number FROM webhooks WHERE account = ?) AND position >= ?"
    values = (account_id, first)
    heads = connection.execute(
        f"SELECT DISTINCT webhook, inbox FROM letters WHERE {these} AND line = {HEAD}", values
    ).fetchall()
    connection.execute(f"DELETE FROM letters WHERE {these}", values)
    for webhook, inbox in heads:
        move_up(connection, webhook, inbox)
    return list(dict.fromkeys(webhook for webhook, _ in heads))


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
