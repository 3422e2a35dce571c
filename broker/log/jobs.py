"""What workers are to do, as rows of the log on disk. For the writer's thread.

An event is a *job* of each queue that it is for. It is added in the event's own transaction, and goes from state to
state by compare-and-set in the one writer, so that at most one worker has it at a time:

| state | next |
|---|---|
| waiting | due, and first in its line: leased; its time is over: dead |
| leased | by who has the lease, in its time: acked, waiting (later) or dead; its time is over: waiting, or dead |
| acked, dead | done again on demand: waiting; after a while, or with its event: gone |

A lease is known by its id alone. Where a queue wants order, jobs of one key stand in line: the head is given, the
others stand behind it until it has ended. What a job needs that may still be done is kept when its event leaves the
log.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ..protocol.messages import Entry, PreparedEvent
from ..protocol.selection import Selection, TypeFilter
from .database import Room
from .owed import ALONE, BEHIND, HEAD, Kind
from .statements import content_of, in_log, in_statements, inserts

State = Literal["waiting", "leased", "acked", "dead"]
STATES: Final[tuple[State, ...]] = ("waiting", "leased", "acked", "dead")

GRANTS: Final = 64
"""Leases that are given in one step, at most."""
GRANT_BYTES: Final = 524_288
"""Of events that are given in one step, the last of them aside."""
MAX_LEASED: Final = 10_000
"""Leases of one queue at a time: each is known in memory, too."""

_OF_ACCOUNT = "queue IN (SELECT number FROM queues WHERE account = OLD.account) AND position = OLD.position"
_COLUMNS = "OLD.position, OLD.inbox, OLD.type, OLD.event_id, OLD.created_at, OLD.payload, OLD.traceparent"
JOBS: Final = Room(
    "jobs",
    (
        (
            "CREATE TABLE queues (number INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL,"
            " queue_id TEXT NOT NULL, record BLOB NOT NULL, UNIQUE (account, queue_id)) STRICT",
            "CREATE TABLE jobs (queue INTEGER NOT NULL, position INTEGER NOT NULL, state TEXT NOT NULL"
            " CHECK (state IN ('waiting', 'leased', 'acked', 'dead')), key BLOB NOT NULL, line INTEGER NOT NULL,"
            " due_at REAL NOT NULL, born_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,"
            " inbox TEXT NOT NULL, type TEXT NOT NULL, event_id TEXT NOT NULL, lease_id TEXT, until REAL,"
            " holder TEXT NOT NULL DEFAULT '', prefers TEXT NOT NULL DEFAULT '', leased_at REAL, reason TEXT,"
            " ended_at REAL, PRIMARY KEY (queue, position)) STRICT, WITHOUT ROWID",
            "CREATE INDEX jobs_due ON jobs (queue, due_at, position) WHERE state = 'waiting' AND line < 2",
            "CREATE INDEX jobs_line ON jobs (queue, key, line, position) WHERE line > 0",
            "CREATE INDEX jobs_until ON jobs (queue, until) WHERE state = 'leased'",
            "CREATE UNIQUE INDEX jobs_lease ON jobs (lease_id) WHERE lease_id IS NOT NULL",
            "CREATE INDEX jobs_id ON jobs (queue, event_id)",
            "CREATE INDEX jobs_born ON jobs (queue, born_at) WHERE state = 'waiting'",
            "CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL",
            # Of events that have left the log, what a job still needs.
            "CREATE TABLE job_contents (position INTEGER PRIMARY KEY, inbox TEXT NOT NULL, type TEXT NOT NULL,"
            " event_id TEXT NOT NULL, created_at TEXT NOT NULL, payload BLOB NOT NULL, traceparent TEXT,"
            " account TEXT NOT NULL) STRICT",
            "CREATE TRIGGER jobs_keep BEFORE DELETE ON events BEGIN"
            f" INSERT OR IGNORE INTO job_contents SELECT {_COLUMNS}, OLD.account WHERE EXISTS"
            f" (SELECT 1 FROM jobs WHERE {_OF_ACCOUNT} AND state <> 'acked');"
            f" DELETE FROM jobs WHERE {_OF_ACCOUNT} AND state = 'acked'; END",
            "CREATE TABLE job_counts (queue INTEGER NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL,"
            " PRIMARY KEY (queue, state)) STRICT, WITHOUT ROWID",
            "CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN INSERT INTO job_counts"
            " VALUES (NEW.queue, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END",
            "CREATE TRIGGER jobs_gone AFTER DELETE ON jobs BEGIN"
            " UPDATE job_counts SET n = n - 1 WHERE queue = OLD.queue AND state = OLD.state; END",
            "CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state BEGIN"
            " UPDATE job_counts SET n = n - 1 WHERE queue = OLD.queue AND state = OLD.state;"
            " INSERT INTO job_counts VALUES (NEW.queue, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END",
        ),
        (
            "CREATE INDEX jobs_dead ON jobs (queue, position) WHERE state = 'dead'",
            "CREATE INDEX jobs_died ON jobs (ended_at) WHERE state = 'dead'",
        ),
    ),
)
"""Its room stands on that of the events."""

_OF_EVENT = "inbox, type, event_id, created_at, payload, traceparent"
PLACES: Final = ("events", "job_contents", "kept")
"""Where an event may be: in the log, among those that have left it, or beside a log that is elsewhere (`kept`)."""
_CONTENT: Final = content_of(_OF_EVENT, PLACES, "queues")
_DUE: Final = f"queue = ?1 AND state = 'waiting' AND line < 2 AND {in_log('queues')}"
_ADD_COLUMNS: Final = 9
_ADD: Final = inserts(
    "INSERT OR IGNORE INTO jobs (queue, position, key, line, due_at, born_at, inbox, type, event_id, state)",
    _ADD_COLUMNS,
    ", 'waiting'",
)


class Intake(Struct, frozen=True):
    """Which of an account's events one queue gets, and in which order they are to be done."""

    queue: int
    selection: Selection
    types: TypeFilter | None
    order: str
    """`thread`, `inbox` or `none`."""

    def wants(self, entry: Entry) -> bool:
        """Whether an event is for this queue: not, if it tells of queues."""
        if entry.inbox not in self.selection or not (self.types is None or self.types.accepts(entry.type)):
            return False
        return not entry.type.startswith("queue.")


class Terms(Struct, frozen=True):
    """How a queue's jobs are given, and given up."""

    queue: int
    max_attempts: int
    stops: bool
    """Whether a key stays shut behind a dead job, until that is done again."""


class Worker(Struct, frozen=True):
    """Who waits for jobs. ``ticket`` tells one from another."""

    ticket: int
    client_id: str
    most: int
    seconds: float


class Lease(Struct, frozen=True):
    """A job that was given, with its event."""

    lease_id: str
    position: int
    attempt: int
    until: float
    event: PreparedEvent


class Fallen(Struct, frozen=True):
    """What jobs have fallen back to: these leases are over, and these events are dead."""

    lease_ids: list[str]
    dead: list[str]


class Granted(Struct, frozen=True):
    """What was given to whom, what fell back before, and when there may be more; None: that is not known to come."""

    leases: dict[int, list[Lease]]
    fallen: Fallen
    waiting: int
    next_due: float | None


class Settled(Struct, frozen=True):
    """What became of leases that somebody named. ``dead``: events that are dead now, by their queue."""

    done: list[str]
    lost: list[str]
    dead: dict[int, list[str]] = {}


class _Message(Struct):
    thread_id: str | None = None


class _Payload(Struct):
    message: _Message | None = None


_decode_payload = msgspec.json.Decoder(_Payload).decode


def key_of(order: str, entry: Entry) -> bytes:
    """Return which line an event stands in: its thread's, else its inbox's; empty: in none."""
    if order == "none":
        return b""
    name = f"inbox {entry.inbox}"
    if order == "thread" and entry.event is not None:
        try:
            message = _decode_payload(entry.event.payload).message
        except msgspec.MsgspecError:
            message = None  # it is no mail as the plan has it
        if message is not None and message.thread_id:
            name = f"thread {message.thread_id}"
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def add(connection: sqlite3.Connection, intakes: Sequence[Intake], entries: Sequence[Entry], now: float) -> list[int]:
    """Add a job for each event and each queue that it is for, in the events' own transaction; return these queues."""
    queues = []
    rows: list[Any] = []
    keys: dict[tuple[str, int], bytes] = {}
    for intake in intakes:
        before = len(rows)
        taken: set[bytes] = set()
        for entry in entries:
            if intake.wants(entry):
                known = (intake.order, entry.position)
                key = keys[known] if known in keys else keys.setdefault(known, key_of(intake.order, entry))
                behind = bool(key) and (key in taken or _first(connection, intake.queue, key, HEAD) is not None)
                taken.add(key)
                line = ALONE if not key else BEHIND if behind else HEAD
                rows += (intake.queue, entry.position, key, line, now, now, entry.inbox, entry.type, entry.event_id)
        if len(rows) > before:
            queues.append(intake.queue)
    for size, some in in_statements(rows, _ADD_COLUMNS):
        connection.execute(_ADD[size], some)
    return queues


def _first(connection: sqlite3.Connection, queue: int, key: bytes, line: int) -> int | None:
    """Return the first job of a key that stands so in its line; None: there is none."""
    statement = "SELECT position FROM jobs WHERE queue = ? AND key = ? AND line = ? AND line > 0 LIMIT 1"
    row = connection.execute(statement, (queue, key, line)).fetchone()
    return None if row is None else row[0]


def move_up(connection: sqlite3.Connection, queue: int, key: bytes, prefers: str = "") -> None:
    """Let the next of a key's line be its head, if it has none; ``prefers``: who is to have it, if that one waits."""
    if key and _first(connection, queue, key, HEAD) is None:
        following = _first(connection, queue, key, BEHIND)
        if following is not None:
            connection.execute(
                "UPDATE jobs SET line = 1, prefers = ? WHERE queue = ? AND position = ?", (prefers, queue, following)
            )


KIND: Final = Kind("jobs", "queue", "queues", "key", move_up)

# --- given


def grant(
    connection: sqlite3.Connection,
    terms: Terms,
    workers: Sequence[Worker],
    now: float,
    new_id: Callable[[int, int], str],
) -> Granted:
    """Give what is due to those who wait, in their order. ``new_id`` makes a lease's, of queue and attempt."""
    fallen = expire(connection, terms, now)
    room = {worker.ticket: worker.most for worker in workers}
    leases: dict[int, list[Lease]] = {}
    most = min(GRANTS, sum(room.values()), MAX_LEASED - counts(connection, terms.queue).get("leased", 0))
    statement = (
        f"SELECT position, attempts, prefers FROM jobs WHERE {_DUE} AND due_at <= ?2 ORDER BY due_at, position LIMIT ?3"
    )
    size = 0
    for position, attempts, prefers in connection.execute(statement, (terms.queue, now, max(most, 0))).fetchall():
        content = connection.execute(_CONTENT, (position, terms.queue)).fetchone()
        if content is None:
            end_job(connection, terms.queue, position, "dead", now, "gone")
            continue
        worker = _choose(workers, room, prefers)
        if worker is None or size >= GRANT_BYTES:
            break
        size += len(content[4])
        lease = _lease(connection, terms.queue, position, attempts + 1, worker, now, new_id, content)
        if lease is not None:
            room[worker.ticket] -= 1
            leases.setdefault(worker.ticket, []).append(lease)
    waiting = counts(connection, terms.queue).get("waiting", 0)
    return Granted(leases, fallen, waiting, next_due(connection, terms.queue))


def _choose(workers: Iterable[Worker], room: Mapping[int, int], prefers: str) -> Worker | None:
    able = [worker for worker in workers if room[worker.ticket]]
    preferred = [worker for worker in able if prefers and worker.client_id == prefers]
    return next(iter(preferred or able), None)


def _lease(
    connection: sqlite3.Connection,
    queue: int,
    position: int,
    attempt: int,
    worker: Worker,
    now: float,
    new_id: Callable[[int, int], str],
    content: tuple[str, str, str, str, bytes, str | None],
) -> Lease | None:
    """Give one job, if nobody has it."""
    lease_id, until = new_id(queue, attempt), now + worker.seconds
    given = connection.execute(
        "UPDATE jobs SET state = 'leased', attempts = ?, lease_id = ?, until = ?, holder = ?, leased_at = ?"
        " WHERE queue = ? AND position = ? AND state = 'waiting'",
        (attempt, lease_id, until, worker.client_id, now, queue, position),
    ).rowcount
    if not given:
        return None
    return Lease(lease_id, position, attempt, until, _event(*content))


def _event(
    inbox: str, kind: str, event_id: str, created_at: str, payload: bytes, traceparent: str | None
) -> PreparedEvent:
    return PreparedEvent(kind, inbox or None, event_id, created_at, payload, None, traceparent)


def next_due(connection: sqlite3.Connection, queue: int) -> float | None:
    """Return when the first of a queue's jobs may be given; None: none waits, or is at work."""
    [due_at] = connection.execute(f"SELECT min(due_at) FROM jobs WHERE {_DUE}", (queue,)).fetchone()
    until = next_over(connection, queue)
    return min((float(moment) for moment in (due_at, until) if moment is not None), default=None)


def next_over(connection: sqlite3.Connection, queue: int) -> float | None:
    """Return when the first of a queue's leases is over; None: there is none."""
    [until] = connection.execute(
        "SELECT min(until) FROM jobs WHERE queue = ? AND state = 'leased'", (queue,)
    ).fetchone()
    return None if until is None else float(until)


def expire(connection: sqlite3.Connection, terms: Terms, now: float) -> Fallen:
    """Let leases be over whose time is, a page of them."""
    statement = (
        "SELECT position, attempts, lease_id, event_id FROM jobs WHERE queue = ? AND state = 'leased' AND until <= ?"
        " ORDER BY until LIMIT ?"
    )
    fallen = Fallen([], [])
    for position, attempts, lease_id, event_id in connection.execute(statement, (terms.queue, now, GRANTS)).fetchall():
        fallen.lease_ids.append(lease_id)
        if _fall_back(connection, terms, position, attempts, now, now, "expired"):
            fallen.dead.append(event_id)
    return fallen


def expire_and_look_on(connection: sqlite3.Connection, terms: Terms, now: float) -> tuple[Fallen, float | None]:
    """The same; return beside it when the first of the others is over."""
    return expire(connection, terms, now), next_over(connection, terms.queue)


# --- settled by who has the lease


def ack(connection: sqlite3.Connection, queues: Collection[int], lease_ids: Iterable[str], now: float) -> Settled:
    """End the jobs of these leases, as far as they are current and of these queues."""
    settled = Settled([], [])
    for lease_id in lease_ids:
        row = _current(connection, queues, lease_id, now)
        if row is None:
            settled.lost.append(lease_id)
        else:
            end_job(connection, row[0], row[1], "acked", now, None)
            settled.done.append(lease_id)
    return settled


def hold(
    connection: sqlite3.Connection, queues: Collection[int], lease_ids: Iterable[str], until: float, now: float
) -> Settled:
    """Let these leases last until a time, as far as they are current and of these queues."""
    settled = Settled([], [])
    for lease_id in lease_ids:
        row = _current(connection, queues, lease_id, now)
        if row is None:
            settled.lost.append(lease_id)
        else:
            connection.execute("UPDATE jobs SET until = ? WHERE queue = ? AND position = ?", (until, row[0], row[1]))
            settled.done.append(lease_id)
    return settled


def nack(
    connection: sqlite3.Connection,
    queues: Mapping[int, Terms],
    lease_ids: Iterable[str],
    due_at: Callable[[int], float],
    now: float,
    *,
    dead: bool = False,
    reason: str | None = None,
) -> Settled:
    """Give these leases back, as far as they are current and of these queues: later again (by attempt), or dead."""
    settled = Settled([], [], {})
    for lease_id in lease_ids:
        row = _current(connection, queues, lease_id, now)
        if row is None:
            settled.lost.append(lease_id)
            continue
        queue, position, attempts, event_id = row
        settled.done.append(lease_id)
        terms = queues[queue]
        if dead:
            end_job(connection, queue, position, "dead", now, reason, stops=terms.stops)
        if dead or _fall_back(connection, terms, position, attempts, due_at(attempts), now, reason):
            settled.dead.setdefault(queue, []).append(event_id)
    return settled


def free(connection: sqlite3.Connection, lease_ids: Iterable[str], now: float) -> Settled:
    """Give leases back that nobody worked at: what was given is as if it had not been."""
    settled = Settled([], [])
    for lease_id in lease_ids:
        freed = connection.execute(
            "UPDATE jobs SET state = 'waiting', attempts = attempts - 1, lease_id = NULL, until = NULL"
            " WHERE lease_id = ? AND state = 'leased' AND until > ?",
            (lease_id, now),
        ).rowcount
        (settled.done if freed else settled.lost).append(lease_id)
    return settled


def _current(
    connection: sqlite3.Connection, queues: Collection[int], lease_id: str, now: float
) -> tuple[int, int, int, str] | None:
    """Return queue, position, attempts and event of a lease; None: it is over, or of another queue."""
    row: tuple[int, int, int, str] | None = connection.execute(
        "SELECT queue, position, attempts, event_id FROM jobs WHERE lease_id = ? AND state = 'leased' AND until > ?",
        (lease_id, now),
    ).fetchone()
    return row if row is not None and row[0] in queues else None


def _fall_back(
    connection: sqlite3.Connection,
    terms: Terms,
    position: int,
    attempts: int,
    due_at: float,
    now: float,
    reason: str | None,
) -> bool:
    """Let a job that failed wait again; or be dead, if it has failed too often. Returns whether it is dead."""
    if attempts >= terms.max_attempts:
        end_job(connection, terms.queue, position, "dead", now, reason, stops=terms.stops)
        return True
    connection.execute(
        "UPDATE jobs SET state = 'waiting', due_at = ?, lease_id = NULL, until = NULL, reason = ?"
        " WHERE queue = ? AND position = ?",
        (due_at, reason, terms.queue, position),
    )
    return False


def end_job(
    connection: sqlite3.Connection,
    queue: int,
    position: int,
    state: Literal["acked", "dead"],
    now: float,
    reason: str | None,
    *,
    stops: bool = False,
) -> None:
    """End a job; whoever stands behind it moves up, unless its key ``stops`` at a head that is dead."""
    statement = "SELECT key, line, holder FROM jobs WHERE queue = ? AND position = ?"
    key, line, holder = connection.execute(statement, (queue, position)).fetchone()
    is_shut = stops and line == HEAD
    connection.execute(
        "UPDATE jobs SET state = ?, line = ?, lease_id = NULL, until = NULL, reason = ?, ended_at = ?"
        " WHERE queue = ? AND position = ?",
        (state, HEAD if is_shut else ALONE, reason, now, queue, position),
    )
    if line == HEAD and not is_shut:
        move_up(connection, queue, key, holder if state == "acked" else "")


def counts(connection: sqlite3.Connection, queue: int | None = None) -> dict[State, int]:
    """Return how many jobs there are in each state, of one queue or of all."""
    which = "" if queue is None else " WHERE queue = ?"
    statement = f"SELECT state, sum(n) FROM job_counts{which} GROUP BY state"
    return dict(connection.execute(statement, () if queue is None else (queue,)).fetchall())
