"""Commands that are done elsewhere: each is POSTed to the operator's own API (PROTOCOL section 8, `[commands]`)."""

from typing import Any

from msgspec import Raw

from ..callout import Callout
from ..errors import CommandError, RequestError
from ..protocol.decoding import AS_WRITTEN
from .dispatch import ActionHandler, CommandContext


def forwarder(callout: Callout, seconds: float) -> ActionHandler:
    """Return the handler that asks ``callout``; its answer, refusal, slowness and absence become the outcome.

    The parameters are handed on as the client wrote them: they are proved, and not decoded.
    """

    async def forward(params: dict[str, Raw], context: CommandContext) -> Any:
        question = {
            "action": context.action,
            "request_id": context.request_id,
            "account_id": context.account_id,
            "key_id": context.key_id,
            "inbox_id": context.inbox_id,
            "inbox_ids": None if context.inbox_ids is None else sorted(context.inbox_ids),
            "params": params,
        }
        return _result_of(*await callout.ask(question, context.message_id, context.traceparent))

    return ActionHandler(forward, AS_WRITTEN, seconds, "finish")


def _result_of(status: int, answer: Any) -> Any:
    """Return the result in an answer. Raises `CommandError` if the API refuses, `RequestError` if it gives none."""
    body = answer if isinstance(answer, dict) else {}
    if status == 200 and isinstance(body.get("result"), dict):
        return body["result"]
    if status == 200 or 400 <= status < 500:
        match body.get("error"):
            case {"code": str(code), "message": str(message)}:
                raise CommandError(code, message)
        if status != 200:
            raise RequestError("invalid_params", f"The operator's API refused the command ({status})")
    raise RequestError("unavailable", f"The operator's API gave no answer to the command ({status})")
