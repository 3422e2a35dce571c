"""Connections to the operator's API: what it answers is read in small pieces, and nothing that it says is kept.

Imported only where such an API is configured, for it needs httpx.
"""

import re
import ssl
from collections.abc import Iterable
from http.cookiejar import CookieJar
from typing import Any, Final

import httpcore
import httpx

from .piecemeal import Piecemeal
from .turns import Turns

HEAD_STEP_BYTES: Final = 1_024
"""What is taken of a head in one step: whatever lines stand in it, that is a millisecond at most."""
MAX_HEAD_BYTES: Final = 16_384
"""Of an answer's head, with all interim answers before it. What is longer is no answer: it is parsed in one step."""
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_INTERIM: Final = b"HTTP/1.1 1"


class NoCookies(CookieJar):
    """Looks at no cookie, keeps none and sends none: each question stands for itself."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Leave an answer's cookies where they are."""


class _Head:
    """How far the head of one answer has come; interim answers (RFC 9110, section 15.2) stand before it."""

    def __init__(self) -> None:
        self.bytes = 0
        """That came of it; 0: nothing of the answer did."""
        self._text = b""
        """From where the last interim answer ended."""
        self.is_whole = False

    def came(self, data: bytes) -> None:
        """Hear what came. Raises `httpcore.RemoteProtocolError` if the head is too long."""
        self.bytes += len(data)
        self._text += data
        while not self.is_whole and (end := _END_OF_HEAD.search(self._text)):
            self.is_whole = not self._text.startswith(_INTERIM)
            self._text = b"" if self.is_whole else self._text[end.end() :]
        if not self.is_whole and self.bytes >= MAX_HEAD_BYTES:
            raise httpcore.RemoteProtocolError(f"The head of the answer is longer than {MAX_HEAD_BYTES:,} bytes")


class _InTurn(Piecemeal):
    """A connection of which a little is read at a time: of all long answers one goes on in a turn of the loop."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, turns: Turns) -> None:
        super().__init__(stream)
        self._turns = turns
        self._head = _Head()
        """Of the answer that is read."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  (httpcore's)
        """Read a little. Raises `httpcore.RemoteProtocolError` where a head is too long."""
        head = self._head
        if head.bytes:
            await self._turns.take(None)
        data = await super().read(max_bytes if head.is_whole else min(max_bytes, HEAD_STEP_BYTES), timeout)
        if not head.is_whole:
            head.came(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write a part of a question; what is read after it answers that."""
        self._head = _Head()
        await super().write(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Shake hands."""
        return _InTurn(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._turns)


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
