"""A long list of events, written part by part, so that others' commits come between where somebody waits. For threads.

A list is stored whole or not at all. Between two of its commits a row of ``unfinished`` says from which position on the
account's events are nobody's yet: its head stands before them, so no cursor, no page and no count reaches them, and no
other event of the account is written meanwhile. Of what is written beside them nothing is given, by that row. The last
part moves the head and takes that row away, in one transaction.

What a list has left that did not come to its end is taken back in parts, too: by the list itself before it is told so,
as long as the disk lets it; else by the account's next publish, from time to time, or when the file is opened. It goes
from its end on, and that row last: so whenever the process ends there, the rest is nobody's still.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from ...errors import RequestError
from ...protocol.messages import PreparedEvent
from .rows import Publish, Written

PART: Final = 256
"""Rows, of events and beside them, that are written before it is looked whether somebody waits: some milliseconds."""
_MARK: Final = "INSERT INTO unfinished VALUES (?, ?) ON CONFLICT DO NOTHING"
_FINISH: Final = "DELETE FROM unfinished WHERE account = ?"
_TAKE_BACK: Final = (
    "DELETE FROM events WHERE position IN"
    " (SELECT position FROM events WHERE account = ? AND position >= ? ORDER BY position DESC LIMIT ?)"
)

WritePart = Callable[[sqlite3.Connection, Publish], tuple[Written, dict[str, int]]]
"""Stores a part behind the heads of its accounts; returns what became of it, and the new heads."""
Finish = Callable[[sqlite3.Connection, Publish, Written, dict[str, int]], None]
"""Makes the whole the log's: writes heads, and the answer."""
TakeBack = Callable[[sqlite3.Connection, str, int, int], int]
"""Takes back what is beside an account's events from a position on, so many rows at most; returns how many."""
TakePartBack = Callable[[sqlite3.Connection], bool]
"""Takes back a part of what lists have left; returns whether there is more."""


class Lists:
    """The long lists of one engine: one at a time is written. For the writer's thread, but for `of`."""

    def __init__(self, write: WritePart, finish: Finish, take_back: TakePartBack) -> None:
        self.write = write
        self.finish = finish
        self.take_back = take_back
        self.under_way: Collection[str] = ()
        """The accounts of the list that is being written, or taken back, now."""
        self.has_left = False
        """Whether one that failed may have left something."""

    def of(self, publish: Publish, rows: int) -> "LongList":
        """Return a publish as work that is written part by part; each event is so many rows at most."""
        return LongList(self, publish, rows)

    def shut(self, connection: sqlite3.Connection) -> frozenset[str]:
        """Return the accounts of which nothing else may be stored: what a list has left there is to go first."""
        if not self.has_left:
            return frozenset()
        return frozenset(account_id for (account_id,) in connection.execute("SELECT account FROM unfinished"))

    def tidy(self, connection: sqlite3.Connection) -> bool:
        """Take back a part of what those have left that failed, if none is under way. Returns whether there is more."""
        return self.has_left and not self.under_way and self.take_back(connection)


class LongList:
    """One publish that brings much. To be called, or to be written part by part: `log.writing.InParts`."""

    def __init__(self, lists: Lists, publish: Publish, rows: int) -> None:
        self._lists = lists
        self._publish = publish
        self.accounts = publish.by_account.keys()
        self._parts = list(_parts_of(publish, max(1, PART // rows)))[::-1]
        """Those that are still to be written, the next one last."""
        self._written = Written({account_id: [] for account_id in publish.by_account}, {})
        self._heads: dict[str, int] = {}
        self._begun = False
        """Whether nothing is left any more of lists before it."""
        self._paused = False
        self._refusal: RequestError | None = None
        """Why it failed, if it did."""
        self.has_left = False
        """Whether it failed, and the disk did not let it take back what it had written."""

    def __call__(self, connection: sqlite3.Connection) -> Written | RequestError:
        """Write all of it; return what became of it."""
        while self.write_part(connection):
            pass
        return self.outcome

    @property
    def outcome(self) -> Written | RequestError:
        """What became of it, when it is written or taken back."""
        return self._refusal or self._written

    def write_part(self, connection: sqlite3.Connection) -> bool:
        """Write the next part, or take one back. Returns whether there are more.

        After the last one the events are the log's, or nothing is left of them.
        """
        if self._refusal is not None:
            return self._take_part_back(connection)
        if not self._begun:
            self._begun = not (self._lists.has_left and self._lists.take_back(connection))
            if not self._begun:
                return True
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

    def _take_part_back(self, connection: sqlite3.Connection) -> bool:
        self.has_left = self._lists.take_back(connection)
        if not self.has_left:
            self._lists.under_way = ()
        return self.has_left

    def pause(self, connection: sqlite3.Connection) -> None:
        """Note what is written by now and not the log's: a commit comes before the rest."""
        if self._refusal is None:
            self._paused, self._lists.under_way = True, self.accounts
            firsts = [(account_id, fresh[0].position) for account_id, fresh in self._written.fresh.items()]
            connection.executemany(_MARK, firsts)

    def give_up(self, refusal: RequestError) -> bool:
        """Hear that it failed, and why. Returns whether there are parts still: what it has left is to be taken back."""
        is_first, self._refusal = self._refusal is None, self._refusal or refusal
        self.has_left = self._paused
        self._lists.has_left |= self._paused
        goes_on = is_first and self._paused
        self._lists.under_way = self.accounts if goes_on else ()
        return goes_on


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


def take_back(connection: sqlite3.Connection, beside: Sequence[TakeBack]) -> bool:
    """Take back a part of what lists have left that did not come to their end. Returns whether there is more."""
    room = PART
    for account_id, first in connection.execute("SELECT account, first FROM unfinished LIMIT ?", (PART,)).fetchall():
        for take_rows_back in beside:  # while its events are there: what is kept of those that go is not
            room -= take_rows_back(connection, account_id, first, room)
        room -= connection.execute(_TAKE_BACK, (account_id, first, room)).rowcount
        if room <= 0:
            return True
        connection.execute(_FINISH, (account_id,))
        room -= 1
    return False
