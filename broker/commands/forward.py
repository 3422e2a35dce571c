"""Commands that are done elsewhere: each is POSTed to the operator's own API (PROTOCOL section 8, `[commands]`)."""

import logging
from typing import Any, Final

import msgspec
import trio
from msgspec import Raw, Struct

from ..callout import MAX_CONNECTIONS, Callout, NoAnswerError, Outage, decode_answer
from ..errors import CommandError, RequestError
from ..fairness import FairLimiter
from ..protocol.decoding import AS_WRITTEN
from ..turns import Turns
from .context import CommandContext
from .dispatch import ActionHandler

logger = logging.getLogger(__name__)

_SPARE_SECONDS: Final = 1.0
"""So much later the handler would be cancelled from outside: its own deadline comes first."""


class _Refusal(Struct, frozen=True):
    code: str
    message: str


class _Refused(Struct, frozen=True):
    error: _Refusal


class _Answer(Struct, frozen=True):
    """What the API says to a command with status 200: one of the two."""

    result: dict[str, Any] | None = None
    error: _Refusal | None = None


class _Forward:
    """Asks ``callout``, within ``seconds``. Accounts share its connections: no slow ones hold up another's."""

    def __init__(self, callout: Callout, seconds: float) -> None:
        self._callout = callout
        self._seconds = seconds
        self._connections = FairLimiter(MAX_CONNECTIONS)
        self._turns = Turns()
        self._outage = Outage(
            logger,
            ceased="the operator's API does no commands (%s): clients are told `unavailable` or `timeout`",
            resumed="the operator's API does commands again",
            misunderstood="the answer of the operator's API to a command was not understood: %s",
        )

    async def __call__(self, params: dict[str, Raw], context: CommandContext) -> dict[str, Any]:
        # Hundreds that come at once begin, and run out of time, one after the other.
        await self._turns.take(context.account_id)
        try:
            result = await self._ask(params, context)
        except NoAnswerError as failure:
            self._outage.no_answer(failure)
            raise
        except msgspec.ValidationError as error:
            self._outage.not_understood(error)
            raise RequestError("unavailable", "The operator's API gave an answer of another form") from None
        except CommandError:
            self._outage.answered()
            raise
        self._outage.answered()
        return result

    async def _ask(self, params: dict[str, Raw], context: CommandContext) -> dict[str, Any]:
        has_place = False
        with trio.move_on_after(self._seconds):
            async with self._connections.place(context.account_id):
                has_place = True
                await self._turns.take(context.account_id)  # a hundred places may be free at once
                question = _question(params, context)
                return _result_of(
                    *await self._callout.ask(question, context.message_id, context.traceparent, context.account_id)
                )
        if has_place:
            raise NoAnswerError("timeout", "The operator's API did not answer in time")
        raise RequestError("timeout", "Other commands of the account had all connections to the operator's API")


def forwarder(callout: Callout, seconds: float) -> ActionHandler:
    """Return the handler that asks ``callout``; its answer, refusal, slowness and absence become the outcome.

    The parameters are handed on as the client wrote them: they are proved, and not decoded.
    """
    return ActionHandler(_Forward(callout, seconds), AS_WRITTEN, seconds + _SPARE_SECONDS, "finish")


def _question(params: dict[str, Raw], context: CommandContext) -> dict[str, Any]:
    return {
        "action": context.action,
        "request_id": context.request_id,
        "account_id": context.account_id,
        "key_id": context.key_id,
        "inbox_id": context.inbox_id,
        "inbox_ids": None if context.inbox_ids is None else sorted(context.inbox_ids),
        "params": params,
        **({} if context.once is None else {"once": context.once}),
    }


def _result_of(status: int, body: bytes) -> dict[str, Any]:
    """Return the result in an answer.

    Raises `CommandError` if the API refuses, `NoAnswerError` if it does not answer, `msgspec.ValidationError`, which
    names the field, if its answer is of another form.
    """
    if status == 200:
        answer = decode_answer(body, _Answer)
        if answer.result is not None:
            return answer.result
        if answer.error is None:
            raise msgspec.ValidationError("Object contains neither `result` nor `error`")
        raise CommandError(answer.error.code, answer.error.message)
    if not 400 <= status < 500:
        raise NoAnswerError("unavailable", f"The operator's API gave no answer to the command ({status})")
    try:
        refusal = decode_answer(body, _Refused).error
    except msgspec.ValidationError:
        refusal = _Refusal("invalid_params", f"The operator's API refused the command ({status})")
    raise CommandError(refusal.code, refusal.message)
