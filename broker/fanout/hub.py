"""The fan-out: one task that writes what was published to everybody who is live.

It reads each account's log from its own position in it; what wakes it carries no event. Accounts with something to
send take turns of about half a millisecond; those that have just begun to have something come first. What was
published meanwhile is joined into one write for each listener. A listener that does not take all of a write at once
falls behind and is fed from the log by its own task: nothing here ever waits for anybody.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Final

import trio
from msgspec import Struct

from ..accounts import Accounts
from ..durations import Durations, DurationsStatistics
from ..log.dropped import Dropped
from ..log.replay import Mark, ReplayBuffer
from ..log.retention import ReplayBuffers
from ..protocol.framing import payload_of
from ..protocol.messages import Entry, trace_in
from ..tracing import Attributes, Span, Tracing
from .places import Places
from .subscriptions import Subscriptions, Tally

TURN_SECONDS: Final = 0.0005
BATCH_EVENTS: Final = 256
BATCH_BYTES: Final = 65_536
"""One write for a listener is at most this, or one event: a healthy client's socket takes it whole."""


class Account:
    """One account's log, its listeners, and what the fan-out has still to do for them."""

    __slots__ = (
        "_moved",
        "buffer",
        "deliveries",
        "fed",
        "oldest_at",
        "places",
        "queued",
        "span",
        "subscriptions",
        "uses",
    )

    def __init__(self, buffer: ReplayBuffer, tally: Tally | None = None) -> None:
        self.buffer = buffer
        self.subscriptions = Subscriptions(buffer.head, tally)
        self.places = Places(buffer.head)
        self.deliveries: Iterator[None] | None = None
        self.oldest_at: float | None = None
        """When the first event of the batch that is written was stored; None: it is for nobody who is live."""
        self.span: Span | None = None
        """Of the batch that is written, if something in it is traced."""
        self.queued = False
        self.uses = 0
        """Connections that use this account now."""
        self.fed = False
        """Whether an engine that has the log elsewhere keeps it here, too."""
        self._moved = trio.lowlevel.ParkingLot()

    def delivered(self) -> None:
        """Free the places of all that the fan-out has passed."""
        self.places.delivered(self.subscriptions.position)
        self._moved.unpark_all()

    async def passed(self, position: int) -> None:
        """Wait until everything up to a position is written to everybody who is live."""
        while self.subscriptions.settled < position:
            await self._moved.park()

    def jump(self, position: int) -> None:
        """Let the fan-out move on to a position, over what it writes to nobody."""
        self.deliveries = self.oldest_at = None
        if self.span is not None:
            self.span.end()
            self.span = None
        self.subscriptions.jump(position)
        self.delivered()

    @property
    def in_use(self) -> bool:
        """Whether this must be kept though the log is empty."""
        return bool(self.uses or self.fed or self.queued or self.places.in_use or self.subscriptions.in_use)

    def forget(self, now: float, most: int) -> int:
        """Forget nothing: what is past its time in the logs goes over all accounts, the oldest first."""
        return 0

    def idle(self, now: float) -> bool:
        """Whether nothing here must be kept."""
        return not self.in_use and self.buffer.idle


class HubStatistics(Struct, frozen=True):
    """What the fan-out has done and has to do."""

    accounts: int
    """Accounts known."""
    live: int
    """Listeners that are where the fan-out is."""
    queued_accounts: int
    """Accounts that wait for a turn."""
    delivered: int
    """Writes made to listeners since the start."""
    fell_behind: int
    """Times that a listener did not take all of a write."""
    events: int
    """Events given to listeners since the start, by the fan-out or from the log: each as often as it was."""
    gaps: int
    """Gaps said since the start."""
    missed: int
    """Events in them, as far as their number is known."""
    first_delivery: DurationsStatistics
    """From when the first event of a batch was stored to when the fan-out began to write the batch."""
    last_delivery: DurationsStatistics
    """From the same to when the kernel had it for the last listener that was live."""


class Hub:
    """The accounts' logs, and the fan-out over them: the `Log` that engines fill.

    ``tell`` is called before an account's turn: it lets its listeners know what they may hear by now, as many as one
    step bears, and returns whether all do.
    """

    def __init__(
        self, buffers: ReplayBuffers, tell: Callable[[str], bool] = lambda _: True, tracing: Tracing | None = None
    ) -> None:
        self._buffers = buffers
        self._tracing = tracing
        self._tell = tell
        self._tally = Tally()
        self._first_delivery = Durations()
        self._last_delivery = Durations()
        self._accounts = Accounts(lambda account_id: Account(buffers.open(account_id), self._tally), self._gone)
        self._new: deque[Account] = deque()
        self._queue: deque[Account] = deque()
        self._wakeup = trio.Event()

    def account(self, account_id: str) -> Account:
        """Return what is held of an account; make it if there is nothing."""
        return self._accounts.open(account_id)

    def _gone(self, account: Account) -> None:
        self._buffers.close(account.buffer)

    def store(self, account_id: str, entries: list[Entry]) -> None:
        """Store events after the head of an account's log, and wake the fan-out, in one step. For engines only."""
        account = self.account(account_id)
        self._buffers.append(account.buffer, entries)
        self.wake(account)

    # The rest is for engines that have the logs elsewhere.

    def prepend(self, account_id: str, entries: list[Entry], before: Mark) -> None:
        """Store events before those that an account's log holds; nobody who is live hears of it."""
        account = self.account(account_id)
        self._buffers.prepend(account.buffer, entries, before)
        self._buffers.trim(account.buffer, trio.current_time())

    def remember(self, account_id: str, dropped: Sequence[Dropped], before: Mark) -> None:
        """Know of events that are gone, and are older than all that is known."""
        self._buffers.remember(self.account(account_id).buffer, dropped, before, trio.current_time())

    def skip(self, account_id: str, dropped: Sequence[Dropped] | None, end: Mark) -> None:
        """Go on behind events that this process missed: each listener finds a gap, as it is counted in ``dropped``."""
        account = self.account(account_id)
        account.buffer.skip(dropped, end, trio.current_time())
        account.jump(end.position)

    async def passed(self, account_id: str, position: int) -> None:
        """Wait until everything up to a position is written to everybody who is live."""
        await self.account(account_id).passed(position)

    def restart(self, account_id: str, start: Mark, epoch: bytes, *, fed: bool) -> None:
        """Let an account's log be another one, empty and after ``start``; each listener finds a gap without a count.

        ``start`` lies after all that there was, where there are listeners. ``fed``: whether it is kept here from now.
        """
        account = self.account(account_id)
        account.fed = fed
        self._buffers.restart(account.buffer, start, epoch)
        account.jump(start.position)

    def wake(self, account: Account) -> None:
        """Say that the account's log has grown."""
        if not account.queued:
            account.queued = True
            self._new.append(account)
            self._wakeup.set()

    async def deliver(self) -> None:
        """Fan out, for ever. The only task that does."""
        while True:
            if not (self._new or self._queue):
                await self._wakeup.wait()
                self._wakeup = trio.Event()
            self.take_turns(perf_counter() + TURN_SECONDS)
            await trio.lowlevel.checkpoint()
            if self._queue:
                # Two steps lie between a client's bytes and its publish: they are not to wait for a turn each.
                await trio.lowlevel.checkpoint()

    def take_turns(self, until: float) -> None:
        """Let accounts have their turns, until none is left or the performance counter reaches ``until``.

        New ones come first, but for no more than half of the time: so they wait for no broadcast, and starve none.
        """
        halfway = (perf_counter() + until) / 2
        while self._new or self._queue:
            account = (self._new or self._queue).popleft()
            if self._turn(account, until):
                self._queue.append(account)
            else:
                account.queued = False
            now = perf_counter()
            if now >= until:
                return
            if now >= halfway:
                self._queue.extend(self._new)
                self._new.clear()

    def _turn(self, account: Account, until: float) -> bool:
        """Write one account's batch, or as much of it as there is time for. Returns whether there is more to do."""
        if not self._tell(account.buffer.account_id):
            return True
        if account.deliveries is None:
            account.deliveries = self._begin(account)
        for _ in account.deliveries:
            if perf_counter() >= until:
                return True
        account.deliveries = None
        account.subscriptions.settle()
        account.delivered()
        now = trio.current_time()
        if account.oldest_at is not None:
            self._last_delivery.add(now - account.oldest_at)
            account.oldest_at = None
            if account.span is not None:
                account.span.end()
                account.span = None
        too_much = self._buffers.trim(account.buffer, now)
        return too_much or account.buffer.head > account.subscriptions.position

    def _begin(self, account: Account) -> Iterator[None]:
        """Take the next batch of an account's log; return the writing of it, as steps."""
        buffer, subscriptions = account.buffer, account.subscriptions
        batch = buffer.batch(max_events=BATCH_EVENTS, max_bytes=BATCH_BYTES)
        if not batch:
            return iter(())
        if subscriptions.live:
            account.oldest_at = batch[0].stored_at
            self._first_delivery.add(trio.current_time() - account.oldest_at)
        deliveries = subscriptions.advance(batch)
        if self._tracing is not None and account.oldest_at is not None:
            account.span = _span_of(self._tracing, account, batch)
        buffer.delivered = subscriptions.position
        return subscriptions.write(deliveries)

    def forget(self, now: float, *, most: int) -> bool:
        """Forget idle accounts, looking at no more than so many. Returns whether the round over all is under way."""
        return self._accounts.forget(now, most=most)

    def accounts(self) -> list[Account]:
        """Return the accounts known now."""
        return list(self._accounts)

    def statistics(self) -> HubStatistics:
        """Return what the fan-out has done and has to do."""
        tally = self._tally
        return HubStatistics(
            len(self._accounts),
            tally.live,
            len(self._new) + len(self._queue),
            tally.writes,
            tally.fell_behind,
            tally.events,
            tally.gaps,
            tally.missed,
            self._first_delivery.statistics(),
            self._last_delivery.statistics(),
        )


def _span_of(tracing: Tracing, account: Account, batch: list[Entry]) -> Span | None:
    """Return the span of a batch, or of what is written of it now, from when its oldest event was stored.

    It is in the trace of the first that has one, and linked to those of the others. None: none has.
    """
    batch = [entry for entry in batch if entry.position <= account.subscriptions.position]
    traces = {trace: None for entry in batch if (trace := trace_in(payload_of(entry.frame))) is not None}
    if not traces:
        return None
    attributes: Attributes = {
        "messaging.system": "daimon-broker",
        "messaging.operation.name": "deliver",
        "messaging.batch.message_count": len(batch),
        "broker.account_id": account.buffer.account_id,
        "broker.listeners": account.subscriptions.live,
    }
    first, *others = traces
    span = tracing.begin("deliver", "internal", first, attributes, began_at=batch[0].wall)
    span.link(others)
    return span
