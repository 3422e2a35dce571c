"""Connections as `broker doctor` makes them, step by step, so that it knows which step fails and why."""

import http.client
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

import msgspec
import trio
from msgspec import Struct

from ..errors import BrokerError
from .findings import Check, Finding, Problem, problem

if TYPE_CHECKING:
    import httpx

STEP_SECONDS: Final = 10.0
"""For each step: longer than anything that is well takes."""

ByteStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class ProblemError(BrokerError):
    """Something is wrong, and what comes after needs it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.said)
        self.finding = finding


def stop(check: Check, kind: Problem, said: str, do: str) -> ProblemError:
    """Return a problem to be raised."""
    return ProblemError(problem(check, kind, said, do))


class Place(Struct, frozen=True):
    """Where the broker is said to be, and whose certificates are trusted there."""

    url: str
    """Of HTTP."""
    trust: ssl.SSLContext | None

    @property
    def parts(self) -> SplitResult:
        """Return the URL in its parts."""
        return urlsplit(self.url)

    @property
    def is_tls(self) -> bool:
        """Whether TLS is spoken there."""
        return self.parts.scheme == "https"

    @property
    def host(self) -> str:
        """The name, or the address."""
        return self.parts.hostname or ""

    @property
    def port(self) -> int:
        """The port; where none is said, that of the scheme."""
        return self.parts.port or (443 if self.is_tls else 80)


async def connect(place: Place) -> ByteStream:
    """Return a connection to a place, with TLS where that is spoken. Raises `ProblemError`."""
    stream = await _connect_tcp(place)
    if not place.is_tls:
        return stream
    secured = trio.SSLStream(
        stream, place.trust or ssl.create_default_context(), server_hostname=place.host, https_compatible=True
    )
    try:
        with trio.fail_after(STEP_SECONDS):
            await secured.do_handshake()
    except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
        await trio.aclose_forcefully(stream)
        raise await _why_no_tls(place, error) from None
    return secured


async def _connect_tcp(place: Place) -> trio.SocketStream:
    where = f"{place.host}:{place.port}"
    try:
        with trio.fail_after(STEP_SECONDS):
            return await trio.open_tcp_stream(place.host, place.port)
    except trio.TooSlowError:
        said = f"{where} does not answer within {STEP_SECONDS:g} s"
        do = "see whether a firewall stands between, and whether the address is the right one"
    except OSError as error:
        cause: BaseException = error
        while cause.__cause__ is not None or isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause
        said = f"{where}: {str(getattr(cause, 'strerror', None) or cause).rpartition(': ')[2]}"
        do = "see whether the broker runs, and listens on this address and port: it says so when it starts"
    raise stop("reach", "unreachable", said, do)


async def _why_no_tls(place: Place, error: BaseException) -> ProblemError:
    """Return why there is no TLS: a certificate that is not trusted, or another protocol."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            words = cause.verify_message.rstrip(".")
            do = "give the authority that signed it with --ca-file, or have the certificate made for this name"
            return stop("reach", "tls", f"the certificate of {place.host} is not trusted: {words}", do)
        cause = cause.__cause__
    if await _speaks_http(place):
        do = f"say --url http://{place.parts.netloc}, or configure `server.tls_certificate`"
        return stop("reach", "scheme", f"{place.host}:{place.port} speaks plain HTTP, not TLS", do)
    do = "see what listens there"
    return stop("reach", "tls", f"{place.host}:{place.port} takes connections, but does not speak TLS", do)


async def _speaks_http(place: Place) -> bool:
    with trio.move_on_after(STEP_SECONDS):
        said = await _said_to(place, b"GET /healthz HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n")
        return said.startswith(b"HTTP/")
    return False


async def speaks_tls(place: Place) -> bool:
    """Whether TLS is spoken at a place, whatever certificate it has."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with trio.move_on_after(STEP_SECONDS):
        stream = await _connect_tcp(place)
        secured = trio.SSLStream(stream, context, server_hostname=place.host)
        try:
            await secured.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError):
            return False
        finally:
            await trio.aclose_forcefully(stream)
        return True
    return False


async def _said_to(place: Place, request: bytes) -> bytes:
    """Return the first bytes that are answered to some; none if there are none."""
    stream = await _connect_tcp(place)
    try:
        await stream.send_all(request)
        return bytes(await stream.receive_some(64))
    except trio.BrokenResourceError:
        return b""
    finally:
        await trio.aclose_forcefully(stream)


# --- HTTP --------------------------------------------------------------------


class Answer(Struct, frozen=True):
    """An answer of HTTP."""

    status: int
    result: Any
    """What stands in `result`; None: the answer is not of the form of a broker's."""
    code: str
    """The error's code; "": there is none."""
    message: str
    seconds: float


@asynccontextmanager
async def open_http(place: Place, key: str) -> AsyncIterator["httpx.AsyncClient"]:
    """Ask a place over HTTP for as long as the block lasts."""
    import httpx

    verify: ssl.SSLContext | bool = True if place.trust is None else place.trust
    headers = {"Authorization": f"Bearer {key}"}
    # The environment's proxies are not what stands between the broker and its clients.
    async with httpx.AsyncClient(
        base_url=place.url, headers=headers, timeout=STEP_SECONDS, verify=verify, trust_env=False
    ) as client:
        yield client


async def ask(client: "httpx.AsyncClient", method: str, path: str, body: Any = None) -> Answer:
    """Return the answer to a request. Raises `httpx.HTTPError`."""
    before = trio.current_time()
    answer = await client.request(method, path, json=body)
    seconds = trio.current_time() - before
    try:
        document = msgspec.json.decode(answer.content)
        error = document.get("error") or {}
        result = document.get("result")
        if result is None and not error:
            raise TypeError
        return Answer(answer.status_code, result, str(error.get("code", "")), str(error.get("message", "")), seconds)
    except (msgspec.DecodeError, AttributeError, TypeError):
        return Answer(answer.status_code, None, "", http.client.responses.get(answer.status_code, ""), seconds)
