"""What travels, as JSON Schema: made from the structs, with what is written without a struct beside them.

Pure. Each document takes the schemas of what it speaks of.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ...errors import HTTP_STATUS, CloseCode
from ...protocol.messages import Event, Gap, NewEvent, Published
from ...protocol.names import Identifier, InboxId
from ...waiting.extraction import Extracted

Json = dict[str, Any]

ANYTHING: Final[Json] = {"description": "Whatever the deployment answers."}
DUPLICATE: Final[Json] = {"const": True, "description": "The answer is that of an earlier command with this `once`."}

ERROR_MEANINGS: Final = {
    "bad_request": "the request's head or query",
    "invalid_json": "not JSON, not UTF-8, or nested too deeply",
    "invalid_params": "a field; the message names it",
    "unauthorized": "no credential, or none that is known",
    "forbidden": "a good key, but not for this inbox, scope or account; or a web page that is not listed",
    "unknown_action": "nobody does this command",
    "not_found": "there is no such thing: nothing at this path, no such account",
    "method_not_allowed": "another method is allowed here",
    "timeout_reading": "the request did not come whole in time",
    "request_id_reused": "the same `request_id` with other content",
    "conflict": "there is another endpoint of this id, or as many as there may be; or it stands in the configuration",
    "lease_lost": "the lease is over, and nothing was done: the event is another worker's",
    "too_large": "an event, a body or a message over its limit",
    "unsupported_media_type": "a body with a `Content-Encoding`",
    "upgrade_required": "this path is for WebSockets",
    "rate_limited": "too much at once, or too often",
    "connection_limit": "all connections of the tier are taken",
    "head_too_large": "the request's head is too large",
    "internal": "a fault of the broker or of a command's handler",
    "unavailable": "who would know or do it gives no answer, or there is no room: try again",
    "draining": "the broker goes: try again",
    "timeout": "it took too long, and may have been done: try again with the same `request_id`",
    "version_not_supported": "neither HTTP/1.1 nor HTTP/1.0",
}
"""Each error code of `HTTP_STATUS` in words."""

CLOSE_MEANINGS: Final = {
    CloseCode.NORMAL: "Normal",
    CloseCode.GOING_AWAY: "Going away",
    CloseCode.PROTOCOL_ERROR: "Broken framing",
    CloseCode.NOT_UTF8: "Text that is not UTF-8",
    CloseCode.TOO_MANY_BAD_FRAMES: "Too many frames that are no commands",
    CloseCode.TOO_BIG: "A message over `max_message_bytes`",
    CloseCode.INTERNAL_ERROR: "A fault of the broker",
    CloseCode.RESTART: "The broker goes; come back after `reconnect_after_ms`",
    CloseCode.REVOKED: "The key was revoked",
    CloseCode.HEARTBEAT_MISSED: "No sign of life, or a message that was begun and not finished",
    CloseCode.REPLACED: "A newer connection took this one's `client_id`, or a newer look this one's place",
}
"""Each close code in words."""


_KNOWN_OR_NOT: Final = {"anyOf": [{"enum": list(HTTP_STATUS)}, {"type": "string"}]}
_CODES: Final = "\n\n".join(
    ["What programs go by; a command's handler has codes of its own, too."]
    + [f"* `{code}` ({status}): {ERROR_MEANINGS[code]}" for code, status in HTTP_STATUS.items()]
)


class Error(Struct):
    """Why something is refused: a code for programs, a message for people that names the field at fault."""

    code: Annotated[str, Meta(description=_CODES, extra_json_schema=_KNOWN_OR_NOT)]
    message: str
    retry_after_ms: Annotated[int, Meta(ge=0, description="When it may be tried again.")] | UnsetType = UNSET


class ErrorFrame(Struct, tag_field="type", tag="error"):
    """The answer to a frame that is no command."""

    error: Error


class PublishParams(Struct):
    """Parameters of `publish`."""

    events: Annotated[NewEvent | list[NewEvent], Meta(description="One event, or a list.")]
    lease_id: Annotated[
        Identifier | None, Meta(description="The lease by which this is done: where it is over, nothing is.")
    ] = None
    traceparent: Annotated[str | None, Meta(description="W3C Trace Context, of events that name none.")] = None


class PublishResult(Struct):
    """What became of the events, in the order in which they were given."""

    events: list[Published]


class WaitResult(Struct):
    """What a wait came to."""

    event: Annotated[Event | None, Meta(description="The first that fits; null: there was none in time.")]
    cursor: Annotated[str, Meta(description="From where on to wait again, or to subscribe.")]
    extracted: Extracted | UnsetType = UNSET
    gap: Annotated[Gap | UnsetType, Meta(description="What was missed before that.")] = UNSET


class PingResult(Struct):
    """The broker's time."""

    server_time: datetime


class LeasedEvent(Struct):
    """An event that a worker has, until then."""

    lease_id: Identifier
    event: Event
    attempt: int
    expires_at: datetime


class LeaseAnswer(Struct):
    """The result of `lease`: nothing in time is no error. `waiting`: how many events of the queue still wait."""

    leases: list[LeasedEvent]
    waiting: int


class HandlerParams(Struct):
    """Parameters of a command that the deployment does: any, beside these."""

    inbox_id: Annotated[InboxId | None, Meta(description="Checked against the key.")] = None
    once: Annotated[
        Identifier | None,
        Meta(description="Done once in its inbox for a day, whoever says it, in whatever words. Needs `inbox_id`."),
    ] = None
    traceparent: Annotated[str | None, Meta(description="W3C Trace Context, handed on.")] = None


class Envelope(Struct):
    """What all commands have. Parameters stand beside these, or in `params`; a name in both is refused."""

    action: Identifier
    request_id: Annotated[Identifier | None, Meta(description="Ties the answer to the command.")] = None
    params: dict[str, Any] | None = None


_PREFIX: Final = "#/components/schemas/"
_FOR_READERS_OF_THE_CODE: Final = re.compile(r" \(PROTOCOL[^)]*\)")
_PYTHON_NAME: Final = re.compile(r"`(\w+)_`")
_PYTHON_END: Final = r"(?!\n)"
"""Without it a Python pattern's `$` lets a line break pass; that of JSON Schema does not."""
_LOOKING_AHEAD: Final[dict[str, Json]] = {
    r"^(?!\*$)": {"not": {"const": "*"}},
    r"^(?=.{1,128}$)": {"maxLength": 128},
    r"^(?=.{1,128}(\.\*)?$)": {"anyOf": [{"maxLength": 128}, {"maxLength": 130, "pattern": r"\.\*$"}]},
}
"""What a pattern of ours may begin with, and its meaning without: the patterns of many languages do not look ahead."""


def ref(struct: type[Struct]) -> Json:
    """Return a reference to a struct's schema in the document that it stands in."""
    return {"$ref": f"{_PREFIX}{struct.__name__}"}


def schemas_of(*structs: type[Struct]) -> dict[str, Json]:
    """Return the schemas of structs, and of all that is in them, by their names."""
    _, components = msgspec.json.schema_components(structs, ref_template=f"{_PREFIX}{{name}}")
    return {name: _tidy(schema) for name, schema in sorted(components.items())}


def schema_of(annotation: Any) -> Json:
    """Return the schema of a type that has no struct in it."""
    schema: Json = _tidy(msgspec.json.schema(annotation))
    return schema


def object_of(properties: Mapping[str, Json], *optional: str) -> Json:
    """Return the schema of an object with these members, of which some may be left out."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
    }


def _tidy(schema: Any) -> Any:
    """Say in a schema what is said to readers of the code in the words of everybody else."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {name: _tidy(value) for name, value in schema.items()}
    if isinstance(description := tidied.get("description"), str):
        tidied["description"] = _in_plain_words(description)
    if isinstance(pattern := tidied.get("pattern"), str):
        tidied |= _looking_nowhere(pattern.removesuffix(_PYTHON_END))
    return tidied


def _looking_nowhere(pattern: str) -> Json:
    for beginning, meaning in _LOOKING_AHEAD.items():
        if pattern.startswith(beginning):
            return {"pattern": f"^{pattern.removeprefix(beginning)}", **meaning}
    return {"pattern": pattern}


def _in_plain_words(docstring: str) -> str:
    text = _FOR_READERS_OF_THE_CODE.sub("", docstring.replace("``", "`"))
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return _PYTHON_NAME.sub(r"`\1`", "\n\n".join(paragraphs)).replace("None", "null")
