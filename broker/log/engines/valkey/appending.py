"""Publishes on their way to the server: what waits while a call is under way goes together with the next one.

One task writes, and another while a long list is under way: that takes a while to be written out, and to be told of.
A call that was lost is made again with the next link: the ids of its events keep it from being stored twice. What is
not told within `DEADLINE_SECONDS` is refused, and may be stored all the same.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import trio

from ....config import ReplayConfig
from ....errors import RequestError, request_id_reused
from ....protocol.messages import ENTRY_OVERHEAD_BYTES, PreparedEvent
from ...replay import cursor_prefix_of
from ...shares import LONG, Shares
from .. import Answer, Done, EventsByAccount, Stored, Withdraw
from . import pages_of
from .link import Link, RefusedError, unavailable
from .scripts import APPEND

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
PUBLISHED_BYTES: Final = 65_536
"""Up to so much a node hears of events by itself; of more it hears that they are there."""
META_MS: Final = 7 * 86_400_000
KNOWN_MS: Final = 3_900_000
"""How long the index outlives the window."""
_MARK: Final = 4
"""Arguments of one publish that may be sent again."""
_REUSED: Final = 2
"""What the server says of events that it does not store, since their publish came before with other content."""
_LINE_OVERHEAD: Final = ENTRY_OVERHEAD_BYTES - 60
_STEP_BYTES: Final = 65_536
"""That are written out before others have their turn."""
_ACCOUNT_BYTES: Final = 1_024
"""What an account costs beside its events, in bytes of these."""
_SLICE: Final = 256
"""Events that are told of before others have their turn."""
_ACCOUNT: Final = 4
"""What an account costs beside its events, in events."""


class _Publish:
    """One publish. ``done`` None: it is over."""

    __slots__ = ("by_account", "deadline", "done", "mark", "owners", "sent", "sent_before", "size", "weight")

    def __init__(self, by_account: EventsByAccount, done: Done, answer: Answer | None, deadline: float) -> None:
        self.by_account = by_account
        self.mark = () if answer is None else (_mark_of(answer), answer.digest)
        """Whose it is, and what stands for its content, if it may be sent again."""
        self.done: Done | None = done
        self.deadline = deadline
        self.owners: Sequence[str] = tuple(by_account)
        self.weight = sum(map(len, by_account.values()))
        self.size = sum(len(event.payload) for events in by_account.values() for event in events)
        self.sent = False
        """Whether there was a call with it: then it may be stored."""
        self.sent_before = False
        """Whether a call with it was lost."""


class Appending:
    """All publishes of a node. Its `write` runs while the link is ready, its `refuse_late` always."""

    def __init__(self, link: Link, replay: ReplayConfig) -> None:
        self._link = link
        window_ms = int(replay.seconds * 1_000)
        self._limits = [
            window_ms,
            replay.max_events_per_account,
            replay.max_bytes_per_account,
            META_MS,
            window_ms + KNOWN_MS,
            PUBLISHED_BYTES,
            _LINE_OVERHEAD,
        ]
        self._shares = Shares(CALL_EVENTS, ACCOUNT_EVENTS_OF_CALL)
        self._waiting: list[_Publish] = []
        self._long: list[_Publish] = []
        """The call with a long list that is under way: others' calls go beside it, for other accounts."""
        self._begun: deque[_Publish] = deque()
        """All that are not over, and maybe some that are, in their order."""
        self._bytes = 0
        self._more = trio.Event()
        self._first = trio.Event()
        self.under_way = 0
        """Publishes that are not told of yet."""
        self.calls = 0
        self.events = 0
        """That went with them."""
        self.refused: str | None = None
        """Why the server stored nothing, the last time."""

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
                await self._more.wait()
            elif chosen[-1].weight >= LONG:
                self._long = chosen
                self._link.start_soon(self._store_long)
            else:
                await self._store(chosen)

    async def _store_long(self) -> None:
        """Store a long list while others' calls go on."""
        chosen = self._long
        try:
            await self._store(chosen)
        finally:
            self._long = []
            self._more.set()

    async def _store(self, chosen: list[_Publish]) -> None:
        """Store some publishes. Raises `LinkLostError`; then they wait again."""
        try:
            await self._call(chosen)
        except RefusedError as refused:
            self._refuse(chosen, refused)
        finally:
            again = [publish for publish in chosen if publish.done is not None]
            for publish in again:
                publish.sent_before = True
            self._waiting[:0] = again

    def _choose(self) -> list[_Publish]:
        """Take what goes with the next call: beside a list that is under way, what is not for its accounts."""
        self._waiting = [publish for publish in self._waiting if publish.done is not None]
        if self._long:
            beside = [owner for publish in self._long for owner in publish.owners]
            chosen, self._waiting = self._shares.choose(self._waiting, beside)
        elif sum(publish.weight for publish in self._waiting) <= CALL_EVENTS:
            chosen, self._waiting = self._waiting, []
        else:
            chosen, self._waiting = self._shares.choose(self._waiting)
        for publish in chosen:
            publish.sent = True
        return chosen

    async def _call(self, publishes: list[_Publish]) -> None:
        """Store some publishes in one step, and tell of each."""
        link = self._link
        parts = [(publish, publish.by_account) for publish in publishes]  # one may be refused meanwhile
        by_account, marks = _gathered(publishes)
        keys, prefixes, written = [link.names.generation], {}, 0
        arguments: list[str | bytes | int] = [link.generation, link.candidate(), *self._limits]
        for account_id, events in by_account.items():
            prefix = prefixes[account_id] = cursor_prefix_of(account_id, link.generation.encode())
            keys += [link.names.of_account(kind, account_id) for kind in "msdxqp"]
            marked = marks.get(account_id, [])
            pages = []
            for page in pages_of(events, prefix):
                pages.append(page)
                written += _ACCOUNT_BYTES + len(page)
                if written > _STEP_BYTES:
                    written = 0
                    await trio.lowlevel.checkpoint()
            arguments += [link.names.events(account_id), len(pages), len(marked) // _MARK, *marked, *pages]
        answer = await link.run(APPEND, keys, arguments)
        self.calls += 1
        self.events += sum(map(len, by_account.values()))
        replicated = await link.replicated()
        self.refused = None
        places = {account_id: iter(told.split()) for account_id, told in zip(by_account, answer, strict=True)}
        for publish, of_publish in parts:
            outcome, reused = {}, False
            for number, (account_id, of_account) in enumerate(of_publish.items(), start=1):
                prefix, where = prefixes.get(account_id, ""), places.get(account_id, iter(()))
                stored = await _stored(of_account, where, prefix, publish.sent_before)
                outcome[account_id] = stored or []
                reused |= stored is None
                if number % (_SLICE // _ACCOUNT) == 0:
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


def _gathered(publishes: list[_Publish]) -> tuple[dict[str, list[PreparedEvent]], dict[str, list[int | bytes]]]:
    """Return the events of publishes by account, and of each account which of them may be sent again, as the script
    takes that."""
    by_account: dict[str, list[PreparedEvent]] = {}
    marks: dict[str, list[int | bytes]] = {}
    for publish in publishes:
        for account_id, events in publish.by_account.items():
            if events:
                of_account = by_account.setdefault(account_id, [])
                if publish.mark:
                    first = len(of_account) + 1
                    marks.setdefault(account_id, []).extend((first, first + len(events) - 1, *publish.mark))
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
