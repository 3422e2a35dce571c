"""Bytes from outside → structs, or a `RequestError` that names the field.

Pure. Nothing that is spliced raw later is trusted: msgspec's `Raw` takes invalid UTF-8 and any JSON value
and keeps raw line breaks, so a payload is decoded once to prove that it is a strict JSON object, and
compacted where it has line breaks.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from ..errors import BadCommandError, BadFrameError, RequestError
from .messages import Command, PreparedEvent, format_time
from .names import EventType, Identifier, check_spelling, located

T = TypeVar("T", bound=Struct)
P = TypeVar("P")

MAX_DEPTH: Final = 128
"""Of a payload: what one decoder takes must not be too deep for the next, a subscriber's."""
_RESERVED_WORDS = frozenset({"connection", "replay", "server", "webhook", "queue"})
_RESERVED_TYPES = frozenset({"response", "error"})


class _RawEvent(Struct, gc=False):
    type: EventType
    payload: Raw
    inbox_id: Identifier | None = None
    event_id: Identifier | None = None
    created_at: Annotated[datetime, Meta(tz=True)] | None = None
    account_id: Identifier | None = None
    inbox: Raw | UnsetType = UNSET
    inboxes: Raw | UnsetType = UNSET
    inbox_ids: Raw | UnsetType = UNSET
    inbox_camel: Raw | UnsetType = field(default=UNSET, name="inboxId")
    inboxes_camel: Raw | UnsetType = field(default=UNSET, name="inboxIds")

    @property
    def is_misspelt(self) -> bool:
        """Whether there is something that means an inbox and is no field."""
        return not (self.inbox is self.inboxes is self.inbox_ids is self.inbox_camel is self.inboxes_camel is UNSET)


_decode_raw_event = msgspec.json.Decoder(_RawEvent).decode
_decode_raw_list = msgspec.json.Decoder(list[Raw]).decode
_decode_any = msgspec.json.Decoder().decode


def _decode(decoder: Any, data: Any, path: str) -> Any:
    """Decode, and turn all that may go wrong into a `RequestError` that names ``path``."""
    try:
        return decoder(data)
    except msgspec.ValidationError as error:
        raise RequestError("invalid_params", located(str(error), path)) from None
    except msgspec.DecodeError as error:
        raise RequestError("invalid_json", located(str(error), path)) from None
    except UnicodeError:
        raise RequestError("invalid_json", f"The text is not UTF-8 - at `{path}`") from None
    except RecursionError:
        raise RequestError("invalid_json", f"The document is nested too deeply - at `{path}`") from None


def split_events(body: bytes, *, ndjson: bool, path: str = "$") -> list[tuple[str, bytes]]:
    """Split a publish body into its events, each with its path for error messages.

    ``body`` is one JSON object, a JSON list, or with ``ndjson`` an object a line (blank lines are
    skipped, but counted). Raises `RequestError` if it is not strict UTF-8 or not of this form.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise RequestError("invalid_json", f"The body is not UTF-8 (byte {error.start})") from None
    if ndjson:
        lines = enumerate(body.split(b"\n"))
        return [(f"{path}[{index}]", line) for index, line in lines if line.strip()]
    if body.lstrip()[:1] != b"[":
        return [(path, body)]
    items = _decode(_decode_raw_list, body, path)
    return [(f"{path}[{index}]", bytes(item)) for index, item in enumerate(items)]


def prepare_event(raw: bytes, path: str, *, max_bytes: int, now: str, new_id: Callable[[], str]) -> PreparedEvent:
    """Check one event to publish; return it normalised.

    ``raw`` is its JSON, already known to be UTF-8; ``now`` (as `format_time` writes it) and ``new_id`` fill what is
    left out. Raises `RequestError` with ``path`` in its message.
    """
    if len(raw) > max_bytes:
        message = f"The event has {len(raw)} bytes, more than max_event_bytes ({max_bytes}) - at `{path}`"
        raise RequestError("too_large", message)
    event: _RawEvent = _decode(_decode_raw_event, raw, path)
    if event.is_misspelt:
        check_spelling({name: f"{path}.{name}" for name in _decode(_decode_object, raw, path)}, "inbox_id")
    first_word = event.type.partition(".")[0]
    if first_word in _RESERVED_WORDS or event.type in _RESERVED_TYPES:
        raise RequestError("invalid_params", f"The type {event.type!r} is the broker's own - at `{path}.type`")
    try:
        created_at = now if event.created_at is None else format_time(event.created_at)
    except OverflowError:
        raise RequestError("invalid_params", f"The time is out of range - at `{path}.created_at`") from None
    return PreparedEvent(
        event.type,
        event.inbox_id,
        event.event_id or new_id(),
        created_at,
        _checked_object(bytes(event.payload), f"{path}.payload"),
        event.account_id,
    )


def _checked_object(raw: bytes, path: str) -> bytes:
    """Return ``raw`` if it is strict JSON of an object, in one line. `Raw` by itself promises none of this."""
    value = _decode(_decode_any, raw, path)
    if not isinstance(value, dict):
        raise RequestError("invalid_params", f"Expected `object` - at `{path}`")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise RequestError("invalid_json", f"The document is nested deeper than {MAX_DEPTH} - at `{path}`")
    if b"\n" in raw or b"\r" in raw:
        return msgspec.json.format(raw, indent=-1)
    return raw


def _depth(value: Any) -> int:
    """Return how deep a document is nested."""
    depth = 0
    level = [value]
    while level:
        depth += 1
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
    return depth


# --- reading: commands -------------------------------------------------------

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_id = msgspec.json.Decoder(Identifier).decode
_decode_optional_id = msgspec.json.Decoder(Identifier | None).decode
_PLACE = re.compile(r"`\$(?:\.([^.\[`]+)|\[\.\.\.\])")
"""A parameter at the start of a path in msgspec's words: its name, or ``[...]`` in a mapping."""


def decode_command(message: str) -> Command:
    """Decode a client's text frame.

    Raises `BadFrameError` if it is no command at all, `BadCommandError` if it is one with broken parameters.
    """
    try:
        fields: dict[str, Raw] = _decode(_decode_object, message, "$")
        if "action" not in fields:
            raise RequestError("invalid_params", "Object missing required field `action` - at `$`")
        action = _decode(_decode_id, fields.pop("action"), "$.action")
    except RequestError as error:
        raise BadFrameError(error) from None
    request_id = None
    try:
        if "request_id" in fields:
            request_id = decode_id(fields.pop("request_id"), "$.request_id")
        nested = _decode_nested(fields)
        both = sorted(fields.keys() & nested.keys())
        if both:
            message = f"`{both[0]}` stands at the top level and in `params` - at `$.params.{both[0]}`"
            raise RequestError("invalid_params", message)
    except RequestError as error:
        raise BadCommandError(action, request_id, error) from None
    paths = {name: f"$.{name}" for name in fields} | {name: f"$.params.{name}" for name in nested}
    return Command(action, request_id, fields | nested, paths)


def decode_id(raw: Raw, path: str) -> str | None:
    """Decode one name, or null. Raises `RequestError` with its path."""
    name: str | None = _decode(_decode_optional_id, raw, path)
    return name


def _decode_nested(fields: dict[str, Raw]) -> dict[str, Raw]:
    raw = fields.pop("params", None)
    if raw is None or bytes(raw) == b"null":
        return {}
    nested: dict[str, Raw] = _decode(_decode_object, raw, "$.params")
    return nested


def decode_struct(body: bytes, kind: type[T]) -> T:
    """Decode a request's body. Raises `RequestError` with the field's path."""
    decode = _decoder_for(kind)
    decoded: T = _decode(lambda data: decode(data.decode()), body, "$")
    return decoded


def decode_params(command: Command, params_type: type[P]) -> P:
    """Decode a command's parameters as ``params_type``, any type that msgspec makes of a JSON object.

    Raises `RequestError` with the field's path.
    """
    decode = _decoder_for(params_type)
    try:
        decoded: P = _decode(decode, msgspec.json.encode(command.params), "$")
    except RequestError as error:
        decode_values(command)  # what is no JSON has its place named by this
        place = _PLACE.search(error.message)
        name = place and (place[1] or _first_refused(command.params, decode))
        if not (place and name in command.paths):
            raise
        message = error.message.replace(place[0], f"`{command.paths[name]}", 1)
        raise RequestError(error.code, message) from None
    return decoded


def _first_refused(params: dict[str, Raw], decode: Any) -> str | None:
    """Return whose value a mapping's type does not take: msgspec's path does not name it."""
    for name, raw in params.items():
        try:
            decode(msgspec.json.encode({name: raw}))
        except msgspec.ValidationError:
            return name
    return None


def decode_values(command: Command) -> dict[str, Any]:
    """Decode a command's parameters as plain values. Raises `RequestError` with the field's path."""
    return {name: _decode(_decode_any, raw, command.paths[name]) for name, raw in command.params.items()}


_decoders: dict[Any, Any] = {}


def _decoder_for(kind: Any) -> Any:
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind).decode
    return _decoders[kind]
