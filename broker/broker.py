"""`Broker`: the public face for embedding. It wires the floors below and knows no network."""

import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
import trio
from msgspec import Struct

from .access.keyring import Keyring, KeyringStatistics
from .access.keys import Key
from .access.lookup import AskAccess, Lookup, asks_api
from .access.rates import take_from_all
from .access.slots import Slots, SlotsStatistics
from .access.tokens import Tokens
from .callout import Callout, open_callout
from .commands.dispatch import BUILT_IN_ACTIONS, Commands, CommandsStatistics, HandlerFunction, Lane, WhenClientLeaves
from .commands.forward import forwarder
from .commands.remembered import Outcome
from .commands.requests import check_command
from .config import CalloutConfig, Config, check_config
from .errors import BadCommandError, BadFrameError, BrokerClosedError, RequestError
from .fanout.hub import Account, Hub, HubStatistics, Place
from .fanout.subscriber import Subscriber
from .intake.budget import Bodies
from .log.engines import Engine, Stored
from .log.engines.memory import MemoryEngine
from .log.retention import ReplayBuffers, ReplayStatistics
from .protocol.decoding import decode_command, prepare_event, split_events
from .protocol.messages import Command, NewEvent, PreparedEvent, Published, encode, format_time, time_ordered_id
from .protocol.names import ALL_INBOXES, check_identifier, check_list, check_since
from .protocol.selection import TypeFilter
from .schedule import Schedule

PREPARE_SLICE: Final = 128
"""Events of one publish that are checked before others have their turn."""
RELOADED_SECTIONS: Final = ("accounts", "operators", "rates")
AHEAD_SECONDS: Final = 5.0
"""How long a cursor that the fan-out has not reached yet is waited for."""

MAX_EXPIRY_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 30.0
_SLICE: Final = 64
_EXPIRE_SLICE: Final = 512

EventLike = NewEvent | Mapping[str, Any]
HandlerFunctionT = TypeVar("HandlerFunctionT", bound=HandlerFunction)


class BrokerStatistics(Struct, frozen=True):
    """What the broker holds and has done."""

    hub: HubStatistics
    commands: CommandsStatistics
    replay: ReplayStatistics
    published: int
    """Events stored since the start."""
    duplicates: int
    """Events that were there already."""
    slots: SlotsStatistics
    keyring: KeyringStatistics
    draining: bool
    """Whether it refuses to publish and to open."""


class Broker:
    """An event broker. Made by `open_broker`, which runs its tasks."""

    def __init__(self, config: Config, lookup: Lookup | None = None) -> None:
        self.config = config
        self.commands = Commands(config)
        self.schedule = Schedule()
        self.slots = Slots()
        tokens = Tokens(config.tokens.secret or secrets.token_urlsafe(32), config.tokens.ttl_seconds)
        self.keyring = Keyring(config, tokens, lookup, self.schedule)
        self.bodies = Bodies(config.limits.max_bodies_bytes)
        self.draining = trio.Event()
        """Set by `start_draining`."""
        self._buffers = ReplayBuffers(config.replay, secrets.token_bytes(16))
        self._hub = Hub(self._buffers)
        self._engine: Engine = MemoryEngine(self._buffers, trio.current_time)
        self._last_id_ns = 0
        self._published = 0
        self._duplicates = 0

    # --- publishing

    async def publish(self, account_id: str, events: EventLike | Sequence[EventLike]) -> list[Published]:
        """Publish one event or a list to an account, in one step, in order.

        An event is a `NewEvent` or a mapping of the same fields (PROTOCOL section 6). Returns what became of each,
        once they are stored; waits while the fan-out is behind. A cancelled call has stored all or nothing.
        Raises `RequestError`, which names the field, and `BrokerClosedError` while the broker drains.
        """
        check_identifier(account_id, "account_id")
        given = [events] if isinstance(events, (NewEvent, Mapping)) else list(events)
        prepared = []
        now = format_time(datetime.now(UTC))
        for index, event in enumerate(given):
            path = f"$[{index}]"
            prepared.append(self._prepare(path, _as_json(event, path), now, None))
            if (index + 1) % PREPARE_SLICE == 0:
                await trio.lowlevel.checkpoint()
        try:
            return await self._store(prepared, account_id)
        except RequestError as error:
            raise _as_closed(error) from None

    async def publish_raw(
        self, key: Key, raw: bytes, path: str = "$", lane: Lane | None = None, *, ndjson: bool = False
    ) -> list[Published]:
        """Publish JSON that came from a client, or over HTTP without a ``lane``, for one key. Raises `RequestError`."""
        self.require_open()
        prepared = []
        now = format_time(datetime.now(UTC))
        for number, (where, item) in enumerate(split_events(raw, ndjson=ndjson, path=path), start=1):
            prepared.append(self._prepare(where, item, now, key))
            if number % PREPARE_SLICE == 0:
                await trio.lowlevel.checkpoint()
        self._take_rates(key, lane, len(prepared))
        return await self._store(prepared, key.account_id)

    def publish_raw_nowait(self, key: Key, raw: bytes, path: str, lane: Lane | None = None) -> list[Published] | None:
        """Do the same in one synchronous step; None if it is long or must wait. Raises `RequestError`."""
        self.require_open()
        account = self._hub.account(str(key.account_id))
        items = split_events(raw, ndjson=False, path=path)
        place = account.place_nowait() if len(items) <= PREPARE_SLICE else None
        if place is None:
            return None
        with place:
            now = format_time(datetime.now(UTC))
            prepared = [self._prepare(where, item, now, key) for where, item in items]
            self._take_rates(key, lane, len(prepared))
            stored = self._engine.append_nowait(account.buffer.account_id, prepared)
            return None if stored is None else self._hand_on(account, place, stored)

    def _take_rates(self, key: Key, lane: Lane | None, events: int) -> None:
        """Raise `RequestError` (`rate_limited`) if a client publishes more than its tier may; operators may."""
        if not key.is_operator:
            buckets = lane.buckets("events") if lane else self.commands.account(key).rates.events
            take_from_all(buckets, events, trio.current_time(), "events")

    def _prepare(self, path: str, raw: bytes, now: str, key: Key | None) -> PreparedEvent:
        """Check one event, and that the key may publish it."""
        event = prepare_event(
            raw,
            path,
            max_bytes=self.config.limits.max_event_bytes,
            now=now,
            new_id=self._new_event_id,
        )
        if key is None:
            return event
        if key.is_operator:
            if event.account_id is None:
                message = f"An operator's event needs an `account_id` - at `{path}.account_id`"
                raise RequestError("invalid_params", message)
            self.keyring.require_account(event.account_id)
            return event
        if event.account_id not in (None, key.account_id):
            raise RequestError("forbidden", f"The key is of another account - at `{path}.account_id`")
        key.require_inbox(event.inbox_id, f"{path}.inbox_id")
        return event

    async def _store(self, events: list[PreparedEvent], account_id: str | None) -> list[Published]:
        """Wait for room, store, wake the fan-out: after the wait, nothing but the engine can be cancelled.

        ``account_id`` None: each event says its own; places for all accounts are taken before anything is stored.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.require_open()
        by_account: dict[str, list[int]] = {}
        for index, event in enumerate(events):
            by_account.setdefault(account_id or str(event.account_id), []).append(index)
        published: dict[int, Published] = {}
        with ExitStack() as stack:
            places: list[tuple[str, Account, Place]] = []
            # In one order for all, so that no two publishers wait for each other.
            for name in sorted(by_account):
                account = stack.enter_context(self.hold(name))
                place = account.place_nowait() or await account.place()
                places.append((name, account, stack.enter_context(place)))
            self.require_open()
            for name, account, place in places:
                indexes = by_account[name]
                stored = await self._engine.append(name, [events[index] for index in indexes])
                published.update(zip(indexes, self._hand_on(account, place, stored), strict=True))
        # The one checkpoint where there was room: after the fan-out was woken, so that no turn passes before.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return [published[index] for index in range(len(events))]

    def _hand_on(self, account: Account, place: Place, stored: list[Stored]) -> list[Published]:
        """Hand what is stored to the fan-out."""
        duplicates = sum(item.duplicate for item in stored)
        self._duplicates += duplicates
        self._published += len(stored) - duplicates
        if duplicates < len(stored):
            place.hand_on()
            self._hub.wake(account)
        return [Published(item.event_id, item.cursor, item.duplicate) for item in stored]

    def _new_event_id(self) -> str:
        self._last_id_ns = max(self._last_id_ns + 1, time.time_ns())
        return time_ordered_id("evt_", self._last_id_ns, random.getrandbits(64))

    def require_open(self) -> None:
        """Raise `RequestError` (`draining`) if the broker drains."""
        if self.draining.is_set():
            raise RequestError("draining", "The broker is draining")

    # --- subscribing

    @asynccontextmanager
    async def subscribe(
        self,
        account_id: str,
        inbox_ids: Iterable[str] | None = None,
        *,
        since: str | None = None,
        event_types: Iterable[str] | None = None,
    ) -> AsyncIterator[Subscriber]:
        """Subscribe to inboxes of an account (None: all), with its own events; iterate to get `Event` and `Gap`.

        ``since``: a cursor, a duration or a time (PROTOCOL section 2); ``event_types``: exact types or prefixes
        with ``.*``. Raises `RequestError` for a bad name, `TypeError` for one string in the place of a list. A
        reader that is slow keeps nothing but its position.
        """
        check_identifier(account_id, "account_id")
        for name, given in (("inbox_ids", inbox_ids), ("event_types", event_types)):
            if isinstance(given, str):
                raise TypeError(f"`{name}` is a list of names, not one string: [{given!r}]")
        names = [ALL_INBOXES] if inbox_ids is None else list(inbox_ids)
        patterns = None if event_types is None else list(event_types)
        if names:
            check_list(names, "inbox_ids")
        if patterns is not None:
            check_list(patterns, "event_types")
        if since is not None:
            check_since(since)
        selection = Key("library", account_id, frozenset({"subscribe"})).select(names, "inbox_ids")
        with self.hold(account_id) as account:
            if since is not None:
                await self.wait_for_cursor(account, since)
            subscriber = Subscriber(account, selection, None if patterns is None else TypeFilter(patterns))
            try:
                if since is not None:
                    now = trio.current_time()
                    subscriber.start(subscriber.follower.resolve(since, now, datetime.now(UTC)))
                yield subscriber
            finally:
                subscriber.follower.close()

    @contextmanager
    def hold(self, account_id: str) -> Iterator[Account]:
        """Keep an account's log and listeners while a connection uses them."""
        account = self._hub.account(account_id)
        account.uses += 1
        try:
            yield account
        finally:
            account.uses -= 1

    async def wait_for_cursor(self, account: Account, since: str) -> None:
        """Wait, for a while, until the fan-out has passed a cursor that was given out before it was there."""
        position = account.buffer.position_of(since)
        if position is not None:
            with trio.move_on_after(AHEAD_SECONDS):
                await account.passed(position)

    # --- commands

    def command(
        self, action: str, *, seconds: float | None = None, when_client_leaves: WhenClientLeaves = "finish"
    ) -> Callable[[HandlerFunctionT], HandlerFunctionT]:
        """Register the decorated async function as the handler of an action (PROTOCOL section 4).

        It is called with the parameters and a `CommandContext`. Its first parameter's annotation is what the
        parameters are decoded as: any type that msgspec makes of a JSON object (Struct, dataclass, TypedDict, attrs,
        dict; left out: a dict). Parameters that do not fit are refused before it runs. It returns the result, or
        raises `CommandError`. After ``seconds`` (``commands.timeout_seconds`` unless given) it is cancelled; if the
        client leaves, it is finished or cancelled as ``when_client_leaves`` says. Raises ValueError if the action is
        built in or has a handler, TypeError if the function is not async or does not take two arguments.
        """
        if not isinstance(action, str):
            raise TypeError('name the action: @broker.command("send_email")')
        check_identifier(action, "action")
        if action in BUILT_IN_ACTIONS:
            raise ValueError(f"{action!r} is the broker's own action")
        deadline_seconds = self.config.commands.timeout_seconds if seconds is None else seconds

        def register(function: HandlerFunctionT) -> HandlerFunctionT:
            self.commands.register(action, function, seconds=deadline_seconds, leave=when_client_leaves)
            return function

        return register

    async def call(
        self,
        account_id: str,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        inbox_id: str | None = None,
        request_id: str | None = None,
    ) -> Any:
        """Give a command to its handler as a client of the account would, without a socket; return its result.

        No rate limits it. With a ``request_id`` it is remembered as a client's is, and done once. Raises
        `RequestError` with what a client would be told, and `BrokerClosedError` while the broker drains.
        """
        check_identifier(account_id, "account_id")
        envelope = {"action": action, "request_id": request_id, "inbox_id": inbox_id, "params": params or {}}
        try:
            self.require_open()
            command = decode_command(_as_json(envelope, "$").decode())
            result = await self.do_command(Key("library", account_id, frozenset({"command"})), command)
        except (BadFrameError, BadCommandError) as bad:
            raise bad.error from None
        except RequestError as error:
            raise _as_closed(error) from None
        return msgspec.json.decode(encode(result))

    async def do_command(self, key: Key, command: Command, traceparent: str | None = None) -> Any:
        """Do one command that came over HTTP; return its result. Raises `RequestError`."""
        if command.action == "ping":
            return {"server_time": format_time(datetime.now(UTC))}
        if command.action in BUILT_IN_ACTIONS:
            raise RequestError("unknown_action", f"{command.action!r} is for the stream; events go to /v1/events")
        request = check_command(key, command, command.request_id or f"req_{secrets.token_hex(8)}", traceparent)
        lane = self.commands.lane(key, shared_rates_only=True)
        done = trio.Event()
        outcomes: list[Outcome] = []

        def reply(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        try:
            self.commands.submit(lane, request, reply)
            await done.wait()
        finally:
            self.commands.leave(lane)
        [outcome] = outcomes
        if outcome.error is not None:
            raise outcome.error
        return msgspec.Raw(outcome.result)

    # --- its life

    def reload(self, config: Config) -> list[str]:
        """Take the accounts, keys, operators and rates of another configuration, without dropping a connection.

        But those whose key is gone are closed (4401), and those whose key reaches less keep what it still reaches
        (PROTOCOL section 8). Returns the sections that differ and need a restart: they stay as they were. Raises
        `ConfigError`, and then nothing has changed.
        """
        config = check_config(config)
        taken = {name: getattr(config, name) for name in RELOADED_SECTIONS}
        self.config = msgspec.structs.replace(self.config, **taken)
        self.commands.reload(self.config)
        self.keyring.reload(self.config)
        return [name for name in config.__struct_fields__ if getattr(config, name) != getattr(self.config, name)]

    def start_draining(self) -> None:
        """Refuse to publish and to open from now on; a server then closes its connections and ends."""
        self.draining.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the broker's own tasks, for ever. A failure in one of them ends the broker."""
        async with AsyncExitStack() as stack:
            callout = await _open_callout(stack, self.config.commands)
            if callout is not None:
                self.commands.fallback = forwarder(callout, self.config.commands.timeout_seconds)
            nursery = await stack.enter_async_context(trio.open_nursery())
            await nursery.start(self.commands.run)
            nursery.start_soon(self._hub.deliver)
            nursery.start_soon(self.schedule.run)
            await nursery.start(self.keyring.run)
            nursery.start_soon(self._keep_house)
            task_status.started()

    async def _keep_house(self) -> None:
        await expire_and_forget(self._hub, self._buffers, self.commands, self.config.replay.seconds)

    def statistics(self) -> BrokerStatistics:
        """Return what the broker holds and has done."""
        return BrokerStatistics(
            self._hub.statistics(),
            self.commands.statistics(),
            self._buffers.statistics(),
            self._published,
            self._duplicates,
            self.slots.statistics(),
            self.keyring.statistics(),
            self.draining.is_set(),
        )


async def expire_and_forget(hub: Hub, buffers: ReplayBuffers, commands: Commands, window_seconds: float) -> None:
    """Drop what is too old, and forget accounts of which nothing is left, for ever."""
    interval = min(MAX_EXPIRY_SECONDS, window_seconds / 4)
    forget_at = trio.current_time() + FORGET_SECONDS
    while True:
        await trio.sleep(interval)
        while buffers.expire(trio.current_time(), most=_EXPIRE_SLICE):
            await trio.lowlevel.checkpoint()
        if trio.current_time() >= forget_at:
            forget_at = trio.current_time() + FORGET_SECONDS
            commands.forget_idle(trio.current_time())
            for number, account in enumerate(hub.accounts()):
                hub.forget_idle(account, trio.current_time())
                if number % _SLICE == 0:
                    await trio.lowlevel.checkpoint()


def _as_closed(error: RequestError) -> RequestError | BrokerClosedError:
    """Return a refusal as the library raises it: where a client is told that the broker drains, it is closed."""
    return BrokerClosedError(error.message) if error.code == "draining" else error


def _as_json(event: EventLike, path: str) -> bytes:
    """Return what the library was given as the JSON it would have come as, so that one check serves all."""
    try:
        return encode(event if isinstance(event, NewEvent) else dict(event))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise RequestError("invalid_params", f"{error} - at `{path}`") from None


async def _open_callout(stack: AsyncExitStack, section: CalloutConfig) -> Callout | None:
    """Open what a section asks for, until the stack ends; None if it asks for nothing."""
    if section.url is None or section.secret is None:
        return None
    return await stack.enter_async_context(open_callout(section.url, section.secret, section.timeout_seconds))


@asynccontextmanager
async def open_broker(config: Config | None = None, *, access: AskAccess | None = None) -> AsyncIterator[Broker]:
    """Start a broker; its tasks run in a nursery of its own until the block ends.

    ``access`` is asked for keys that the configuration does not hold, instead of ``access.url``. Raises `ConfigError`.
    """
    config = check_config(config or Config())
    async with AsyncExitStack() as stack:
        if access is None:
            callout = await _open_callout(stack, config.access)
            access = None if callout is None else asks_api(callout)
        broker = Broker(config, None if access is None else Lookup(access, config.access.timeout_seconds))
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(broker.run)
        try:
            yield broker
        finally:
            broker.start_draining()
            nursery.cancel_scope.cancel()
