"""What the routes of webhooks do (PROTOCOL section 9), once it is known whose they are and what is asked."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import Struct

from ..access.keys import Key
from ..broker import Broker
from ..errors import NEED_A_LOG_ON_DISK, RequestError
from ..webhooks.endpoint import EndpointChange, EndpointSeen, NewEndpoint, Resend
from ..webhooks.webhooks import DeliveriesPage, Tested, Webhooks

Answering = Callable[[Webhooks, Key, str, Any], Awaitable[Any]]
"""Answers for a key, about the endpoint in the path, what the body says; without one: what the query does."""


def webhooks_of(broker: Broker) -> Webhooks:
    """Return a broker's webhooks. Raises `RequestError` (`unavailable`) if there is no log on disk."""
    if broker.webhooks is None:
        raise RequestError("unavailable", f"Webhooks {NEED_A_LOG_ON_DISK}")
    return broker.webhooks


async def _list(webhooks: Webhooks, key: Key, webhook_id: str, asked: Any) -> dict[str, list[EndpointSeen]]:
    return {"webhooks": [webhooks.endpoints.shown(live) for live in webhooks.endpoints.of(key)]}


async def _make(webhooks: Webhooks, key: Key, webhook_id: str, asked: NewEndpoint) -> EndpointSeen:
    return await webhooks.endpoints.make(key, asked)


async def _read(webhooks: Webhooks, key: Key, webhook_id: str, asked: Any) -> EndpointSeen:
    return webhooks.endpoints.shown(webhooks.endpoints.find(key, webhook_id))


async def _change(webhooks: Webhooks, key: Key, webhook_id: str, asked: EndpointChange) -> EndpointSeen:
    return await webhooks.endpoints.change(key, webhook_id, asked)


async def _remove(webhooks: Webhooks, key: Key, webhook_id: str, asked: Any) -> dict[str, str]:
    await webhooks.endpoints.remove(key, webhook_id)
    return {"webhook_id": webhook_id}


async def _rotate(webhooks: Webhooks, key: Key, webhook_id: str, asked: Any) -> EndpointSeen:
    return await webhooks.endpoints.rotate(key, webhook_id)


async def _try_out(webhooks: Webhooks, key: Key, webhook_id: str, asked: Any) -> Tested:
    return await webhooks.try_out(key, webhook_id)


async def _deliveries(webhooks: Webhooks, key: Key, webhook_id: str, asked: dict[str, str]) -> DeliveriesPage:
    return await webhooks.deliveries(key, webhook_id, asked)


async def _resend(webhooks: Webhooks, key: Key, webhook_id: str, asked: Resend) -> dict[str, int]:
    return {"resent": await webhooks.resend(key, webhook_id, asked)}


WEBHOOK_ROUTES: Final[dict[str, dict[str, tuple[Answering, type[Struct] | None]]]] = {
    "/v1/webhooks": {"GET": (_list, None), "POST": (_make, NewEndpoint)},
    "/v1/webhooks/{id}": {"GET": (_read, None), "PATCH": (_change, EndpointChange), "DELETE": (_remove, None)},
    "/v1/webhooks/{id}/secret": {"POST": (_rotate, None)},
    "/v1/webhooks/{id}/test": {"POST": (_try_out, None)},
    "/v1/webhooks/{id}/deliveries": {"GET": (_deliveries, None)},
    "/v1/webhooks/{id}/resend": {"POST": (_resend, Resend)},
}
"""By path and method: who answers, and what the body is to be, if there is one."""
