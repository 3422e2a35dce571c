"""Jobs in the long run: looked up, done again on demand, given up when their time is over, forgotten.

`jobs` has the table and what happens from day to day. Each piece of work looks at a page at most, and says whether
there is more.
"""

import sqlite3
from collections.abc import Collection, Iterable
from typing import Final

from msgspec import Struct

from .jobs import PLACES, State, Terms, end_job, move_up
from .owed import ALONE, BEHIND, HEAD, PAGE, Of, page_of
from .statements import LATEST, has_content, in_log

KEPT_SECONDS: Final = 7 * 86_400.0
"""How long it is known what became of a job; a dead one can be done again for so long."""
WALK: Final = 10_000
"""Jobs that are gone through to find a page of those in one state."""
_SEEN: Final = "position, event_id, type, state, attempts, due_at, until, leased_at, holder, reason"
_IN_LOG: Final = in_log("queues")
_BY_ID: Final = "jobs INDEXED BY jobs_id"
"""Left to itself SQLite goes through all jobs of the queue."""
_HAS_CONTENT: Final = has_content(PLACES, "jobs", "queue", "queues")
_OF_ID: Final = (
    f"SELECT position, key, line, state IN ('acked', 'dead') AND {_HAS_CONTENT} FROM {_BY_ID}"
    " WHERE queue = ? AND event_id = ? AND position > ? ORDER BY position LIMIT ?"
)
_DEAD: Final = (
    f"SELECT position, key, line, ended_at >= ?2 AND {_HAS_CONTENT} FROM jobs INDEXED BY jobs_dead"
    " WHERE queue = ?1 AND state = 'dead' AND position > ?3 ORDER BY position LIMIT ?4"
)


class Seen(Struct, frozen=True):
    """A job, as its account sees it."""

    position: int
    event_id: str
    type: str
    state: State
    attempts: int
    due_at: float
    until: float | None
    leased_at: float | None
    holder: str
    reason: str | None


def look_up(
    connection: sqlite3.Connection,
    queue: int,
    *,
    state: State | None = None,
    event_id: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> tuple[list[Seen], int | None]:
    """Return a queue's jobs, the newest first, and before which position to go on; None: that were all.

    Of one state it goes through `WALK` jobs at most, so a page may have few, or none.
    """
    before = LATEST if before is None else before
    jobs, of_it, its = ("jobs", "", ()) if event_id is None else (_BY_ID, " AND event_id = ?", (event_id,))
    these, values = f"FROM {jobs} WHERE queue = ?{of_it} AND position < ?", (queue, *its, before)
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


def do_again(connection: sqlite3.Connection, of: Of, now: float) -> tuple[int, Of | None]:
    """Let a queue's jobs that have ended wait again, if what they are about is still there: of a page of these.

    Returns how many those are, and with what to go on; None: that were all.
    """
    found, rest = page_of(connection, _OF_ID, of)
    return _again(connection, of.owner, found, now), rest


def do_dead_again(
    connection: sqlite3.Connection, queue: int, since: float, after: int, now: float
) -> tuple[int, int | None]:
    """Let dead jobs wait again that died at a time or later, of a page of those after a position.

    Returns how many those are, and after which position to go on; None: that were all.
    """
    found = connection.execute(_DEAD, (queue, since, after, PAGE)).fetchall()
    done = _again(connection, queue, found, now)
    return done, found[-1][0] if len(found) == PAGE else None


def _again(connection: sqlite3.Connection, queue: int, found: Iterable[tuple[int, bytes, int, int]], now: float) -> int:
    """Let those of some jobs wait again that are to; return how many those are."""
    again = [(position, key, line) for position, key, line, is_to in found if is_to]
    for position, key, line in again:
        stands = line if line else BEHIND if key else ALONE  # one at which its key stopped is its head still
        connection.execute(
            "UPDATE jobs SET state = 'waiting', line = ?, due_at = ?, born_at = ?, attempts = 0, prefers = '',"
            " holder = '', reason = NULL, ended_at = NULL WHERE queue = ? AND position = ?",
            (stands, now, now, queue, position),
        )
        move_up(connection, queue, key)
    return len(again)


def open_keys(connection: sqlite3.Connection, queue: int, after: int) -> int | None:
    """Let keys go on that stopped at a dead job, a page of jobs; return after which to go on, None: that were all."""
    statement = "SELECT position, key, line, state FROM jobs WHERE queue = ? AND position > ? ORDER BY position LIMIT ?"
    rows = connection.execute(statement, (queue, after, PAGE)).fetchall()
    for position, key, line, state in rows:
        if state == "dead" and line == HEAD:
            connection.execute("UPDATE jobs SET line = 0 WHERE queue = ? AND position = ?", (queue, position))
            move_up(connection, queue, key)
    return rows[-1][0] if len(rows) == PAGE else None


def give_up(connection: sqlite3.Connection, terms: Terms, born_before: float, now: float) -> tuple[list[str], bool]:
    """Let jobs be dead that nobody did in their time; return their events, and whether there are more."""
    statement = (
        "SELECT position, event_id FROM jobs WHERE queue = ? AND state = 'waiting' AND born_at < ?"
        " ORDER BY born_at LIMIT ?"
    )
    rows = connection.execute(statement, (terms.queue, born_before, PAGE)).fetchall()
    for position, _ in rows:
        end_job(connection, terms.queue, position, "dead", now, "too old", stops=terms.stops)
    return [event_id for _, event_id in rows], len(rows) == PAGE


def prolong(connection: sqlite3.Connection, until: float) -> bool:
    """Let leases of another process last until a time at least. Returns whether there are more."""
    changed = connection.execute(
        "UPDATE jobs SET until = ?1 WHERE state = 'leased' AND until < ?1 AND (queue, position) IN"
        " (SELECT queue, position FROM jobs WHERE state = 'leased' AND until < ?1 LIMIT ?2)",
        (until, PAGE),
    ).rowcount
    return changed == PAGE


def leased(connection: sqlite3.Connection, queue: int) -> dict[str, float]:
    """Return the leases of a queue, and until when each lasts."""
    statement = "SELECT lease_id, until FROM jobs WHERE queue = ? AND state = 'leased'"
    return dict(connection.execute(statement, (queue,)).fetchall())


def forget(connection: sqlite3.Connection, now: float) -> bool:
    """Forget jobs that ended long ago. Returns whether there are more."""
    rows = connection.execute(
        "SELECT queue, position, key FROM jobs WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (now - KEPT_SECONDS, PAGE)
    ).fetchall()
    _delete(connection, rows)
    return len(rows) == PAGE


def shed_dead(connection: sqlite3.Connection) -> int:
    """Forget a page of dead jobs for want of room, the oldest; return how many."""
    statement = (
        "SELECT queue, position, key FROM jobs INDEXED BY jobs_died WHERE state = 'dead' ORDER BY ended_at LIMIT ?"
    )
    rows = connection.execute(statement, (PAGE,)).fetchall()
    _delete(connection, rows)
    return len(rows)


def shed_waiting(connection: sqlite3.Connection, queue: int) -> int:
    """Forget a page of a queue's jobs that wait, for want of room, the oldest; return how many."""
    statement = "SELECT queue, position, key FROM jobs WHERE queue = ? AND state = 'waiting' ORDER BY born_at LIMIT ?"
    rows = connection.execute(statement, (queue, PAGE)).fetchall()
    _delete(connection, rows)
    return len(rows)


def _delete(connection: sqlite3.Connection, rows: Collection[tuple[int, int, bytes]]) -> None:
    """Forget jobs; whoever stands behind them moves up."""
    for queue, position, key in rows:
        connection.execute("DELETE FROM jobs WHERE queue = ? AND position = ?", (queue, position))
        move_up(connection, queue, key)


def forget_contents(connection: sqlite3.Connection, after: int) -> int | None:
    """Forget what no job needs any more, of contents after a position; return after which to go on, None: all."""
    rows = connection.execute(
        "SELECT position, EXISTS (SELECT 1 FROM jobs WHERE queue IN"
        " (SELECT number FROM queues WHERE account = job_contents.account) AND jobs.position = job_contents.position"
        " AND state <> 'acked') FROM job_contents WHERE position > ? ORDER BY position LIMIT ?",
        (after, PAGE),
    ).fetchall()
    connection.executemany(
        "DELETE FROM job_contents WHERE position = ?", [(position,) for position, is_needed in rows if not is_needed]
    )
    return rows[-1][0] if len(rows) == PAGE else None


def remove(connection: sqlite3.Connection, queue: int) -> bool:
    """Forget a page of a queue's jobs, in the end itself. Returns whether there is more."""
    gone = connection.execute(
        "DELETE FROM jobs WHERE queue = ?1 AND position IN"
        " (SELECT position FROM jobs WHERE queue = ?1 ORDER BY position LIMIT ?2)",
        (queue, PAGE),
    ).rowcount
    if gone < PAGE:
        connection.execute("DELETE FROM job_counts WHERE queue = ?", (queue,))
        connection.execute("DELETE FROM queues WHERE number = ?", (queue,))
    return gone == PAGE


def oldest_waiting(connection: sqlite3.Connection, queue: int) -> float | None:
    """Return since when the oldest job of a queue waits; None: none does."""
    statement = "SELECT min(born_at) FROM jobs WHERE queue = ? AND state = 'waiting'"
    [born_at] = connection.execute(statement, (queue,)).fetchone()
    return None if born_at is None else float(born_at)
