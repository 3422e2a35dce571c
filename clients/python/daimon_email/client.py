"""`DaimonWebSocket`: one stream of events, over however many connections it takes."""

import random
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, overload

import anyio
from anyio.abc import TaskGroup, TaskStatus

from .acknowledging import Acknowledging
from .calls import COMMAND_SECONDS, Calls, Once
from .commands import Commands, too_large
from .connection import Connection, EndedError, open_connection
from .ending import BackOff, Ending, not_opened
from .errors import ConnectionEndedError, DaimonError, TimedOutError, closed
from .events import Event, Fields
from .handling import Handlers, Order, Queue, handling, inside
from .incoming import Incoming
from .keeping import CursorStore, Kept
from .leases import Leases
from .notices import Notices
from .opening import TokenFunction, fresh_token, key_of, stream_url, target_of, url_of, warn_of_clear_text
from .place import Place
from .selection import Selection, names_of
from .webhooks import taken, told

GRACE_SECONDS: Final = 10.0
"""A heartbeat may be so late."""
_OWN_ACTIONS: Final = frozenset(
    {"subscribe", "unsubscribe", "publish", "ping", "ack", "hold", "nack", "lease", "wait_for"}
)

F = TypeVar("F", bound=Callable[..., Any])

try:
    _VERSION = version("daimon_email")
except PackageNotFoundError:  # from a checkout
    _VERSION = "0"


class DaimonWebSocket(Calls):
    """A client of the stream. ``await connect()`` runs it until it is closed; ``async with`` runs it beside your code.

    Args:
        api_key: else DAIMON_API_KEY in the environment.
        url: the broker; else DAIMON_WS_URL, else the planned `wss://ws.daimon.email/v1/stream`.
        token: instead of a key: gives a fresh connection token for each opening.
        inbox_ids: what is followed; left out: all that the key reaches, or what was subscribed to before the opening.
        event_types: exact types or prefixes with `.*`; left out: all.
        auto_reconnect: whether a lost connection is opened again.
        reconnect_delay: seconds before the first attempt to do so, at most; then up to twice as long each time.
        client_id: this client's own name; left out: a random one, kept in the store if there is one.
        cursor_store: where the place in the stream is kept over restarts of the program.
        ack: whether what handlers have returned from is acknowledged.
        concurrency: how many handlers may run at once.
        order: of what only one may run at a time, where several may.
        trust: the certificates to trust, instead of the system's.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        url: str | None = None,
        token: TokenFunction | None = None,
        inbox_ids: str | Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        auto_reconnect: bool = True,
        reconnect_delay: float = 5.0,
        client_id: str | None = None,
        cursor_store: CursorStore | None = None,
        ack: Literal["auto", "manual", "off"] = "auto",
        concurrency: int = 1,
        order: Order = "thread",
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url_of(url)
        self._key = key_of(api_key, token)
        if self._key is not None:
            warn_of_clear_text(self._url)
        self._token = token
        self._selection = Selection(inbox_ids)
        self._event_types = None if event_types is None else list(event_types)
        self._since: str | None = None
        """Where the first opening is to begin, if nothing is known."""
        self._auto_reconnect = auto_reconnect
        self._back_off = BackOff(reconnect_delay)
        self._store = cursor_store
        kept = cursor_store.load() if cursor_store is not None else None
        self._kept = kept
        self._client_id = client_id or (kept.client_id if kept else f"py_{secrets.token_hex(8)}")
        if client_id is not None and cursor_store is None and ack != "off":
            self._since = "acked"
        self._ack = ack
        self._trust = trust
        self._place = Place(kept.cursor if kept else None, acknowledges=ack == "auto")
        self._handlers = Handlers()
        self._commands = Commands()
        self._notices = Notices(self._handlers, lambda: self._queue.wake())
        self._queue = Queue(
            self._handle,
            concurrency,
            order,
            held=lambda: self._notices.unheard,
            must_read=lambda: self._commands.waiting,
        )
        self._incoming = Incoming(self._place, self._selection, self._commands, self._queue, self._notices, self._keep)
        self._acknowledging = Acknowledging(self._place, self._give)
        self._connection: Connection | None = None
        self._state: Literal["new", "running", "closing", "ended", "closed"] = "new"
        """`closed` by `close`, for good; `ended` in any other way: it may connect again."""
        self._hurry = anyio.Event()
        """Ends the wait before the next attempt."""
        self._life: anyio.CancelScope | None = None
        """Of the connections, one after another."""
        self._tasks: TaskGroup | None = None
        self._done = anyio.Event()
        """Set when no connection is left and none will be opened."""
        self._turns: dict[str, anyio.Lock] = {}
        """Who may wait at a queue, by its id."""
        self._block: AbstractAsyncContextManager[Self] | None = None

    # --- handlers

    @overload
    def on(self, name: str) -> Callable[[F], F]: ...

    @overload
    def on(self, name: str, handler: F) -> F: ...

    def on(self, name: str, handler: F | None = None) -> Any:
        """Register a handler, sync or async, for a type of events (`message.received`, `message.*`, `*`).

        Or for `connected`, `disconnected` (it gets the reason), `gap` (a `Gap`), `error` (an exception). A handler of
        `message.received` gets the message, of other types the payload; one that takes two arguments also the event.
        Used as a decorator, or called with the handler.
        """
        if handler is not None:
            self._handlers.add(name, handler)
            return handler

        def register(function: F) -> F:
            self._handlers.add(name, function)
            return function

        return register

    # --- its life

    async def connect(self) -> None:
        """Run until the client is closed. Raises `ConnectionEndedError` if it cannot go on, or was closed before."""
        async with self._running(anyio.Event()) as done:
            await done.wait()

    async def __aenter__(self) -> Self:
        self._block = self._beside()
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._block is not None
        return await self._block.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _beside(self) -> AsyncIterator[Self]:
        connected = anyio.Event()
        async with self._running(connected) as done:
            await connected.wait()
            if done.is_set():
                await anyio.lowlevel.checkpoint()  # it ended before it began: this is cancelled
            yield self
            await self.close()

    @asynccontextmanager
    async def _running(self, connected: anyio.Event) -> AsyncIterator[anyio.Event]:
        """Run beside the block, which is cancelled if the client cannot go on; then raise why."""
        self._be_open()
        if self._state == "running":
            raise RuntimeError("the client is connected already")
        self._begin()
        ending = list[DaimonError]()
        lone: BaseException | None = None
        try:
            async with anyio.create_task_group() as outer:
                await outer.start(self._work, connected, ending, outer.cancel_scope)
                yield self._done
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            lone = group.exceptions[0]
        if lone is not None:
            raise lone
        if ending:
            raise ending[0]

    def _begin(self) -> None:
        self._state = "running"
        self._tasks = None
        self._done = anyio.Event()
        self._commands.begin()
        self._queue.begin()
        self._notices.begin()
        self._turns.clear()
        self._incoming.begin()

    async def _work(
        self,
        connected: anyio.Event,
        ending: list[DaimonError],
        block: anyio.CancelScope,
        *,
        task_status: TaskStatus[None],
    ) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._life = life = anyio.CancelScope()
                tasks.start_soon(self._queue.run, tasks)
                tasks.start_soon(self._notices.run)
                if self._state == "closing":  # in the same moment
                    tasks.start_soon(self._finish)
                if self._ack == "auto":
                    tasks.start_soon(self._acknowledging.run, lambda: self._connection is not None)
                task_status.started()
                with life:
                    ending.append(await self._live(connected))
                self._commands.end(ending[0] if ending else closed())
                self._queue.stop()
                with anyio.move_on_after(COMMAND_SECONDS):
                    await self._queue.idle()
                    await self._notices.told()
                tasks.cancel_scope.cancel()
        finally:
            self._commands.end(closed())
            self._state = "closed" if self._state == "closing" else "ended"
            self._done.set()
            connected.set()
            if ending:
                block.cancel()

    async def close(self) -> None:
        """End: finish the handlers that are at work, acknowledge, say goodbye.

        In a handler it returns at once, and the client ends when the handler has returned. A client that was closed,
        also before it connected, stays so: `connect` raises.
        """
        if self._state == "running":
            self._state = "closing"
            if self._tasks is not None:
                self._tasks.start_soon(self._finish)
        elif self._state != "closing":
            self._state = "closed"
            self._commands.end(closed())
        if self._state == "closing" and not inside.get():
            await self._done.wait()

    def _be_open(self) -> None:
        """Raise `ConnectionEndedError` if the client was closed."""
        if self._state in ("closing", "closed"):
            raise closed(", and stays so: make another")

    async def _finish(self) -> None:
        self._queue.stop()
        with anyio.move_on_after(COMMAND_SECONDS):
            await self._queue.idle()
            if self._ack == "auto" and self._connection is not None:
                await self._acknowledging.acknowledge()
        if self._life is not None:
            self._life.cancel()

    def reconnect_now(self) -> None:
        """Wait no longer before the next attempt to connect."""
        self._hurry.set()

    def pause(self) -> None:
        """Hand no more events to handlers; what comes waits, and beyond 8 MiB the broker keeps it."""
        self._queue.pause()

    def resume(self) -> None:
        """Hand on again."""
        self._queue.resume()

    async def _live(self, connected: anyio.Event) -> DaimonError:
        """Open connections, one after another; return why no other is opened."""
        while True:
            try:
                await self._one_connection(connected)
            except EndedError as ended:
                ending = ended.ending
            self._notices.tell("disconnected", ending.reason)
            if not (self._auto_reconnect and ending.come_back):
                return ConnectionEndedError(ending.reason, code=ending.code, status=ending.status)
            await self._wait_before_next(ending)

    async def _wait_before_next(self, ending: Ending) -> None:
        asked, self._incoming.wait_seconds = self._incoming.wait_seconds, 0.0
        if asked and not ending.wait_seconds:
            ending = Ending(ending.reason, ending.code, ending.status, asked)
        self._hurry = anyio.Event()
        with anyio.move_on_after(self._back_off.next(ending, random.random())):
            await self._hurry.wait()

    # --- one connection

    async def _one_connection(self, connected: anyio.Event) -> None:
        """Open a connection and serve it until it ends. Raises `EndedError`."""
        since, names = self._incoming.resume_from or self._since, self._selection.names
        connection, late = await self._open(since, names)
        lost = False
        try:
            frames = await connection.receive(COMMAND_SECONDS)
            self._incoming.take_ready(frames[0][0])
            self._back_off.succeeded()
            self._notices.tell("connected")
            for text in self._incoming.rest(since, names, late):
                await connection.send(text)
            self._connection = connection
            connected.set()
            for request_id, text in self._commands.unanswered():
                await self._send(connection, request_id, text)
            for text, size in frames[1:]:
                self._incoming.take(text, size)
            await self._serve(connection)
        except EndedError as ended:
            lost = True
            if ended.ending.code == 1009:
                self._commands.refuse_longest(too_large())
            raise
        finally:
            self._connection = None
            await connection.aclose(lost=lost)

    async def _open(self, since: str | None, names: Sequence[str]) -> tuple[Connection, list[str]]:
        url, late = stream_url(
            self._url, inbox_ids=names, event_types=self._event_types, since=since, client_id=self._client_id
        )
        credential = self._key or await self._fresh_token()
        connection = await open_connection(
            url, target_of(url), credential, f"daimon-email-python/{_VERSION}", self._trust
        )
        return connection, late

    async def _fresh_token(self) -> str:
        try:
            return await fresh_token(self._token)
        except Exception as error:
            self._notices.report("token", error)
            raise EndedError(not_opened(f"there is no token: {error!r}")) from error

    async def _serve(self, connection: Connection) -> None:
        patience = self._incoming.heartbeat_seconds + GRACE_SECONDS
        while True:
            await self._queue.room()
            for text, size in await connection.receive(patience):
                self._incoming.take(text, size)

    async def _send(self, connection: Connection, request_id: str, text: str) -> None:
        """Send a command. Raises `EndedError`."""
        if len(text) > self._incoming.most_bytes:
            self._commands.refuse(request_id, too_large())
        else:
            await connection.send(text)

    # --- events

    def _keep(self) -> None:
        kept = Kept(self._client_id, self._place.handled)
        if self._store is None or kept == self._kept:
            return
        try:
            self._store.save(kept)
            self._kept = kept
        except Exception as error:
            self._notices.report("the cursor store", error)

    async def _handle(self, event: Event) -> None:
        well = told.has(event)  # by a webhook, say
        if not well:
            taken.add(event)
            well = await self._hand_on(event)
        if not well:
            taken.remove(event)
        window = self._incoming.replay_seconds
        self._place.dealt_with(event, monotonic(), failed=not well, window_seconds=window)
        self._keep()

    async def _hand_on(self, event: Event) -> bool:
        """Call the handlers of an event, and hold it meanwhile; return whether none failed."""
        if self._ack != "auto":
            return await self._handlers.handle(event)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._acknowledging.hold, event)
                well = await self._handlers.handle(event)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return well

    async def _give(self, action: str, fields: Mapping[str, Any], timeout: float) -> Fields:
        return await self._command(action, fields, timeout)

    async def ack(self, cursor: str | None = None, event_ids: Sequence[str] | None = None) -> Fields:
        """Acknowledge all up to a cursor, or single events; neither: all that is dealt with. Raises as `command`."""
        fields: dict[str, Any] = {}
        if cursor is None and event_ids is None:
            cursor = self._place.handled
        if cursor is not None:
            fields["cursor"] = cursor
        if event_ids is not None:
            fields["event_ids"] = list(event_ids)
        return await self.command("ack", fields)

    # --- commands

    def queue(self, queue_id: str) -> Leases:
        """Return the events of a queue, one after another, as they are given to this worker.

        ``async for lease in client.queue("support"):`` and in it ``async with lease as message:``. Raises as `command`.
        """
        turn = self._turns.setdefault(queue_id, anyio.Lock())
        return Leases(queue_id, turn, self._give, self._handlers.report)

    async def command(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        once: Once = "event",
        timeout: float = COMMAND_SECONDS,
        request_id: str | None = None,
    ) -> Fields:
        """Give a command and return its result.

        In a handler it is done once for the event that is handled, if it has an ``inbox_id``; ``once`` None: not so; a
        name: once for that name. Raises `CommandError` if it is refused, `TimedOutError`, `OverflowingError`, and
        `ConnectionEndedError` if the client ends before.
        """
        fields = {name: value for name, value in (params or {}).items() if value is not None}
        name = self._once(action, fields, once)
        if name is not None:
            fields["once"] = name
        at_work = handling.get()
        if at_work is not None and at_work.lease_id is not None and action not in _OWN_ACTIONS:
            fields.setdefault("lease_id", at_work.lease_id)
        return await self._command(action, fields, timeout, request_id)

    def _once(self, action: str, fields: Mapping[str, Any], once: Once) -> str | None:
        if once != "event":
            return once
        at_work, inbox_id = handling.get(), fields.get("inbox_id")
        if at_work is None or inbox_id is None or action in _OWN_ACTIONS or "once" in fields:
            return None
        return at_work.once(action, inbox_id)

    async def _command(
        self, action: str, fields: Mapping[str, Any], timeout: float, request_id: str | None = None
    ) -> Fields:
        request_id, pending = self._commands.give(action, fields, request_id)
        self._queue.wake()  # who reads, reads on
        try:
            if self._connection is not None:
                with suppress(EndedError):  # then it is sent again to the next connection
                    await self._send(self._connection, request_id, pending.text)
            with anyio.move_on_after(timeout) as in_time:
                await pending.answered.wait()
        finally:
            self._commands.drop(request_id)
        if pending.error is not None:
            raise pending.error
        if in_time.cancelled_caught and not pending.answered.is_set():
            raise TimedOutError(f"{action} had no answer in {timeout:g} s; it may have been done")
        return Fields(pending.result if isinstance(pending.result, dict) else {"result": pending.result})

    async def subscribe(
        self,
        inbox_ids: str | Iterable[str] = "*",
        *,
        since: str | None = None,
        event_types: Iterable[str] | None = None,
    ) -> Fields:
        """Follow more inboxes, `*` for all, from now on or from ``since``, over reconnects too. Raises as `command`.

        ``event_types`` replaces the client's. Before the connection is open it is what the opening asks for.
        """
        names = names_of(inbox_ids)
        types = None if event_types is None else list(event_types)
        self._be_open()
        if self._connection is None and (since is None or self._place.received is None):
            self._selection.add(names)
            self._since = since or self._since
            self._event_types = types if types is not None else self._event_types
            return Fields({"inbox_ids": self._selection.names})
        result = await self.command("subscribe", {"inbox_ids": names, "since": since, "event_types": types})
        self._selection.hold(result["inbox_ids"])
        self._event_types = types if types is not None else self._event_types
        return result

    async def unsubscribe(self, inbox_ids: str | Iterable[str] = "*") -> Fields:
        """Follow these inboxes no longer. Raises as `command`."""
        names = names_of(inbox_ids)
        self._be_open()
        if self._connection is None:
            self._selection.remove(names)
            return Fields({"inbox_ids": self._selection.names})
        result = await self.command("unsubscribe", {"inbox_ids": names})
        self._selection.hold(result["inbox_ids"])
        return result
