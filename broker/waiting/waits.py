"""The wait for one event: the first that is as it must be, from a cursor on, or live (PROTOCOL section 11).

A wait ends at the first event that fits, when its time is over, or when the broker drains: then it says from where on
to go on. What is stored already it reads from its account's log by itself, as every subscriber does; what comes is
looked at for all who wait there at once (`Watch`). Both in short steps, one in each turn of the loop, round the
accounts: however many wait.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from msgspec import UNSET, Raw, Struct, UnsetType

from ..access.keys import Key
from ..errors import BUSY_RETRY_MS, RequestError
from ..fanout.hub import Account
from ..fanout.subscriber import Subscribers
from ..log.archive import Older
from ..protocol.framing import payload_of
from ..protocol.messages import Entry, Event, Gap
from ..protocol.selection import Selection, TypeFilter
from ..turns import Turns
from .asked import NOW, WaitParams
from .conditions import condition
from .extraction import Extracted, extract
from .filed import Waiter
from .watch import Mails, Watch

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
    """All waits of one broker. ``subscribers`` read what is stored; who waits is ``woken`` as there is room."""

    def __init__(self, subscribers: Subscribers, woken: Turns) -> None:
        self._subscribers = subscribers
        self._woken = woken
        self._turns = Turns()
        self._mails = Mails()
        self._under_way = Counter[str]()
        self._of_all_inboxes = Counter[str]()
        self._watches: dict[Account, Watch] = {}
        self._watching: trio.Nursery | None = None
        self._ended = False
        """Whether whoever comes is told at once that nothing more does."""

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
            with self._watch(account) as watch:
                return await _Wait(watch, selection, asked, judge, self._subscribers, self._turns, self._mails).run()
        finally:
            for counter in counters:
                counter[account_id] -= 1
                if not counter[account_id]:
                    del counter[account_id]

    async def run(self, draining: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at what comes for all who wait; end them after the last event when the broker drains, or this ends."""
        async with trio.open_nursery() as self._watching:
            try:
                task_status.started()
                await draining.wait()
                # Where the broker ends in the same step, this is cancelled here.
                await trio.lowlevel.checkpoint()
                self._ended = True
                for watch in list(self._watches.values()):
                    await watch.account.passed(watch.account.buffer.head)
                    watch.end()
                await trio.sleep_forever()
            finally:
                self._ended = True
                for watch in self._watches.values():
                    watch.end()

    def statistics(self) -> WaitsStatistics:
        """Return what is under way."""
        return WaitsStatistics(self._under_way.total(), self._of_all_inboxes.total())

    @contextmanager
    def _watch(self, account: Account) -> Iterator[Watch]:
        """Yield what looks for all who wait in an account: it lives from the first of them to the last."""
        watch = self._watches.get(account)
        if watch is None:
            watch = self._watches[account] = Watch(account, self._turns, self._woken, self._mails)
            if self._ended:
                watch.end()
            elif self._watching is not None:
                self._watching.start_soon(watch.run)
        watch.waits += 1
        try:
            yield watch
        finally:
            watch.waits -= 1
            if not watch.waits:
                del self._watches[account]
                watch.close()

    def _require_room(self, account_id: str, selection: Selection) -> None:
        if self._under_way[account_id] >= MAX_OF_ACCOUNT:
            raise RequestError("rate_limited", "The account waits for too much", retry_after_ms=BUSY_RETRY_MS)
        if selection.inboxes is None and self._of_all_inboxes[account_id] >= MAX_OF_ALL_INBOXES:
            message = f"{MAX_OF_ALL_INBOXES} waits of the account are for all inboxes: name some - at `$.inbox_ids`"
            raise RequestError("rate_limited", message, retry_after_ms=BUSY_RETRY_MS)


class _Wait:
    """One wait."""

    def __init__(
        self,
        watch: Watch,
        selection: Selection,
        asked: WaitParams,
        judge: Judge,
        subscribers: Subscribers,
        turns: Turns,
        mails: Mails,
    ) -> None:
        self._watch = watch
        self._account = watch.account
        self._selection = selection
        self._event_filter = TypeFilter(asked.event_types)
        self._asked = asked
        self._judge = judge
        self._subscribers = subscribers
        self._turns = turns
        self._mails = mails
        self._gap: Gap | None = None
        self._through: int | None = None
        """Up to where all was looked at; None: where it begins is not known yet."""

    async def run(self) -> Found:
        """Return the first event that fits, or that there was none in time. Raises `RequestError`."""
        until = trio.current_time() + self._asked.timeout_seconds
        found = None
        with trio.move_on_at(until + LOOK_SECONDS):
            found = await self._look(until)
        if self._through is None:
            # To go on from anywhere else than where it would begin could miss what it waits for.
            raise RequestError("unavailable", "The broker's storage does not answer", retry_after_ms=BUSY_RETRY_MS)
        return found or Found(None, self._account.buffer.cursor_at(self._through), gap=self._gap or UNSET)

    async def _look(self, until: float) -> Found | None:
        found = None
        if self._asked.since == NOW:
            self._through = self._account.buffer.head
            await self._turns.take(self._account.buffer.account_id)
        else:
            found = await self._read(self._asked.since)
        while found is None:
            last = self._watch.ended or trio.current_time() >= until
            assert self._through is not None
            if last or self._through < self._watch.position:
                found = await self._read_on(self._through)
                if last:
                    break
            else:
                found = await self._follow(self._through, until)
        return found

    async def _follow(self, after: int, until: float) -> Found | None:
        """Have what comes looked at, until something fits; None: the time is over, or the rest is to be read."""
        woken = trio.Event()
        waiter = Waiter(self._selection, self._event_filter, self._asked.where, after, woken.set)
        try:
            with self._watch.following(waiter), trio.move_on_at(until):
                await woken.wait()
        finally:
            self._through = waiter.after
        return None if waiter.entry is None else self._found(waiter.entry)

    async def _read_on(self, after: int) -> Found | None:
        """Look at what was written to subscribers, and not looked at; None: nothing of it fits."""
        if after >= self._account.subscriptions.position:
            return None
        return await self._read(self._account.buffer.cursor_at(after))

    async def _read(self, since: str) -> Found | None:
        """Look at all that is stored from somewhere on, and was written to subscribers; None: nothing of it fits."""
        with self._subscribers.open(self._account, self._selection, self._event_filter) as subscriber:
            await subscriber.start(since)
            follower, steps = subscriber.follower, 0
            self._through = follower.sent_through
            await self._turns.take(self._account.buffer.account_id)
            while (following := subscriber.next()) is not None:
                if isinstance(following, Older):
                    await subscriber.read(following)
                elif isinstance(following, Gap):
                    self._gap = following if self._gap is None else _joined(self._gap, following)
                else:
                    found = await self._look_at_all(following)
                    if found is not None:
                        return found
                self._through = follower.sent_through
                steps += 1
                if steps % _READS == 0 or isinstance(following, Older):
                    await self._turns.take(self._account.buffer.account_id)
            self._through = follower.sent_through
        return None

    async def _look_at_all(self, entries: list[Entry]) -> Found | None:
        """Return the first of these that fits; others have their turn meanwhile."""
        looked_at, fits = 0, condition(self._asked.where)
        for entry in entries:
            looked_at += len(entry.frame)
            if looked_at > _LOOK_BYTES:
                looked_at, self._through = len(entry.frame), entry.position - 1
                await self._turns.take(self._account.buffer.account_id)
            found = self._found(entry) if fits is None or fits(self._mails.of(entry)) else None
            if found is not None:
                return found
        return None

    def _found(self, entry: Entry) -> Found | None:
        """Return what is told of an event that fits; None: the key does not reach it any more."""
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
