"""What clients acknowledge and hold of what is owed to webhook endpoints. For the writer's thread.

Of a client and a post that begins exactly one wins each letter, because both are written by the one writer: what waits
is acknowledged, what was begun is told (``claimed``). SQLite gives the interpreter's lock away at each step, and has it
back when others leave it: so each piece of work is few statements, whatever it is for.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable
from typing import Final

from msgspec import Struct

from ..errors import RequestError
from ..protocol.selection import Selection
from .letters import move_up
from .owed import HEAD, PAGE, STRIDE
from .statements import in_log

MAX_OF_IDS: Final = 1_024
"""Letters that the ids of one piece of work may have; in how many inboxes an id is, is the publisher's choice."""

_IN_LOG: Final = in_log("webhooks", "json_extract(?1, '$[0]')")
"""All are of one account."""
_FOUND: Final = "SELECT json_group_array(json_array(webhook, position, inbox, type, event_id, state, line))"
_NOT_ACKED: Final = "state IN ('waiting', 'sending', 'delivered') AND acked_at IS NULL"
_OF_IDS: Final = (
    f"{_FOUND} FROM (SELECT * FROM letters WHERE webhook IN (SELECT value FROM json_each(?1))"
    " AND event_id IN (SELECT value FROM json_each(?2)) AND (?3 IS NULL OR inbox = ?3)"
    f" AND {_IN_LOG} AND {_NOT_ACKED} ORDER BY webhook, event_id LIMIT ?4)"
)
_RANGE: Final = "FROM letters WHERE webhook = ?1 AND position > ?2 AND position <= ?3 ORDER BY position"
_OF_RANGE: Final = (
    f"{_FOUND}, (SELECT position {_RANGE} LIMIT 1 OFFSET {STRIDE - 1})"
    f" FROM (SELECT * FROM (SELECT * {_RANGE} LIMIT {STRIDE}) WHERE {_NOT_ACKED} LIMIT ?4)"
)
_THESE: Final = (
    "(webhook, position) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
)


class Acknowledged(Struct, frozen=True):
    """What an acknowledgement found. ``claimed``: ids of events that a webhook began with first."""

    acked: int
    claimed: list[str]
    reached: int
    """All up to here was looked at."""


class _Found(Struct, frozen=True, array_like=True):
    """A letter that nobody has acknowledged."""

    webhook: int
    position: int
    inbox: str
    type: str
    event_id: str
    state: str
    line: int

    @property
    def waits(self) -> bool:
        """Whether no webhook began with it."""
        return self.state == "waiting"


def acknowledge_range(
    connection: sqlite3.Connection,
    webhooks: Collection[int],
    client_id: str,
    covers: Callable[[int, str, str], bool],
    after: int,
    through: int,
    now: float,
) -> Acknowledged:
    """Acknowledge what lies after one position and up to another, a page of it: ``reached`` says how far.

    ``covers`` is asked with position, inbox and type of each event whether the client acknowledges it.
    """
    found: list[_Found] = []
    reached = through
    most = max(1, PAGE // len(webhooks))
    for webhook in webhooks:
        rows, last = connection.execute(_OF_RANGE, (webhook, after, through, most)).fetchone()
        letters = _decoded(rows)
        if len(letters) == most:
            last = max(letter.position for letter in letters)
        reached = reached if last is None else min(reached, last)
        found += letters
    covered = [each for each in found if each.position <= reached and covers(each.position, each.inbox, each.type)]
    return _acknowledge(connection, covered, client_id, reached, now)


def acknowledge_ids(
    connection: sqlite3.Connection,
    webhooks: Collection[int],
    client_id: str,
    event_ids: Collection[str],
    reach: Selection,
    now: float,
) -> Acknowledged:
    """Acknowledge events by their ids, in the inboxes of ``reach``. Raises `RequestError` if these are too many."""
    return _acknowledge(connection, _of_ids(connection, webhooks, event_ids, reach), client_id, 0, now)


def hold_ids(
    connection: sqlite3.Connection,
    webhooks: Collection[int],
    event_ids: Collection[str],
    reach: Selection,
    until: float,
) -> Acknowledged:
    """Let events wait until a time at least, if no webhook began with them (``claimed``). Raises `RequestError`."""
    found = _of_ids(connection, webhooks, event_ids, reach)
    waiting = [letter for letter in found if letter.waits]
    connection.execute(f"UPDATE letters SET due_at = max(due_at, ?) WHERE {_THESE}", (until, _these(waiting)))
    return Acknowledged(len(waiting), _begun(found), 0)


def _acknowledge(
    connection: sqlite3.Connection, found: list[_Found], client_id: str, reached: int, now: float
) -> Acknowledged:
    """Acknowledge letters: those that wait are not sent any more, and whoever stands behind them moves up."""
    waiting = [letter for letter in found if letter.waits]
    connection.execute(
        f"UPDATE letters SET state = 'acked', acked_at = ?1, acked_by = ?2, ended_at = ?1, line = 0 WHERE {_THESE}",
        (now, client_id, _these(waiting)),
    )
    connection.execute(
        f"UPDATE letters SET acked_at = ?, acked_by = ? WHERE {_THESE}",
        (now, client_id, _these(letter for letter in found if not letter.waits)),
    )
    for webhook, inbox in dict.fromkeys((each.webhook, each.inbox) for each in waiting if each.line == HEAD):
        move_up(connection, webhook, inbox)
    return Acknowledged(len(waiting), _begun(found), reached)


def _of_ids(
    connection: sqlite3.Connection, webhooks: Collection[int], event_ids: Collection[str], reach: Selection
) -> list[_Found]:
    """Return the letters of these events that are not acknowledged yet. Raises `RequestError` if these are too many."""
    named = None if reach.inboxes is None or len(reach.inboxes) > 1 else next(iter(reach.inboxes), None)
    asked = (json.dumps(list(webhooks)), json.dumps(list(event_ids)), named, MAX_OF_IDS + 1)
    [rows] = connection.execute(_OF_IDS, asked).fetchone()
    found = _decoded(rows)
    if len(found) > MAX_OF_IDS:
        raise RequestError("too_large", "These ids are in too many inboxes: name one as `inbox_id` - at `event_ids`")
    return [letter for letter in found if letter.inbox in reach]


def _decoded(rows: str) -> list[_Found]:
    return [_Found(*row) for row in json.loads(rows)]


def _these(letters: Iterable[_Found]) -> str:
    return json.dumps([(letter.webhook, letter.position) for letter in letters])


def _begun(letters: Iterable[_Found]) -> list[str]:
    """Return the ids of those that a webhook had begun with, each once."""
    return list(dict.fromkeys(letter.event_id for letter in letters if not letter.waits))
