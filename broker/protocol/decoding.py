"""Commands and requests: bytes from outside → structs, or a `RequestError` that names the field.

Pure. A command's parameters stay JSON until whoever does it asks for them. A command is *proved* before it is done:
its parameters are fit to be handed on as they are, and what stands for its content is known.
"""

import re
from hashlib import blake2b
from itertools import count
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Raw, Struct

from ..errors import BadCommandError, BadFrameError, RequestError, part_from_frames
from .canonical import canonical
from .documents import STEP_BYTES, Steps, at_once, decode_as, with_whole_characters
from .messages import Command, ManyToSubscribe, ManyToUnsubscribe, Proof, SubscribeParams, UnsubscribeParams
from .names import Identifier, InboxId, NameList, are_inbox_names, too_many
from .proving import MAX_DEPTH, check_document, has_more_values

T = TypeVar("T", bound=Struct)
P = TypeVar("P")

MAX_PARAMS: Final = 1_000
"""Of one command."""
MAX_VALUES: Final = 20_000
"""In parameters that are decoded here: objects cost by their number."""
AS_WRITTEN: Final = dict[str, Raw]
"""The type of parameters that are handed on as JSON."""
_FEW_COLONS: Final = 4_096
_FEW_BYTES: Final = 4_096
_OF_MANY: Final[dict[Any, Any]] = {SubscribeParams: ManyToSubscribe, UnsubscribeParams: ManyToUnsubscribe}
"""What parameters with many names are decoded as."""


class _Envelope(Struct):
    """Which command a frame is, whatever else stands in it."""

    action: Raw
    request_id: Raw = Raw(b"null")


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_id = msgspec.json.Decoder(Identifier).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_optional_id = msgspec.json.Decoder(Identifier | None).decode
_decode_optional_inbox_id = msgspec.json.Decoder(InboxId | None).decode
_PLACE = re.compile(r"`\$(?:\.([^.\[`]+)|\[\.\.\.\])")
"""A parameter at the start of a path in msgspec's words: its name, or ``[...]`` in a mapping."""


def decode_command(text: str) -> Command:
    """Decode a client's text frame. Its parameters are not proved yet.

    Raises `BadFrameError` if it is no command at all, `BadCommandError` if it is one with broken parameters.
    """
    try:
        fields = _decode_members(text, "$")
        if "action" not in fields:
            raise RequestError("invalid_params", "There is no `action` - at `$`")
        action = decode_as(_decode_id, fields.pop("action"), "$.action")
    except RequestError as error:
        raise _refused(text, error) from None
    request_id = None
    try:
        if "request_id" in fields:
            request_id = decode_as(_decode_optional_id, fields.pop("request_id"), "$.request_id")
        nested = _decode_nested(fields)
        both = sorted(fields.keys() & nested.keys())
        if both:
            message = f"`{both[0]}` stands at the top level and in `params` - at `$.params.{both[0]}`"
            raise RequestError("invalid_params", message)
    except RequestError as error:
        raise BadCommandError(action, request_id, error) from None
    paths = {name: f"$.{name}" for name in fields} | {name: f"$.params.{name}" for name in nested}
    return Command(action, request_id, fields | nested, paths, len(text))


def _refused(text: str, error: RequestError) -> BadFrameError | BadCommandError:
    """Return what a frame is whose members are not to be had: a command, if it says at least which one.

    One look at its bytes, and at those of half a character's escape a second.
    """
    if "surrogate" in error.message:
        text = with_whole_characters(text)
    try:
        envelope = _decode_envelope(text)
        action = _decode_id(envelope.action)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return BadFrameError(error)
    try:
        request_id = _decode_optional_id(envelope.request_id)
    except msgspec.DecodeError:
        request_id = None
    return BadCommandError(action, request_id, error)


def decode_text(raw: Raw) -> str | None:
    """Decode a text; None: it is none."""
    try:
        return _decode_text(raw)
    except msgspec.ValidationError:
        return None


def decode_inbox_id(raw: Raw, path: str) -> str | None:
    """Decode an `inbox_id`, or null. Raises `RequestError` with its path."""
    inbox_id: str | None = decode_as(_decode_optional_inbox_id, raw, path)
    return inbox_id


def decode_id(raw: Raw, path: str) -> str | None:
    """Decode a `once` or a `lease_id`, or null. Raises `RequestError` with its path."""
    name: str | None = decode_as(_decode_optional_id, raw, path)
    return name


def _decode_nested(fields: dict[str, Raw]) -> dict[str, Raw]:
    raw = fields.pop("params", None)
    if raw is None or bytes(raw) == b"null":
        return {}
    return _decode_members(bytes(raw).decode(), "$.params")


class _Name(str):
    """A name in an object; as a type of its own it is asked for one by one."""

    __slots__ = ()


def _decode_members(text: str, path: str) -> dict[str, Raw]:
    """Return an object's members. Raises `RequestError` if they are more than `MAX_PARAMS`."""
    if text.count(":") <= _FEW_COLONS:
        members = decode_as(_decode_object, text, path)
        if len(members) > MAX_PARAMS:
            raise _too_many_params(path)
        return members
    number = count(1)

    def admit(_: type, name: str) -> _Name:
        if next(number) > MAX_PARAMS:  # and no more is looked at
            raise _too_many_params(path)
        return _Name(name)

    named = decode_as(msgspec.json.Decoder(dict[_Name, Raw], dec_hook=admit).decode, text, path)
    return {str(name): raw for name, raw in named.items()}


def _too_many_params(path: str) -> RequestError:
    return RequestError("too_large", f"More than {MAX_PARAMS:,} parameters - at `{path}`")


def is_long(command: Command) -> bool:
    """Whether a command is to be proved in steps, with others in between."""
    return command.size > STEP_BYTES


def sound(command: Command) -> Command:
    """Return a command with its proof; one that has none yet is proved at once. Raises `RequestError` by its fault."""
    proved = command if command.proof is not None else at_once(prove_command(command))
    if proved.proof is not None and proved.proof.fault is not None:
        raise proved.proof.fault.again()
    return proved


def prove_command(command: Command) -> Steps[Command]:
    """Return a command with its proof.

    Its parameters, if another than the broker is to do it, are proved to be fit to be handed on as they are. Its
    content is digested if it may be sent again: equal for two exactly if action and merged parameters are, white
    space, the order of names and escapes aside, and numbers by how they are written.
    """
    if command.action == "publish" and command.request_id is None:
        return msgspec.structs.replace(command, proof=Proof(b""))  # nobody reads it as a whole: it is not copied
    said = {name: raw for name, raw in command.params.items() if not _says_nothing(name, raw, command)}
    text = msgspec.json.encode(said)
    digest = b""
    try:
        if command.action != "publish":  # events have limits of their own
            yield from _check_params(command, text)
        if command.request_id is not None:
            content = yield from canonical(text)
            digest = blake2b(b"%b %b" % (command.action.encode(), content), digest_size=16).digest()
    except RequestError as fault:
        return msgspec.structs.replace(command, proof=Proof(b"", part_from_frames(fault)))
    return msgspec.structs.replace(command, proof=Proof(digest))


def _says_nothing(name: str, raw: Raw, command: Command) -> bool:
    """Whether a parameter is no part of a command's content: a trace, or what is lifted out and is not given."""
    if name == "traceparent":
        return command.paths[name] == "$.traceparent"
    return name in ("inbox_id", "once", "lease_id") and bytes(raw) == b"null"


def _check_params(command: Command, text: bytes) -> Steps[None]:
    """Prove parameters, all at a time; if there is something wrong, the one that it is in is named."""
    try:
        yield from check_document(text, "$", MAX_DEPTH + 1)
    except RequestError:
        for name, raw in command.params.items():
            yield from check_document(bytes(raw), command.paths[name])
        raise


def decode_struct(body: bytes, kind: type[T]) -> T:
    """Decode a request's body. Raises `RequestError` with the field's path."""
    if has_more_values(body, MAX_VALUES):
        raise _too_many_values("$")
    decode = _decoder_for(kind)
    decoded: T = decode_as(lambda data: decode(data.decode()), body, "$")
    return decoded


def decode_params(command: Command, params_type: type[P]) -> P:
    """Decode a command's parameters as ``params_type``, any type that msgspec makes of a JSON object.

    Raises `RequestError` with the field's path.
    """
    if params_type is AS_WRITTEN:
        return cast("P", command.params)
    text = msgspec.json.encode(command.params)
    if has_more_values(text, MAX_VALUES):
        largest = max(command.params, key=lambda name: len(bytes(command.params[name])))
        raise _too_many_values(command.paths[largest])
    many = _decode_many(text, params_type) if len(text) > _FEW_BYTES else None
    if many is not None:
        return many
    decode = _decoder_for(params_type)
    try:
        decoded: P = decode_as(decode, text, "$")
    except RequestError as error:
        place = _PLACE.search(error.message)
        where = place and (place[1] or _first_refused(command.params, decode))
        if not (place and where in command.paths):
            raise
        message = error.message.replace(place[0], f"`{command.paths[where]}", 1)
        raise RequestError(error.code, message) from None
    return decoded


def _decode_many(text: bytes, params_type: type[P]) -> P | None:
    """Return parameters with thousands of names, all of them checked in one look; None: one by one it is said why."""
    kind = _OF_MANY.get(params_type)
    if kind is None:
        return None
    try:
        decoded = _decoder_for(kind)(text)
    except msgspec.ValidationError:
        return None
    names = decoded.inbox_ids
    return cast("P", decoded) if isinstance(names, list) and are_inbox_names(names) else None


def _too_many_values(path: str) -> RequestError:
    return RequestError("too_large", f"More than {MAX_VALUES:,} values - at `{path}`")


def _first_refused(params: dict[str, Raw], decode: Any) -> str | None:
    """Return whose value a mapping's type does not take: msgspec's path does not name it."""
    for name, raw in params.items():
        try:
            decode(msgspec.json.encode({name: raw}))
        except msgspec.ValidationError:
            return name
    return None


def require_few(command: Command, name: NameList, most: int) -> None:
    """Refuse a list of names that is too long before it is decoded: each name stands in two quotes, and holds none.

    Raises `RequestError` with the field's path.
    """
    raw = command.params.get(name)
    if raw is not None and bytes(raw).count(b'"') > 2 * most:
        raise too_many(name, most, command.paths[name])


_decoders: dict[Any, Any] = {}


def _decoder_for(kind: Any) -> Any:
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind).decode
    return _decoders[kind]
