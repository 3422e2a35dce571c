"""What a handler knows beside the parameters of its command, and the span in which it is done."""

import secrets
from hashlib import blake2b

from msgspec import Struct

from ..tracing import Kind, Span, Tracing
from .requests import CommandRequest


class CommandContext(Struct, frozen=True):
    """What a handler knows beside the parameters."""

    action: str
    request_id: str
    account_id: str
    key_id: str
    inbox_id: str | None
    """The command's `inbox_id`; the key reaches it."""
    inbox_ids: frozenset[str] | None
    """The key's reach, None for the whole account: ids in the parameters are to be checked against it."""
    deadline: float
    """By trio's clock: when the handler is cancelled."""
    traceparent: str | None
    """The client's trace, if it sent one (W3C Trace Context); where spans are made, that of this command."""
    message_id: str
    """The same for the same command sent again, whoever does it."""
    once: str | None = None
    """By this the command is done once in its inbox: the `event_id` that it answers, most often."""


def context_of(request: CommandRequest, digest: bytes, deadline: float) -> CommandContext:
    """Return what the handler of a command knows; ``digest`` stands for its content."""
    key = request.key
    return CommandContext(
        action=request.command.action,
        request_id=request.request_id,
        account_id=str(key.account_id),
        key_id=key.id,
        inbox_id=request.inbox_id,
        inbox_ids=key.inbox_ids,
        deadline=deadline,
        traceparent=request.traceparent,
        message_id=_message_id(request, digest),
        once=request.once,
    )


def span_of(tracing: Tracing, request: CommandRequest) -> Span:
    """Begin the span of a command that is done now."""
    key = request.key
    attributes = {"broker.action": request.command.action, "broker.account_id": key.account_id}
    kind: Kind = "internal" if key.is_library else "server"
    return tracing.begin("command", kind, request.traceparent, attributes, ambient=key.is_library)


def _message_id(request: CommandRequest, digest: bytes) -> str:
    if request.identity is None:
        return f"msg_{secrets.token_hex(16)}"
    kind = () if request.once is None else ("once",)
    parts = "\0".join((str(request.key.account_id), *kind, *request.identity)).encode()
    return f"msg_{blake2b(parts + digest, digest_size=16).hexdigest()}"
