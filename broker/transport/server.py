"""`serve`: one port for HTTP and WebSocket, its clients, and the drain.

The head of each request is judged once; an accepted upgrade goes on as a `Connection` over the same stream.
Listeners live in the inner nursery, clients in the outer: while the broker drains, openings are still answered
(with 503), until the last client is gone or the time is up.
"""

import logging
import os
import random
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final

import trio
from msgspec import Struct

from ..access.keys import Access
from ..access.watched import Watch
from ..broker import Broker, open_broker
from ..config import Config
from ..errors import ConfigError, RequestError
from ..observe.connections import ConnectionStatistics, OpenConnection
from ..observe.siblings import Siblings
from ..turns import in_turns
from .connection import Connection
from .endpoints import Handover, handle, route_of
from .http11 import HttpLimits, serve_http
from .life import CLOSE_SECONDS
from .listeners import Address, accept_clients, address_of, is_loopback, open_listeners, take_handed_over, text_of
from .poller import Pollers, open_pollers
from .polling import hurry_polls
from .proxies import TrustedProxies
from .refusals import Refusals
from .request import Request
from .response import Response
from .session import GRACE_SECONDS
from .sse import EventStream
from .stream import ClientStream
from .supervisor import Supervisor
from .tls import BadTlsError, Certificate, certificate_of
from .together import answer_siblings, snapshot_of_all

logger = logging.getLogger(__name__)

RECONNECT_SPREAD_MS: Final = (500, 5_000)
"""Clients are told to come back at different times after a restart, or all would come at once."""
SETTLE_SECONDS: Final = 1.0
"""How long the end waits until other nodes may have the slots of the connections that were drained."""
HANDSHAKE_SECONDS: Final = 10.0
"""For the handshake of TLS."""


class ServerStatistics(Struct, frozen=True):
    """What a server has open."""

    connections: dict[str, ConnectionStatistics]
    """By their ids."""
    exchanges: int
    """HTTP requests being answered."""


class _Exchanges:
    """The HTTP requests that are being answered: to be entered for each."""

    def __init__(self, changed: trio.lowlevel.ParkingLot) -> None:
        self.count = 0
        self._changed = changed

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        self._changed.unpark_all()


class _Server:
    """What the clients of one `serve` share."""

    def __init__(self, broker: Broker, certificate: Certificate | None = None, pollers: Pollers | None = None) -> None:
        self.broker = broker
        self._pollers = pollers
        self._certificate = certificate
        self._proxies = TrustedProxies(broker.config.server.trusted_proxies)
        self.connections: dict[str, Connection | EventStream] = {}
        self._refusals = Refusals()
        self._changed = trio.lowlevel.ParkingLot()
        self._exchanges = _Exchanges(self._changed)
        self._http_limits = HttpLimits()
        self.is_local = False
        """Whether it listens where nobody comes from another machine, and no proxy stands before it."""
        self._drain_one: Callable[[Connection | EventStream], object] | None = None
        """Set while this server drains."""

    async def serve_client(self, transport: trio.abc.HalfCloseableStream) -> None:
        """Serve one client from its first byte to its last. Raises nothing but Cancelled."""
        stream: trio.abc.AsyncResource = transport
        try:
            stream = client = ClientStream(transport, self.broker.turns, self._pollers)
            client.who = (client.remote,)
            if not await self._secured(client):
                return
            taken = await self._serve_http(client)
            if taken is None:
                await client.aclose()
            else:
                handover, early = taken
                client.put_back(early)
                connected = self._connect(client, handover)
                del taken, handover, early  # for as long as the connection lives
                await connected
        except Exception:
            logger.exception("a client's connection failed")
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve_http(self, client: ClientStream) -> tuple[Handover, bytes] | None:
        answer, refused = partial(self._answer, client), partial(self._refused_head, client)
        return await serve_http(client, answer, self._http_limits, self._exchanges, refused)

    async def _secured(self, client: ClientStream) -> bool:
        """Shake hands with a client from the network if there is a certificate; return whether it is to be served."""
        if self._certificate is None or not client.is_tcp:
            return True
        with trio.move_on_after(HANDSHAKE_SECONDS):
            try:
                await client.start_tls(self._certificate.context)
                return True
            except BadTlsError as bad:
                self._refused("a TLS handshake", client.remote, None, RequestError("bad_request", str(bad)))
            except trio.BrokenResourceError:
                pass  # it left
        return False

    async def _answer(self, client: ClientStream, request: Request) -> Response | Handover:
        enabled = self.broker.config.dashboard.enabled
        request.shows_pages = self.is_local if enabled is None else enabled
        by_socket_file, by_tls = client.is_by_socket_file, self._certificate is not None and client.is_tcp
        request.is_by_tls = self._proxies.says_tls(request, by_socket_file=by_socket_file, by_tls=by_tls)
        request.remote = self._proxies.remote_of(request, by_socket_file=by_socket_file)
        try:
            return await handle(self.broker, request)
        except RequestError as error:
            what = f"{request.method} {route_of(request.path) or 'elsewhere'}"
            self._refused(what, request.remote, request.key, error)
            raise
        finally:
            client.who = request.account_id or client.who

    def _refused_head(self, client: ClientStream, error: RequestError) -> None:
        self._refused("a head that was not understood", client.remote, None, error)

    def _refused(self, what: str, remote: str | None, key: str | None, error: RequestError) -> None:
        """Count a refusal, and tell of it if that is not one too many."""
        self.broker.connections.refused(error)
        for line in self._refusals.tell(trio.current_time(), what, remote, key, error):
            logger.info(line)

    async def _connect(self, stream: ClientStream, handover: Handover) -> None:
        admitted, make = handover.admitted, handover.connection
        slot, hold, named = admitted.slot, admitted.hold, admitted.named
        del handover  # for as long as the connection lives
        try:
            key, remote = admitted.key, admitted.remote
            stream.who = key.account_id
            connection = make(self.broker, stream, admitted)
            client_id = admitted.opening.client_id
            opened = OpenConnection(connection.id, key, client_id, remote, connection.transport, connection)
            opened.agent, opened.watch = admitted.agent, admitted.opening.watch
            del make, admitted  # it has names that the client may give up
            with self.broker.keyring.watch(key, remote, connection.change_key) as watch:
                await self._run(connection, watch, opened)
        finally:
            slot.release()
            named.let_go()
            await hold.aclose()

    async def _run(self, connection: Connection | EventStream, watch: Watch, opened: OpenConnection) -> None:
        due = trio.current_time() + self.broker.config.limits.heartbeat_seconds
        beat = connection.beat if isinstance(connection, EventStream) else _in_time(connection, due)
        stop_beating = self.broker.schedule.add(due, beat)
        self.connections[connection.id] = connection
        self.broker.connections.enter(opened)
        if self._drain_one is not None:
            self._drain_one(connection)  # its head was judged before
        try:
            await connection.run(watch)
        finally:
            stop_beating()
            self.broker.connections.leave(opened)
            del self.connections[connection.id]
            self._changed.unpark_all()

    async def drain(self, seconds: float) -> None:
        """Close all connections, each after it has everything; return when that is done, or when time is up.

        What no connection waits for has its time, too: commands whose client has left, and posts to webhooks. Cut off,
        they would be done again.
        """
        deadline = trio.current_time() + seconds
        close_at = deadline - min(CLOSE_SECONDS, seconds / 2)
        logger.info("draining for at most %g s: %s", seconds, self._open_now())
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:

                def drain_one(connection: Connection | EventStream) -> None:
                    nursery.start_soon(connection.drain, random.randint(*RECONNECT_SPREAD_MS), close_at)

                nursery.start_soon(hurry_polls, self.broker)
                open_before, self._drain_one = deque(self.connections.values()), drain_one
                while open_before:
                    await self.broker.turns.take(self)
                    drain_one(open_before.popleft())  # who has left is let go at once
                while self.connections or self.exchanges:
                    await self._changed.park()
            await self.broker.commands.settled()
            if self.broker.webhooks is not None:
                await self.broker.webhooks.settled()
        if self.connections or self.exchanges:
            logger.info("the time for draining is up: %s", self._open_now())

    def _open_now(self) -> str:
        return f"connections open {len(self.connections):,}, requests under way {self.exchanges:,}"

    @property
    def exchanges(self) -> int:
        """How many HTTP requests are being answered."""
        return self._exchanges.count

    def statistics(self) -> ServerStatistics:
        """Return what is open."""
        return ServerStatistics({name: c.statistics() for name, c in self.connections.items()}, self.exchanges)


async def serve(
    broker: Broker,
    *,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    certificate: Certificate | None = None,
    handed: Sequence[socket.socket] = (),
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a broker where its configuration says until it is told to drain, then drain and return.

    ``host`` (one or several) and ``port`` (0: any free one) override the configuration, ``certificate`` (which may be
    reloaded meanwhile) its files. Sockets that are ``handed`` over and listen are used instead of binding any.
    `nursery.start` gives the bound addresses back. Cancelled, it closes everything at once. Raises `OSError` that names
    the address if one cannot be bound, `ConfigError` that names the file of TLS that cannot be used.
    """
    config = broker.config.server
    hosts = config.hosts if host is None else [host] if isinstance(host, str) else host
    certificate = certificate or certificate_of(config)
    listening = open_listeners(hosts, config.port if port is None else port, config.unix, handed)
    async with listening as listeners, open_pollers(broker.turns) as pollers, trio.open_nursery() as clients:
        server = _Server(broker, certificate, pollers)
        async with trio.open_nursery() as inner:
            addresses = [address_of(listener.socket) for listener in listeners]
            server.is_local = all(map(is_loopback, addresses)) and not config.trusted_proxies
            inner.start_soon(accept_clients, listeners, server.serve_client, clients)
            task_status.started(addresses)
            await broker.draining.wait()
            await server.drain(config.drain_seconds)
            with trio.move_on_after(SETTLE_SECONDS):
                await broker.slots.settled()
                if broker.keeping is not None:
                    await broker.keeping.left()
            inner.cancel_scope.cancel()
        clients.cancel_scope.cancel()


def _in_time(connection: Connection, due: float) -> Callable[[float], float | None]:
    """Return its heartbeat, first due then; where this process was away for long, that counts against no client."""

    def beat(now: float) -> float | None:
        nonlocal due
        again = connection.beat_late(now) if now - due > GRACE_SECONDS else connection.beat(now)
        due = now if again is None else again
        return again

    return beat


async def serve_until_signal(
    config: Config,
    load_again: Callable[[], Config],
    host: Sequence[str] | None,
    port: int | None,
    say_listening: Callable[[list[Address]], None],
    given: Sequence[socket.socket] = (),
    siblings: Siblings | None = None,
    *,
    woken: Callable[[], None],
) -> None:
    """Serve a configuration until SIGTERM or SIGINT, then drain and return. More signals change nothing.

    At SIGHUP what ``load_again`` returns (it may raise `ConfigError`) is taken instead, and the files of TLS are read
    again. A supervisor that asked for it is told all this.

    One of several workers is ``given`` the sockets that it listens at, and has ``siblings``. ``woken`` is called for
    each client that is woken or has its turn (`Turns.woken`).
    """
    certificate, handed = certificate_of(config.server), given or take_handed_over(os.environ)
    supervisor = Supervisor(os.environ)
    ends = (signal.SIGTERM, signal.SIGINT)
    # What is ignored before is ignored afterwards: a late signal must not end a process that has drained.
    for number in (*ends, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(*ends) as signals, trio.open_signal_receiver(signal.SIGHUP) as reloads:
        async with open_broker(config) as broker, trio.open_nursery() as nursery:
            broker.turns.woken = woken
            nursery.start_soon(_drain_at_signal, broker, supervisor, signals)
            if siblings is not None:
                broker.siblings, broker.live.together = siblings, partial(snapshot_of_all, broker)
                await nursery.start(answer_siblings, broker)
            nursery.start_soon(_reload_at_signal, broker, load_again, certificate, supervisor, reloads)
            async with trio.open_nursery() as serving:
                addresses = await serving.start(
                    partial(serve, broker, host=host, port=port, certificate=certificate, handed=handed)
                )
                say_listening(addresses)
                nursery.start_soon(supervisor.feed_watchdog)
                nursery.start_soon(supervisor.begun, f"listening on {' and '.join(map(text_of, addresses))}")
                if broker.config.tokens.secret is None:
                    logger.warning("[tokens] has no `secret`: connection tokens are of no use after a restart")
            nursery.cancel_scope.cancel()


async def _drain_at_signal(broker: Broker, supervisor: Supervisor, signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        broker.start_draining()
        seconds = broker.config.server.drain_seconds
        await supervisor.stopping(f"draining for at most {seconds:g} s", seconds)


async def _reload_at_signal(
    broker: Broker,
    load_again: Callable[[], Config],
    certificate: Certificate | None,
    supervisor: Supervisor,
    signals: AsyncIterator[int],
) -> None:
    async for _ in signals:
        await supervisor.reloading()
        if certificate is not None:
            await _reload_certificate(certificate)
        await supervisor.ready(await reload_configuration(broker, load_again))


async def reload_configuration(broker: Broker, load_again: Callable[[], Config]) -> str:
    """Take another configuration, and return in a line what became of it, which is logged. The old keys are let go."""
    try:
        access = await trio.to_thread.run_sync(lambda: Access(load_again()))
        before = broker.keyring.access
        needs_restart = broker.reload(access)
    except ConfigError as error:
        said = f"the configuration was not reloaded, nothing has changed: {error}"
        logger.error("%s", said)
        return said
    said = f"the configuration was reloaded: {len(access.config.accounts)} accounts"
    logger.info("%s", said)
    if needs_restart:
        logger.warning("these sections have changed and need a restart: %s", ", ".join(needs_restart))
    await in_turns(before.let_go())
    return said


async def _reload_certificate(certificate: Certificate) -> None:
    try:
        await trio.to_thread.run_sync(certificate.reload)
    except ConfigError as error:
        logger.error("the certificate was not reloaded, the old one stays: %s", error)
    else:
        logger.info("the certificate was reloaded")


async def serve_stream(broker: Broker, stream: trio.abc.HalfCloseableStream) -> None:
    """Serve one client over a stream of any kind, from its first byte to its last; it is drained as others are.

    Over what is no socket the fan-out cannot write by itself: each frame costs a task's turn. Closes the stream.
    Raises nothing but Cancelled.
    """
    server = _Server(broker)

    async def drain() -> None:
        await broker.draining.wait()
        await server.drain(broker.config.server.drain_seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await server.serve_client(stream)
        nursery.cancel_scope.cancel()
