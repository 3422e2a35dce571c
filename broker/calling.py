"""Connections to the operator's API: what it answers is read in small pieces, and nothing that it says is kept.

Imported only where such an API is configured, for it needs httpx.
"""

import ssl
from collections.abc import Iterable
from http.cookiejar import CookieJar
from typing import Any, Final

import httpcore
import httpx

from .turns import Turns

STEP_BYTES: Final = 4_096
"""What is taken from the network in one step: whatever stands in it, it costs a few milliseconds at most."""


class NoCookies(CookieJar):
    """Looks at no cookie, keeps none and sends none: each question stands for itself."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Leave an answer's cookies where they are."""


class _InTurn(httpcore.AsyncNetworkStream):
    """A connection of which a little is read at a time: of all long answers one goes on in a turn of the loop."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, turns: Turns) -> None:
        self._stream = stream
        self._turns = turns
        self._is_long = False
        """Whether something of this answer was read already."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  (httpcore's)
        """Read a little."""
        if self._is_long:
            await self._turns.take(None)
        data = await self._stream.read(min(max_bytes, STEP_BYTES), timeout)
        self._is_long = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write a part of a question; what is read after it answers that."""
        self._is_long = False
        await self._stream.write(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Shake hands."""
        return _InTurn(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._turns)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore wants to know of the connection."""
        return self._stream.get_extra_info(info)


class _Backend(httpcore.AsyncNetworkBackend):
    """Opens such connections."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._network = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect."""
        stream = await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        return _InTurn(stream, self._turns)


class Transport(httpx.AsyncHTTPTransport):
    """What httpx's own is, by such connections: that takes no backend."""

    def __init__(self, max_connections: int, turns: Turns) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            httpx.create_ssl_context(trust_env=False),
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=httpx.Limits().keepalive_expiry,
            network_backend=_Backend(turns),
        )
