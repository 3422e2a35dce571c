"""The one connection of a node to the server that all nodes share, made again whenever it is lost.

A link goes through three states. AWAY: there is none. GREETING: it is known which history the server has, whatever
channel somebody listens to is subscribed to, and everybody who stands on the link finds out where he is. READY: what
waits is done. Any error, an answer that takes too long, another history (`stale`) ends it, and it begins anew.

Messages come as pushes, answers to whoever asked: these are two orders, of which neither tells of the other.
"""

import logging
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final

import coredis.exceptions as told
import trio
from coredis.connection import (
    BaseConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)

from ....address import Address
from ....errors import BUSY_RETRY_MS, RequestError
from . import Names
from .scripts import FORMAT, HELLO, STALE, Script

logger = logging.getLogger(__name__)
logging.getLogger("coredis").setLevel(logging.CRITICAL)  # of what it would tell with a traceback a line is told here

CALL_SECONDS: Final = 3.0
"""How long the server may take for one answer."""
GREET_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 1.0
LEASE_MS: Final = 6_000
FIRST_PAUSE_SECONDS: Final = 0.05
LAST_PAUSE_SECONDS: Final = 1.0
WAIT_MS: Final = 300
"""How long replicas may take to have what was stored."""
_CHANNELS: Final = 1_000
"""In one SUBSCRIBE."""
_REFUSALS: Final = ("OOM", "NOREPLICAS", "MISCONF")
"""What the server says where it is there, and stores nothing."""

_ECHO: Final = b"echo "
"""What a node's own message to itself begins with; no other does."""

Hear = Callable[[bytes], None]


class State(Enum):
    """How far a link is."""

    AWAY = "away"
    GREETING = "greeting"
    READY = "ready"


class LinkLostError(Exception):
    """The link ended: of what was under way nobody knows whether it was done."""


class RefusedError(Exception):
    """The server did nothing of it, and says why."""


def unavailable(message: str = "The broker cannot reach its engine") -> RequestError:
    """Return what clients are told while the server does not do what they ask for."""
    return RequestError("unavailable", message, retry_after_ms=BUSY_RETRY_MS)


class Link:
    """A node's link to a server. `keep` it; ``replicas``: how many are to have what is stored (`replicated`)."""

    def __init__(self, address: Address, node: str, replicas: int = 0) -> None:
        self.node = node
        self.names = Names(address.database)
        self.generation = ""
        """Of the history that the server has; "": not known yet."""
        self.state = State.AWAY
        self.ready = trio.Event()
        """Set while it is READY; another one each time."""
        self.greetings: list[Callable[[], Awaitable[None]]] = []
        """Called in their order with each new connection, before it is READY; what they raise ends it."""
        self.tasks: list[Callable[[], Awaitable[None]]] = []
        """What runs while it is READY."""
        self.losses = 0
        """How often a link that was READY was lost."""
        self.full = False
        """Whether the server takes nothing more in."""
        self._address = address
        self._replicas = replicas
        self._channels: dict[str, Hear] = {}
        self.followers: list[Hear] = []
        """Called with each message to this node."""
        self._connection: BaseConnection | None = None
        self._second: BaseConnection | None = None
        self._nursery: trio.Nursery | None = None
        self._offset = time.time() - trio.current_time()
        self._nonce = 0
        self._echoed = trio.Event()
        self._heard_at = 0.0
        self._said = ""

    # --- what stands on it

    @property
    def away(self) -> bool:
        """Whether it cannot be gone by: it is not READY, or has not heard itself for a while."""
        return self.state is not State.READY or trio.current_time() - self._heard_at > CALL_SECONDS

    def moment(self, wall: float) -> float:
        """Return the monotonic time of a time of day by the server's clock; never one in the future."""
        return min(wall - self._offset, trio.current_time())

    def wall(self, moment: float) -> float:
        """Return the time of day by the server's clock of a monotonic time."""
        return moment + self._offset

    def candidate(self) -> str:
        """Return what another history is called, if the next script finds one."""
        return secrets.token_hex(16)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        """Let the server run a script; return its answer (bytes, int, lists of these).

        Raises `RefusedError`: nothing was done; `LinkLostError`: nobody knows.
        """
        answer = await self._ask(b"EVALSHA", script.sha, len(keys), *keys, *arguments, script=script)
        if isinstance(answer, list) and answer and answer[0] == STALE:
            self.drop("it has another history")
            raise LinkLostError("another history")
        return answer

    async def _ask(self, command: bytes, *arguments: str | bytes | int, script: Script | None = None) -> Any:
        connection = self._connection
        if connection is None:
            raise LinkLostError("there is no link")
        try:
            with trio.fail_after(CALL_SECONDS):
                try:
                    return await connection.create_request(command, *arguments)
                except told.NoScriptError:
                    assert script is not None
                    await connection.create_request(b"SCRIPT LOAD", script.text)
                    return await connection.create_request(command, *arguments)
        except trio.TooSlowError:
            self.drop(f"no answer in {CALL_SECONDS:g} s")
            raise LinkLostError("no answer") from None
        except told.ConnectionError as error:
            self.drop(_in_words(error))
            raise LinkLostError(str(error)) from None
        except told.RedisError as error:
            if str(error).startswith(_REFUSALS):
                raise RefusedError(_in_words(error)) from None
            self.drop(_in_words(error))
            raise LinkLostError(str(error)) from None

    async def replicated(self) -> bool:
        """Whether as many replicas as are asked for have all that was stored until now. Raises `LinkLostError`."""
        second = self._second
        if not self._replicas:
            return True
        if second is None:
            raise LinkLostError("there is no link")
        try:
            with trio.fail_after(CALL_SECONDS):
                # A connection waits for what was written before its last command: of others, too.
                second.create_request(b"PING")
                reached = await second.create_request(b"WAIT", self._replicas, WAIT_MS)
        except (trio.TooSlowError, told.RedisError) as error:
            self.drop(_in_words(error))
            raise LinkLostError(str(error)) from None
        return int(reached) >= self._replicas  # type: ignore[arg-type]

    def expect(self, channel: str, hear: Hear) -> None:
        """Let ``hear`` have what is published in a channel, with each connection that follows; `listen` with this."""
        self._channels[channel] = hear

    def listen(self, channels: Sequence[str]) -> None:
        """Hear some channels, with this connection, too."""
        self._send(b"SUBSCRIBE", *channels)

    def leave(self, channel: str) -> None:
        """Hear nothing of a channel any more."""
        del self._channels[channel]
        self._send(b"UNSUBSCRIBE", channel)

    async def tell(self, node: str, message: bytes) -> None:
        """Send a message to a node, if it is there. Raises `LinkLostError`."""
        await self._ask(b"PUBLISH", self.names.node(node), message)

    def start_soon(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Let a task run as long as this connection lasts, if there is one. `LinkLostError` only ends the task."""
        if self._nursery is not None:
            self._nursery.start_soon(_until_lost, task, arguments, name=task)

    @property
    def is_greeted(self) -> bool:
        """Whether there is a connection whose history is known."""
        return self._nursery is not None

    def drop(self, why: str) -> None:
        """End this connection; another follows."""
        self._say(why)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _send(self, command: bytes, *arguments: str) -> None:
        if self._nursery is not None and self._connection is not None and self._connection.usable:
            self._connection.send_command(command, *arguments)

    # --- its life

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link, for ever: whatever happens to it, another is made. Never raises because of the server."""
        task_status.started()
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._connect()
            except* (told.RedisError, OSError, LinkLostError, RefusedError, trio.TooSlowError, _UnfitError) as group:
                self._say(_in_words(_first(group)))
            if self.state is State.READY:
                pause = FIRST_PAUSE_SECONDS
                self.losses += 1
                self.ready = trio.Event()
            self.state = State.AWAY
            await trio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    async def _connect(self) -> None:
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(CALL_SECONDS):
                    self._connection = await self._open(nursery)
                    if self._replicas:
                        self._second = await self._open(nursery)
                self.state = State.GREETING
                with trio.fail_after(GREET_SECONDS):
                    await self._greet(nursery)
                self._become_ready(nursery)
                while True:
                    await trio.sleep(PROBE_SECONDS)
                    await self._probe()
            finally:
                self._connection = self._second = self._nursery = None

    async def _open(self, nursery: trio.Nursery) -> BaseConnection:
        await _require_somebody(self._address)
        connection = _connection_to(self._address)
        await nursery.start(_hold, connection)
        return connection

    async def _greet(self, nursery: trio.Nursery) -> None:
        """Find out which history there is, subscribe, and let everybody find out where he is."""
        connection = self._connection
        assert connection is not None
        began = trio.current_time()
        generation, micros, policy, form = await self._hello()
        if policy != b"noeviction":
            raise _UnfitError(
                f"it forgets keys when it is full: set `maxmemory-policy noeviction`, not {policy.decode()}"
            )
        if form != FORMAT:
            raise _UnfitError("brokers of another version use it: give it to one version, or empty it (FLUSHDB)")
        self._offset = int(micros) / 1_000_000 - (began + trio.current_time()) / 2
        self.generation = generation.decode()
        nursery.start_soon(self._hear, connection)
        connection.send_command(b"SUBSCRIBE", self.names.node(self.node))
        channels = list(self._channels)
        for start in range(0, len(channels), _CHANNELS):
            connection.send_command(b"SUBSCRIBE", *channels[start : start + _CHANNELS])
        self._nursery = nursery
        for greeting in self.greetings:
            await greeting()
        await self._probe()

    def _become_ready(self, nursery: trio.Nursery) -> None:
        self.state = State.READY
        self.ready.set()
        # The first thing that is said is where clients come (`serve`), unless something was amiss before.
        logger.log(logging.INFO if self._said else logging.DEBUG, "the engine at %s is there", self._address)
        self._said = ""
        for task in self.tasks:
            nursery.start_soon(_until_lost, task, (), name=task)

    async def _probe(self) -> None:
        """Say that the node lives, hear itself through the server, and see that this has the same history.

        A process that was stopped for longer than its lease lasts begins anew: what it held may be others' by now.
        """
        if self.state is State.READY and trio.current_time() - self._heard_at > LEASE_MS / 1_000:
            raise LinkLostError("this node did not renew its lease")
        self._nonce += 1
        self._echoed = trio.Event()
        with trio.fail_after(CALL_SECONDS):
            try:
                await self._ask(b"SET", self.names.lease(self.node), "1", b"PX", LEASE_MS)
                self.full = False
            except RefusedError as refused:
                if not self.full:
                    logger.error("the engine at %s stores nothing: %s", self._address, refused)
                self.full = True
            await self.tell(self.node, b"%b%d" % (_ECHO, self._nonce))
            await self._echoed.wait()
            generation, _, _, _ = await self._hello()
        if generation.decode() != self.generation:
            self.drop("it has another history")
        self._heard_at = trio.current_time()

    async def _hello(self) -> Any:
        return await self.run(HELLO, [self.names.generation], [self.candidate(), FORMAT])

    def _echo(self, message: bytes) -> None:
        if message == b"%b%d" % (_ECHO, self._nonce):
            self._echoed.set()

    async def _hear(self, connection: BaseConnection) -> None:
        """Hand on what is published, each message in the step in which it is read."""
        own = self.names.node(self.node).encode()
        pushes: Any = connection.push_messages
        async for push in pushes:
            if push[0] != b"message":
                continue
            if push[1] == own:
                if push[2].startswith(_ECHO):
                    self._echo(push[2])
                else:
                    for hear in self.followers:
                        hear(push[2])
            else:
                of_channel = self._channels.get(push[1].decode())
                if of_channel is not None:
                    of_channel(push[2])

    def _say(self, why: str) -> None:
        """Say why there is no link, unless that was said."""
        if why != self._said:
            self._said = why
            logger.warning("the engine at %s is away: %s", self._address, why)


class _UnfitError(Exception):
    """The server is there, and may not be used."""


async def _until_lost(task: Callable[..., Awaitable[None]], arguments: Iterable[object]) -> None:
    with suppress(LinkLostError):  # it was said, and ends the link
        await task(*arguments)


async def _hold(connection: BaseConnection, *, task_status: trio.TaskStatus[None]) -> None:
    await connection.run(task_status=task_status)
    raise LinkLostError("the server has closed the connection")


async def _require_somebody(address: Address) -> None:
    """Raise OSError if nobody listens there: the library would leave half a connection behind."""
    stream: trio.SocketStream
    if address.path is None:
        stream = await trio.open_tcp_stream(address.host, address.port)
    else:
        stream = await trio.open_unix_socket(address.path)
    await stream.aclose()


def _connection_to(address: Address) -> BaseConnection:
    limits: dict[str, Any] = {
        "username": address.username,
        "password": address.password,
        "db": address.database,
        "client_name": "daimon-broker",
        "ssl_context": ssl.create_default_context() if address.tls else None,
        "connect_timeout": CALL_SECONDS,
    }
    if address.path is not None:
        return UnixDomainSocketConnection(UnixDomainSocketLocation(address.path), **limits)
    return TCPConnection(TCPLocation(address.host, address.port), **limits)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the first error of a group, and of that what it comes from."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _in_words(error: BaseException) -> str:
    cause = error.__cause__
    words = str(cause if isinstance(cause, OSError) and str(cause) else error) or type(error).__name__
    return words.splitlines()[0]
