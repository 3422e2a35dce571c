"""What became of a queue's events, as its account asks for it, and events that are given again on demand."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from msgspec import Struct, UnsetType

from ..errors import RequestError
from ..log import jobbook
from ..log.backlog import Backlog
from ..log.jobs import STATES, State
from ..log.owed import Of
from ..protocol.names import Duration, check_identifier, parse_since
from ..protocol.wording import any_of
from .queue import QueueResend, time_of

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1_000


class LastLease(Struct, frozen=True):
    """When an event was given last, to whom, and why it was not done, if that was said."""

    at: str
    client_id: str | None
    reason: str | None


class QueueDelivery(Struct, frozen=True):
    """What became of one event of a queue."""

    event_id: str
    type: str
    state: State
    attempts: int
    due_at: str | None
    """When it may be given, if it waits."""
    expires_at: str | None
    """When its lease is over, if it has one."""
    last: LastLease | None


class QueueDeliveries(Struct, frozen=True):
    """Some of them, the newest event first, and the `before` of the next page, if there may be one."""

    deliveries: list[QueueDelivery]
    next: str | None


async def deliveries(backlog: Backlog, queue: int, query: Mapping[str, str]) -> QueueDeliveries:
    """Return what became of events of a queue (PROTOCOL section 11). Raises `RequestError`."""
    state, limit, before = query.get("state"), query.get("limit", str(DEFAULT_LIMIT)), query.get("before")
    if state is not None and state not in STATES:
        raise RequestError("bad_request", f"Expected {any_of(State)} - at `state`")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise RequestError("bad_request", f"Expected a number from 1 to {MAX_LIMIT} - at `limit`")
    if before is not None and not (before.isascii() and before.isdigit() and len(before) <= 18):
        raise RequestError("bad_request", "Expected the `next` of the last page - at `before`")
    event_id = query.get("event_id")
    if event_id is not None:
        check_identifier(event_id, "event_id", code="bad_request")
    found, following = await backlog.storage.read(
        lambda connection: jobbook.look_up(
            connection,
            queue,
            state=state,
            event_id=event_id,
            before=None if before is None else int(before),
            limit=int(limit),
        )
    )
    return QueueDeliveries([_shown(job) for job in found], None if following is None else str(following))


async def resend(backlog: Backlog, queue: int, asked: QueueResend) -> int:
    """Let events be done again: those named, or what is dead; return how many. Raises `RequestError`."""
    by_ids, by_state = (not isinstance(given, UnsetType) for given in (asked.event_ids, asked.state))
    if by_ids == by_state:
        raise RequestError("invalid_params", "Expected `event_ids`, or `state` and maybe `since` - at `$`")
    if not isinstance(asked.event_ids, UnsetType):
        these = Of(queue, tuple(dict.fromkeys(asked.event_ids)))
        return await backlog.again(these, lambda of, now: partial(jobbook.do_again, of=of, now=now))
    dead_again = partial(jobbook.do_dead_again, queue=queue, since=_since(asked.since, backlog.wall_clock()))
    return await backlog.again(0, lambda after, now: partial(dead_again, after=after, now=now))


def _since(since: str | UnsetType, now: float) -> float:
    if isinstance(since, UnsetType):
        return 0.0
    moment = parse_since(since)
    if isinstance(moment, str):
        raise RequestError("invalid_params", "Expected a time, or a duration before now - at `$.since`")
    return now - moment.seconds if isinstance(moment, Duration) else moment.timestamp()


def _shown(job: jobbook.Seen) -> QueueDelivery:
    last = None
    if job.leased_at is not None:
        last = LastLease(time_of(job.leased_at), job.holder or None, job.reason)
    elif job.reason is not None:
        last = LastLease(time_of(job.due_at), None, job.reason)
    return QueueDelivery(
        job.event_id,
        job.type,
        job.state,
        job.attempts,
        time_of(job.due_at) if job.state == "waiting" else None,
        time_of(job.until) if job.until is not None else None,
        last,
    )
