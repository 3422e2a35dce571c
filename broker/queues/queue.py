"""A queue: what an account asks for, what is kept of it, and what is shown.

Whatever an account asks for is checked here, and what does not fit names the field. A queue is its account's: what it
gets is settled by what the key reached that made it, and whoever works at it reaches all of that.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..access.keys import Key, inbox_ids_of
from ..config import AccountQueueConfig, DeadAfter, LimitsConfig, QueueOrder
from ..errors import RequestError, nothing_to_change
from ..log.jobs import Intake, Terms
from ..protocol.messages import format_time
from ..protocol.names import ALL_INBOXES, AsMade, Dead, Identifier, InboxName, TypePattern, too_many
from ..protocol.selection import NOTHING, Selection, TypeFilter

MAX_QUEUES: Final = 16
"""Of an account."""
MAX_INBOX_IDS: Final = 1_000
"""That a queue may name: all of an account's are listed in one step."""
MAX_LEASE_SECONDS: Final = 3_600
MAX_ATTEMPTS: Final = 100
MAX_AGE_SECONDS: Final = 604_800
DEFAULT_LEASE_SECONDS: Final = 60.0
DEFAULT_ATTEMPTS: Final = 5
DEFAULT_AGE_SECONDS: Final = 259_200.0

Status = Literal["active", "paused"]

LeaseSeconds = Annotated[float, Meta(ge=1, le=MAX_LEASE_SECONDS)] | Annotated[int, Meta(ge=1, le=MAX_LEASE_SECONDS)]
AgeSeconds = Annotated[float, Meta(ge=60, le=MAX_AGE_SECONDS)] | Annotated[int, Meta(ge=60, le=MAX_AGE_SECONDS)]
Attempts = Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)]
InboxIds = Annotated[list[InboxName], Meta(min_length=1)] | Literal["*"]
TypePatterns = Annotated[list[TypePattern], Meta(min_length=1)]


class NewQueue(Struct, frozen=True):
    """A queue to make (PROTOCOL section 11). Left out: all inboxes that the key reaches, all types."""

    queue_id: Identifier
    inbox_ids: InboxIds | None = None
    event_types: TypePatterns | None = None
    order: QueueOrder = "thread"
    lease_seconds: LeaseSeconds = DEFAULT_LEASE_SECONDS
    max_attempts: Attempts = DEFAULT_ATTEMPTS
    max_age_seconds: AgeSeconds = DEFAULT_AGE_SECONDS
    dead_after: DeadAfter = "continue"
    status: AsMade = "active"


class QueueChange(Struct, frozen=True):
    """What is to change of a queue; null for `inbox_ids` and `event_types` is all of them. Its id and order stay."""

    queue_id: str | UnsetType = UNSET
    inbox_ids: InboxIds | UnsetType | None = UNSET
    event_types: TypePatterns | UnsetType | None = UNSET
    order: QueueOrder | UnsetType = UNSET
    lease_seconds: LeaseSeconds | UnsetType = UNSET
    max_attempts: Attempts | UnsetType = UNSET
    max_age_seconds: AgeSeconds | UnsetType = UNSET
    dead_after: DeadAfter | UnsetType = UNSET
    status: Status | UnsetType = UNSET


class QueueResend(Struct, frozen=True):
    """What is to be done again: these events, or what is dead since then (all, if that is left out)."""

    event_ids: Annotated[list[Identifier], Meta(min_length=1, max_length=1_000)] | UnsetType = UNSET
    state: Dead | UnsetType = UNSET
    since: str | UnsetType = UNSET


class Queue(Struct, frozen=True):
    """A queue as it is kept. ``inbox_ids`` None: all of the account, and its own events."""

    account_id: str
    queue_id: str
    inbox_ids: tuple[str, ...] | None = None
    event_types: tuple[str, ...] | None = None
    order: QueueOrder = "thread"
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    max_attempts: int = DEFAULT_ATTEMPTS
    max_age_seconds: float = DEFAULT_AGE_SECONDS
    dead_after: DeadAfter = "continue"
    status: Status | Literal["removed"] = "active"
    """Removed: what is left of it is being forgotten."""
    created_at: float = 0.0
    """Seconds since 1970."""
    configured: bool = False

    @property
    def selection(self) -> Selection:
        """Which inboxes it gets."""
        return Selection(None if self.inbox_ids is None else frozenset(self.inbox_ids))

    def intake(self, number: int) -> Intake:
        """Return which events it gets."""
        types = None if self.event_types is None else TypeFilter(self.event_types)
        return Intake(number, self.selection, types, self.order)

    def terms(self, number: int) -> Terms:
        """Return how its jobs are given."""
        return Terms(number, self.max_attempts, self.dead_after == "stop")

    def is_reached_by(self, key: Key) -> bool:
        """Whether a key reaches all of its inboxes, so that it may see the queue and work at it."""
        return self.selection.minus(key.reach) == NOTHING

    def content(self) -> "Queue":
        """Return what an account says of it: equal for two that do the same."""
        return msgspec.structs.replace(self, created_at=0.0, status="active", configured=False)


class QueueSeen(Struct, frozen=True):
    """A queue as its account sees it."""

    queue_id: str
    inbox_ids: list[str]
    event_types: list[str] | None
    order: QueueOrder
    lease_seconds: float
    max_attempts: int
    max_age_seconds: float
    dead_after: DeadAfter
    status: Status
    created_at: str
    configured: bool


encode_queue = msgspec.json.Encoder().encode
decode_queue = msgspec.json.Decoder(Queue).decode


def seen(queue: Queue) -> QueueSeen:
    """Return a queue as its account sees it."""
    assert queue.status != "removed"
    return QueueSeen(
        queue.queue_id,
        inbox_ids_of(queue.selection),
        None if queue.event_types is None else list(queue.event_types),
        queue.order,
        queue.lease_seconds,
        queue.max_attempts,
        queue.max_age_seconds,
        queue.dead_after,
        queue.status,
        time_of(queue.created_at),
        queue.configured,
    )


def time_of(seconds: float) -> str:
    """Return seconds since 1970 as an answer has them."""
    return format_time(datetime.fromtimestamp(seconds, UTC))


def made(asked: NewQueue, key: Key, limits: LimitsConfig, now: float) -> Queue:
    """Return the queue that is asked for. Raises `RequestError` (`invalid_params`, `forbidden`)."""
    return Queue(
        key.account_id or "",
        asked.queue_id,
        _inbox_ids(asked.inbox_ids, key, limits),
        _event_types(asked.event_types, limits),
        asked.order,
        float(asked.lease_seconds),
        asked.max_attempts,
        float(asked.max_age_seconds),
        asked.dead_after,
        created_at=now,
    )


def changed(queue: Queue, change: QueueChange, key: Key, limits: LimitsConfig) -> Queue:
    """Return a queue with a change. Raises `RequestError` (`invalid_params`, `forbidden`)."""
    if change == QueueChange():
        raise nothing_to_change()
    fields: dict[str, Any] = {
        name: value
        for name in ("lease_seconds", "max_attempts", "max_age_seconds", "dead_after", "status")
        if not isinstance(value := getattr(change, name), UnsetType)
    }
    if not isinstance(change.queue_id, UnsetType) and change.queue_id != queue.queue_id:
        raise RequestError("invalid_params", "The id of a queue stays as it was made - at `$.queue_id`")
    if not isinstance(change.order, UnsetType) and change.order != queue.order:
        raise RequestError("invalid_params", "The order of a queue stays as it was made - at `$.order`")
    if not isinstance(change.inbox_ids, UnsetType):
        fields["inbox_ids"] = _inbox_ids(change.inbox_ids, key, limits)
    if not isinstance(change.event_types, UnsetType):
        fields["event_types"] = _event_types(change.event_types, limits)
    return msgspec.structs.replace(queue, **fields)


def configured(account_id: str, section: AccountQueueConfig, now: float) -> Queue:
    """Return a queue that stands in the configuration, which was checked."""
    return Queue(
        account_id,
        section.id,
        None if section.inbox_ids is None else tuple(sorted(set(section.inbox_ids))),
        None if section.event_types is None else tuple(sorted(set(section.event_types))),
        section.order,
        float(section.lease_seconds),
        section.max_attempts,
        float(section.max_age_seconds),
        section.dead_after,
        created_at=now,
        configured=True,
    )


def _inbox_ids(names: Sequence[str] | None, key: Key, limits: LimitsConfig) -> tuple[str, ...] | None:
    if names is None or names == ALL_INBOXES or ALL_INBOXES in names:
        if key.inbox_ids is None:
            return None
        names = sorted(key.inbox_ids)
    most = min(MAX_INBOX_IDS, limits.max_inboxes_per_connection)
    if len(names) > most:
        raise too_many("inbox_ids", most, "$.inbox_ids")
    key.select(names, "$.inbox_ids")
    return tuple(sorted(set(names)))


def _event_types(patterns: Sequence[str] | None, limits: LimitsConfig) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    if len(patterns) > limits.max_event_types:
        raise too_many("event_types", limits.max_event_types, "$.event_types")
    return tuple(sorted(set(patterns)))
