"""`Broker`: the public face for embedding. It wires the floors below and knows no network."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import trio

from .access.keyring import Keyring
from .access.keys import Access, Key
from .access.lookup import AskAccess, Lookup, asks_api
from .access.slots import Slots
from .access.tokens import Tokens
from .budget import of_bodies, of_names
from .callout import Callout
from .callouts import open_callout_of
from .commands.dispatch import BUILT_IN_ACTIONS, Commands, HandlerFunction, WhenClientLeaves
from .commands.forward import forwarder
from .commands.remembered import Outcome
from .commands.requests import check_command
from .config import Config, check_config, settings_of
from .disk import Disk, open_disk, require_storage
from .errors import BUSY_RETRY_MS, BadCommandError, BadFrameError, BrokerClosedError, RequestError, as_closed
from .expiry import expire_and_forget
from .fanout.acknowledged import Acknowledged
from .fanout.acknowledging import OnDisk, come
from .fanout.hub import Account, Hub
from .fanout.subscriber import Subscriber, Subscribers
from .holding import Hold
from .intake.intake import EventLike, Intake, as_json, as_list
from .joined import join
from .keeping import Keeping
from .log.engines import Engine, Log
from .log.engines.memory import MemoryEngine
from .log.past import Past
from .log.retention import ReplayBuffers
from .observe.census import Censuses
from .observe.connections import Connections
from .observe.grouped import Tasks
from .observe.lag import LoopLag
from .observe.live import Live
from .observe.log_writer import dropped_lines
from .observe.siblings import Siblings
from .observe.statistics import BrokerStatistics
from .protocol.decoding import decode_command
from .protocol.messages import Command, Published, encode, format_time
from .protocol.names import ACKED, ALL_INBOXES, check_identifier, check_list, check_since, require_lists
from .protocol.selection import TypeFilter
from .queues.asked import is_work
from .queues.working import do_at_once, leased_elsewhere
from .schedule import Schedule
from .sharing import shared_engine
from .tracing import Tracing
from .turns import Turns
from .version import __version__
from .waiting.asked import MAX_HTTP_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS, NOW, check_wait
from .waiting.waits import Found, Waited, Waits

RELOADED_SECTIONS: Final = ("accounts", "operators", "rates", "browsers", "dashboard")
AHEAD_SECONDS: Final = 5.0
"""How long a cursor that the fan-out has not reached yet is waited for."""
HandlerFunctionT = TypeVar("HandlerFunctionT", bound=HandlerFunction)


def make_engine(buffers: ReplayBuffers, log: Log) -> Engine:
    """Return the engine that fills the log: the one that keeps everything in this process."""
    return MemoryEngine(buffers, log, trio.current_time, time.time)


class Broker:
    """An event broker. Made by `open_broker`, which runs its tasks."""

    def __init__(
        self,
        config: Config,
        lookup: Lookup | None = None,
        callouts: Mapping[str, Callout] | None = None,
        disk: Disk | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.config = config
        self.settings = settings_of(config)
        """The configuration as it is for a connection, which keeps it for as long as it lives."""
        self._tracing = tracing
        self._disk = disk
        self._callouts = dict(callouts or {})
        self._lag = LoopLag()
        limits, make = config.limits, shared_engine(config)
        self.commands = Commands(config, disk.answers if disk and make is None else None, tracing)
        self.schedule = Schedule()
        self.turns = Turns()
        self.connections = Connections()
        self.siblings: Siblings | None = None
        """The other workers; None: this process is all of the broker."""
        tokens = Tokens(config.tokens.secret or secrets.token_urlsafe(32), config.tokens.ttl_seconds)
        self.keyring = Keyring(Access(config), tokens, lookup, self.schedule)
        self.bodies, self.names = of_bodies(limits.max_bodies_bytes), of_names(limits.max_names_bytes)
        self.draining = trio.Event()
        """Set by `start_draining`."""
        self._buffers = ReplayBuffers(config.replay, disk.storage.epoch if disk else secrets.token_bytes(16))
        self._hub = Hub(self._buffers, self.keyring.settle, tracing)
        self._engine: Engine = (make or (disk.engine if disk else make_engine))(self._buffers, self._hub)
        self.past = Past(self._engine.archive, time.time, self._engine.reach)
        if self._engine.archive is not None:
            self._buffers.archived(self._engine.archive.keep_seconds)
        self.acknowledged = Acknowledged()
        self.on_disk = None if disk is None else disk.acknowledged(self.acknowledged)
        """Where acknowledgements are kept beyond the process; None: nowhere."""
        self._joined = join(self._engine, config.replay.seconds, self.acknowledged)
        if self._joined is not None:
            self.on_disk = OnDisk(self._joined.positions, self._joined.handing)
            self.commands.shared = self._joined.answers
        self.slots = Slots() if self._joined is None else self._joined.slots
        self._subscribers = Subscribers(self.past, self.on_disk)
        self.waits = Waits(self._subscribers, self.turns)
        self.intake = Intake(limits, self.keyring, self.commands, self._hub, self._engine, self.draining, tracing)
        self.intake.derives_ids = self._joined is not None
        self.keeping = None if disk is None else self._keep_on(disk)
        self.webhooks = None if self.keeping is None else self.keeping.webhooks
        self.queues = None if self.keeping is None else self.keeping.queues
        if self.queues is not None:
            self.commands.is_current = self.queues.giving.is_current
        elif self._joined is not None:
            self.commands.is_current = leased_elsewhere
        seconds, tier_of = config.replay.seconds, self.keyring.tier_of
        self.censuses = Censuses(self.connections, self._hub.accounts, self.schedule, seconds, tier_of)
        self.tasks = Tasks(self.connections, self.schedule)
        self.live = Live(self.censuses, self.statistics, lambda: self.config, self.connections, __version__)

    def _keep_on(self, disk: Disk) -> Keeping:
        parts = (self._joined, self.keyring, self.schedule, self.intake, self.draining, self.turns)
        return Keeping(self.config, disk, *parts, lambda account, since: self.subscribe(account, since=since))

    # --- publishing

    async def publish(self, account_id: str, events: EventLike | Iterable[EventLike]) -> list[Published]:
        """Publish one event or a list to an account, in one step, in order.

        An event is a `NewEvent` or a mapping of the same fields (PROTOCOL section 6). Returns what became of each,
        once they are stored; waits while the fan-out is behind. A cancelled call has stored all or nothing.
        Raises `RequestError`, which names the field, TypeError for what is neither, and `BrokerClosedError` while the
        broker drains.
        """
        check_identifier(account_id, "account_id")
        try:
            return await self.intake.publish(account_id, as_list(events))
        except RequestError as error:
            raise as_closed(error) from None

    def require_open(self) -> None:
        """Raise `RequestError` (`draining`) if the broker drains."""
        self.intake.require_open()

    def require_ready(self) -> None:
        """Raise `RequestError` if no stream can be opened: the broker drains, or its engine is away."""
        self.require_open()
        if self._engine.away:
            raise RequestError("unavailable", "The broker cannot reach its storage", retry_after_ms=BUSY_RETRY_MS)

    def require_storing(self) -> None:
        """Raise `RequestError` if nothing can be published now, though streams can be opened."""
        refusal = self._engine.refusal
        if refusal is not None:
            raise refusal

    # --- subscribing

    @asynccontextmanager
    async def subscribe(
        self,
        account_id: str,
        inbox_ids: Iterable[str] | None = None,
        *,
        since: str | None = None,
        event_types: Iterable[str] | None = None,
        client_id: str | None = None,
    ) -> AsyncIterator[Subscriber]:
        """Subscribe to inboxes of an account (None: all), with its own events; iterate to get `Event` and `Gap`.

        ``since``: a cursor, a duration or a time (PROTOCOL section 2); ``event_types``: exact types or prefixes
        with ``.*``. With a ``client_id`` it may `ack`, and ``since="acked"`` goes on where that was done last.
        Raises `RequestError` for a bad name, TypeError for what is no list of names, and
        `BrokerClosedError` while the broker drains. A reader that is slow keeps nothing but its position.
        """
        check_identifier(account_id, "account_id")
        require_lists(inbox_ids=inbox_ids, event_types=event_types)
        names = [ALL_INBOXES] if inbox_ids is None else list(inbox_ids)
        patterns = None if event_types is None else list(event_types)
        if names:
            check_list(names, "inbox_ids")
        if patterns is not None:
            check_list(patterns, "event_types", self.config.limits.max_event_types)
        if client_id is not None:
            check_identifier(client_id, "client_id")
        if since is not None:
            check_since(since)
            if since == ACKED and client_id is None:
                raise RequestError("invalid_params", f"`{ACKED}` needs a `client_id` - at `since`")
        key = Key("library", account_id, frozenset({"subscribe"}))
        selection = key.select(names, "inbox_ids")
        client = None if client_id is None else self.acknowledged.client(account_id, key.identity, client_id)
        async with self.hold(account_id) as account:
            if since is not None:
                await self.reach(account, since, key, client_id)
            if self.draining.is_set():
                raise BrokerClosedError("The broker is draining")
            types = None if patterns is None else TypeFilter(patterns)
            with self._subscribers.open(account, selection, types, client) as subscriber:
                if since is not None:
                    await subscriber.start(since)
                yield subscriber

    async def wait_for(
        self,
        account_id: str,
        event_types: Iterable[str] = ("message.received",),
        *,
        inbox_ids: Iterable[str] | None = None,
        where: Mapping[str, str] | None = None,
        since: str = NOW,
        timeout_seconds: float = 60.0,
        extract: Iterable[str] = (),
    ) -> Waited:
        """Wait for the first event of an account that is like this (PROTOCOL section 11); None: not in time.

        ``where``: texts to find, by `from`, `to`, `subject`, `contains`, `thread_id`, `in_reply_to`. ``since``: a
        cursor, a duration or a time, from where on what is stored is looked at, too. ``extract``: `code`, `link`.
        Raises `RequestError`, which names the field, and `BrokerClosedError` while the broker drains.
        """
        check_identifier(account_id, "account_id")
        require_lists(inbox_ids=inbox_ids, event_types=event_types, extract=extract)
        lists = {"inbox_ids": inbox_ids, "event_types": event_types, "extract": extract}
        params: dict[str, Any] = {"where": where} | {name: list(of) for name, of in lists.items() if of is not None}
        envelope = {"action": "wait_for", "since": since, "timeout_seconds": timeout_seconds, "params": params}
        key = Key("library", account_id, frozenset({"subscribe"}))
        try:
            self.require_open()
            found = await self._wait(key, decode_command(as_json(envelope, "$").decode()), MAX_TIMEOUT_SECONDS)
        except RequestError as error:
            raise as_closed(error) from None
        return msgspec.json.decode(encode(found), type=Waited)

    async def _wait(self, key: Key, command: Command, most_seconds: float) -> Found:
        """Wait for one event, for who has no connection. Raises `RequestError`."""
        asked = check_wait(key, command, "", self.config.limits, most_seconds)
        self.require_ready()
        with nullcontext() if key.is_library else self.bodies.hold(key.account_id, asked.size):
            async with self.hold(str(key.account_id)) as account:
                return await self.waits.wait(account, asked.selection, asked.params, partial(self._judge, key))

    def _judge(self, key: Key) -> Key:
        """Return what a key reaches in this step. Raises `RequestError` if it is gone."""
        return key if key.is_library else self.keyring.confirm(key)

    def hold(self, account_id: str) -> "Hold":
        """Return what keeps an account's log and listeners in this process, as an async context manager."""
        return Hold(self._hub, self._engine, account_id)

    async def reach(self, account: Account, since: str, key: Key, client_id: str | None) -> None:
        """Let an account's log hold what came after ``since``, for a key and the client that it is of.

        A cursor that was given out before the fan-out was there is waited for, for a while. With `acked` a client that
        is not known is at the head from now on, on disk, too. Raises `RequestError` if that cannot be written.
        """
        account_id = account.buffer.account_id
        begin: str | int | None = since
        if client_id is not None:
            client = self.acknowledged.client(account_id, key.identity, client_id)
            if self.on_disk is not None:
                await self.on_disk.recorded.look_up(client)
            if since == ACKED:
                await come(client, account.subscriptions.position, self.on_disk)
                begin = client.position
        if begin is not None:
            await self._engine.reach(account_id, begin)
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
        once: str | None = None,
    ) -> Any:
        """Give a command to its handler as a client of the account would, without a socket; return its result.

        No rate limits it. With a ``request_id`` it is remembered as a client's is, and done once; with ``once``, which
        needs ``inbox_id``, one of all commands that say it is done, a client's among them. Raises `RequestError` with
        what a client would be told, and `BrokerClosedError` while the broker drains.
        """
        check_identifier(account_id, "account_id")
        lifted = {"inbox_id": inbox_id, "once": once}
        envelope = {"action": action, "request_id": request_id, **lifted, "params": params or {}}
        try:
            self.require_open()
            command = decode_command(as_json(envelope, "$").decode())
            outcome = await self.do_command(Key("library", account_id, frozenset({"command"})), command)
            if outcome.error is not None:
                raise outcome.error.again()
        except (BadFrameError, BadCommandError) as bad:
            raise bad.error.again() from None
        except RequestError as error:
            raise as_closed(error) from None
        return msgspec.json.decode(outcome.result)

    async def do_command(self, key: Key, command: Command, traceparent: str | None = None) -> Outcome:
        """Do one command that came over HTTP; return what it came to, and count it.

        The key is judged as it is by then: it may have been revoked while the command was read and proved. Raises
        `RequestError` if the command is not begun.
        """
        try:
            outcome = await self._do_command(key, command, traceparent)
        except RequestError as error:
            self.commands.count(command.action, error)
            raise
        self.commands.count(command.action, outcome.error)
        return outcome

    async def _do_command(self, key: Key, command: Command, traceparent: str | None) -> Outcome:
        if command.action not in BUILT_IN_ACTIONS:
            command = await self.commands.prove(key, command)
        self.require_open()
        key = self._judge(key)
        if command.action == "ping":
            return Outcome(encode({"server_time": format_time(datetime.now(UTC))}))
        if command.action == "wait_for":
            return Outcome(encode(await self._wait(key, command, MAX_HTTP_TIMEOUT_SECONDS)))
        if is_work(command):
            return Outcome(encode(await do_at_once(self.queues, key, command, partial(self._judge, key))))
        if command.action in BUILT_IN_ACTIONS:
            instead = "; events go to /v1/events" if command.action == "publish" else ""
            raise RequestError("unknown_action", f"{command.action!r} is for the stream{instead}")
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
        return outcome

    # --- its life

    def reload(self, config: Config | Access) -> list[str]:
        """Take the accounts, keys, operators and rates of another configuration, without dropping a connection.

        But those whose key is gone are closed (4401), and those whose key reaches less keep what it still reaches
        (PROTOCOL section 8). Returns the sections that differ and need a restart: they stay as they were. Raises
        `ConfigError`, and then nothing has changed. A large configuration is checked, and `Access` made of it, in a
        thread beforehand: then this is a short step.
        """
        access = config if isinstance(config, Access) else Access(check_config(config))
        config = access.config
        require_storage(msgspec.structs.replace(config, storage=self.config.storage, engine=self.config.engine))
        taken = {name: getattr(config, name) for name in RELOADED_SECTIONS}
        self.config = msgspec.structs.replace(self.config, **taken)
        self.settings = settings_of(self.config)
        self.commands.reload(self.config)
        self.keyring.reload(access)
        for followed in (self.webhooks, self.queues):
            if followed is not None:
                followed.reload(config.accounts)
        return [name for name in config.__struct_fields__ if getattr(config, name) != getattr(self.config, name)]

    def start_draining(self) -> None:
        """Refuse to publish and to open from now on; a server then closes its connections and ends."""
        self.draining.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the broker's own tasks, for ever. A failure in one of them ends the broker."""
        self.live.begin()
        async with AsyncExitStack() as stack:
            callout = await open_callout_of(stack, self.config, "commands", self._tracing)
            if callout is not None:
                self._callouts["commands"] = callout
                self.commands.fallback = forwarder(callout, self.config.commands.timeout_seconds)
            nursery = await stack.enter_async_context(trio.open_nursery())
            if self._disk is not None:
                await nursery.start(self._disk.storage.run)
            await nursery.start(self._engine.run)
            if self._joined is not None:
                await nursery.start(self._joined.run)
            if self.on_disk is not None:
                await nursery.start(self.on_disk.recorded.run)
            await nursery.start(self.commands.run)
            await nursery.start(self.intake.run)
            nursery.start_soon(self._hub.deliver)
            await nursery.start(self._subscribers.run, self.draining)
            await nursery.start(self.waits.run, self.draining)
            nursery.start_soon(self.schedule.run)
            nursery.start_soon(self.turns.run)
            await nursery.start(self.keyring.run)
            if self.keeping is not None:
                await nursery.start(self.keeping.run)
            nursery.start_soon(expire_and_forget, self._hub, self._buffers, self.commands, self.config.replay.seconds)
            nursery.start_soon(self._lag.run)
            task_status.started()

    def statistics(self) -> BrokerStatistics:
        """Return what the broker holds and has done."""
        came_in = self.intake.statistics()
        return BrokerStatistics(
            self._hub.statistics(),
            self.commands.statistics(),
            self._buffers.statistics(),
            self.acknowledged.statistics(),
            came_in.published,
            came_in.duplicates,
            self.bodies.bytes,
            self.names.bytes,
            self.slots.statistics(),
            self.keyring.statistics(),
            self.connections.statistics(),
            {section: callout.statistics() for section, callout in self._callouts.items()},
            self._lag.statistics(),
            dropped_lines(),
            self._disk.storage.statistics() if self._disk else None,
            self.past.statistics(),
            self.webhooks.statistics() if self.webhooks else None,
            self.queues.statistics() if self.queues else None,
            self._engine.statistics(),
            self.keeping.statistics() if self.keeping else None,
            self.draining.is_set(),
        )


@asynccontextmanager
async def open_broker(config: Config | None = None, *, access: AskAccess | None = None) -> AsyncIterator[Broker]:
    """Start a broker; its tasks run in a nursery of its own until the block ends.

    ``access`` is asked for keys that the configuration does not hold, instead of ``access.url``. Raises `ConfigError`,
    and `StorageError` if the log on disk cannot be used.
    """
    config = check_config(config or Config())
    async with AsyncExitStack() as stack:
        callouts = {}
        tracing = Tracing() if config.tracing.enabled else None
        if access is None:
            callout = await open_callout_of(stack, config, "access", tracing)
            if callout is not None:
                callouts["access"] = callout
                access = asks_api(callout)
        lookup = None if access is None else Lookup(access, config.access.timeout_seconds)
        require_storage(config)
        disk = await stack.enter_async_context(open_disk(config))
        broker = Broker(config, lookup, callouts, disk, tracing)
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(broker.run)
        try:
            yield broker
        finally:
            broker.start_draining()
            nursery.cancel_scope.cancel()
