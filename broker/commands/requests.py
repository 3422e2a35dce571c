"""A client's command, checked against its key: what every doer of commands is given.

Pure. `inbox_id`, `once` and the trace are lifted out of the parameters here, whether the command came over a socket or
HTTP.
"""

from typing import Final

import msgspec
from msgspec import Struct

from ..access.keys import Key
from ..errors import RequestError
from ..protocol.decoding import decode_id, decode_inbox_id, decode_text, sound
from ..protocol.messages import Command
from ..protocol.names import check_traceparent

_TRACE_PATH: Final = "$.traceparent"
"""In `params` it is a parameter like others."""


class CommandRequest(Struct, frozen=True):
    """A command that the key may give. ``command.params`` are without what was lifted out."""

    command: Command
    key: Key
    request_id: str
    inbox_id: str | None = None
    traceparent: str | None = None
    client_id: str = ""
    once: str | None = None
    """By this the command is done once in its inbox, whoever gives it and in whatever words (PROTOCOL section 4)."""
    lease_id: str | None = None
    """The lease that its client works by: where that is over, nothing is done (PROTOCOL section 11)."""

    @property
    def identity(self) -> tuple[str, str, str] | None:
        """What it is known by when it is given again; None if it has no `once`, and its client gave no `request_id`."""
        if self.once is not None:
            return (str(self.inbox_id), self.command.action, self.once)
        if self.command.request_id is None:
            return None
        return (self.key.identity, self.client_id, self.request_id)

    @property
    def digest(self) -> bytes:
        """What stands for its content, as `prove_command` found it; with `once` the content makes no difference."""
        return b"" if self.once is not None or self.command.proof is None else self.command.proof.digest


class PublishRequest(Struct, frozen=True):
    """A client's `publish`: ``raw`` is the JSON of its events, which stood at ``path``."""

    request: CommandRequest
    raw: bytes
    path: str


def trace_of(command: Command, default: str | None = None) -> str | None:
    """Return the trace that a command names, beside its parameters; None if it is none. Left out: ``default``."""
    if command.paths.get("traceparent") == _TRACE_PATH:
        return check_traceparent(decode_text(command.params["traceparent"]))
    return check_traceparent(default)


def check_command(
    key: Key, command: Command, request_id: str, traceparent: str | None = None, client_id: str = ""
) -> CommandRequest:
    """Return the request for a handler; a command that has no proof yet is proved at once.

    Raises `RequestError` if the key has not the scope or not the inbox, or the command is not sound, or says `once`
    without an inbox.
    """
    key.require("command")
    command = sound(command)
    params = dict(command.params)
    inbox_id = None
    if "inbox_id" in params:
        path = command.paths["inbox_id"]
        inbox_id = decode_inbox_id(params.pop("inbox_id"), path)
        if inbox_id is not None:
            key.require_inbox(inbox_id, path)
    once = None
    if "once" in params:
        once = decode_id(params.pop("once"), command.paths["once"])
        if once is not None and inbox_id is None:
            raise RequestError("invalid_params", "`once` needs the inbox that it is for - at `$.inbox_id`")
    lease_id = None
    if "lease_id" in params:
        lease_id = decode_id(params.pop("lease_id"), command.paths["lease_id"])
    traceparent = trace_of(command, traceparent)
    if command.paths.get("traceparent") == _TRACE_PATH:
        del params["traceparent"]
    bare = msgspec.structs.replace(command, params=params)
    return CommandRequest(bare, key, request_id, inbox_id, traceparent, client_id, once, lease_id)
