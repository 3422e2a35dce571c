"""A long list of events, written part by part, so that others' commits come between where somebody waits. For threads.

A list is stored whole or not at all. Between two of its commits a row of ``unfinished`` says from which position on the
account's events are nobody's yet: its head stands before them, so no cursor, no page and no count reaches them, and no
other event of the account is written meanwhile. Of what is written beside them nothing is given, by that row. The last
part moves the head and takes that row away, in one transaction. What a list has left that did not come to its end is
taken back: by the account's next publish, or when the file is opened.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from ...protocol.messages import PreparedEvent
from .rows import Publish, Written

PART: Final = 256
"""Rows, of events and beside them, that are written before it is looked whether somebody waits: some milliseconds."""
_MARK: Final = "INSERT INTO unfinished VALUES (?, ?) ON CONFLICT DO NOTHING"
_FINISH: Final = "DELETE FROM unfinished WHERE account = ?"

WritePart = Callable[[sqlite3.Connection, Publish], tuple[Written, dict[str, int]]]
"""Stores a part behind the heads of its accounts; returns what became of it, and the new heads."""
Finish = Callable[[sqlite3.Connection, Publish, Written, dict[str, int]], None]
"""Makes the whole the log's: writes heads, and the answer."""
TakeBack = Callable[[sqlite3.Connection, str, int], None]
"""Takes back what is beside an account's events from a position on."""


class Lists:
    """The long lists of one engine: one at a time is written. For the writer's thread, but for `of`."""

    def __init__(self, write: WritePart, finish: Finish, take_back_beside: TakeBack) -> None:
        self.write = write
        self.finish = finish
        self._take_back_beside = take_back_beside
        self.under_way: Collection[str] = ()
        """The accounts of the list that is being written now."""
        self.has_left = False
        """Whether one that failed may have left something."""

    def of(self, publish: Publish, rows: int) -> "LongList":
        """Return a publish as work that is written part by part; each event is so many rows at most."""
        return LongList(self, publish, rows)

    def take_back(self, connection: sqlite3.Connection) -> None:
        """Take back what those have left that failed, if any did: before anything of their accounts is stored."""
        if self.has_left:
            take_back(connection, self._take_back_beside, self.under_way)


class LongList:
    """One publish that brings much. To be called, or to be written part by part: `log.writing.InParts`."""

    def __init__(self, lists: Lists, publish: Publish, rows: int) -> None:
        self._lists = lists
        self._publish = publish
        self._parts = list(_parts_of(publish, max(1, PART // rows)))[::-1]
        """Those that are still to be written, the next one last."""
        self._written = Written({account_id: [] for account_id in publish.by_account}, {})
        self._heads: dict[str, int] = {}
        self._paused = False

    def __call__(self, connection: sqlite3.Connection) -> Written:
        """Write all of it; return what became of it."""
        while self.write_part(connection):
            pass
        return self.outcome

    @property
    def outcome(self) -> Written:
        """What became of it, when it is written."""
        return self._written

    def write_part(self, connection: sqlite3.Connection) -> bool:
        """Write the next part. Returns whether there are more; after the last one the events are the log's."""
        written, heads = self._lists.write(connection, self._parts.pop())
        for account_id, stored in written.stored.items():
            self._written.stored[account_id] += stored
        for account_id, fresh in written.fresh.items():
            self._written.fresh.setdefault(account_id, []).extend(fresh)
        self._heads |= heads
        if self._parts:
            return True
        if self._paused:
            connection.executemany(_FINISH, [(account_id,) for account_id in self._heads])
            self._lists.under_way = ()
        self._lists.finish(connection, self._publish, self._written, self._heads)
        return False

    def pause(self, connection: sqlite3.Connection) -> None:
        """Note what is written by now and not the log's: a commit comes before the rest."""
        self._paused, self._lists.under_way = True, self._publish.by_account.keys()
        firsts = [(account_id, fresh[0].position) for account_id, fresh in self._written.fresh.items()]
        connection.executemany(_MARK, firsts)

    def give_up(self) -> None:
        """Hear that it failed: what it has left is to be taken back."""
        if self._paused:
            self._lists.under_way, self._lists.has_left = (), True


def _parts_of(publish: Publish, most: int) -> Iterator[Publish]:
    """Yield a publish in parts of so many events, without its answer, which is that of all together."""
    part: dict[str, Sequence[PreparedEvent]] = {}
    room = most
    for account_id, events in publish.by_account.items():
        start = 0
        while start < len(events):
            part[account_id] = events[start : start + room]
            start += len(part[account_id])
            room -= len(part[account_id])
            if not room:
                yield replace(publish, by_account=part, answer=None)
                part, room = {}, most
    if part:
        yield replace(publish, by_account=part, answer=None)


def first_unfinished(connection: sqlite3.Connection) -> int | None:
    """Return the first position that is nobody's yet; None: there is none."""
    (first,) = connection.execute("SELECT min(first) FROM unfinished").fetchone()
    return None if first is None else int(first)


def take_back(connection: sqlite3.Connection, beside: TakeBack, but_not: Collection[str] = ()) -> None:
    """Take back what lists have left that did not come to their end, but not of some accounts."""
    left = connection.execute("SELECT account, first FROM unfinished").fetchall()
    for account_id, first in left:
        if account_id not in but_not:
            beside(connection, account_id, first)  # while its events are there: what is kept of those that go is not
            connection.execute("DELETE FROM events WHERE account = ? AND position >= ?", (account_id, first))
            connection.execute(_FINISH, (account_id,))
