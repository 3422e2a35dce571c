"""Events as rows of a log on disk: written in bulk, found by their ids, read in order, trimmed. For threads.

* ``events``: what is kept, whole. ``known``: of what left it the place and the id, for counts and for what comes twice.
* ``ids_a``, ``ids_b``: which ids there were lately, as 63 bits of a hash, in two generations: new ones go into the
  younger, and when that is a day old, or full, the older is emptied, some with each commit, and takes its place. So ids
  are forgotten after a day at the soonest. What a hash finds is compared with the row's own id.
* ``accounts``: the newest position of each account, when that was stored, and how far its events have left.
* ``unfinished``: from where on an account's events are of a list that is being written (`lists`), and not the log's.

SQLite gives the interpreter's lock away at each step: so a statement takes as many rows as it can.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal

from msgspec import Struct

from ...protocol.messages import Entry, PreparedEvent
from ...protocol.selection import ACCOUNT_EVENTS
from ..database import Room
from ..engines import Answer, Stored
from ..kept import KEPT_TABLES
from ..statements import SIZES, in_statements, inserts

EVENTS: Final = Room(
    "events",
    (
        (
            "CREATE TABLE events (position INTEGER PRIMARY KEY, account TEXT NOT NULL, inbox TEXT NOT NULL,"
            " type TEXT NOT NULL, event_id TEXT NOT NULL, created_at TEXT NOT NULL, stored_at REAL NOT NULL,"
            " payload BLOB NOT NULL, traceparent TEXT) STRICT",
            "CREATE INDEX events_by_account ON events (account, position, inbox)",
            "CREATE INDEX events_by_inbox ON events (account, inbox, position)",
            "CREATE TABLE known (position INTEGER PRIMARY KEY, account TEXT NOT NULL, inbox TEXT NOT NULL,"
            " event_id TEXT NOT NULL, stored_at REAL NOT NULL) STRICT",
            "CREATE INDEX known_by_account ON known (account, position)",
            "CREATE INDEX known_by_inbox ON known (account, inbox, position)",
            "CREATE TABLE ids_a (key INTEGER PRIMARY KEY, position INTEGER NOT NULL) STRICT",
            "CREATE TABLE ids_b (key INTEGER PRIMARY KEY, position INTEGER NOT NULL) STRICT",
            "CREATE TABLE accounts (account TEXT PRIMARY KEY, head INTEGER NOT NULL, head_at REAL NOT NULL,"
            " dropped_through INTEGER NOT NULL, known_after INTEGER NOT NULL) STRICT, WITHOUT ROWID",
        ),
        KEPT_TABLES,
        ("CREATE TABLE unfinished (account TEXT PRIMARY KEY, first INTEGER NOT NULL) STRICT, WITHOUT ROWID",),
    ),
)
ID_SECONDS: Final = 86_400.0
"""How long an id is known at least (PROTOCOL section 6)."""
ID_ROWS: Final = 5_000_000
"""Of one generation: then the next one begins, whatever its age."""
FORGOTTEN_IDS: Final = 8_192
"""Of an older generation whose time is over, in one step: about two milliseconds."""

_EVENT_COLUMNS: Final = 9
_COLUMNS: Final = "account, position, inbox, type, event_id, created_at, stored_at, payload, traceparent"
_HEAD: Final = (
    "INSERT INTO accounts VALUES (?, ?, ?, 0, 0)"
    " ON CONFLICT (account) DO UPDATE SET head = excluded.head, head_at = excluded.head_at"
)
_IDENTITY: Final = (
    "SELECT account, inbox, event_id FROM events WHERE position = ?1"
    " UNION ALL SELECT account, inbox, event_id FROM known WHERE position = ?1"
)
_SET: Final = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"

Identity = tuple[str, str, str]
"""Account, inbox, event id."""


class Publish(Struct, frozen=True):
    """What one `begin` brings. ``prefixes``: what the cursors of each account begin with. ``answer``: if it is kept."""

    by_account: Mapping[str, Sequence[PreparedEvent]]
    prefixes: Mapping[str, str]
    answer: Answer | None = None


class Written(Struct):
    """What became of a `Publish`: where its events are, and those of them that are new, as a log takes them."""

    stored: dict[str, list[Stored]]
    fresh: dict[str, list[Entry]]


def key_of(identity: Identity) -> int:
    """Return 63 bits that stand for an event's identity."""
    digest = blake2b("\0".join(identity).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


_INSERT_EVENTS: Final = inserts("INSERT INTO events", _EVENT_COLUMNS)


class Ids:
    """The ids that are known, in two generations. Reads which one is the younger when it is made."""

    def __init__(self, connection: sqlite3.Connection, *, max_rows: int = ID_ROWS) -> None:
        meta = dict(connection.execute("SELECT name, value FROM meta WHERE name GLOB 'ids.*'"))
        self._max_rows = max_rows
        self._begun_at = float(meta.get("ids.begun_at", 0.0))
        self._use(str(meta.get("ids.younger", "a")))
        self._rows = int(connection.execute(f"SELECT count(*) FROM {self._younger}").fetchone()[0])

    def _use(self, younger: str) -> None:
        self._younger = f"ids_{younger}"
        self._older = f"ids_{'b' if younger == 'a' else 'a'}"
        into = f"INSERT OR REPLACE INTO {self._younger}"
        self._insert = inserts(into, 2)
        self._find = {size: self._find_statement(size) for size in SIZES}

    def _find_statement(self, size: int) -> str:
        keys = ",".join(f"?{number}" for number in range(1, size + 1))
        generations = (self._older, self._younger)  # the younger one counts, if a key is in both
        return " UNION ALL ".join(f"SELECT key, position FROM {table} WHERE key IN ({keys})" for table in generations)

    def find(self, connection: sqlite3.Connection, keys: Sequence[int]) -> dict[int, int]:
        """Return the positions of those keys that are known."""
        found: dict[int, int] = {}
        for size, some in in_statements(keys, 1):
            found.update(connection.execute(self._find[size], some))
        return found

    def add(self, connection: sqlite3.Connection, keys: Sequence[int], first: int, now: float) -> None:
        """Add keys, whose positions are counted from ``first``."""
        is_over = self._rows >= self._max_rows or now - self._begun_at >= ID_SECONDS
        if is_over and not self.forget_older(connection):
            self._begin_generation(connection, now)
        rows = [number for pair in zip(keys, range(first, first + len(keys)), strict=True) for number in pair]
        for size, some in in_statements(rows, 2):
            connection.execute(self._insert[size], some)
        self._rows += len(keys)

    def forget_older(self, connection: sqlite3.Connection) -> bool:
        """Forget some ids of the older generation. Returns whether there were any."""
        some = f"SELECT key FROM {self._older} LIMIT {FORGOTTEN_IDS}"
        return connection.execute(f"DELETE FROM {self._older} WHERE key IN ({some})").rowcount > 0

    def _begin_generation(self, connection: sqlite3.Connection, now: float) -> None:
        """Go on with the older one, which is empty. If what emptied it is rolled back, that is known for longer."""
        younger = self._older.removeprefix("ids_")
        connection.executemany(_SET, [("ids.younger", younger), ("ids.begun_at", now)])
        self._use(younger)
        self._begun_at, self._rows = now, 0


def write_events(
    connection: sqlite3.Connection, ids: Ids, publishes: Sequence[Publish], first: int, now: float, wall: float
) -> tuple[list[Written], dict[str, int], int]:
    """Store the events of some publishes that are new, from position ``first`` on, behind the heads of their accounts.

    ``now`` and ``wall`` are when, by both clocks. Returns what became of them, the heads that are to be written that
    they are the log's, and the next free position.
    """
    identities = [
        (account_id, event.inbox_id or ACCOUNT_EVENTS, event.event_id)
        for publish in publishes
        for account_id, events in publish.by_account.items()
        for event in events
    ]
    keys = [key_of(identity) for identity in identities]
    known = ids.find(connection, keys)
    position = first
    written: list[Written] = []
    placed: dict[Identity, int] = {}
    rows: list[Any] = []
    new_keys: list[int] = []
    heads: dict[str, int] = {}
    each = zip(identities, keys, strict=True)
    for publish in publishes:
        outcome = Written({}, {})
        for account_id, events in publish.by_account.items():
            stored = outcome.stored[account_id] = []
            fresh: list[Entry] = []
            prefix = publish.prefixes[account_id]
            for event in events:
                identity, key = next(each)
                found = placed.get(identity)
                if found is None and key in known:
                    found = _place_of(connection, identity, known[key])
                if found is None:
                    inbox = identity[1]
                    fresh.append(Entry(position, now, event.type, inbox, event.event_id, b"", wall, event))
                    rows += (position, *identity[:2], event.type, event.event_id, event.created_at, wall)
                    rows += (event.payload, event.traceparent)
                    new_keys.append(key)
                    placed[identity] = heads[account_id] = position
                    stored.append(Stored(event.event_id, position, prefix, duplicate=False))
                    position += 1
                else:
                    stored.append(Stored(event.event_id, found, prefix, duplicate=True))
            if fresh:
                outcome.fresh[account_id] = fresh
        written.append(outcome)
    _insert(connection, ids, rows, new_keys, first, wall)
    return written, heads, position


def write_heads(connection: sqlite3.Connection, heads: Mapping[str, int], wall: float) -> None:
    """Let logs reach so far: all of their events up to there are theirs."""
    connection.executemany(_HEAD, [(account_id, head, wall) for account_id, head in heads.items()])


def _place_of(connection: sqlite3.Connection, identity: Identity, position: int) -> int | None:
    """Return where an event is, if what is known at a position is it: the hash of another may be the same."""
    return position if identity in connection.execute(_IDENTITY, (position,)).fetchall() else None


def _insert(
    connection: sqlite3.Connection, ids: Ids, rows: Sequence[Any], keys: Sequence[int], first: int, wall: float
) -> None:
    if keys:
        ids.add(connection, keys, first, wall)
    for size, some in in_statements(rows, _EVENT_COLUMNS):
        connection.execute(_INSERT_EVENTS[size], some)


# --- reading -----------------------------------------------------------------


class AccountRow(Struct, frozen=True):
    """Where an account's log was when the file was closed."""

    account_id: str
    head: int
    head_at: float
    gone_through: int
    """The newest position that is not among those from `first_since` on."""


def last_position(connection: sqlite3.Connection) -> tuple[int, float]:
    """Return the newest position of all accounts, and when it was stored; zeros if there never was one."""
    row = connection.execute("SELECT head, head_at FROM accounts ORDER BY head DESC LIMIT 1").fetchone()
    return (0, 0.0) if row is None else (int(row[0]), float(row[1]))


def first_since(connection: sqlite3.Connection, moment: float, table: Literal["events", "known"] = "events") -> int:
    """Return the first position stored at a moment or later; the one after the last, if there is none.

    Times never go back along positions, so it is searched for.
    """
    least, most = connection.execute(f"SELECT min(position), max(position) + 1 FROM {table}").fetchone()
    if least is None:
        return 0
    while least < most:
        middle = (least + most) // 2
        position, stored_at = connection.execute(
            f"SELECT position, stored_at FROM {table} WHERE position >= ? LIMIT 1", (middle,)
        ).fetchone()
        if stored_at < moment:
            least = position + 1
        else:
            most = middle
    return int(least)


def read_accounts(connection: sqlite3.Connection, after: str, before: int, most: int) -> list[AccountRow]:
    """Return the next accounts by their names, and the newest of their positions before one."""
    rows = connection.execute(
        "SELECT account, head, head_at, max(dropped_through, ifnull("
        "(SELECT max(position) FROM events WHERE events.account = accounts.account AND position < ?), 0))"
        " FROM accounts WHERE account > ? ORDER BY account LIMIT ?",
        (before, after, most),
    )
    return [AccountRow(*row) for row in rows]


def read_events(connection: sqlite3.Connection, after: int, most: int) -> list[tuple[str, Entry]]:
    """Return the next events of all accounts, each with its account, as a log takes them."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM events WHERE position > ? ORDER BY position LIMIT ?", (after, most)
    )
    return [(row[0], _entry(row)) for row in rows]


def read_at(connection: sqlite3.Connection, places: Sequence[int]) -> Iterator[Entry]:
    """Yield the events at some positions, which are in order."""
    for start in range(0, len(places), SIZES[-1]):
        some = places[start : start + SIZES[-1]]
        marks = ",".join("?" * len(some))
        for row in connection.execute(
            f"SELECT {_COLUMNS} FROM events WHERE position IN ({marks}) ORDER BY position", some
        ):
            yield _entry(row)


def _entry(row: Sequence[Any]) -> Entry:
    _, position, inbox, event_type, event_id, created_at, stored_at, payload, traceparent = row
    event = PreparedEvent(event_type, inbox or None, event_id, created_at, payload, None, traceparent)
    return Entry(position, 0.0, event_type, inbox, event_id, b"", stored_at, event)


# --- trimming ----------------------------------------------------------------


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return what is in use of the file: what was freed in it is taken again."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def trim_events(connection: sqlite3.Connection, stored_before: float, keep_from: int, most: int) -> int:
    """Let the oldest events go, but for their places and ids, as many as there are and at most ``most``.

    None of those that were stored at ``stored_before`` or later, nor any from position ``keep_from`` on.
    """
    rows = connection.execute(
        "SELECT position, account, stored_at FROM events WHERE position < ? ORDER BY position LIMIT ?",
        (keep_from, most),
    )
    gone = _old_enough(rows, stored_before)
    if not gone:
        return 0
    through = (max(gone.values()),)
    connection.execute(
        "INSERT INTO known SELECT position, account, inbox, event_id, stored_at FROM events WHERE position <= ?",
        through,
    )
    deleted = connection.execute("DELETE FROM events WHERE position <= ?", through).rowcount
    connection.executemany(
        "UPDATE accounts SET dropped_through = ? WHERE account = ?", [(last, name) for name, last in gone.items()]
    )
    return deleted


def trim_known(connection: sqlite3.Connection, stored_before: float, most: int) -> int:
    """Forget the oldest of what left, at most so many, that were stored before a moment. Returns how many these are."""
    rows = connection.execute("SELECT position, account, stored_at FROM known ORDER BY position LIMIT ?", (most,))
    gone = _old_enough(rows, stored_before)
    if not gone:
        return 0
    deleted = connection.execute("DELETE FROM known WHERE position <= ?", (max(gone.values()),)).rowcount
    connection.executemany(
        "UPDATE accounts SET known_after = ? WHERE account = ?", [(last, name) for name, last in gone.items()]
    )
    return deleted


def _old_enough(rows: Iterable[tuple[int, str, float]], stored_before: float) -> dict[str, int]:
    """Return the last position of each account among the oldest rows that may go."""
    gone: dict[str, int] = {}
    for position, account_id, stored_at in rows:
        if stored_at >= stored_before:
            break
        gone[account_id] = position
    return gone
