"""Connections to accounts' endpoints: resolved once, judged, and made to what was judged.

httpcore asks the backend here for each connection that it opens, and gives it the name of the URL. So a name that
changes its address between a look and a connection gains nothing, a redirect is not followed by anybody, and TLS and
`Host` still speak of the name. What an endpoint answers is read in small pieces, and no more of it than fits.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

import httpcore
import trio

from ..errors import part_from_frames
from ..fairness import FairLimiter, Holder
from ..piecemeal import Piecemeal
from .guard import Address, Guard, address_of

MAX_LOOKUPS: Final = 32
"""Names that are resolved at once; each has a thread. They are shared fairly by accounts."""
MAX_ADDRESSES: Final = 4
"""So many addresses of one name are tried."""
CONNECT_SECONDS: Final = 4.0
"""How long one address is tried for, if there are others."""
MAX_ANSWER_BYTES: Final = 65_536
"""Head and body of an answer."""

Resolve = Callable[[str, int], Awaitable[list[Address]]]
"""A name and a port → its addresses, in the order in which they are to be tried. Raises OSError."""
LookUp = Callable[..., Iterable[tuple[Any, ...]]]
"""As `socket.getaddrinfo`."""


class UnresolvedError(httpcore.ConnectError):
    """A name has no address."""


class BlockedError(httpcore.ConnectError):
    """None of a name's addresses may be connected to."""


class TlsError(httpcore.ConnectError):
    """The endpoint is not, by its certificate, who it should be, or TLS failed otherwise."""


class TooMuchError(httpcore.RemoteProtocolError):
    """The answer is too long."""


class UnansweredError(httpcore.ReadError):
    """A connection that had served before died before a byte of the answer came."""


class _Threads:
    """A fair limit as `trio.to_thread` takes it: a place is free when its thread has ended, not when nobody waits."""

    def __init__(self, limiter: FairLimiter, holder: Holder) -> None:
        self._limiter = limiter
        self._holder = holder

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.take(self._holder)

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.give_back(self._holder)


class Resolver:
    """The system's resolver, in threads of its own number: those of others are not taken by slow names."""

    def __init__(self, look_up: LookUp = socket.getaddrinfo) -> None:
        self._look_up = look_up
        self._limiter = FairLimiter(MAX_LOOKUPS)

    def of(self, holder: Holder) -> Resolve:
        """Return what resolves names for one account."""
        threads: Any = _Threads(self._limiter, holder)

        async def resolve(name: str, port: int) -> list[Address]:
            look_up = partial(self._look_up, name, port, type=socket.SOCK_STREAM)
            found = await trio.to_thread.run_sync(look_up, limiter=threads, abandon_on_cancel=True)
            return [address for each in found if (address := address_of(each[4][0])) is not None]

        return resolve


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to what the guard permits, and to nothing else."""

    def __init__(self, guard: Guard, resolve: Resolve) -> None:
        self._guard = guard
        self._resolve = resolve
        self._network = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first permitted address of a name that answers.

        Raises `UnresolvedError`, `BlockedError`, and `httpcore.ConnectError` if none answers.
        """
        addresses = await self._addresses(host, port)
        failure: httpcore.ConnectError | None = None
        for left, address in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
            with trio.move_on_after(CONNECT_SECONDS if left else float("inf")):
                try:
                    return _Bounded(await self._network.connect_tcp(str(address), port), served=False)
                except httpcore.ConnectError as error:
                    part_from_frames(error)
                    failure = error
        raise failure or httpcore.ConnectError("No address answered")

    async def _addresses(self, host: str, port: int) -> list[Address]:
        given = address_of(host)
        try:
            addresses = [given] if given is not None else await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise UnresolvedError(str(error)) from None
        if not addresses:
            raise UnresolvedError("The name has no address")
        permitted = [address for address in dict.fromkeys(addresses) if self._guard.permits(address)]
        if not permitted:
            raise BlockedError("The address is not a public one")
        return permitted[:MAX_ADDRESSES]


class _Bounded(Piecemeal):
    """A connection of which no more is read than fits, and which says when it died unanswered."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, *, served: bool) -> None:
        super().__init__(stream)
        self._served = served
        """Whether an answer came before the one that is waited for."""
        self._answer_bytes = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read a little. Raises `TooMuchError` and `UnansweredError`."""
        if self._answer_bytes >= MAX_ANSWER_BYTES:
            raise TooMuchError(f"The answer has more than {MAX_ANSWER_BYTES} bytes")
        try:
            data = await super().read(max_bytes, timeout)
        except httpcore.ReadError as error:
            if self._unanswered:
                raise UnansweredError(str(error)) from None
            raise
        if not data and self._unanswered:
            raise UnansweredError("The connection ended")
        self._answer_bytes += len(data)
        return data

    @property
    def _unanswered(self) -> bool:
        return self._served and not self._answer_bytes

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write a part of a request; what was read before it was the answer to another."""
        if self._answer_bytes:
            self._served, self._answer_bytes = True, 0
        await super().write(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Shake hands. Raises `TlsError`; the connection is closed if that fails, or is cancelled."""
        try:
            return _Bounded(await self._stream.start_tls(ssl_context, server_hostname, timeout), served=False)
        except trio.Cancelled:
            await self.aclose()  # closes though it is cancelled
            raise
        except Exception as error:
            raise TlsError(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """Return what TLS has to say: httpcore's own error is empty, the reason stands behind it."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, ssl.SSLError):
            return str(getattr(behind, "verify_message", "") or behind.reason or behind)
        behind = behind.__cause__ or behind.__context__
    return "The TLS handshake failed"
