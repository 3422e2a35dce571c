"""The wait for one event: the first that is as it must be, from a cursor on, or live (PROTOCOL section 11).

A wait follows its account's log as every subscriber does, and ends at the first event that fits, when its time is over,
or when the broker drains: then it says from where on to go on. What it reads is looked at in short steps, one in each
turn of the loop, round the accounts: however many wait.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio
from msgspec import UNSET, Raw, Struct, UnsetType

from ..access.keys import Key
from ..errors import BUSY_RETRY_MS, RequestError
from ..fanout.hub import Account
from ..fanout.subscriber import Subscriber, Subscribers
from ..log.archive import Older
from ..protocol.framing import payload_of
from ..protocol.messages import Entry, Event, Gap
from ..protocol.selection import Selection, TypeFilter
from ..turns import Turns
from .asked import NOW, WaitParams
from .conditions import Mail, condition, mail_of
from .extraction import Extracted, extract

MAX_OF_ACCOUNT: Final = 2_000
"""Waits of one account."""
MAX_OF_CONNECTION: Final = 16
MAX_OF_ALL_INBOXES: Final = 64
"""Of these, such that wait for an event of any inbox: each looks at all."""
LOOK_SECONDS: Final = 5.0
"""How long a wait whose time is over may still look at what is stored already."""
_LOOK_BYTES: Final = 4_096
"""Of events that are looked at in one step; if one has more it is looked at alone, in a turn of its own."""
_READS: Final = 2
"""Reads of the log in one step: one event, and that there is no other."""

Judge = Callable[[], Key]
"""Returns what the key of who waits reaches in this step. Raises `RequestError` if it is gone."""


class Found(Struct, frozen=True):
    """What a wait came to (PROTOCOL section 11)."""

    event: Raw | None
    """The event's frame as JSON; None: there was none in time."""
    cursor: str
    """From where on to wait, or to subscribe."""
    extracted: Extracted | UnsetType = UNSET
    gap: Gap | UnsetType = UNSET
    """What was missed before that, if anything."""


class Waited(Struct, frozen=True):
    """The same for who waits in this process."""

    event: Event | None
    cursor: str
    extracted: Extracted = Extracted()
    gap: Gap | None = None


class WaitsStatistics(Struct, frozen=True):
    """What the broker has of waits."""

    under_way: int
    """In all accounts."""
    of_all_inboxes: int
    """Of these, for an event of any inbox."""


class Waits:
    """All waits of one broker. ``subscribers`` follow for them; they are ``woken`` with others, as there is room."""

    def __init__(self, subscribers: Subscribers, woken: Turns) -> None:
        self._subscribers = subscribers
        self._woken = woken
        self._turns = Turns()
        self._mails = _Mails()
        self._under_way = Counter[str]()
        self._of_all_inboxes = Counter[str]()

    async def wait(self, account: Account, selection: Selection, asked: WaitParams, judge: Judge) -> Found:
        """Wait in an account's log for an event of a selection, as ``asked``. Raises `RequestError`.

        ``judge`` says in the step in which an event is found whether it may still be told.
        """
        account_id = account.buffer.account_id
        self._require_room(account_id, selection)
        counters = [self._under_way] + [self._of_all_inboxes] * (selection.inboxes is None)
        for counter in counters:
            counter[account_id] += 1
        try:
            event_filter = TypeFilter(asked.event_types)
            with self._subscribers.open(account, selection, event_filter, turns=self._woken) as subscriber:
                return await _Wait(account, subscriber, asked, judge, self._turns, self._mails).run()
        finally:
            for counter in counters:
                counter[account_id] -= 1
                if not counter[account_id]:
                    del counter[account_id]

    def statistics(self) -> WaitsStatistics:
        """Return what is under way."""
        return WaitsStatistics(self._under_way.total(), self._of_all_inboxes.total())

    def _require_room(self, account_id: str, selection: Selection) -> None:
        if self._under_way[account_id] >= MAX_OF_ACCOUNT:
            raise RequestError("rate_limited", "The account waits for too much", retry_after_ms=BUSY_RETRY_MS)
        if selection.inboxes is None and self._of_all_inboxes[account_id] >= MAX_OF_ALL_INBOXES:
            message = f"{MAX_OF_ALL_INBOXES} waits of the account are for all inboxes: name some - at `$.inbox_ids`"
            raise RequestError("rate_limited", message, retry_after_ms=BUSY_RETRY_MS)


class _Mails:
    """The mail that was read last: a thousand may look at it one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Entry, Mail] | None = None

    def of(self, entry: Entry) -> Mail:
        """Return what an event says as a mail."""
        if self._last is None or self._last[0] is not entry:
            self._last = entry, mail_of(payload_of(entry.frame))
        return self._last[1]


class _Wait:
    """One wait."""

    def __init__(
        self, account: Account, subscriber: Subscriber, asked: WaitParams, judge: Judge, turns: Turns, mails: _Mails
    ) -> None:
        self._turns = turns
        self._mails = mails
        self._account = account
        self._subscriber = subscriber
        self._asked = asked
        self._judge = judge
        self._fits = condition(asked.where)
        self._gap: Gap | None = None
        self._looked_through: int | None = None
        """In the middle of what was read: up to where that was looked at."""

    async def run(self) -> Found:
        """Return the first event that fits, or that there was none in time. Raises `RequestError`."""
        asked, subscriber = self._asked, self._subscriber
        until = trio.current_time() + asked.timeout_seconds
        found, began = None, False
        with trio.move_on_at(until + LOOK_SECONDS):
            if asked.since == NOW:
                subscriber.start_at_head()
            else:
                await subscriber.start(asked.since)
            last, began = False, True
            await self._turns.take(self._account.buffer.account_id)
            while not last and found is None:
                last = subscriber.ended or trio.current_time() >= until
                found = await self._look_at_what_there_is()
                if found is None and not last:
                    with trio.move_on_at(until):
                        await subscriber.woken()
        if not began:
            # Where it would begin is not known: to go on from anywhere else could miss what it waits for.
            raise RequestError("unavailable", "The broker's storage does not answer", retry_after_ms=BUSY_RETRY_MS)
        through = self._looked_through
        cursor = subscriber.follower.cursor if through is None else self._account.buffer.cursor_at(through)
        return found or Found(None, cursor, gap=self._gap or UNSET)

    async def _look_at_what_there_is(self) -> Found | None:
        """Look at all that is stored; None: nothing of it fits, and what comes will wake the subscriber.

        It is this one's turn to begin with.
        """
        subscriber, steps = self._subscriber, 0
        while (following := subscriber.next()) is not None:
            if isinstance(following, Older):
                await subscriber.read(following)
            elif isinstance(following, Gap):
                self._gap = following if self._gap is None else _joined(self._gap, following)
            else:
                found = await self._look_at_all(following)
                if found is not None:
                    return found
            steps += 1
            if steps % _READS == 0 or isinstance(following, Older):
                await self._turns.take(self._account.buffer.account_id)
        return None

    async def _look_at_all(self, entries: list[Entry]) -> Found | None:
        """Return the first of these that fits; others have their turn meanwhile."""
        looked_at = 0
        for entry in entries:
            looked_at += len(entry.frame)
            if looked_at > _LOOK_BYTES:
                looked_at, self._looked_through = len(entry.frame), entry.position - 1
                await self._turns.take(self._account.buffer.account_id)
            found = self._look_at(entry)
            if found is not None:
                return found
        self._looked_through = None
        return None

    def _look_at(self, entry: Entry) -> Found | None:
        if self._fits is not None and not self._fits(self._mails.of(entry)):
            return None
        if entry.inbox not in self._judge().reach:
            return None
        wanted = self._asked.extract
        extracted: Extracted | UnsetType = UNSET
        if wanted:
            extracted = extract(self._mails.of(entry), code="code" in wanted, link="link" in wanted)
        return Found(
            Raw(payload_of(entry.frame)), self._account.buffer.cursor_at(entry.position), extracted, self._gap or UNSET
        )


def _joined(first: Gap, second: Gap) -> Gap:
    count = None if first.count is None or second.count is None else first.count + second.count
    return Gap(first.from_, second.to, count)
