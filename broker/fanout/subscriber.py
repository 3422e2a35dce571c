"""In-process subscribers: an account's log as an async iterator of events and gaps.

Each follows as a socket does: a slow reader keeps nothing but its position, and is fed from the replay buffer. And
each ends with the broker: after the last event where that drains, else with an error.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
import trio

from ..errors import BrokerClosedError, RequestError
from ..log.archive import Older, Reached
from ..log.past import Past
from ..protocol.framing import payload_of
from ..protocol.messages import Acked, AckParams, Entry, Event, Gap, Held, HoldParams, Replay, decode_event
from ..protocol.names import require_lists
from ..protocol.selection import EVERYTHING, Selection, TypeFilter
from ..protocol.wording import located
from .acknowledged import AckRequest, Client
from .acknowledging import Acknowledging, OnDisk
from .follower import Follower
from .hub import Account
from .listeners import Listener, take_nothing

P = TypeVar("P")


class Subscriber:
    """Iterate over it to get `Event` and `Gap`; it ends after the last event when the broker drains.

    One task at a time may iterate. Raises `BrokerClosedError` when the broker is gone, `trio.ClosedResourceError`
    when the block in which it was open has ended, each after what could still be read; and `RequestError`
    (`unavailable`) when older events cannot be read from the broker's storage now: iterate on, and that is tried again.
    """

    def __init__(
        self,
        account: Account,
        selection: Selection,
        event_filter: TypeFilter | None,
        past: Past,
        client: Client | None = None,
        on_disk: OnDisk | None = None,
    ) -> None:
        self._account = account
        self._past = past
        self._woken = trio.Event()
        self._ready: deque[Event | Gap] = deque()
        self._first: Gap | None = None
        """What is to be said before anything else."""
        self._end: Exception | None = None
        listener = Listener(take_nothing, self._wake)
        self.follower = Follower(account.buffer, account.subscriptions, listener, selection, event_filter, client)
        self._acknowledging = None if client is None else Acknowledging(account.buffer, self.follower, on_disk)
        self.replay: Replay | None = None
        """What the replay brings, if ``since`` was given."""
        self.cursor = self.follower.cursor
        """Where to subscribe again: the cursor of the last event or gap that was read, or of the start."""

    async def start(self, since: str) -> None:
        """Start at a cursor, a duration or a time instead of now. Raises `RequestError` if the past cannot be read."""
        await trio.lowlevel.checkpoint()
        follower, now = self.follower, trio.current_time()
        reached: Reached | None = None
        while (reach := follower.reach(follower.selection, since, now, reached)) is not None:
            reached = await self._past.reach(self._account.buffer, reach)
        self.replay, gap = follower.start(follower.resolve(since, now), reached)
        self._first = gap
        if gap is None:
            self.cursor = self.follower.cursor

    async def end_after_head(self) -> None:
        """Wait until the fan-out has passed all that is stored; then let the iteration end after that."""
        await self._account.passed(self._account.buffer.head)
        self.end(StopAsyncIteration())

    def end(self, error: Exception) -> None:
        """Let the iteration end with an error when nothing is left to read. The first call counts."""
        if self._end is None:
            self._end = error
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    async def ack(self, cursor: str | None = None, event_ids: Iterable[str] | None = None) -> Acked:
        """Acknowledge what was sent up to a cursor, or events by their ids; neither: all that was read until now.

        Returns what `ack` is answered with (PROTOCOL section 4). Raises `RequestError` for a cursor that this
        subscriber was not sent, for more than 1,000 ids, and where there is no ``client_id``.
        """
        ids = None if event_ids is None else _listed(event_ids)
        params = _checked(AckParams, cursor=self.cursor if cursor is None and ids is None else cursor, event_ids=ids)
        acked = await self._do(AckRequest("", "ack", params, EVERYTHING, "cursor"))
        assert isinstance(acked, Acked)
        return acked

    async def hold(self, event_ids: Iterable[str], seconds: float) -> Held:
        """Say that these events are being worked on: a webhook that would take over waits so long, an hour at most.

        Raises `RequestError`.
        """
        params = _checked(HoldParams, event_ids=_listed(event_ids), seconds=seconds)
        held = await self._do(AckRequest("", "hold", params, EVERYTHING))
        assert isinstance(held, Held)
        return held

    async def _do(self, request: AckRequest) -> Acked | Held:
        await trio.lowlevel.checkpoint()
        if self._acknowledging is None:
            raise RequestError("invalid_params", f"`{request.action}` needs a subscription that has a `client_id`")
        return await self._acknowledging.do(request)

    @property
    def ended(self) -> bool:
        """Whether nothing comes after what is stored."""
        return self._end is not None

    def next(self) -> list[Entry] | Gap | Older | None:
        """Return what comes next as it is stored: events (none: call again), a gap, or what is to be read first.

        None: that is all by now; `woken` waits for more. For who does not iterate.
        """
        self._woken = trio.Event()
        gap, self._first = self._first, None
        return gap or self.follower.next()

    async def read(self, older: Older) -> None:
        """Read what memory does not hold; then `next` has more.

        Raises `RequestError` (`unavailable`) if that cannot be, unless it is at its end: it has read what it could.
        """
        try:
            self.follower.take_in(older, await self._past.read(self._account.buffer, older))
        except RequestError as error:
            raise self._end or error from None

    async def woken(self) -> None:
        """Wait until `next` may have more than the last time."""
        await self._woken.wait()

    def __aiter__(self) -> "Subscriber":
        return self

    async def __anext__(self) -> Event | Gap:
        if self._ready:
            await trio.lowlevel.checkpoint()
        while not self._ready:
            await trio.lowlevel.checkpoint()  # before, not after: who is cancelled has taken nothing
            following = self.next()
            if isinstance(following, Older):
                await self.read(following)
            elif isinstance(following, Gap):
                self._ready.append(following)
            elif following is not None:
                self._ready.extend(decode_event(payload_of(entry.frame)) for entry in following)
            elif self._end is not None:
                raise self._end
            else:
                await self._woken.wait()
        item = self._ready.popleft()
        self.cursor = item.to if isinstance(item, Gap) else item.cursor
        return item


def _listed(event_ids: Iterable[str]) -> list[str]:
    require_lists(event_ids=event_ids)
    return list(event_ids)


def _checked(kind: type[P], **params: object) -> P:
    """Return the parameters of a command, checked as a client's are. Raises `RequestError`."""
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise RequestError("invalid_params", located(str(error), "$")) from None


class Subscribers:
    """All subscribers of one broker."""

    def __init__(self, past: Past, on_disk: OnDisk | None = None) -> None:
        self._past = past
        self._on_disk = on_disk
        self._open: set[Subscriber] = set()

    @contextmanager
    def open(
        self,
        account: Account,
        selection: Selection,
        event_filter: TypeFilter | None,
        client: Client | None = None,
    ) -> Iterator[Subscriber]:
        """Yield a new subscriber, which follows until the block ends."""
        subscriber = Subscriber(account, selection, event_filter, self._past, client, self._on_disk)
        self._open.add(subscriber)
        try:
            yield subscriber
        finally:
            self._open.discard(subscriber)
            subscriber.follower.close()
            subscriber.end(trio.ClosedResourceError("the block of this subscription has ended"))

    async def run(self, draining: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End each after the last event when the broker drains, and what is left when this is cancelled."""
        try:
            task_status.started()
            await draining.wait()
            # Where the broker ends in the same step, this is cancelled here.
            await trio.lowlevel.checkpoint()
            for subscriber in list(self._open):
                await subscriber.end_after_head()
            await trio.sleep_forever()
        finally:
            for subscriber in self._open:
                subscriber.end(BrokerClosedError("The broker has ended"))
