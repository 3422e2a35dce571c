"""The one way in for events: from a client's socket, over HTTP, and from the library, whatever engine stores them.

A publish is a `Batch`. It is *prepared* in slices, and nothing is stored: its events are split, counted and checked. It
is *begun* in one step, after the last wait: its key is judged as it is by then, its rates are taken, its events are
stored. Between the two lies the wait for places before the fan-out. From that step on its publisher may leave: he loses
the answer only, but for what waits for a server that many nodes share, which he takes back.
"""

import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec
import trio
from msgspec import Struct

from ..access.keyring import Keyring
from ..access.keys import Key
from ..access.rates import TokenBucket, require_of_all, take_from_all
from ..commands.dispatch import Commands, Lane
from ..config import LimitsConfig
from ..errors import RequestError
from ..fanout.hub import Hub
from ..fanout.places import Place
from ..log.engines import Answer, Engine, Stored, StoredByAccount, Withdraw
from ..protocol.events import ProvedJson, prepare_event, prove_events, split_events, too_many_events
from ..protocol.faithful import UnfaithfulError, encode_faithfully
from ..protocol.messages import NewEvent, PreparedEvent, Published, encode, format_time, time_ordered_id
from ..tracing import Kind, Span, Tracing
from ..turns import Turns
from .batch import ANSWER_SLICE, Batch, Turn, answer_of, in_slices, write_answer

SLICE_BYTES: Final = 32_768
"""Of events that are checked before others have their turn."""
_EVENT_BYTES: Final = 256
"""What checking an event costs beside its bytes, in bytes."""
MAX_ACCOUNTS: Final = 1_000
"""That one list may be for, since it is stored for all of them in one step."""
_MOST_LINKED: Final = 256
"""Events that are looked at for the traces that they name."""
_PLACES_SLICE: Final = 64
"""Accounts in which a place is taken before others have their turn."""

EventLike = NewEvent | Mapping[str, Any]
PlacesByAccount = Mapping[str, Place]
Ended = Callable[[Sequence[Stored] | RequestError], None]
"""Called with where the events of a batch are, in their order, or with why none is stored."""


class IntakeStatistics(Struct, frozen=True):
    """What came in."""

    published: int
    """Events stored since the start."""
    duplicates: int
    """Events that were there already."""


class Intake:
    """Takes events in. ``draining``: set when nothing is taken in any more."""

    def __init__(
        self,
        limits: LimitsConfig,
        keyring: Keyring,
        commands: Commands,
        hub: Hub,
        engine: Engine,
        draining: trio.Event,
        tracing: Tracing | None = None,
    ) -> None:
        self._limits = limits
        self._keyring = keyring
        self._commands = commands
        self._hub = hub
        self._engine = engine
        self._draining = draining
        self._tracing = tracing
        self._turns = Turns()
        self._checking = WeakValueDictionary[str | None, trio.Lock]()
        self._answering = WeakValueDictionary[str | None, trio.Lock]()
        self._nursery: trio.Nursery | None = None
        self._now_ms = 0
        self._now_text = ""
        self._last_id_ns = 0
        self.derives_ids = False
        """Whether events of a publish that may be sent again get ids that are the same at each node."""
        self._published = 0
        self._duplicates = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what `start_soon` was given, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def start_soon(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Let a task run that is to end whether its client stays or not: to write a long answer."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)

    # --- three ways to publish

    async def publish(self, account_id: str, events: Sequence[EventLike]) -> list[Published]:
        """Publish the library's events to an account, in one step. Raises `RequestError`."""
        most = self._limits.max_events_per_request
        if len(events) > most:
            raise too_many_events(most, "$")
        texts = ((f"$[{index}]", as_json(event, f"$[{index}]")) for index, event in enumerate(events))
        batch = Batch(prove_events(texts, self._limits.max_event_bytes), self._now(), account_id)
        self._trace(batch)
        published: list[Published] = []
        async for part in in_slices(await self._commit(batch), self.turn(batch)):
            published += part
        return published

    async def publish_raw(self, key: Key, raw: bytes, *, ndjson: bool = False, traceparent: str | None = None) -> bytes:
        """Publish JSON that came over HTTP; return the JSON of the result. Raises `RequestError`."""
        batch = self.batch(key, raw, ndjson=ndjson, traceparent=traceparent)
        return await self.write_answer(batch, await self._commit(batch))

    async def _commit(self, batch: Batch) -> Sequence[Stored]:
        """Prepare, begin, and wait. Who is cancelled then takes back what its engine has not sent yet."""
        places = await self.ready(batch)
        outcomes: list[Sequence[Stored] | RequestError] = []
        ended = trio.Event()

        def end(outcome: Sequence[Stored] | RequestError) -> None:
            outcomes.append(outcome)
            ended.set()

        withdraw = self.begin(batch, places, end)
        if not outcomes:
            try:
                await ended.wait()
            except trio.Cancelled:
                if withdraw is not None:
                    withdraw()
                raise
        # The one checkpoint where there was nothing to wait for: after the fan-out was woken, so no turn passes before.
        await trio.lowlevel.cancel_shielded_checkpoint()
        [outcome] = outcomes
        if isinstance(outcome, RequestError):
            raise outcome.again()
        return outcome

    async def announce(self, account_id: str, kind: str, payload: Mapping[str, Any]) -> None:
        """Publish an event of the broker's own to an account, if that can be: nobody waits for it."""
        batch = self._own(account_id, kind, self._new_event_id(), payload)
        with suppress(RequestError):
            self.begin(batch, await self.places(batch), lambda _: None)

    def announce_soon(self, account_id: str, kind: str, payload: Mapping[str, Any]) -> None:
        """The same, from where nobody can wait."""
        self.start_soon(self.announce, account_id, kind, payload)

    async def tell(self, account_id: str, kind: str, event_id: str, payload: Mapping[str, Any]) -> None:
        """Publish an event of the broker's own to an account; return when it is stored. Raises `RequestError`."""
        await self._commit(self._own(account_id, kind, event_id, payload))

    def _own(self, account_id: str, kind: str, event_id: str, payload: Mapping[str, Any]) -> Batch:
        batch = Batch(iter(()), self._now(), account_id)
        content = encode(dict(payload))
        batch.add(account_id, PreparedEvent(kind, None, event_id, self._now(), content, None), len(content))
        return batch

    # --- its steps, for who takes them one by one

    def require(self, key: Key, lane: Lane | None = None) -> None:
        """Raise `RequestError` if a key may publish nothing at all now. To be asked before its events are read."""
        self.require_open()
        key.require("publish")
        buckets = self._buckets(key, lane)
        if buckets:
            require_of_all(buckets, 1, trio.current_time(), "events")

    def _buckets(self, key: Key, lane: Lane | None) -> list[TokenBucket]:
        if lane is not None:
            return lane.buckets("events")
        return [] if key.is_operator else self._commands.account(key).rates.events

    def require_open(self) -> None:
        """Raise `RequestError` (`draining`) if nothing is taken in any more."""
        if self._draining.is_set():
            raise RequestError("draining", "The broker is draining")

    def batch(
        self,
        key: Key,
        raw: bytes,
        path: str = "$",
        lane: Lane | None = None,
        answer: Answer | None = None,
        *,
        ndjson: bool = False,
        traceparent: str | None = None,
    ) -> Batch:
        """Make a batch of what a client sent; nothing of it is looked at yet. Raises `RequestError`."""
        self.require(key, lane)
        limits = self._limits
        items = split_events(
            raw, ndjson=ndjson, path=path, max_events=limits.max_events_per_request, max_bytes=limits.max_event_bytes
        )
        batch = Batch(items, self._now(), key.account_id, key=key, lane=lane, answer=answer, traceparent=traceparent)
        self._trace(batch)
        return batch

    def _trace(self, batch: Batch) -> None:
        """Begin the span of a batch, where spans are made; of one that is refused before it is begun none is told."""
        if self._tracing is not None:
            attributes = {"messaging.system": "daimon-broker", "broker.account_id": batch.account_id}
            kind: Kind = "internal" if batch.key is None else "server"
            batch.span = self._tracing.begin("publish", kind, batch.traceparent, attributes, ambient=batch.key is None)

    def turn(self, batch: Batch) -> Turn:
        """Return what lets others have their turn between two steps of a batch.

        Of all long batches one goes on between two looks at the network, round the accounts.
        """
        return partial(self._turns.take, batch.account_id)

    async def ready(self, batch: Batch) -> PlacesByAccount:
        """Check a batch's events and take its places; others have their turn meanwhile. It is to be begun at once.

        An account's long batches are checked one after the other: what is checked of one is kept whole. Raises
        `RequestError`.
        """
        if self.prepare_slice(batch):
            return await self.places(batch)
        turn = self.turn(batch)
        async with _of(self._checking, batch):
            await turn()
            while not self.prepare_slice(batch):
                await turn()
            places = await self.places(batch)
            try:
                await turn()  # the step that stores a long list is long
            except trio.Cancelled:
                _give_back(places)
                raise
        return places

    async def write_answer(self, batch: Batch, stored: Sequence[Stored]) -> bytes:
        """Return the JSON of the answer to a publish (PROTOCOL section 6); others have their turn meanwhile.

        An account's long answers are written one after the other, and wait for no list that is still being checked.
        """
        if len(stored) <= ANSWER_SLICE:
            return answer_of(stored)
        async with _of(self._answering, batch):
            return await write_answer(stored, self.turn(batch))

    def prepare_slice(self, batch: Batch) -> bool:
        """Check a slice of a batch. Returns whether all is checked. Raises `RequestError`."""
        spent = 0
        for item in batch.items:
            if item is not None:
                path, text = item
                account_id, event = self._check(batch, path, text)
                batch.add(account_id, event, len(text))
                spent += len(text) + _EVENT_BYTES
            if item is None or spent >= SLICE_BYTES:
                return False
        return True

    def _check(self, batch: Batch, path: str, text: ProvedJson) -> tuple[str, PreparedEvent]:
        """Check one event, and that its publisher may publish it. Returns its account, too."""
        new_id = partial(_derived_id, batch) if self.derives_ids and batch.answer is not None else self._new_event_id
        event = prepare_event(text, path, now=batch.now, new_id=new_id, traceparent=batch.traceparent)
        key, account_id = batch.key, batch.account_id
        if account_id is not None:
            if event.account_id is not None and event.account_id != account_id:
                raise _of_another_account(key, path)
            if key is not None:
                key.require_inbox(event.inbox_id, f"{path}.inbox_id")
            return account_id, event
        if event.account_id is None:
            message = f"An operator's event needs an `account_id` - at `{path}.account_id`"
            raise RequestError("invalid_params", message)
        self._keyring.require_account(event.account_id, f"{path}.account_id")
        if len(batch.by_account) == MAX_ACCOUNTS and event.account_id not in batch.by_account:
            raise RequestError("too_large", f"More than {MAX_ACCOUNTS:,} accounts in a list - at `{path}.account_id`")
        return event.account_id, event

    def places_nowait(self, batch: Batch) -> PlacesByAccount | None:
        """Take a place before the fan-out for each account of a prepared batch; None if one must wait for that."""
        places: dict[str, Place] = {}
        for account_id, size in batch.sizes.items():
            place = self._hub.account(account_id).places.take_nowait(size)
            if place is None:
                _give_back(places)
                return None
            places[account_id] = place
        return places

    async def places(self, batch: Batch) -> PlacesByAccount:
        """Take a place before the fan-out for each account of a prepared batch; wait until there is one."""
        await trio.lowlevel.checkpoint_if_cancelled()
        places: dict[str, Place] = {}
        try:
            # In one order for all, so that no two publishers wait for each other.
            for account_id, size in sorted(batch.sizes.items()):
                of_account = self._hub.account(account_id).places
                places[account_id] = of_account.take_nowait(size) or await of_account.take(size)
                if len(places) % _PLACES_SLICE == 0:
                    await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            _give_back(places)
            raise
        return places

    def begin(self, batch: Batch, places: PlacesByAccount, ended: Ended) -> Withdraw | None:
        """Judge a prepared batch and let the engine store it, in one step. Returns what takes it back, if that can be.

        ``ended`` hears what became of it, when it is known; its publisher may be gone by then. Raises `RequestError`
        if it may not be stored: its publisher is not who he was, or publishes too much.
        """

        def stored(outcome: StoredByAccount | RequestError) -> None:
            if batch.span is not None:
                _end_span(batch.span, batch, outcome)
            batch.forget_events()
            if isinstance(outcome, RequestError):
                _give_back(places)
                ended(outcome)
            else:
                self._hand_on(places, outcome)
                ended(batch.in_order(outcome))

        try:
            self._judge(batch)
            return self._engine.begin(batch.by_account, stored, batch.answer)
        except BaseException as error:
            _give_back(places)
            if batch.span is not None and isinstance(error, RequestError):
                _end_span(batch.span, batch, error)
            raise

    def _judge(self, batch: Batch) -> None:
        """Raise `RequestError` unless a batch's publisher may publish it in this very step; take its rates."""
        self.require_open()
        if batch.key is None:
            return
        key = self._keyring.confirm(batch.key)
        if key.is_operator:
            for account_id in batch.by_account:
                self._keyring.require_account(account_id)
            return
        if key is not batch.key and key != batch.key:
            self._judge_again(batch, key)
        buckets = self._buckets(key, batch.lane)
        if buckets:
            take_from_all(buckets, batch.count, trio.current_time(), "events")

    def _judge_again(self, batch: Batch, key: Key) -> None:
        """Raise `RequestError` unless a key that has changed since a batch was checked may still publish it."""
        key.require("publish")
        for account_id, events in batch.by_account.items():
            if account_id != key.account_id:
                raise RequestError("forbidden", "The key is of another account by now")
            for event in events:
                key.require_inbox(event.inbox_id, "inbox_id")

    def _hand_on(self, places: PlacesByAccount, stored: StoredByAccount) -> None:
        """Leave the places of what was stored to the fan-out."""
        for account_id, of_account in stored.items():
            last = duplicates = 0
            for item in of_account:
                if item.duplicate:
                    duplicates += 1
                else:
                    last = item.position
            self._duplicates += duplicates
            self._published += len(of_account) - duplicates
            if last:
                places[account_id].hand_on(last)
            else:
                places[account_id].give_back()

    def _now(self) -> str:
        """Return the time as events bear it; it is written once a millisecond."""
        now_ms = time.time_ns() // 1_000_000
        if now_ms != self._now_ms:
            self._now_ms = now_ms
            self._now_text = format_time(datetime.fromtimestamp(now_ms / 1_000, UTC))
        return self._now_text

    def _new_event_id(self) -> str:
        self._last_id_ns = max(self._last_id_ns + 1, time.time_ns())
        return time_ordered_id("evt_", self._last_id_ns, random.getrandbits(64))

    def statistics(self) -> IntakeStatistics:
        """Return what came in."""
        return IntakeStatistics(self._published, self._duplicates)


def _end_span(span: Span, batch: Batch, outcome: StoredByAccount | RequestError) -> None:
    events = islice((event for of_account in batch.by_account.values() for event in of_account), _MOST_LINKED)
    traces = {event.traceparent: None for event in events if event.traceparent not in (None, batch.traceparent)}
    span.link(filter(None, traces))
    error = outcome.code if isinstance(outcome, RequestError) else None
    span.end(error, {"messaging.operation.name": "publish", "messaging.batch.message_count": batch.count})


def _of(locks: MutableMapping[str | None, trio.Lock], batch: Batch) -> trio.Lock:
    """Return the lock of a batch's account. Locks are kept for as long as somebody has one, or waits."""
    return locks.setdefault(batch.account_id, trio.Lock())


def _give_back(places: PlacesByAccount) -> None:
    for place in places.values():
        place.give_back()


def _of_another_account(key: Key | None, path: str) -> RequestError:
    if key is None:
        return RequestError("invalid_params", f"The event is for another account - at `{path}.account_id`")
    return RequestError("forbidden", f"The key is of another account - at `{path}.account_id`")


def as_list(events: EventLike | Iterable[EventLike]) -> list[EventLike]:
    """Return one event or several as a list. Raises TypeError for what is neither."""
    if isinstance(events, (NewEvent, Mapping)):
        return [events]
    if isinstance(events, (str, bytes)) or not isinstance(events, Iterable):
        raise TypeError(f"`events` is an event or a list of events, not {type(events).__name__}")
    return list(events)


def as_json(given: EventLike, path: str) -> bytes:
    """Return what the library was given as the JSON it would have come as, so that one check serves all."""
    if not isinstance(given, (NewEvent, Mapping)):
        said = f"Expected a `NewEvent` or a mapping, not {type(given).__name__}"
        raise RequestError("invalid_params", f"{said} - at `{path}`")
    try:
        return encode_faithfully(given if isinstance(given, NewEvent) else dict(given))
    except UnfaithfulError as error:
        raise RequestError("invalid_params", f"{error.said} - at `{path}{error.place}`") from None
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise RequestError("invalid_params", f"{error} - at `{path}`") from None


def _derived_id(batch: Batch) -> str:
    """Return the id of the next event of a publish that may be sent again: the same, wherever that is."""
    assert batch.answer is not None
    parts = "\0".join((*batch.answer.identity, str(batch.account_id), str(batch.count))).encode()
    return f"evt_{blake2b(parts + batch.answer.digest, digest_size=16).hexdigest()}"
