"""`DaimonWebSocket`: one stream of events, over however many connections it takes."""

import json
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from .calls import COMMAND_SECONDS, Calls, Once
from .commands import Commands
from .connection import CLOSE_SECONDS, Connection, EndedError, open_connection
from .ending import BackOff, Ending, closed
from .errors import CommandError, ConnectionEndedError, DaimonError, TimedOutError
from .events import Event, Fields, Gap
from .handling import Handlers, Order, Queue, handling
from .keeping import CursorStore, Kept
from .opening import TokenFunction, key_of, stream_url, target_of, url_of, warn_of_clear_text
from .place import Place, Seen
from .webhooks import processed

GRACE_SECONDS: Final = 10.0
"""A heartbeat may be so late."""
ACK_SECONDS: Final = 1.0
HOLD_AFTER_SECONDS: Final = 10.0
HOLD_SECONDS: Final = 60.0
HOLD_EVERY_SECONDS: Final = 20.0
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
        inbox_ids: Iterable[str] | None = None,
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
        self._wanted: set[str] | None = None if inbox_ids is None else set(inbox_ids)
        """The inboxes that are followed; None: not said yet."""
        self._event_types = None if event_types is None else list(event_types)
        self._auto_reconnect = auto_reconnect
        self._back_off = BackOff(reconnect_delay)
        self._store = cursor_store
        kept = cursor_store.load() if cursor_store is not None else None
        self._client_id = client_id or (kept.client_id if kept else f"py_{secrets.token_hex(8)}")
        self._from_acknowledged = client_id is not None and cursor_store is None and ack != "off"
        self._ack = ack
        self._acks_known = True
        self._trust = trust
        self._place = Place(kept.cursor if kept else None)
        self._seen = Seen()
        self._handlers = Handlers()
        self._queue = Queue(self._handle, concurrency, order)
        self._commands = Commands()
        self._connection: Connection | None = None
        self._ready: dict[str, Any] = {}
        self._state: Literal["new", "running", "closing", "closed"] = "new"
        self._hurry = anyio.Event()
        """Ends the wait before the next attempt."""
        self._wait_seconds = 0.0
        """What the broker asked for before it goes."""
        self._stack: AsyncExitStack | None = None
        self._tasks: TaskGroup | None = None
        self._done = anyio.Event()
        """Set when no connection is left and none will be opened."""

    # --- handlers

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
        """Run until the client is closed. Raises `ConnectionEndedError` if it cannot go on."""
        async with self._running(anyio.Event()) as done:
            await done.wait()

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        connected = anyio.Event()
        await self._stack.enter_async_context(self._running(connected))
        await connected.wait()
        if self._done.is_set():
            await self._stack.aclose()  # raises why
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        if error is None:
            await self.close()
        await self._stack.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _running(self, connected: anyio.Event) -> AsyncIterator[anyio.Event]:
        if self._state == "running":
            raise RuntimeError("the client is connected already")
        self._state = "running"
        self._commands.begin()
        ending = list[DaimonError]()
        self._done = done = anyio.Event()

        async def live(tasks: TaskGroup) -> None:
            try:
                await self._live(connected)
            except DaimonError as error:
                ending.append(error)
            finally:
                self._commands.end(ending[0] if ending else ConnectionEndedError("the client is closed", code=1000))
                self._state = "closed"
                done.set()
                connected.set()
                tasks.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._queue.run, tasks)
                if self._ack == "auto":
                    tasks.start_soon(self._acknowledge)
                tasks.start_soon(live, tasks)
                yield done
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            self._state = "closed"
        if ending:
            raise ending[0]

    async def close(self) -> None:
        """End: finish the handlers that are at work, acknowledge, say goodbye."""
        if self._state != "running":
            return
        self._state = "closing"
        self._queue.pause()
        with anyio.move_on_after(COMMAND_SECONDS):
            await self._queue.idle()
            await self._acknowledge_now(wait=True)
        self._hurry.set()
        with anyio.move_on_after(CLOSE_SECONDS):
            if self._connection is not None:
                with suppress(EndedError):
                    await self._connection.say_goodbye()
            await self._done.wait()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def reconnect_now(self) -> None:
        """Wait no longer before the next attempt to connect."""
        self._hurry.set()

    def pause(self) -> None:
        """Hand no more events to handlers; what comes waits, and beyond 8 MiB the broker keeps it."""
        self._queue.pause()

    def resume(self) -> None:
        """Hand on again."""
        self._queue.resume()

    async def _live(self, connected: anyio.Event) -> None:
        while True:
            try:
                await self._one_connection(connected)
            except EndedError as ended:
                ending = ended.ending
            if self._state != "running":
                return
            await self._handlers.tell("disconnected", ending.reason)
            if not (self._auto_reconnect and ending.come_back):
                raise ConnectionEndedError(ending.reason, code=ending.code, status=ending.status)
            await self._wait_before_next(ending)
            if self._state != "running":
                return

    async def _wait_before_next(self, ending: Ending) -> None:
        asked, self._wait_seconds = self._wait_seconds, 0.0
        if asked and not ending.wait_seconds:
            ending = Ending(ending.reason, ending.code, ending.status, asked)
        seconds = self._back_off.next(ending, random.random())
        self._hurry = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._hurry.wait()

    # --- one connection

    async def _one_connection(self, connected: anyio.Event) -> None:
        """Open a connection and serve it until it ends. Raises `EndedError`."""
        connection, late = await self._open()
        try:
            await self._receive_ready(connection, late)
            self._connection = connection
            self._back_off.succeeded()
            await self._handlers.tell("connected")
            connected.set()
            await self._serve(connection)
        finally:
            self._connection = None
            await connection.aclose()

    async def _open(self) -> tuple[Connection, list[str]]:
        since = self._place.received
        if since is None and self._from_acknowledged:
            since = "acked"
        wanted = ["*"] if self._wanted is None or "*" in self._wanted else sorted(self._wanted)
        url, late = stream_url(
            self._url, inbox_ids=wanted, event_types=self._event_types, since=since, client_id=self._client_id
        )
        credential = self._key
        if credential is None:
            assert self._token is not None
            given = self._token()
            credential = await given if isinstance(given, Awaitable) else given
        connection = await open_connection(
            url, target_of(url), credential, f"daimon-email-python/{_VERSION}", self._trust
        )
        return connection, late

    async def _receive_ready(self, connection: Connection, late: Sequence[str]) -> None:
        frames = await connection.receive(COMMAND_SECONDS)
        self._ready = json.loads(frames[0][0])
        if self._ready.get("type") != "connection.ready":
            raise EndedError(closed(None, "the other side is no broker"))
        since = self._place.received
        if since is None:
            self._moved(self._ready["cursor"])
        if late:
            asked = {"inbox_ids": list(late)} | ({} if since is None else {"since": since})
            await connection.send(json.dumps({"action": "subscribe", **asked}))
        for _, text in self._commands.unanswered():
            await self._send(connection, text)
        for text, size in frames[1:]:
            await self._take(text, size)

    async def _serve(self, connection: Connection) -> None:
        patience = float(self._ready.get("heartbeat_seconds", 30)) + GRACE_SECONDS
        while True:
            await self._queue.room()
            for text, size in await connection.receive(patience):
                await self._take(text, size)

    async def _send(self, connection: Connection, text: str) -> None:
        try:
            await connection.send(text)
        except EndedError as ended:
            if ended.ending.code == 1009:
                self._commands.refuse(text, CommandError("too_large", "The broker takes no message of this size"))
            raise

    async def _take(self, text: str, size: int) -> None:
        try:
            frame = json.loads(text)
            kind = frame["type"]
        except (ValueError, KeyError, TypeError):
            return
        if kind == "response":
            self._commands.answer(frame)
        elif kind == "connection.cursor":
            self._moved(frame["cursor"])
        elif kind == "replay.gap":
            gap = Gap(frame["from"], frame["to"], frame["count"])
            await self._handlers.tell("gap", gap)
            self._moved(gap.to)
        elif kind == "server.draining":
            self._wait_seconds = float(frame["reconnect_after_ms"]) / 1_000
        elif kind == "error":
            error = frame["error"]
            await self._handlers.report("a frame", CommandError(error["code"], error["message"]))
        elif "event_id" in frame and "cursor" in frame:
            self._take_event(Event(frame, size))

    def _take_event(self, event: Event) -> None:
        if not self._seen.is_new(event):
            self._moved(event.cursor)
            return
        self._place.came(event)
        self._queue.put(event)

    def _moved(self, cursor: str) -> None:
        self._place.moved(cursor)
        self._keep()

    def _keep(self) -> None:
        if self._store is not None:
            self._store.save(Kept(self._client_id, self._place.handled))

    # --- events

    async def _handle(self, event: Event) -> None:
        well = False
        async with anyio.create_task_group() as tasks:
            if self._ack == "auto" and self._acks_known:
                tasks.start_soon(self._hold_while_handled, event)
            well = await self._handlers.handle(event)
            tasks.cancel_scope.cancel()
        window = float(self._ready.get("replay_seconds", 300))
        self._place.dealt_with(event, monotonic(), failed=not well, window_seconds=window)
        if well:
            processed(event.event_id)
        self._keep()

    async def _hold_while_handled(self, event: Event) -> None:
        await anyio.sleep(HOLD_AFTER_SECONDS)
        while True:
            await self._try("hold", {"event_ids": [event.event_id], "seconds": HOLD_SECONDS})
            await anyio.sleep(HOLD_EVERY_SECONDS)

    async def _acknowledge(self) -> None:
        while True:
            await anyio.sleep(ACK_SECONDS)
            await self._acknowledge_now()

    async def _acknowledge_now(self, *, wait: bool = False) -> None:
        may = self._ack == "auto" and self._acks_known and self._connection is not None
        if may and self._place.owes_acknowledgement:
            cursor, event_ids = self._place.take_acknowledgement()
            fields: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
            await self._try("ack", fields | ({"event_ids": event_ids} if event_ids else {}), wait=wait)

    async def _try(self, action: str, fields: Mapping[str, Any], *, wait: bool = True) -> None:
        """Give a command of the client's own. What does not come to anything is let be."""
        try:
            await self._command(action, fields, COMMAND_SECONDS if wait else ACK_SECONDS)
        except CommandError as error:
            if error.code == "unknown_action":
                self._acks_known = False
        except DaimonError:
            pass

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
        try:
            if self._connection is not None:
                with suppress(EndedError):  # then it is sent again to the next connection
                    await self._send(self._connection, pending.text)
            with anyio.move_on_after(timeout) as in_time:
                await pending.answered.wait()
        finally:
            self._commands.drop(request_id)
        if pending.error is not None:
            raise pending.error
        if in_time.cancelled_caught and not pending.answered.is_set():
            raise TimedOutError(f"{action} had no answer in {timeout:g} s; it may have been done")
        return Fields(pending.result if isinstance(pending.result, dict) else {"result": pending.result})

    async def subscribe(self, inbox_ids: str | Iterable[str] = "*", *, since: str | None = None) -> Fields:
        """Follow more inboxes, `*` for all, from now on or from ``since``, over reconnects too. Raises as `command`."""
        names = _names(inbox_ids)
        if self._connection is None and since is None:  # the opening asks for it
            self._wanted = (self._wanted or set()) | set(names)
            return Fields({"inbox_ids": sorted(self._wanted)})
        result = await self.command("subscribe", {"inbox_ids": names, "since": since})
        self._wanted = set(result["inbox_ids"])
        return result

    async def unsubscribe(self, inbox_ids: str | Iterable[str] = "*") -> Fields:
        """Follow these inboxes no longer. Raises as `command`."""
        names = _names(inbox_ids)
        if self._connection is None:
            self._wanted = set() if "*" in names else (self._wanted or set()) - set(names)
            return Fields({"inbox_ids": sorted(self._wanted)})
        result = await self.command("unsubscribe", {"inbox_ids": names})
        self._wanted = set(result["inbox_ids"])
        return result


def _names(inbox_ids: str | Iterable[str]) -> list[str]:
    return [inbox_ids] if isinstance(inbox_ids, str) else list(inbox_ids)
