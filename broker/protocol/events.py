"""Events as they come in: the body of a publish → its events, one at a time; an event → checked and normalised.

Pure. A payload stays the bytes that the publisher sent, and is spliced raw into the frame of every subscriber: so it is
proved to be a strict JSON object in one line. msgspec's `Raw` by itself takes any value, broken UTF-8 and line breaks.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NewType

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from ..errors import RequestError
from .documents import SPACE, decode_as, elements, lines, skip_space, too_large
from .messages import PreparedEvent, format_time
from .names import EventType, Identifier, InboxId, check_spelling, check_traceparent, parse_time
from .proving import MAX_DEPTH, check_document, is_plain
from .wording import A_TIME

ProvedJson = NewType("ProvedJson", bytes)
"""UTF-8, and if it is JSON at all: not too deep, with no number out of range. `prove_events` makes it."""

_DEEP: Final = MAX_DEPTH + 1
"""The payload stands one level down."""
_SHORT_LIST_BYTES: Final = 32_768
"""A list that is split at once: a millisecond, even if it has thousands of numbers."""
_RESERVED_WORDS: Final = frozenset({"connection", "replay", "server", "webhook", "queue"})
_RESERVED_TYPES: Final = frozenset({"response", "error"})


def split_events(
    body: bytes, *, ndjson: bool, path: str = "$", max_events: int, max_bytes: int
) -> Iterator[tuple[str, ProvedJson] | None]:
    """Yield the events in the body of a publish, each with its path; None where others may have their turn.

    ``body`` is one JSON object, a JSON list, or with ``ndjson`` an object a line (blank lines are skipped, but
    counted). Nothing is looked at before it is asked for, but one short event: each step costs one event of
    ``max_bytes`` at most. Raises `RequestError` when it comes to what is at fault, or to more than ``max_events``.
    """
    if not ndjson and body[:1] == b"{" and len(body) <= max_bytes and body.isascii() and is_plain(body, _DEEP):
        return iter([(path, ProvedJson(body))])  # nearly every publish over a socket
    items = lines(body, path, max_bytes) if ndjson else _of_one_document(body, path, max_bytes)
    return prove_events(_at_most(max_events, items, path), max_bytes)


def prove_events(items: Iterable[tuple[str, bytes]], max_bytes: int) -> Iterator[tuple[str, ProvedJson] | None]:
    """Yield events with their paths, each proved to be fit for `prepare_event`; None where others may have their turn.

    Raises `RequestError` for what is no UTF-8, has more than ``max_bytes``, is too deep, or has a number out of range.
    """
    for path, text in items:
        if len(text) > max_bytes:
            raise too_large(max_bytes, path)
        if not text.isascii():
            decode_as(bytes.decode, text, path)
        if not is_plain(text, _DEEP):
            yield from check_document(text, path, _DEEP)
        yield path, ProvedJson(text)


def _of_one_document(body: bytes, path: str, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    start = skip_space(body, 0, path, max_bytes)
    if body[start : start + 1] == b"[":
        return _of_short_list(body, path, max_bytes) or elements(body, start + 1, path, max_bytes)
    return iter([(path, body[start:].rstrip(SPACE))])


def _of_short_list(body: bytes, path: str, max_bytes: int) -> Iterator[tuple[str, bytes]] | None:
    """Return the elements of a list that is split at once; None if it is too long for that, or broken."""
    if len(body) > min(_SHORT_LIST_BYTES, max_bytes):
        return None
    try:
        items = _decode_raw_list(body)
    except (msgspec.DecodeError, RecursionError):
        return None  # what is at fault is found one by one
    return ((f"{path}[{index}]", bytes(item)) for index, item in enumerate(items))


def _at_most(most: int, items: Iterable[tuple[str, bytes]], path: str) -> Iterator[tuple[str, bytes]]:
    for number, item in enumerate(items):
        if number == most:
            raise too_many_events(most, path)
        yield item


def too_many_events(most: int, path: str) -> RequestError:
    """Return the refusal of a list of more than ``most`` events."""
    return RequestError("too_large", f"More than {most:,} events (max_events_per_request) - at `{path}`")


class _RawEvent(Struct, gc=False):
    type: EventType
    payload: Raw
    inbox_id: InboxId | None = None
    event_id: Identifier | None = None
    created_at: str | None = None
    account_id: Identifier | None = None
    traceparent: Raw | UnsetType = UNSET
    inbox: Raw | UnsetType = UNSET
    inboxes: Raw | UnsetType = UNSET
    inbox_ids: Raw | UnsetType = UNSET
    inbox_camel: Raw | UnsetType = field(default=UNSET, name="inboxId")
    inboxes_camel: Raw | UnsetType = field(default=UNSET, name="inboxIds")
    id_camel: Raw | UnsetType = field(default=UNSET, name="eventId")
    idempotency_key: Raw | UnsetType = UNSET

    @property
    def is_misspelt(self) -> bool:
        """Whether there is something that means an inbox, or the event's id, and these are not there."""
        inboxes = self.inbox is self.inboxes is self.inbox_ids is self.inbox_camel is self.inboxes_camel is UNSET
        ids = self.id_camel is self.idempotency_key is UNSET
        return (self.inbox_id is None and not inboxes) or (self.event_id is None and not ids)


_decode_any = msgspec.json.Decoder().decode
_decode_raw_list = msgspec.json.Decoder(list[Raw]).decode
_decode_raw_event = msgspec.json.Decoder(_RawEvent).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


def prepare_event(
    text: ProvedJson, path: str, *, now: str, new_id: Callable[[], str], traceparent: str | None = None
) -> PreparedEvent:
    """Check one event to publish; return it normalised.

    ``text`` comes from `split_events` or `prove_events`; ``now`` (as `format_time` writes it), ``new_id`` and
    ``traceparent`` fill what is left out. Raises `RequestError` with ``path`` in its message.
    """
    event = decode_as(_decode_raw_event, text, path)
    if event.is_misspelt:
        values = decode_as(_decode_object, text, path)
        check_spelling({name: f"{path}.{name}" for name in values}, "inbox_id", "event_id", values=values)
    first_word = event.type.partition(".")[0]
    if first_word in _RESERVED_WORDS or event.type in _RESERVED_TYPES:
        raise RequestError("invalid_params", f"The type {event.type!r} is the broker's own - at `{path}.type`")
    return PreparedEvent(
        event.type,
        event.inbox_id,
        event.event_id or new_id(),
        now if event.created_at is None else _normalised(event.created_at, f"{path}.created_at"),
        _object_in_one_line(bytes(event.payload), f"{path}.payload"),
        event.account_id,
        traceparent if isinstance(event.traceparent, UnsetType) else _trace_of(bytes(event.traceparent)) or traceparent,
    )


def _trace_of(raw: bytes) -> str | None:
    """Return the trace that an event names, if that is one; what is none is nobody's fault."""
    text = _decode_any(raw) if raw[:1] == b'"' else None
    return check_traceparent(text)


def _normalised(time: str, path: str) -> str:
    try:
        return format_time(parse_time(time))
    except ValueError:
        raise RequestError("invalid_params", f"{A_TIME} - at `{path}`") from None
    except OverflowError:
        raise RequestError("invalid_params", f"The time is out of range - at `{path}`") from None


def _object_in_one_line(text: bytes, path: str) -> bytes:
    if text[:1] != b"{":
        raise RequestError("invalid_params", f"Expected an object - at `{path}`")
    if b"\n" in text or b"\r" in text:
        return msgspec.json.format(text, indent=-1)
    return text
