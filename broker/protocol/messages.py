"""All that travels, as msgspec structs, and how it is written out.

Pure. Payloads stay the bytes that the publisher sent and are spliced raw into the frame; `decoding`
proves beforehand that they may be.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ..errors import RequestError
from .names import ALL_INBOXES, EventType, Identifier, InboxId, InboxName, Scope, TypePattern

MAX_EVENT_IDS: Final = 1_000
"""That one command may name."""
MAX_HOLD_SECONDS: Final = 3_600
_TRACE: Final = "The trace that this is part of (W3C Trace Context): carried, if it is valid."


class NewEvent(Struct, frozen=True, gc=False):
    """An event to publish (PROTOCOL section 6)."""

    type: EventType
    payload: Annotated[Any, Meta(extra_json_schema={"type": "object"})]
    """A JSON object; in the library any mapping."""
    inbox_id: InboxId | None = None
    event_id: Identifier | None = None
    created_at: Annotated[datetime, Meta(tz=True)] | None = None
    account_id: Identifier | None = None
    traceparent: Annotated[str | None, Meta(description=_TRACE)] = None


class PreparedEvent(Struct, frozen=True, gc=False):
    """An event that passed every check: ``payload`` is compact JSON of an object, times are normalised."""

    type: str
    inbox_id: str | None
    event_id: str
    created_at: str
    payload: bytes
    account_id: str | None
    traceparent: str | None = None


ENTRY_OVERHEAD_BYTES: Final = 340
"""What an event costs beside its frame, its id and its names: entry, numbers, two index slots, the id's slot."""


class Entry(Struct, gc=False):
    """One stored event: its place, its times and its frame, encoded once for all.

    ``stored_at`` is monotonic seconds, ``wall`` the time of day at that moment (seconds since 1970). ``event`` is what
    the frame is still to be made of; None: it is made.
    """

    position: int
    stored_at: float
    type: str
    inbox: str
    event_id: str
    frame: bytes = b""
    wall: float = 0.0
    event: PreparedEvent | None = None

    @property
    def cost(self) -> int:
        """Bytes of memory that the event takes, indexes included, as soon as it has a frame.

        Not those of its type and inbox: events of an inbox share them, and the window counts them once.
        """
        return len(self.frame) + len(self.event_id) + ENTRY_OVERHEAD_BYTES


class Event(Struct, frozen=True):
    """An event as a subscriber gets it (PROTOCOL section 3)."""

    type: str
    event_id: str
    created_at: datetime
    cursor: str
    payload: dict[str, Any]
    inbox_id: str | None = None
    traceparent: Annotated[str | None, Meta(description="The trace that its publisher named.")] = None


class Gap(Struct, frozen=True, tag_field="type", tag="replay.gap", rename={"from_": "from"}):
    """Events after ``from_`` and up to ``to`` were dropped before this subscriber had them.

    ``count`` is how many of them were for it, None when the broker cannot know (PROTOCOL section 3).
    """

    from_: str | None
    to: str
    count: int | None


class Published(Struct, frozen=True, omit_defaults=True):
    """What became of one published event. ``duplicate``: it was there already, the first one stays."""

    event_id: str
    cursor: str
    duplicate: bool = False


class Replay(Struct, frozen=True):
    """What a replay will bring: ``count`` events, before ``event_types``, and whether nothing is missing."""

    recovered: bool
    count: int


class Limits(Struct, frozen=True):
    """The limits a client is told in `Ready`."""

    max_message_bytes: int
    max_event_bytes: int
    max_inboxes: int
    max_event_types: int
    max_events_per_request: int
    commands_per_second: float | None = None


class Ready(Struct, frozen=True, tag_field="type", tag="connection.ready"):
    """The first frame of every connection (PROTOCOL section 2)."""

    connection_id: str
    account_id: str
    inbox_ids: list[str]
    cursor: str
    heartbeat_seconds: int | float
    replay_seconds: int | float
    limits: Limits
    replay: Replay | UnsetType = UNSET


class CursorUpdate(Struct, frozen=True, tag_field="type", tag="connection.cursor"):
    """A quiet client's new cursor (PROTOCOL section 3)."""

    cursor: str


class Draining(Struct, frozen=True, tag_field="type", tag="server.draining"):
    """The server is about to close; come back after so many milliseconds (PROTOCOL section 5)."""

    reconnect_after_ms: int


class Updated(Struct, frozen=True, tag_field="type", tag="connection.updated"):
    """The key reaches less than before; this is what the connection still holds (PROTOCOL section 8)."""

    inbox_ids: list[str]


class SubscriptionResult(Struct, frozen=True):
    """The result of `subscribe` and `unsubscribe`: the whole set now held, and where it takes effect."""

    inbox_ids: list[str]
    cursor: str
    replay: Replay | UnsetType = UNSET


class Proof(Struct, frozen=True):
    """What was found of a command: ``fault`` is what is wrong; ``digest`` stands for its content, if it has an id."""

    digest: bytes
    fault: RequestError | None = None


class Command(Struct, frozen=True):
    """A client's command (PROTOCOL section 4), its parameters merged and not yet decoded."""

    action: str
    request_id: str | None
    params: dict[str, Raw]
    paths: dict[str, str]
    """Where each parameter stood, for messages: ``$.inbox_ids`` or ``$.params.inbox_ids``."""
    size: int = 0
    """Of the message that it came as, in characters."""
    proof: Proof | None = None
    """None: nothing is proved of the parameters yet but that each is JSON by its grammar."""


class TokenRequest(Struct, frozen=True):
    """What a token is to leave of its key (PROTOCOL section 1); what is left out stays as it is."""

    inbox_ids: Annotated[list[InboxName], Meta(min_length=1)] | Literal["*"] | None = None
    scopes: list[Scope] | None = None
    ttl_seconds: Annotated[int, Meta(gt=0)] | Annotated[float, Meta(gt=0)] | None = None


class Token(Struct, frozen=True):
    """A connection token."""

    token: str
    expires_at: str


class SubscribeParams(Struct, frozen=True):
    """Parameters of `subscribe`; with none of them it is for all that the key reaches."""

    inbox_ids: list[InboxName] | Literal["*"] | UnsetType = UNSET
    since: Annotated[str, Meta(min_length=1)] | None = None
    event_types: Annotated[list[TypePattern], Meta(min_length=1)] | None = None

    def asked(self) -> Sequence[str]:
        """Return the inboxes to add, `*` for all: of a bare `subscribe` all, else what it says."""
        if not isinstance(self.inbox_ids, UnsetType):
            return self.inbox_ids
        return ALL_INBOXES if self.since is None and self.event_types is None else ()


class UnsubscribeParams(Struct, frozen=True):
    """Parameters of `unsubscribe`."""

    inbox_ids: list[InboxName] | Literal["*"]


class ManyToSubscribe(SubscribeParams, frozen=True):
    """The same as `SubscribeParams`; the names are still to be checked."""

    inbox_ids: list[str] | Literal["*"] | UnsetType = UNSET


class ManyToUnsubscribe(UnsubscribeParams, frozen=True):
    """The same as `UnsubscribeParams`; the names are still to be checked."""

    inbox_ids: list[str] | Literal["*"]


EventIds = Annotated[list[Identifier], Meta(min_length=1, max_length=MAX_EVENT_IDS)]
"""Events that are named one by one, in any order."""


class AckParams(Struct, frozen=True):
    """Parameters of `ack`: a cursor, or ids, or both. ``inbox_id``: the ids are of this inbox; left out, of any."""

    cursor: Annotated[str, Meta(min_length=1)] | None = None
    event_ids: EventIds | None = None
    inbox_id: InboxId | None = None


class HoldParams(Struct, frozen=True):
    """Parameters of `hold`. ``inbox_id``: the ids are of this inbox; left out, of any."""

    event_ids: EventIds
    seconds: Annotated[int, Meta(gt=0, le=MAX_HOLD_SECONDS)] | Annotated[float, Meta(gt=0, le=MAX_HOLD_SECONDS)]
    inbox_id: InboxId | None = None


class Acked(Struct, frozen=True):
    """The result of `ack` (PROTOCOL section 4)."""

    cursor: str
    """Where `since=acked` begins now."""
    acked: int
    """Events that this acknowledged and that are in memory still."""
    claimed: list[str] = []
    """Ids of those of them that a webhook had begun to post before."""


class Held(Struct, frozen=True):
    """The result of `hold`."""

    held: int
    """Events named that are in memory still."""
    claimed: list[str] = []
    """Ids of those of them that a webhook had begun to post before."""


# --- writing -----------------------------------------------------------------

encode = msgspec.json.Encoder().encode
"""Any struct of this module → its JSON bytes, in one line."""


_TRACE_IN: Final = re.compile(
    rb'\{"type":"[^"]*","event_id":"[^"]*",(?:"inbox_id":"[^"]*",)?"created_at":"[^"]*","traceparent":"([^"]*)"'
)


def encode_event(event: PreparedEvent, cursor: str) -> bytes:
    """Return the JSON of an event as every subscriber gets it.

    All parts are of alphabets that need no escaping; the payload is checked JSON in one line.
    """
    inbox = "" if event.inbox_id is None else f'"inbox_id":"{event.inbox_id}",'
    trace = "" if event.traceparent is None else f'"traceparent":"{event.traceparent}",'
    head = (
        f'{{"type":"{event.type}","event_id":"{event.event_id}",{inbox}'
        f'"created_at":"{event.created_at}",{trace}"cursor":"{cursor}","payload":'
    )
    return b"%b%b}" % (head.encode(), event.payload)


class _Stored(Struct, frozen=True):
    type: str
    event_id: str
    created_at: str
    payload: Raw
    inbox_id: str | None = None
    traceparent: str | None = None


_decode_stored = msgspec.json.Decoder(_Stored).decode


def decode_stored(event: bytes) -> PreparedEvent:
    """Return what `encode_event` wrote, its payload byte for byte."""
    stored = _decode_stored(event)
    payload = bytes(stored.payload)
    return PreparedEvent(
        stored.type, stored.inbox_id, stored.event_id, stored.created_at, payload, None, stored.traceparent
    )


def trace_in(event: bytes) -> str | None:
    """Return the trace that is in the JSON of an event as `encode_event` wrote it; None if there is none."""
    found = _TRACE_IN.match(event)
    return None if found is None else found[1].decode()


def encode_response(
    request_id: str, action: str, outcome: Struct | dict[str, Any] | Raw | RequestError, *, duplicate: bool = False
) -> bytes:
    """Return the JSON of the answer to a command (PROTOCOL section 4); ``duplicate``: it is another's, by `once`."""
    answer: dict[str, Any] = {"type": "response", "request_id": request_id, "action": action}
    if isinstance(outcome, RequestError):
        answer["error"] = outcome.as_json()
    else:
        answer["result"] = outcome
    if duplicate:
        answer["duplicate"] = True
    return encode(answer)


def encode_error(error: RequestError) -> bytes:
    """Return the JSON of the answer to a frame that is no command (PROTOCOL section 4)."""
    return encode({"type": "error", "error": error.as_json()})


def format_time(moment: datetime) -> str:
    """Return RFC 3339 in UTC with milliseconds. Raises OverflowError where UTC leaves the years 1 to 9999."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[: -len("+00:00")] + "Z"


def time_ordered_id(prefix: str, time_ns: int, random_bits: int) -> str:
    """Return ``prefix`` and 32 hex digits: nanoseconds since 1970, then 64 random bits."""
    return f"{prefix}{time_ns:016x}{random_bits:016x}"


decode_event = msgspec.json.Decoder(Event).decode
"""The JSON that `encode_event` made → `Event`."""
