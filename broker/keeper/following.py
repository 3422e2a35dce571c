"""What the keeper follows: each account that has endpoints or queues, by its cursor, from its log at the engine.

An account is followed as a client would follow it, and what comes is written down with the cursor that it reaches, in
one transaction: so after a restart it goes on where it was, and nothing is taken in twice. Of a page that is much to
write down it is a few events at a time, with the cursor of the last of them. What the log did not hold any more is a
gap, which is said to the account before it is passed.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from hashlib import blake2b
from math import inf
from typing import Any, Final

import trio

from ..errors import BUSY_RETRY_MS, BrokerClosedError, RequestError
from ..fanout.subscriber import Subscriber
from ..log import kept
from ..log.backlog import Backlog
from ..log.kept import Taken
from ..log.outbox import Outbox
from ..log.replay import cursor_prefix_of
from ..log.shares import SHARE
from ..protocol.framing import payload_of
from ..protocol.messages import Entry, Gap, decode_stored

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
"""When the keeper tries again what it could not do: the engine is away, or the disk full."""
BEGIN_SECONDS: Final = 5.0
"""How long whoever makes an endpoint or a queue waits until its account is followed."""
WRITE_SECONDS: Final = 10.0
"""How much older what is written down may be, at most, while what comes is for nobody."""
REACHED_SECONDS: Final = 1.0
"""After what was for nobody it is written down how far that was when nothing more came for so long."""
OTHER_HISTORY_SECONDS: Final = 3.0

Subscribe = Callable[[str, str | None], AbstractAsyncContextManager[Subscriber]]
"""Follows all of an account from a cursor on; None: from now on."""
Tell = Callable[[str, str, str, Mapping[str, Any]], Awaitable[None]]
"""Publishes an event of the broker's own to an account: its type, its id, its payload. Raises `RequestError`."""


class _Account:
    """An account that is followed."""

    __slots__ = ("account_id", "beginners", "cursor", "known", "moved", "others", "scope", "written_at")

    def __init__(self, account_id: str, cursor: str | None) -> None:
        self.account_id = account_id
        self.cursor = cursor
        """Up to where all is taken in; None: that is not known yet."""
        self.written_at = 0.0
        """When that was written down, by trio's clock."""
        self.known = trio.Event()
        self.moved = trio.lowlevel.ParkingLot()
        self.scope: trio.CancelScope | None = None
        self.beginners = 0
        """Who is about to make the first of its endpoints or queues."""
        self.others = set[str]()
        """What cursors of other histories begin with, which were waited for."""
        if cursor is not None:
            self.known.set()


class Following:
    """The accounts that the keeper follows. `load` before anybody has routes or intakes; then `run`."""

    def __init__(self, outbox: Outbox, backlog: Backlog, subscribe: Subscribe, tell: Tell) -> None:
        self._outbox = outbox
        self._backlog = backlog
        self._storage = outbox.storage
        self._subscribe = subscribe
        self._tell = tell
        self._accounts: dict[str, _Account] = {}
        self._nursery: trio.Nursery | None = None
        self._loaded: dict[str, str] = {}
        """Of accounts of which it is not known yet whether they are still to be followed."""
        self.events = self.gaps = self.missed = 0

    async def load(self) -> None:
        """Find out up to where each account was taken in. Raises `RequestError`."""
        self._loaded = await self._storage.read(kept.read_cursors)

    def cursor_prefix(self, account_id: str) -> str:
        """Return what the cursors of an account begin with, as far as it was followed."""
        account = self._accounts.get(account_id)
        cursor = self._loaded.get(account_id) if account is None else account.cursor
        if cursor is None:
            return cursor_prefix_of(account_id, self._storage.epoch)
        prefix, point, _ = cursor.rpartition(".")
        return prefix + point

    # --- who is followed

    @asynccontextmanager
    async def beginning(self, account_id: str) -> AsyncIterator[None]:
        """Follow an account from the block's start on. Raises `RequestError` (`unavailable`)."""
        account = self._open(account_id)
        account.beginners += 1
        try:
            self._see_to(account)
            with trio.move_on_after(BEGIN_SECONDS):
                await account.known.wait()
            if not account.known.is_set():
                raise RequestError("unavailable", "The broker cannot reach its engine", retry_after_ms=BUSY_RETRY_MS)
            yield
        finally:
            account.beginners -= 1
            self._see_to(account)

    def changed(self, account_id: str) -> None:
        """Follow an account, or not any more."""
        self._see_to(self._open(account_id))

    def _open(self, account_id: str) -> _Account:
        account = self._accounts.get(account_id)
        if account is None:
            account = self._accounts[account_id] = _Account(account_id, self._loaded.pop(account_id, None))
        return account

    def _is_wanted(self, account: _Account) -> bool:
        account_id = account.account_id
        return bool(account.beginners) or self._outbox.has(account_id) or self._backlog.has(account_id)

    def _see_to(self, account: _Account) -> None:
        """Begin to follow an account that is wanted, stop with one that is not, if this runs."""
        if self._nursery is None:
            return
        if not self._is_wanted(account):
            self._accounts.pop(account.account_id, None)
            if account.scope is not None:
                account.scope.cancel()
            self._nursery.start_soon(self._forget_cursor, account.account_id)
        elif account.scope is None:
            account.scope = trio.CancelScope()
            self._nursery.start_soon(self._follow, account, account.scope)

    async def _forget_cursor(self, account_id: str) -> None:
        while account_id not in self._accounts:
            try:
                await self._storage.write(partial(kept.forget_cursor, account_id=account_id))
            except RequestError:
                await trio.sleep(RETRY_SECONDS)
            else:
                self._loaded.pop(account_id, None)
                return

    async def passed(self, account_id: str, cursor: str) -> None:
        """Wait until an account is taken in up to a cursor; a cursor of another history is waited for some seconds."""
        prefix, _, position = cursor.rpartition(".")
        until = trio.current_time() + OTHER_HISTORY_SECONDS
        while (account := self._accounts.get(account_id)) is not None:
            reached, _, through = (account.cursor or "").rpartition(".")
            if reached == prefix and int(through) >= int(position):
                return
            if reached != prefix and (prefix in account.others or trio.current_time() >= until):
                account.others.add(prefix)
                return
            with trio.move_on_at(inf if reached == prefix else until):
                await account.moved.park()

    # --- its life

    async def run(self) -> None:
        """Follow, for ever; cancelled, it can be run again."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for account in list(self._accounts.values()):
                    account.scope = None
                    self._see_to(account)
                for account_id in list(self._loaded):  # nobody wants these any more
                    nursery.start_soon(self._forget_cursor, account_id)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _follow(self, account: _Account, scope: trio.CancelScope) -> None:
        """Follow one account, whatever becomes of the engine and of the disk."""
        with scope:
            while True:
                try:
                    async with self._subscribe(account.account_id, account.cursor) as subscriber:
                        await self._take(account, subscriber)
                except BrokerClosedError:
                    return
                except RequestError:
                    await trio.sleep(RETRY_SECONDS)

    async def _take(self, account: _Account, subscriber: Subscriber) -> None:
        """Take in what comes, until it is to be looked at anew from where all is taken in. Raises `RequestError`."""
        if account.cursor is None:
            await self._write(account, subscriber.cursor, ())
        reached = account.cursor
        is_first = True
        while True:
            following = subscriber.next()
            if isinstance(following, Gap):
                if not is_first:
                    return  # the engine may hold what this process has not
                await self._pass_gap(account, following)
            elif isinstance(following, list):
                reached = subscriber.follower.cursor
                await self._take_page(account, following, reached)
            elif subscriber.ended:
                await trio.sleep_forever()  # it drains: what comes then is for the next start
            elif reached == account.cursor or reached is None:
                await subscriber.woken()
            else:
                with trio.move_on_after(REACHED_SECONDS) as waited:
                    await subscriber.woken()
                if waited.cancelled_caught:
                    await self._write(account, reached, ())
            is_first = False

    async def _take_page(self, account: _Account, page: Sequence[Entry], reached: str) -> None:
        """Write down what of a page is for somebody, in steps of bounded work. Raises `RequestError`."""
        most = max(1, SHARE // self._rows_of(account.account_id))
        entries: list[Entry] = []
        for start in range(0, len(page), most):
            some = page[start : start + most]
            entries += [_with_event(entry) for entry in some if self._wanted(account.account_id, entry)]
            if len(entries) > most:
                step, entries = entries[:most], entries[most:]
                await self._write(account, f"{reached.rpartition('.')[0]}.{step[-1].position}", step)
            else:
                await trio.lowlevel.checkpoint()
        if entries or trio.current_time() >= account.written_at + WRITE_SECONDS:
            await self._write(account, reached, entries)

    def _rows_of(self, account_id: str) -> int:
        """Return how many rows an event of an account may be, with what it is kept for."""
        return 1 + self._outbox.rows_of(account_id) + self._backlog.rows_of(account_id)

    async def _pass_gap(self, account: _Account, gap: Gap) -> None:
        """Say that events are missing, and go on after them. Raises `RequestError`: then it is said again."""
        account_id = account.account_id
        payload = {"from": account.cursor, "to": gap.to, "count": gap.count}
        name = blake2b(f"{account.cursor}".encode(), digest_size=12).hexdigest()
        for kind, is_there in (("webhook.gap", self._outbox.has), ("queue.gap", self._backlog.has)):
            if is_there(account_id):
                await self._tell(account_id, kind, f"evt_{kind.partition('.')[0]}_{name}", payload)
        await self._write(account, gap.to, ())
        how_many = "nobody knows how many" if gap.count is None else f"{gap.count}"
        logger.warning(
            "events of account %s were lost to its webhooks and queues: %s, after %s", account_id, how_many, gap.from_
        )
        self.gaps += 1
        self.missed += gap.count or 0

    async def _write(self, account: _Account, cursor: str, entries: Sequence[Entry]) -> None:
        """Write down what came, and how far that is. Raises `RequestError`, and then it is as if it had not come."""
        if self._storage.short_of_room or self._storage.is_stuck:
            raise RequestError("unavailable", "The broker's disk takes nothing in", retry_after_ms=BUSY_RETRY_MS)
        taken = Taken(account.account_id, cursor, entries)
        weight = 1 + self._rows_of(account.account_id) * len(entries)
        self.events += await self._storage.write_together(
            self._write_down, taken, weight=weight, owners=(account.account_id,)
        )
        account.cursor, account.written_at = cursor, trio.current_time()
        account.known.set()
        account.moved.unpark_all()

    def _write_down(self, connection: Any, all_taken: Sequence[Taken]) -> list[int]:
        """Take in what came, in the writer's thread."""
        wall, add = self._outbox.wall_clock(), (self._outbox.add, self._backlog.add)
        return [
            kept.take_in(connection, taken, partial(self._wanted, taken.account_id), add, wall) for taken in all_taken
        ]

    def _wanted(self, account_id: str, entry: Entry) -> bool:
        """Whether an event may be for an endpoint or a queue of its account. For any thread."""
        return self._outbox.wants(account_id, entry) or self._backlog.wants(account_id, entry)

    def __len__(self) -> int:
        return len(self._accounts)


def _with_event(entry: Entry) -> Entry:
    """Return an event as it was before it had a frame."""
    event = entry.event or decode_stored(payload_of(entry.frame))
    return Entry(entry.position, 0.0, entry.type, entry.inbox, entry.event_id, b"", entry.wall, event)
