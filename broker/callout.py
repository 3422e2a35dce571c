"""Asking the operator's own API: one signed POST of JSON, within a deadline (PROTOCOL section 8).

Signed as Standard Webhooks are. Redirects are not followed, proxies of the environment not used, and no more of an
answer is read than fits.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from standardwebhooks.webhooks import Webhook

from .errors import RequestError

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES: Final = 1_048_576
MAX_CONNECTIONS: Final = 100


class Callout:
    """One URL of the operator's API. Made by `open_callout`."""

    def __init__(self, client: "httpx.AsyncClient", url: str, secret: str, timeout_seconds: float) -> None:
        self._client = client
        self._url = url
        self._webhook = Webhook(secret)
        self._timeout_seconds = timeout_seconds

    async def ask(self, question: Any, message_id: str, traceparent: str | None = None) -> tuple[int, Any]:
        """POST a question; return the status and the answer's JSON (None if it is none).

        ``message_id`` is the same when the same is asked again. Raises `RequestError`: ``timeout`` if the answer does
        not come in time, ``unavailable`` if there is no whole answer.
        """
        import httpx

        body = msgspec.json.encode(question)
        now = datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body.decode()),
        }
        if traceparent is not None:
            headers["traceparent"] = traceparent
        with trio.move_on_after(self._timeout_seconds):
            try:
                async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                    return response.status_code, _json_of(await _read(response))
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, UnicodeError):
                raise RequestError("unavailable", "The operator's API gave no answer") from None
        raise RequestError("timeout", "The operator's API did not answer in time")


async def _read(response: "httpx.Response") -> bytes:
    """Return the whole body. Raises `RequestError` if it is too long."""
    answer = bytearray()
    # A `break` would leave the generators inside httpx to the garbage collector; being cancelled ends them.
    with trio.CancelScope() as reading:
        async for chunk in response.aiter_raw():
            answer += chunk
            if len(answer) > MAX_ANSWER_BYTES:
                reading.cancel()
    if len(answer) > MAX_ANSWER_BYTES:
        raise RequestError("unavailable", "The operator's API gave too long an answer")
    return bytes(answer)


def _json_of(answer: bytes) -> Any:
    try:
        return msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


@asynccontextmanager
async def open_callout(url: str, secret: str, timeout_seconds: float) -> AsyncIterator[Callout]:
    """Keep connections to a URL open for as long as the block lasts."""
    import httpx

    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
    # The one deadline is `ask`'s own.
    async with httpx.AsyncClient(timeout=None, limits=limits, follow_redirects=False, trust_env=False) as client:
        yield Callout(client, url, secret, timeout_seconds)
