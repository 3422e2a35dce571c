"""Polling: `GET /v1/events`, for clients that cannot keep a connection open (PROTOCOL section 6).

A poll is a follower for the length of one request: it reads one page of its account's log, and waits for the first
event if it is told to. While it waits it has a slot, as a connection has; who takes that away, by the same `client_id`,
for want of room, or because the broker drains, lets it answer early. An early answer loses nothing: it has a cursor.
"""

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

import trio
from msgspec import UNSET, Raw, Struct, UnsetType

from ..access.admission import Judge, admit
from ..access.keys import Key
from ..access.opening import Opening
from ..broker import Broker
from ..errors import CloseCode, RequestError
from ..fanout.acknowledged import Acknowledged
from ..fanout.follower import Follower
from ..fanout.hub import Account
from ..fanout.listeners import Listener, take_nothing
from ..log.archive import Older, Reached
from ..log.past import Past
from ..observe.connections import ConnectionDetails, ConnectionStatistics, Ended, Link, OpenConnection
from ..protocol.framing import payload_of
from ..protocol.messages import Entry, Gap, Replay
from ..protocol.names import ACKED, check_spelling
from ..protocol.selection import NOTHING, TypeFilter
from .request import Request

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1_000
MAX_PAGE_BYTES: Final = 4_194_304
_HURRIED: Final = 512
"""Polls that are told of a drain in one step: each waits for its turn."""
MAX_WAIT_SECONDS: Final = 60


class Page(Struct, frozen=True):
    """The answer to a poll: events as every subscriber gets them, and where the next page begins."""

    events: list[Raw]
    cursor: str
    replay: Replay | UnsetType = UNSET


class Poll(Struct, frozen=True):
    """How much a poll may bring, and how long it may wait for it."""

    limit: int
    wait_seconds: float


def check_poll(query: Mapping[str, str]) -> Poll:
    """Return what a query asks for. Raises `RequestError` (`bad_request`) that names the field."""
    check_spelling({name: name for name in query}, "wait", code="bad_request")
    limit = _number(query, "limit", int, str(DEFAULT_LIMIT))
    if not 1 <= limit <= MAX_LIMIT:
        raise RequestError("bad_request", f"From 1 to {MAX_LIMIT} events can be asked for - at `limit`")
    wait_seconds = _number(query, "wait", float, "0")
    if not 0 <= wait_seconds <= MAX_WAIT_SECONDS:
        raise RequestError("bad_request", f"A poll waits for 0 to {MAX_WAIT_SECONDS} seconds - at `wait`")
    return Poll(int(limit), wait_seconds)


def _number(query: Mapping[str, str], name: str, kind: Callable[[str], float], default: str) -> float:
    text = query.get(name, default)
    try:
        if not (text.isascii() and text.replace(".", "", 1).isdigit()):
            raise ValueError
        return kind(text)
    except ValueError:
        raise RequestError("bad_request", f"Expected a number, got {text[:20]!r} - at `{name}`") from None


class _Waiter:
    """What wakes a poll. It has the poll's slot."""

    def __init__(self, draining: trio.Event, in_turn: Callable[[Callable[[], None]], None]) -> None:
        self._draining = draining
        self._in_turn = in_turn
        self._began_at = trio.current_time()
        self._woken = trio.Event()
        self._close_code: CloseCode | None = None
        self.selection = NOTHING
        """What it waits for."""
        self.event_filter: TypeFilter | None = None
        """Of which types."""
        self.answer_now = False
        """Whether it is to answer with what there is."""

    def wake(self) -> None:
        """Let it look at the log; a thousand may be woken by one event."""
        self._in_turn(self._wake)

    def _wake(self) -> None:
        self._woken.set()

    def hurry(self, *_: object) -> None:
        """Let it answer with what there is."""
        self.answer_now = True
        self._woken.set()

    async def wait(self, until: float) -> None:
        """Wait to be woken, until a time (trio's clock) at most."""
        if self._draining.is_set():
            self.hurry()  # its opening was answered before
        with trio.move_on_at(until):
            await self._woken.wait()
        self._woken = trio.Event()

    def hurry_in_turn(self) -> None:
        """Let it answer with what there is, when it is its turn: all are to."""
        self._in_turn(self.hurry)

    # --- holding a slot

    def last_heard(self) -> float:
        """Return when the request came."""
        return self._began_at

    def ask_for_life(self) -> None:
        """Nothing can be asked of a client that waits for its answer."""

    def lived_since(self, moment: float) -> bool:
        """Whether the client is there: until its wait is long, it is. Then it answers early where room is wanted."""
        return True

    def end(self, code: CloseCode, why: str) -> None:
        """Answer, so that the slot is free."""
        self._close_code = code
        self.hurry()

    def statistics(self) -> ConnectionStatistics:
        """Return what it waits for: it is where the fan-out is, or answers."""
        return ConnectionStatistics(self.selection, True, 0, 0, 0, self._close_code, ending="answered")

    def details(self) -> ConnectionDetails:
        """Return what is told of it alone: it gives no commands."""
        return ConnectionDetails(None if self.event_filter is None else sorted(self.event_filter.patterns), [])

    def link(self) -> Link:
        """Return nothing: the connection is not its own, but of its client's requests."""
        return Link()

    def ended(self) -> Ended:
        """Return why it had to answer before its time, if it had to."""
        return Ended(self._close_code)


async def poll(broker: Broker, request: Request, account: Account, key: Key, judge: Judge) -> Page:
    """Return the next page for a client; wait for its first event if the client asks for that.

    The key is judged in the step in which the page is complete. Raises `RequestError`, `PeerGoneError`.
    """
    asked = check_poll(request.query())
    waiter = _Waiter(broker.draining, partial(broker.turns.wake, key.account_id))
    poller = _Poller(account, broker.past, judge, asked, waiter, broker.acknowledged)
    if not asked.wait_seconds:
        return await poller.page()
    key, opening, slot, named = await admit(broker.slots, broker.names, judge)
    slot.holder, waiter.selection, waiter.event_filter = waiter, opening.selection, opening.event_filter
    entry = OpenConnection(f"conn_{secrets.token_hex(12)}", key, opening.client_id, request.remote, "poll", waiter)
    entry.agent, entry.watch = request.agent, opening.watch
    broker.connections.enter(entry)
    with ExitStack() as stack:
        stack.callback(slot.release)
        stack.enter_context(named)
        stack.callback(broker.connections.leave, entry)
        stack.enter_context(broker.keyring.watch(key, request.remote, waiter.hurry))
        return await request.unless_client_leaves(poller.page)


async def hurry_polls(broker: Broker) -> None:
    """Let all that wait answer with what there is, in turns: the broker drains."""
    waiters = [entry.connected for entry in broker.connections.entries() if isinstance(entry.connected, _Waiter)]
    for number, waiter in enumerate(waiters, start=1):
        waiter.hurry_in_turn()
        if number % _HURRIED == 0:
            await trio.lowlevel.checkpoint()


class _Poller:
    """One poll at work."""

    def __init__(
        self, account: Account, past: Past, judge: Judge, asked: Poll, waiter: _Waiter, acknowledged: Acknowledged
    ) -> None:
        self._account = account
        self._past = past
        self._judge = judge
        self._asked = asked
        self._waiter = waiter
        self._acknowledged = acknowledged
        self._until = trio.current_time() + asked.wait_seconds
        self._start = account.buffer.head
        """Where a poll without `since` begins."""

    async def page(self) -> Page:
        """Read a page, and again if by its end the key reaches something else."""
        while True:
            key, opening = self._judge()
            page = await self._read(key, opening)
            if self._judge()[1] == opening:
                return page

    async def _read(self, key: Key, opening: Opening) -> Page:
        account, client = self._account, None
        if opening.since == ACKED and opening.client_id is not None:
            client = self._acknowledged.client(account.buffer.account_id, key.identity, opening.client_id)
        listener = Listener(take_nothing, self._waiter.wake)
        follower = Follower(
            account.buffer, account.subscriptions, listener, opening.selection, opening.event_filter, client
        )
        try:
            replay = await self._begin(follower, opening.since)
            recovered, entries, through = await self._entries(follower)
            cursor = follower.cursor if through is None else account.buffer.cursor_at(through)
        finally:
            follower.close()
        events = [Raw(payload_of(entry.frame)) for entry in entries]
        told = UNSET if opening.since is None else Replay(replay.recovered and recovered, replay.count)
        return Page(events, cursor, told)

    async def _begin(self, follower: Follower, since: str | None) -> Replay:
        """Start where the poll begins; return what comes."""
        if since is None:
            return follower.start(self._start)[0]
        reached: Reached | None = None
        while (reach := follower.reach(follower.selection, since, trio.current_time(), reached)) is not None:
            reached = await self._past.reach(self._account.buffer, reach)
        return follower.start(follower.resolve(since, trio.current_time()), reached)[0]

    async def _entries(self, follower: Follower) -> tuple[bool, list[Entry], int | None]:
        """Return whether nothing was missed, the events, and their last position if there may be more behind it."""
        recovered, entries, size = True, list[Entry](), 0
        while True:
            following = follower.next()
            if isinstance(following, Gap):
                recovered = False
            elif isinstance(following, Older):
                follower.take_in(following, await self._past.read(self._account.buffer, following))
            elif following is not None:
                for entry in following:
                    size += len(entry.frame)
                    if len(entries) == self._asked.limit or (entries and size > MAX_PAGE_BYTES):
                        return recovered, entries, entries[-1].position
                    entries.append(entry)
                await trio.lowlevel.checkpoint()
            elif entries or self._waiter.answer_now or trio.current_time() >= self._until:
                return recovered, entries, None
            else:
                await self._waiter.wait(self._until)
