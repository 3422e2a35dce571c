"""Publishes on their way to the server: what waits while a call is under way goes together with the next one.

One task writes, and another while a long list is under way, which goes in parts (`lists`). What is for an account of
which another node writes a list waits, and is tried again. A call that was lost is made again with the next link: the
ids of its events keep it from being stored twice. What is not told within `DEADLINE_SECONDS` is refused, and may be
stored all the same.
"""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import trio

from ....config import ReplayConfig
from ....errors import RequestError, request_id_reused
from ....protocol.messages import PreparedEvent
from ...shares import LONG, Shares
from .. import Answer, Done, EventsByAccount, Stored, Withdraw
from .calls import ACCOUNT_WEIGHT, BUSY_SECONDS, BusyError, Calls, LostError, Mark, MarkOf, ReusedError
from .link import Link, RefusedError, unavailable
from .lists import LongList

logger = logging.getLogger(__name__)

CALL_EVENTS: Final = 64
"""In one call, about; one publish may have more."""
ACCOUNT_EVENTS_OF_CALL: Final = 16
"""Of one account in a call, if others wait."""
MAX_EVENTS: Final = 10_000
"""Of one publish."""
MAX_WAITING_BYTES: Final = 134_217_728
"""Of payloads that are not told of yet."""
DEADLINE_SECONDS: Final = 5.0
_REUSED: Final = 2
"""What the server says of events that it does not store, since their publish came before with other content."""
_SLICE: Final = 256
"""Events that are told of before others have their turn."""


class _Publish:
    """One publish. ``done`` None: it is over."""

    __slots__ = (
        "by_account",
        "deadline",
        "done",
        "left",
        "mark",
        "owners",
        "sent",
        "sent_before",
        "size",
        "weight",
    )

    def __init__(self, by_account: EventsByAccount, done: Done, answer: Answer | None, deadline: float) -> None:
        self.by_account = by_account
        self.mark: Mark | None = None if answer is None else (_mark_of(answer), answer.digest)
        self.done: Done | None = done
        self.deadline = deadline
        self.owners: Sequence[str] = tuple(by_account)
        self.weight = sum(map(len, by_account.values()))
        self.size = sum(len(event.payload) for events in by_account.values() for event in events)
        self.sent = False
        """Whether there was a call with it: then it may be stored."""
        self.sent_before = False
        """Whether a call with it was lost."""
        self.left = ""
        """The list that it was then, which may live."""


class Appending:
    """All publishes of a node. Its `write` runs while the link is ready, its `refuse_late` always."""

    def __init__(self, link: Link, replay: ReplayConfig) -> None:
        self._link = link
        self._calls = Calls(link, replay)
        self._shares = Shares(CALL_EVENTS, ACCOUNT_EVENTS_OF_CALL, long_alone=True)
        self._busy: dict[str, float] = {}
        """Accounts of which another node writes a list, and until when nothing is tried for them."""
        self._waiting: list[_Publish] = []
        self._long: list[_Publish] = []
        """The long list that is under way: others' calls go beside it, for other accounts."""
        self._begun: deque[_Publish] = deque()
        """All that are not over, and maybe some that are, in their order."""
        self._bytes = 0
        self._more = trio.Event()
        self._first = trio.Event()
        self.under_way = 0
        """Publishes that are not told of yet."""
        self.refused: str | None = None
        """Why the server stored nothing, the last time."""

    @property
    def calls(self) -> int:
        """How many have stored something."""
        return self._calls.number

    @property
    def events(self) -> int:
        """Events that went with them."""
        return self._calls.events

    def begin(self, by_account: EventsByAccount, done: Done, answer: Answer | None = None) -> Withdraw | None:
        """Store events; ``done`` hears what became of them, or that nobody knows. Returns what takes them back."""
        publish = _Publish(by_account, done, answer, trio.current_time() + DEADLINE_SECONDS)
        if not publish.weight:
            done({account_id: [] for account_id in by_account})
        elif publish.weight > MAX_EVENTS:
            done(RequestError("too_large", f"More than {MAX_EVENTS:,} events in a list cannot be stored in one step"))
        elif self._bytes and self._bytes + publish.size > MAX_WAITING_BYTES:
            done(unavailable("The broker's engine is behind"))
        else:
            self._bytes += publish.size
            self.under_way += 1
            self._waiting.append(publish)
            self._begun.append(publish)
            self._more.set()
            self._first.set()
            return partial(self._withdraw, publish)
        return None

    def _withdraw(self, publish: _Publish) -> None:
        if not publish.sent:
            self._end(publish, unavailable("Its publisher left before it was stored"))

    async def refuse_late(self) -> None:
        """Refuse what waits too long, for ever."""
        while True:
            while not self._begun:  # it may be over before this task has its turn
                self._first = trio.Event()
                await self._first.wait()
            await trio.sleep_until(self._begun[0].deadline)
            while self._begun and (self._begun[0].done is None or self._begun[0].deadline <= trio.current_time()):
                publish = self._begun.popleft()
                if publish.done is not None:
                    self._end(publish, unavailable())
            self._waiting = [publish for publish in self._waiting if publish.done is not None]

    async def write(self) -> None:
        """Store what waits, call by call. Raises `LinkLostError`; then what was under way waits again."""
        self._waiting[:0], self._long = self._long, []  # what the last link ended before it had a turn
        while True:
            chosen = self._choose()
            if not chosen:
                self._more = trio.Event()
                with trio.move_on_at(min(self._busy.values(), default=math.inf)):
                    await self._more.wait()
            elif chosen[0].weight >= LONG:
                self._long = chosen
                self._link.start_soon(self._store_long)
            else:
                await self._store(chosen, self._call(chosen))

    async def _store_long(self) -> None:
        """Store a long list while others' calls go on, and let leave what is too much then."""
        [publish] = self._long
        long_list = LongList(self._calls, publish.by_account, publish.mark, self._link.node, publish.deadline)
        try:
            await self._store([publish], self._call_long(publish, long_list))
        finally:
            self._long = []
            self._more.set()
        with suppress(RefusedError):
            await long_list.trim()

    async def _store(self, chosen: list[_Publish], call: Awaitable[None]) -> None:
        """Store some publishes. Raises `LinkLostError`; then they wait again."""
        try:
            await call
        except BusyError as busy:
            self._busy.update(dict.fromkeys(busy.account_ids, trio.current_time() + BUSY_SECONDS))
        except RefusedError as refused:
            self._refuse(chosen, refused)
        except BaseException:  # lost: it may be stored
            for publish in chosen:
                publish.sent_before = True
            raise
        finally:
            again = [publish for publish in chosen if publish.done is not None]
            for publish in again:
                publish.sent = publish.sent_before
            self._waiting[:0] = again

    def _choose(self) -> list[_Publish]:
        """Take what goes with the next call: nothing for accounts of a list that is under way, here or elsewhere."""
        now = trio.current_time()
        self._busy = {account_id: until for account_id, until in self._busy.items() if until > now}
        self._waiting = [publish for publish in self._waiting if publish.done is not None]
        beside = [*self._busy, *(owner for publish in self._long for owner in publish.owners)]
        if not beside and sum(publish.weight for publish in self._waiting) <= CALL_EVENTS:
            chosen, self._waiting = self._waiting, []
        else:
            chosen, self._waiting = self._shares.choose(self._waiting, beside, short=bool(self._long))
        for publish in chosen:
            publish.sent = True
        return chosen

    async def _call(self, publishes: list[_Publish]) -> None:
        """Store some publishes in one step, and tell of each."""
        parts = [(publish, publish.by_account) for publish in publishes]  # one may be refused meanwhile
        places = await self._calls.append(*_gathered(publishes))
        await self._tell(parts, {account_id: iter(told) for account_id, told in places.items()})

    async def _call_long(self, publish: _Publish, long_list: LongList) -> None:
        """Store one publish part by part, and tell of it."""
        by_account = publish.by_account
        if publish.left:
            await self._calls.take_back(publish.left, publish.owners)
        publish.left = long_list.name
        try:
            places = await long_list.store()
        except ReusedError:
            self._end(publish, request_id_reused())
        except LostError:
            pass  # it waits again, and is stored anew
        else:
            await self._tell([(publish, by_account)], {account_id: iter(told) for account_id, told in places.items()})

    async def _tell(self, parts: list[tuple[_Publish, EventsByAccount]], places: Mapping[str, Iterator[bytes]]) -> None:
        """Tell of each publish where its events are, by the next places of their accounts."""
        replicated = await self._link.replicated()
        self.refused = None
        for publish, of_publish in parts:
            outcome, reused = {}, False
            for number, (account_id, of_account) in enumerate(of_publish.items(), start=1):
                prefix, where = self._calls.prefix_of(account_id), places.get(account_id, iter(()))
                stored = await _stored(of_account, where, prefix, publish.sent_before)
                outcome[account_id] = stored or []
                reused |= stored is None
                if number % (_SLICE // ACCOUNT_WEIGHT) == 0:
                    await trio.lowlevel.checkpoint()
            if reused:
                self._end(publish, request_id_reused())
            elif not replicated:
                self._end(publish, unavailable("Too few replicas of the broker's engine have it"))
            else:
                self._end(publish, outcome)

    def _refuse(self, publishes: list[_Publish], why: RefusedError) -> None:
        if self.refused != str(why):
            self.refused = str(why)
            logger.error("the engine stores nothing: %s", why)
        for publish in publishes:
            self._end(publish, unavailable("The broker's engine stores nothing now"))

    def _end(self, publish: _Publish, outcome: Any) -> None:
        """Tell of a publish, unless that was done."""
        done, publish.done = publish.done, None
        if done is not None:
            self._bytes -= publish.size
            self.under_way -= 1
            publish.by_account = {}
            while self._begun and self._begun[0].done is None:
                self._begun.popleft()
            done(outcome)


def _gathered(publishes: list[_Publish]) -> tuple[dict[str, list[PreparedEvent]], dict[str, list[MarkOf]]]:
    """Return the events of publishes by account, and of each account which of them may be sent again."""
    by_account: dict[str, list[PreparedEvent]] = {}
    marks: dict[str, list[MarkOf]] = {}
    for publish in publishes:
        for account_id, events in publish.by_account.items():
            if events:
                of_account = by_account.setdefault(account_id, [])
                if publish.mark:
                    first = len(of_account) + 1
                    marks.setdefault(account_id, []).append((first, first + len(events) - 1, *publish.mark))
                of_account.extend(events)
    return by_account, marks


async def _stored(
    events: Sequence[PreparedEvent], places: Iterator[bytes], prefix: str, sent_before: bool
) -> list[Stored] | None:
    """Return where events are, by the next of ``places``; others have their turn between slices. None: they are not.

    What was sent before may have met itself: that is no duplicate.
    """
    stored = []
    seen: set[int] = set()
    reused = False
    for number, (event, place, known) in enumerate(zip(events, places, places, strict=False), start=1):
        position = int(place)
        reused |= int(known) == _REUSED
        is_duplicate = bool(int(known)) and (not sent_before or position in seen)
        stored.append(Stored(event.event_id, position, prefix, is_duplicate))
        seen.add(position)
        if number % _SLICE == 0:
            await trio.lowlevel.checkpoint()
    return None if reused else stored


def _mark_of(answer: Answer) -> bytes:
    return blake2b("\0".join(answer.identity).encode(), digest_size=16).digest()
