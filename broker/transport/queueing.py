"""What the routes of queues do (PROTOCOL section 11), once it is known whose they are and what is asked."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import Struct

from ..access.keys import Key
from ..broker import Broker
from ..queues.looking import QueueDeliveries
from ..queues.queue import NewQueue, QueueChange, QueueResend, QueueSeen, seen
from ..queues.queues import Queues
from ..queues.working import require_queues

Answering = Callable[[Queues, Key, str, Any], Awaitable[Any]]
"""Answers for a key, about the queue in the path, what the body says; without one: what the query does."""


def queues_of(broker: Broker) -> Queues:
    """Return a broker's queues. Raises `RequestError` (`unavailable`) if there is no log on disk."""
    return require_queues(broker.queues)


async def _list(queues: Queues, key: Key, queue_id: str, asked: Any) -> dict[str, list[QueueSeen]]:
    return {"queues": [seen(live.queue) for live in queues.of(key)]}


async def _make(queues: Queues, key: Key, queue_id: str, asked: NewQueue) -> QueueSeen:
    return await queues.make(key, asked)


async def _read(queues: Queues, key: Key, queue_id: str, asked: Any) -> QueueSeen:
    return seen(queues.find(key, queue_id).queue)


async def _change(queues: Queues, key: Key, queue_id: str, asked: QueueChange) -> QueueSeen:
    return await queues.change(key, queue_id, asked)


async def _remove(queues: Queues, key: Key, queue_id: str, asked: Any) -> dict[str, str]:
    await queues.remove(key, queue_id)
    return {"queue_id": queue_id}


async def _deliveries(queues: Queues, key: Key, queue_id: str, asked: dict[str, str]) -> QueueDeliveries:
    return await queues.deliveries(key, queue_id, asked)


async def _resend(queues: Queues, key: Key, queue_id: str, asked: QueueResend) -> dict[str, int]:
    return {"resent": await queues.resend(key, queue_id, asked)}


QUEUE_ROUTES: Final[dict[str, dict[str, tuple[Answering, type[Struct] | None]]]] = {
    "/v1/queues": {"GET": (_list, None), "POST": (_make, NewQueue)},
    "/v1/queues/{id}": {"GET": (_read, None), "PATCH": (_change, QueueChange), "DELETE": (_remove, None)},
    "/v1/queues/{id}/deliveries": {"GET": (_deliveries, None)},
    "/v1/queues/{id}/resend": {"POST": (_resend, QueueResend)},
}
"""By path and method: who answers, and what the body is to be, if there is one."""
