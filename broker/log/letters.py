"""What is owed to webhook endpoints, as rows of the log on disk. For the writer's thread, but what only reads.

An event is a *letter* to each endpoint that it is for. It is added in the event's own transaction, and goes from state
to state by compare-and-set in the one writer, so that of a client's acknowledgement and a post that begins exactly one
wins:

| state | next |
|---|---|
| waiting | due: sending (claimed); acknowledged: acked; held: due later; its time is over: dead |
| sending | taken: delivered; failed, or the process ended: waiting (acked if acknowledged meanwhile), or dead |
| delivered, acked, dead | sent again on demand: waiting; after a while, or with its event: gone |

Where an endpoint wants order, a letter stands in its inbox's line: the head is sent, the others wait behind it, due or
not, until it is through, or has failed for an hour and steps aside. What an open letter needs is kept when its event
leaves the log.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from ..protocol.messages import Entry, PreparedEvent
from ..protocol.selection import Selection, TypeFilter
from .database import Room
from .owed import ALONE, BEHIND, HEAD, Kind
from .statements import content_of, in_log, in_statements, inserts

State = Literal["waiting", "sending", "delivered", "acked", "dead"]
STATES: Final[tuple[State, ...]] = ("waiting", "sending", "delivered", "acked", "dead")

ASIDE_SECONDS: Final = 3_600.0
"""How long the head of a line may fail before it steps aside."""
KEPT_SECONDS: Final = 7 * 86_400.0
"""How long it is known what became of a letter; a dead one can be sent again for so long."""

_OPEN = "state IN ('waiting', 'sending')"
_OF_ACCOUNT = "webhook IN (SELECT number FROM webhooks WHERE account = OLD.account) AND position = OLD.position"
LETTERS: Final = Room(
    "letters",
    (
        (
            "CREATE TABLE webhooks (number INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL,"
            " webhook_id TEXT NOT NULL, record BLOB NOT NULL, failing_since REAL,"
            " said_failing INTEGER NOT NULL DEFAULT 0, UNIQUE (account, webhook_id)) STRICT",
            "CREATE TABLE letters (webhook INTEGER NOT NULL, position INTEGER NOT NULL, state TEXT NOT NULL"
            " CHECK (state IN ('waiting', 'sending', 'delivered', 'acked', 'dead')), line INTEGER NOT NULL,"
            " due_at REAL NOT NULL, born_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,"
            " inbox TEXT NOT NULL, type TEXT NOT NULL, event_id TEXT NOT NULL, failing_since REAL,"
            " acked_at REAL, acked_by TEXT, tried_at REAL, status INTEGER, error TEXT, duration_ms INTEGER,"
            " ended_at REAL, PRIMARY KEY (webhook, position)) STRICT, WITHOUT ROWID",
            "CREATE INDEX letters_due ON letters (webhook, due_at, position) WHERE state = 'waiting' AND line < 2",
            f"CREATE INDEX letters_line ON letters (webhook, inbox, line, position) WHERE line > 0 AND {_OPEN}",
            "CREATE INDEX letters_id ON letters (webhook, event_id)",
            "CREATE INDEX letters_born ON letters (born_at) WHERE state = 'waiting'",
            "CREATE INDEX letters_sending ON letters (webhook) WHERE state = 'sending'",
            "CREATE INDEX letters_ended ON letters (ended_at) WHERE ended_at IS NOT NULL",
            # Of events that have left the log, what an open or dead letter still needs.
            "CREATE TABLE contents (position INTEGER PRIMARY KEY, account TEXT NOT NULL, inbox TEXT NOT NULL,"
            " type TEXT NOT NULL, event_id TEXT NOT NULL, created_at TEXT NOT NULL, payload BLOB NOT NULL,"
            " traceparent TEXT) STRICT",
            "CREATE TRIGGER letters_keep BEFORE DELETE ON events BEGIN"
            " INSERT OR IGNORE INTO contents SELECT OLD.position, OLD.account, OLD.inbox, OLD.type, OLD.event_id,"
            f" OLD.created_at, OLD.payload, OLD.traceparent WHERE EXISTS (SELECT 1 FROM letters WHERE {_OF_ACCOUNT}"
            " AND state IN ('waiting', 'sending', 'dead'));"
            f" DELETE FROM letters WHERE {_OF_ACCOUNT} AND state IN ('delivered', 'acked'); END",
            "CREATE TABLE letter_counts (webhook INTEGER NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL,"
            " PRIMARY KEY (webhook, state)) STRICT, WITHOUT ROWID",
            "CREATE TRIGGER letters_added AFTER INSERT ON letters BEGIN INSERT INTO letter_counts"
            " VALUES (NEW.webhook, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END",
            "CREATE TRIGGER letters_gone AFTER DELETE ON letters BEGIN"
            " UPDATE letter_counts SET n = n - 1 WHERE webhook = OLD.webhook AND state = OLD.state; END",
            "CREATE TRIGGER letters_moved AFTER UPDATE OF state ON letters WHEN OLD.state <> NEW.state BEGIN"
            " UPDATE letter_counts SET n = n - 1 WHERE webhook = OLD.webhook AND state = OLD.state;"
            " INSERT INTO letter_counts VALUES (NEW.webhook, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END",
        ),
        (
            "CREATE INDEX letters_dead ON letters (webhook, position) WHERE state = 'dead'",
            "CREATE INDEX letters_died ON letters (ended_at) WHERE state = 'dead'",
        ),
    ),
)
"""Its room stands on that of the events."""

PLACES: Final = ("events", "contents", "kept")
"""Where an event may be: in the log, among those that have left it, or beside a log that is elsewhere (`kept`)."""
_COLUMNS: Final = 8
_ADD: Final = inserts(
    "INSERT OR IGNORE INTO letters (webhook, position, line, due_at, born_at, inbox, type, event_id, state)",
    _COLUMNS,
    ", 'waiting'",
)
_OF_EVENT = "account, inbox, type, event_id, created_at, payload, traceparent"
_CONTENT: Final = content_of(_OF_EVENT, PLACES, "webhooks")
_DUE: Final = f"webhook = ?1 AND state = 'waiting' AND line < 2 AND {in_log('webhooks')}"


class Route(Struct, frozen=True):
    """Which of an account's events one endpoint gets, and when. ``webhook`` is its row's number."""

    webhook: int
    webhook_id: str
    selection: Selection
    types: TypeFilter | None
    delay_seconds: float
    """How long a client may acknowledge an event first; 0: nobody is waited for."""
    in_order: bool

    def wants(self, entry: Entry) -> bool:
        """Whether an event is for this endpoint: not, if it tells of itself."""
        if entry.inbox not in self.selection or not (self.types is None or self.types.accepts(entry.type)):
            return False
        return not entry.type.startswith("webhook.") or entry.event is None or not self._is_told_of(entry.event)

    def _is_told_of(self, event: PreparedEvent) -> bool:
        return f'"webhook_id":"{self.webhook_id}"'.encode() in event.payload


class Letter(Struct, frozen=True):
    """A letter that was claimed, with its event."""

    position: int
    attempts: int
    """With the one that begins now."""
    born_at: float
    account_id: str
    event: PreparedEvent


class Claimed(Struct, frozen=True):
    """What is to be sent now, and when there is more; None: that is not known to come."""

    letters: list[Letter]
    next_due: float | None


class Tried(Struct, frozen=True):
    """What came of an attempt. ``due_at``: of the next one, if it failed; None: there is none."""

    status: int | None
    error: str | None
    duration_ms: int
    due_at: float | None = None


class Seen(Struct, frozen=True):
    """A letter, as its account sees it."""

    position: int
    event_id: str
    type: str
    state: State
    attempts: int
    due_at: float
    tried_at: float | None
    status: int | None
    error: str | None
    duration_ms: int | None
    acked_by: str | None


Due = dict[int, float]
"""When the first of an endpoint's letters may be due, by its number: never too late."""


def add(connection: sqlite3.Connection, routes: Sequence[Route], entries: Sequence[Entry], now: float) -> Due:
    """Add a letter for each event and each endpoint that it is for, in the events' own transaction."""
    due: Due = {}
    rows: list[Any] = []
    for route in routes:
        wanted = [entry for entry in entries if route.wants(entry)]
        if wanted:
            due[route.webhook] = due_at = now + route.delay_seconds
            lines = _lines(connection, route.webhook, wanted) if route.in_order else [ALONE] * len(wanted)
            for entry, line in zip(wanted, lines, strict=True):
                rows += (route.webhook, entry.position, line, due_at, now, entry.inbox, entry.type, entry.event_id)
    for size, some in in_statements(rows, _COLUMNS):
        connection.execute(_ADD[size], some)
    return due


def _lines(connection: sqlite3.Connection, webhook: int, entries: Iterable[Entry]) -> list[int]:
    """Return where new letters stand: at the head where their inbox has no line."""
    taken: set[str] = set()
    lines = []
    for entry in entries:
        inbox = entry.inbox
        behind = inbox in taken or head_of(connection, webhook, inbox) is not None
        taken.add(inbox)
        lines.append(BEHIND if behind else HEAD)
    return lines


def head_of(connection: sqlite3.Connection, webhook: int, inbox: str, line: int = HEAD) -> int | None:
    """Return the first open letter of an inbox that stands so in its line; None: there is none."""
    statement = (
        f"SELECT position FROM letters WHERE webhook = ? AND inbox = ? AND line = ? AND line > 0 AND {_OPEN} LIMIT 1"
    )
    row = connection.execute(statement, (webhook, inbox, line)).fetchone()
    return None if row is None else row[0]


def move_up(connection: sqlite3.Connection, webhook: int, inbox: str) -> None:
    """Let the next of an inbox's line be its head, if it has none."""
    if head_of(connection, webhook, inbox) is None:
        following = head_of(connection, webhook, inbox, BEHIND)
        if following is not None:
            connection.execute("UPDATE letters SET line = 1 WHERE webhook = ? AND position = ?", (webhook, following))


KIND: Final = Kind("letters", "webhook", "webhooks", "inbox", move_up)


def next_due(connection: sqlite3.Connection, webhook: int) -> float | None:
    """Return when the first of an endpoint's letters is due; None: none waits."""
    [due_at] = connection.execute(f"SELECT min(due_at) FROM letters WHERE {_DUE}", (webhook,)).fetchone()
    return None if due_at is None else float(due_at)


def claim(connection: sqlite3.Connection, webhook: int, now: float, most: int) -> Claimed:
    """Claim letters of an endpoint that are due: from here on they are being sent, and nobody else's."""
    statement = (
        f"SELECT position, attempts, born_at FROM letters WHERE {_DUE}"
        " AND due_at <= ?2 ORDER BY due_at, position LIMIT ?3"
    )
    letters = []
    for position, attempts, born_at in connection.execute(statement, (webhook, now, most)).fetchall():
        content = connection.execute(_CONTENT, (position, webhook)).fetchone()
        if content is None:
            end(connection, webhook, position, "dead", now)
            continue
        claimed = connection.execute(
            "UPDATE letters SET state = 'sending', attempts = attempts + 1, tried_at = ?"
            " WHERE webhook = ? AND position = ? AND state = 'waiting'",
            (now, webhook, position),
        )
        if claimed.rowcount == 1:
            account_id, inbox, kind, event_id, created_at, payload, traceparent = content
            event = PreparedEvent(kind, inbox or None, event_id, created_at, payload, None, traceparent)
            letters.append(Letter(position, attempts + 1, born_at, account_id, event))
    return Claimed(letters, next_due(connection, webhook))


def settle(connection: sqlite3.Connection, webhook: int, position: int, tried: Tried, now: float) -> State | None:
    """Note what came of an attempt; return the letter's state by now, None if it is gone."""
    row = connection.execute(
        "SELECT acked_at, failing_since, line, inbox FROM letters WHERE webhook = ? AND position = ?"
        " AND state = 'sending'",
        (webhook, position),
    ).fetchone()
    if row is None:
        return None
    acked_at, failing_since, line, inbox = row
    connection.execute(
        "UPDATE letters SET status = ?, error = ?, duration_ms = ?, failing_since = ?"
        " WHERE webhook = ? AND position = ?",
        (
            tried.status,
            tried.error,
            tried.duration_ms,
            None if tried.error is None else now if failing_since is None else failing_since,
            webhook,
            position,
        ),
    )
    if tried.error is None or acked_at is not None or tried.due_at is None:
        state: State = "delivered" if tried.error is None else "acked" if acked_at is not None else "dead"
        end(connection, webhook, position, state, now)
        return state
    aside = line == HEAD and failing_since is not None and now - failing_since >= ASIDE_SECONDS
    connection.execute(
        "UPDATE letters SET state = 'waiting', due_at = ?, line = ? WHERE webhook = ? AND position = ?",
        (tried.due_at, ALONE if aside else line, webhook, position),
    )
    if aside:
        move_up(connection, webhook, inbox)
    return "waiting"


def give_back(connection: sqlite3.Connection, webhook: int, position: int, now: float) -> None:
    """Let a letter whose attempt was not made wait again, as if it had not been claimed."""
    connection.execute(
        "UPDATE letters SET state = CASE WHEN acked_at IS NULL THEN 'waiting' ELSE 'acked' END,"
        " attempts = attempts - 1, due_at = ? WHERE webhook = ? AND position = ? AND state = 'sending'",
        (now, webhook, position),
    )
    tidy(connection, webhook, position, now)


def end(connection: sqlite3.Connection, webhook: int, position: int, state: State, now: float) -> None:
    """End a letter; whoever stands behind it moves up."""
    connection.execute(
        "UPDATE letters SET state = ?, ended_at = ? WHERE webhook = ? AND position = ?", (state, now, webhook, position)
    )
    tidy(connection, webhook, position, now)


def tidy(connection: sqlite3.Connection, webhook: int, position: int, now: float) -> None:
    """Of a letter that has ended, note when, and let its line move up."""
    row = connection.execute(
        f"SELECT line, inbox FROM letters WHERE webhook = ? AND position = ? AND NOT {_OPEN}", (webhook, position)
    ).fetchone()
    if row is not None:
        connection.execute(
            "UPDATE letters SET line = 0, ended_at = coalesce(ended_at, ?) WHERE webhook = ? AND position = ?",
            (now, webhook, position),
        )
        if row[0] == HEAD:
            move_up(connection, webhook, row[1])


def drop(connection: sqlite3.Connection, webhook: int, position: int, now: float) -> None:
    """Forget a letter that the endpoint may not have any more; whoever stands behind it moves up."""
    end(connection, webhook, position, "dead", now)
    connection.execute("DELETE FROM letters WHERE webhook = ? AND position = ?", (webhook, position))
