"""One account's events looked at for all who wait in it, behind the fan-out.

The fan-out knows nothing of those who wait. A task follows it: what is written to all subscribers is looked at for
those who wait, in slices that are bounded by work, and before each of them the fan-out goes first, if it has something
to do. So a thousand waits cost a subscriber nothing but a slice.

Every position there is, in the order in which an event passes them:

| position | is |
|---|---|
| `Subscriptions.settled` | all subscribers who are live have all up to here |
| `Watch.position` | all up to here is looked at, or being looked at |
| `Watch.settled` | it is looked at for all who wait |
| `Waiter.after` | it is looked at for this one, or not for it |

Who is at `position` or beyond may follow; who is not reads the log by itself until it is. Who leaves goes on from where
it was looked at for it, so no event is passed over, and none is found twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import trio

from ..fanout.hub import Account
from ..fanout.listeners import Group, Groups
from ..protocol.framing import payload_of
from ..protocol.messages import Entry
from ..protocol.selection import EVERYTHING
from ..turns import Turns
from .conditions import Mail, mail_of
from .filed import Ask, Filed, Waiter, Work

SLICE: Final = 1_024
"""Work of one step: a quarter of a millisecond."""
FOUND_WORK: Final = 8
"""What it is counted as to wake one whose event is found."""
READ_BYTES: Final = 256
"""So much of a mail to be read is counted as one."""
_BATCH_EVENTS: Final = 256
_BATCH_BYTES: Final = 65_536


class Mails:
    """The mail that was read last: all who look at it do so one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Entry, Mail] | None = None

    def of(self, entry: Entry) -> Mail:
        """Return what an event says as a mail."""
        if self._last is None or self._last[0] is not entry:
            self._last = entry, mail_of(payload_of(entry.frame))
        return self._last[1]


class Watch:
    """What looks for all who wait in one account.

    ``turns`` are those of all who look, ``woken`` those of whom it wakes. ``ended``: nobody is to wait any more.
    """

    def __init__(self, account: Account, turns: Turns, woken: Turns, mails: Mails) -> None:
        self.account = account
        self.position = self.settled = account.subscriptions.settled
        self.waits = 0
        """Under way in this account, whether they follow or read by themselves."""
        self.ended = False
        self._turns = turns
        self._woken = woken
        self._mails = mails
        self._groups = Groups()
        self._filed: dict[Group, Filed] = {}
        self._followers: dict[Waiter, Group] = {}
        self._work = Work(SLICE)
        self._scope = trio.CancelScope()

    @contextmanager
    def following(self, waiter: Waiter) -> Iterator[None]:
        """Look at what comes for one who is at `position` or beyond, until its event is found or the block ends.

        Then all up to its ``after`` was looked at for it.
        """
        group = self._groups.hold(waiter.selection, waiter.event_filter)
        self._followers[waiter] = group
        self._filed.setdefault(group, Filed()).add(waiter)
        try:
            yield
        finally:
            self._let_go(waiter)

    def end(self) -> None:
        """Let all who wait see that nothing more comes for them."""
        self.ended = True
        for waiter in list(self._followers):
            self._let_go(waiter)
            self._wake(waiter)

    def close(self) -> None:
        """Look no more: nobody waits."""
        self._scope.cancel()

    async def run(self) -> None:
        """Look at all that the fan-out has passed, until this is closed."""
        account = self.account
        with self._scope:
            while True:
                await account.passed(self.position + 1)
                await self._turns.take(self)
                for _ in self._look_on():
                    if account.subscriptions.settled < account.buffer.head:
                        await account.passed(account.subscriptions.settled + 1)  # a batch of it, not all
                    await self._turns.take(self)
                    self._work.left = SLICE

    def _look_on(self) -> Iterator[None]:
        """Look at all that the fan-out has passed; yield after each slice."""
        buffer, subscriptions = self.account.buffer, self.account.subscriptions
        while self.position < subscriptions.settled:
            if self.position < buffer.dropped_through:
                yield from self._let_all_go()
                continue
            entries, reached = buffer.read(
                EVERYTHING, self.position, subscriptions.settled, max_events=_BATCH_EVENTS, max_bytes=_BATCH_BYTES
            )
            for entry in entries:
                self.position = entry.position
                if self._work.spend(1):
                    yield
                yield from self._look_at(entry)
                self.settled = entry.position
            self.position = self.settled = reached

    def _let_all_go(self) -> Iterator[None]:
        """Let each find by itself what the window does not hold any more; go on behind it."""
        while self._followers:
            waiter = next(iter(self._followers))
            self._let_go(waiter)
            self._wake(waiter)
            if self._work.spend(FOUND_WORK):
                yield
        self.position = self.settled = self.account.subscriptions.settled

    def _look_at(self, entry: Entry) -> Iterator[None]:
        """Look at an event for all who want such, and wake those whom it fits."""
        if self._work.spend(self._groups.count(entry)):
            yield
        for group in self._groups.of(entry):
            filed = self._filed.get(group)
            if filed is None or group.event_filter is None or not group.event_filter.accepts(entry.type):
                continue
            for ask in filed.fitting(partial(self._read, entry), self._work):
                if ask is None:
                    yield
                else:
                    yield from self._tell(ask, entry)

    def _read(self, entry: Entry) -> Mail:
        self._work.spend(len(entry.frame) // READ_BYTES)
        return self._mails.of(entry)

    def _tell(self, ask: Ask, entry: Entry) -> Iterator[None]:
        for waiter in tuple(ask.waiters):
            if waiter.ask is ask and waiter.after < entry.position:
                self._let_go(waiter)
                waiter.after, waiter.entry = entry.position, entry
                self._wake(waiter)
                if self._work.spend(FOUND_WORK):
                    yield

    def _let_go(self, waiter: Waiter) -> None:
        """Look no more for one, who has seen all up to its ``after`` then; one who is gone already stays as it is."""
        group = self._followers.pop(waiter, None)
        if group is None:
            return
        waiter.after = max(waiter.after, self.settled)
        filed = self._filed[group]
        filed.discard(waiter)
        self._groups.release(group)
        if not group.holders:
            del self._filed[group]

    def _wake(self, waiter: Waiter) -> None:
        self._woken.wake(self.account.buffer.account_id, waiter.wake)
