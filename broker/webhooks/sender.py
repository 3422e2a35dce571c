"""One post to an endpoint: fifteen seconds, and what came of it.

A 2xx is success, everything else is told by its kind. Redirects are not followed. Each endpoint has its own
connections, so that one that hangs takes none from others; those that rest are closed after a while.
"""

import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import time
from typing import Final, Literal

import httpcore
import trio
from msgspec import Struct

from ..config import WebhooksConfig
from ..errors import ConfigError, part_from_frames
from ..protocol.messages import trace_in
from ..version import __version__
from .attempts import retry_after_of
from .connecting import BlockedError, GuardedBackend, Resolver, TlsError, UnansweredError, UnresolvedError
from .guard import Guard
from .signing import signed_headers

ATTEMPT_SECONDS: Final = 15.0
BODY_SECONDS: Final = 1.0
"""How long the rest of an answer is waited for: nothing in it counts, but the connection can then be used again."""
MAX_CONNECTIONS: Final = 8
"""Of one endpoint."""
KEEP_SECONDS: Final = 30.0
"""How long a connection rests before it is closed."""
MAX_POOLS: Final = 256
"""Endpoints that connections are kept for."""
_STEP_PIECES: Final = 32
USER_AGENT: Final = f"daimon-broker/{__version__}".encode()

Failure = Literal["dns", "blocked", "connect", "tls", "timeout", "status", "redirect", "protocol"]
"""Why a post failed. `blocked`: none of the name's addresses is public; `status`: any but 2xx and 3xx."""


class Post(Struct, frozen=True):
    """What is to be posted where. ``secrets``: all that sign, the newest first."""

    endpoint: str
    """Whose connections are used: one for each endpoint of each account."""
    account_id: str
    url: str
    secrets: tuple[str, ...]
    event_id: str
    body: bytes
    attempt: int = 1


class Outcome(Struct, frozen=True):
    """What came of a post. ``error`` None: it was taken. ``status``: of the answer, if there was one."""

    status: int | None
    error: Failure | None
    duration_seconds: float
    retry_after_seconds: float = 0.0
    """What the endpoint asked for."""


class SenderStatistics(Struct, frozen=True):
    """What a sender holds."""

    pools: int
    """Endpoints that connections are kept for."""


class _Pool:
    """An endpoint's connections."""

    __slots__ = ("connections", "rested_at", "under_way")

    def __init__(self, connections: httpcore.AsyncConnectionPool) -> None:
        self.connections = connections
        self.under_way = 0
        self.rested_at = 0.0


class Sender:
    """Posts, in the loop that it was opened in. Made by `open_sender`."""

    def __init__(self, config: WebhooksConfig, resolver: Resolver, wall_clock: Callable[[], float] = time) -> None:
        self._allow_http = config.allow_http
        self._guard = Guard(config.allow_networks, config.deny_networks)
        self._resolver = resolver
        self._wall_clock = wall_clock
        self._tls = tls_of(config)
        self._pools: OrderedDict[str, _Pool] = OrderedDict()
        """By endpoint; those used last stand last."""

    async def post(self, post: Post) -> Outcome:
        """Post once, and return what came of it; it is cancelled after `ATTEMPT_SECONDS`.

        A connection that was kept and died before it answered is no attempt: then another one is taken, once.
        """
        began_at = trio.current_time()
        status: int | None = None
        error: Failure | None = "timeout"
        retry_after = 0.0
        with trio.move_on_after(ATTEMPT_SECONDS):
            try:
                try:
                    status, asked = await self._once(post)
                except UnansweredError:
                    status, asked = await self._once(post)
                error = _judged(status)
                retry_after = 0.0 if error is None else retry_after_of(asked, self._wall_clock())
            except Exception as failure:
                error = _kind(failure)
                part_from_frames(failure)
        return Outcome(status, error, trio.current_time() - began_at, retry_after)

    async def _once(self, post: Post) -> tuple[int, str | None]:
        """Post; return the status, and when the endpoint wants to be asked again."""
        if not (self._allow_http or post.url.startswith("https:")):
            raise BlockedError("Plain HTTP is not allowed")
        headers = [
            (b"content-type", b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", USER_AGENT),
            *signed_headers(post.secrets, post.event_id, post.body, self._wall_clock()),
            (b"webhook-attempt", str(post.attempt).encode()),
            (b"webhook-account", post.account_id.encode()),
        ]
        trace = trace_in(post.body)
        if trace is not None:
            headers.append((b"traceparent", trace.encode()))
        pool = self._open(post)
        pool.under_way += 1
        try:
            async with pool.connections.stream("POST", post.url, headers=headers, content=post.body) as response:
                await _finish(response)
                return response.status, _header(response, b"retry-after")
        finally:
            pool.under_way -= 1
            pool.rested_at = trio.current_time()

    def _open(self, post: Post) -> _Pool:
        pool = self._pools.get(post.endpoint)
        if pool is None:
            backend = GuardedBackend(self._guard, self._resolver.of(post.account_id))
            pool = self._pools[post.endpoint] = _Pool(
                httpcore.AsyncConnectionPool(
                    self._tls,
                    max_connections=MAX_CONNECTIONS,
                    keepalive_expiry=KEEP_SECONDS,
                    network_backend=backend,
                )
            )
        self._pools.move_to_end(post.endpoint)
        return pool

    async def run(self) -> None:
        """Close connections that have rested for long, for ever; all of them in the end."""
        try:
            while True:
                await trio.sleep(KEEP_SECONDS / 4)
                await self._close_rested(trio.current_time())
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                for pool in self._pools.values():
                    await _close(pool)

    async def _close_rested(self, now: float) -> None:
        excess = len(self._pools) - MAX_POOLS
        for endpoint, pool in list(self._pools.items()):
            if not pool.under_way and (excess > 0 or now - pool.rested_at >= KEEP_SECONDS):
                excess -= 1
                del self._pools[endpoint]
                await _close(pool)

    def statistics(self) -> SenderStatistics:
        """Return what is held."""
        return SenderStatistics(len(self._pools))


def tls_of(config: WebhooksConfig) -> ssl.SSLContext:
    """Return what endpoints are believed by. Raises `ConfigError`."""
    context = ssl.create_default_context()
    if config.ca_file is not None:
        try:
            context.load_verify_locations(config.ca_file)
        except ssl.SSLError:
            raise ConfigError(f"webhooks.ca_file: {config.ca_file}: there is no certificate in PEM form") from None
        except OSError as error:
            raise ConfigError(f"webhooks.ca_file: {config.ca_file}: {error.strerror}") from None
    return context


async def _finish(response: httpcore.Response) -> None:
    """Read the rest of an answer if it comes soon and is short: whatever becomes of it, the status stands."""
    with trio.move_on_after(BODY_SECONDS), suppress(httpcore.NetworkError, httpcore.ProtocolError):
        pieces = 0
        async for _ in response.aiter_stream():
            pieces += 1
            if pieces % _STEP_PIECES == 0:
                await trio.lowlevel.checkpoint()


async def _close(pool: _Pool) -> None:
    with suppress(Exception):
        await pool.connections.aclose()


def _header(response: httpcore.Response, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in response.headers if name.lower() == wanted), None)


def _judged(status: int) -> Failure | None:
    if 200 <= status < 300:
        return None
    return "redirect" if 300 <= status < 400 else "status"


def _kind(failure: Exception) -> Failure:
    """Return what kind of failure it is; what nobody thought of counts as the endpoint's."""
    kinds: tuple[tuple[type[Exception], Failure], ...] = (
        (UnresolvedError, "dns"),
        (BlockedError, "blocked"),
        (TlsError, "tls"),
        (httpcore.ConnectError, "connect"),
        (httpcore.TimeoutException, "timeout"),
    )
    return next((kind for error, kind in kinds if isinstance(failure, error)), "protocol")


@asynccontextmanager
async def open_sender(
    config: WebhooksConfig, resolver: Resolver | None = None, wall_clock: Callable[[], float] = time
) -> AsyncIterator[Sender]:
    """Keep a sender in this loop for as long as the block lasts. Raises `ConfigError` if ``ca_file`` cannot be read."""
    sender = Sender(config, resolver or Resolver(), wall_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        try:
            yield sender
        finally:
            nursery.cancel_scope.cancel()
