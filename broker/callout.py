"""Asking the operator's own API: one signed POST of JSON, within a deadline (PROTOCOL section 8).

Signed as Standard Webhooks are. Redirects are not followed, proxies of the environment not used, cookies not
kept, and no more of an answer is read than fits (`calling`).
"""

import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio
from msgspec import Struct
from standardwebhooks.webhooks import Webhook

from .durations import Durations, DurationsStatistics
from .errors import RequestError, part_from_frames
from .protocol.proving import has_more_values
from .protocol.wording import located
from .tracing import Tracing
from .turns import Turns, Who
from .version import __version__

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES: Final = 1_048_576
MAX_ANSWER_VALUES: Final = 20_000
"""What is to become objects costs by their number: 2 ms."""
MAX_CONNECTIONS: Final = 100
_STEP_CHUNKS: Final = 64
"""Chunks of an answer, which may be of one byte each, that are read before others have their turn."""
_TURN_SECONDS: Final = 1.0
"""How long one of these waits for its turn."""
USER_AGENT: Final = f"daimon-broker/{__version__}"
COMPLAIN_SECONDS: Final = 60.0
"""How often answers that are not understood are logged at most."""
QUIET_SECONDS: Final = 10.0
"""How often the beginning of an outage is logged at most."""

T = TypeVar("T")


class NoAnswerError(RequestError):
    """There is no answer, or none that counts: ``unavailable``, or ``timeout`` if it did not come in time."""


class CalloutStatistics(Struct, frozen=True):
    """How long questions to one URL took."""

    durations: Mapping[str, DurationsStatistics]
    """By what came of them: a class of HTTP status (`2xx`), `unavailable`, `timeout`."""


class Callout:
    """One URL of the operator's API. Made by `open_callout`."""

    def __init__(
        self,
        client: "httpx.AsyncClient",
        url: str,
        secret: str,
        timeout_seconds: float,
        section: str,
        tracing: Tracing | None,
        turns: Turns,
    ) -> None:
        self._client = client
        self._url = url
        self._webhook = Webhook(secret)
        self._timeout_seconds = timeout_seconds
        self._durations: dict[str, Durations] = {}
        self._section = section
        self._tracing = tracing
        self._turns = turns

    async def ask(
        self, question: Any, message_id: str, traceparent: str | None = None, who: Who = None
    ) -> tuple[int, bytes]:
        """POST a question; return the status and the body of the answer.

        ``message_id`` is the same when the same is asked again; ``who`` it is for, where that is known: of many that
        have their answers, or none, at once, one goes on between two looks at the network. Raises `NoAnswerError`.
        """
        began_at, outcome, status = trio.current_time(), "unavailable", None
        span = None
        if self._tracing is not None:
            attributes = {"broker.section": self._section, "http.request.method": "POST"}
            span = self._tracing.begin("callout", "client", traceparent, attributes)
            traceparent = span.traceparent
        try:
            status, answer = await self._ask(question, message_id, traceparent)
            outcome = f"{status // 100}xx"
        except NoAnswerError as failure:
            outcome = failure.code
            await self._take_turn(who)
            raise
        finally:
            self._durations.setdefault(outcome, Durations()).add(trio.current_time() - began_at)
            if span is not None:
                failed = outcome if status is None or status >= 500 else None
                span.end(failed, {"http.response.status_code": status})
        await self._take_turn(who)
        return status, answer

    async def _take_turn(self, who: Who) -> None:
        """Let others have their turn; nothing that was begun is broken off by that."""
        with trio.move_on_after(_TURN_SECONDS, shield=True):
            await self._turns.take(who)

    async def _ask(self, question: Any, message_id: str, traceparent: str | None) -> tuple[int, bytes]:
        import httpx

        body = msgspec.json.encode(question)
        now = datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": USER_AGENT,
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body.decode()),
        }
        if traceparent is not None:
            headers["traceparent"] = traceparent
        response = None
        with trio.move_on_after(self._timeout_seconds):
            try:
                async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                    return response.status_code, await self._read(response)
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, UnicodeError) as error:
                part_from_frames(error)
                raise NoAnswerError("unavailable", "The operator's API gave no answer") from None
            finally:
                if response is not None:
                    response.stream = httpx.ByteStream(b"")  # its own refers to it
        raise NoAnswerError("timeout", "The operator's API did not answer in time")

    async def _read(self, response: "httpx.Response") -> bytes:
        """Return the whole body. Raises `NoAnswerError` if it is too long."""
        answer = bytearray()
        # A `break` would leave the generators inside httpx to the garbage collector; being cancelled ends them.
        with trio.CancelScope() as reading:
            chunks = 0
            async for chunk in response.aiter_raw():
                answer += chunk
                chunks += 1
                if len(answer) > MAX_ANSWER_BYTES:
                    reading.cancel()
                if chunks % _STEP_CHUNKS == 0:
                    await self._take_turn(None)  # who is cancelled here would leave them, too
        if len(answer) > MAX_ANSWER_BYTES:
            raise NoAnswerError("unavailable", "The operator's API gave too long an answer")
        return bytes(answer)

    def statistics(self) -> CalloutStatistics:
        """Return how long questions took."""
        return CalloutStatistics({outcome: taken.statistics() for outcome, taken in self._durations.items()})


def decode_answer(body: bytes, kind: type[T]) -> T:
    """Return an answer's JSON as ``kind``. Raises `msgspec.ValidationError`, which names the field at fault."""
    if has_more_values(body, MAX_ANSWER_VALUES):
        raise msgspec.ValidationError(f"The answer has more than {MAX_ANSWER_VALUES:,} values")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise msgspec.ValidationError("The answer is no JSON") from None


class Outage:
    """Says in the log when answers cease to come and when they come again, and now and then that one is of no use.

    ``ceased`` and ``misunderstood`` have a place (``%s``) for the reason.
    """

    def __init__(self, logger: logging.Logger, *, ceased: str, resumed: str, misunderstood: str) -> None:
        self._logger = logger
        self._ceased = ceased
        self._resumed = resumed
        self._misunderstood = misunderstood
        self._said = False
        """Whether it was logged that answers have ceased, and not yet that they come again."""
        self._quiet_until = -math.inf
        self._complain_at = -math.inf

    def no_answer(self, reason: BaseException) -> None:
        """Note that a question has no answer. What is not expected is logged with its traceback."""
        if not self._said and trio.current_time() >= self._quiet_until:
            expected = isinstance(reason, (RequestError, TimeoutError))
            self._logger.warning(self._ceased, reason, exc_info=None if expected else reason)
            self._said = True
            self._quiet_until = trio.current_time() + QUIET_SECONDS

    def answered(self) -> None:
        """Note that a question has an answer."""
        if self._said:
            self._logger.info(self._resumed)
            self._said = False

    def not_understood(self, reason: msgspec.ValidationError) -> None:
        """Note that an answer was of another form."""
        if trio.current_time() >= self._complain_at:
            self._logger.warning(self._misunderstood, located(str(reason), "$"))
            self._complain_at = trio.current_time() + COMPLAIN_SECONDS


@asynccontextmanager
async def open_callout(
    url: str, secret: str, timeout_seconds: float, section: str = "", tracing: Tracing | None = None
) -> AsyncIterator[Callout]:
    """Keep connections to a URL, which a section of the configuration names, open for as long as the block lasts."""
    import httpx

    from .calling import NoCookies, Transport

    turns = Turns()
    async with httpx.AsyncClient(
        transport=Transport(MAX_CONNECTIONS, turns),
        cookies=NoCookies(),
        timeout=None,  # the one deadline is `ask`'s own
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield Callout(client, url, secret, timeout_seconds, section, tracing, turns)
