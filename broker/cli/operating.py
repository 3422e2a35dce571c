"""What an operator asks of a running broker over HTTP: its figures as they change, and its connections."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from ..errors import first_of
from ..observe.choosing import OperatorPage
from ..observe.live import Snapshot
from .client import LostError, RefusedError

if TYPE_CHECKING:
    import httpx

ANSWER_SECONDS: Final = 10.0
"""For an answer, and beyond the second after which a snapshot is due."""
_FORBIDDEN: Final = (
    "this needs an operator key, in BROKER_OPERATOR_KEY or --key; `broker keys new --operator` makes one"
)

T = TypeVar("T")


class Operator:
    """Asks one broker with an operator's key. Raises `RefusedError` for good, `LostError` if it may be tried again."""

    def __init__(self, client: "httpx.AsyncClient") -> None:
        self._client = client

    async def watch(self, take: Callable[[Snapshot], Awaitable[bool]]) -> None:
        """Have a snapshot taken each second, until that says that it is enough, or the broker ends them."""
        with _as_errors(), trio.CancelScope() as scope:
            async with self._client.stream("GET", "/v1/operator/live", params={"every": 1}) as answer:
                await _require_ok(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and await take(_decoded(line[len("data: ") :].encode(), Snapshot)):
                        scope.cancel()  # whoever only stops to iterate leaves generators of httpx behind

    async def connections(self, **wanted: str) -> OperatorPage:
        """Return the page of connections that a query asks for."""
        with _as_errors():
            answer = await self._client.get("/v1/operator/connections", params=wanted)
            await _require_ok(answer)
            return _decoded(answer.content, _PageAnswer).result


class _PageAnswer(msgspec.Struct):
    result: OperatorPage


@asynccontextmanager
async def open_operator(url: str, key: str, trust: ssl.SSLContext | None) -> AsyncIterator[Operator]:
    """Ask the broker at ``url`` (of HTTP) for as long as the block lasts."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"}
    verify: ssl.SSLContext | bool = True if trust is None else trust
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=ANSWER_SECONDS, verify=verify, trust_env=False
    ) as client:
        yield Operator(client)


@contextmanager
def _as_errors() -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.TimeoutException:
        raise LostError(f"nothing came for {ANSWER_SECONDS:g} s") from None
    except httpx.HTTPError as error:
        raise LostError(_words(error)) from None


async def _require_ok(answer: "httpx.Response") -> None:
    """Raise what a refusal means."""
    if answer.status_code == 200:
        return
    try:
        error = msgspec.json.decode(await answer.aread())["error"]
        words = f"{error['code']}: {error['message']}"
    except (msgspec.DecodeError, KeyError, TypeError):
        raise RefusedError(answer.status_code, "what answers there is no broker") from None
    if answer.status_code in (429, 503):
        raise LostError(f"{answer.status_code} {words}")
    if answer.status_code == 403:
        raise RefusedError(403, _FORBIDDEN)
    if answer.status_code == 404:
        raise RefusedError(404, "the broker there does not tell operators of itself: it is older than this program")
    raise RefusedError(answer.status_code, words)


def _decoded(text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise RefusedError(200, f"the broker there is of another version than this program: {error}") from None


def _words(error: BaseException) -> str:
    """Return why there is no answer, from under what was wrapped around it."""
    cause = error
    while cause.__cause__ or cause.__context__ or isinstance(cause, BaseExceptionGroup):
        cause = first_of(cause.__cause__ or cause.__context__ or cause)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.rpartition(": ")[2]
    return str(error) or "the connection broke"
