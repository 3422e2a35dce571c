"""The routes of webhooks as OpenAPI has them (PROTOCOL section 9)."""

from typing import Final

from ...log.letters import State
from ...protocol.names import Identifier
from ...webhooks.endpoint import EndpointChange, EndpointSeen, NewEndpoint, Resend
from ...webhooks.webhooks import DEFAULT_LIMIT, MAX_LIMIT, DeliveriesPage, Tested
from .operations import BODIED, KEYED, Operation
from .parameters import Parameter, deliveries_query
from .schemas import object_of, ref, schema_of

_ID: Final = {"id": Parameter(schema_of(Identifier), "Its `webhook_id`.", "path")}
_DELIVERIES_QUERY: Final = deliveries_query(State, DEFAULT_LIMIT, MAX_LIMIT)
_SECRET_TOO: Final = {
    "allOf": [ref(EndpointSeen)],
    "description": "With its `secret`, which is said only here.",
}

WEBHOOK_STRUCTS: Final = (DeliveriesPage, EndpointChange, EndpointSeen, NewEndpoint, Resend, Tested)
WEBHOOK_OPERATIONS: Final[dict[str, dict[str, Operation]]] = {
    "/v1/webhooks": {
        "GET": Operation(
            "listWebhooks",
            "Read the account's endpoints; an inbox key sees those made with it",
            "key",
            scope="webhooks",
            result=object_of({"webhooks": {"type": "array", "items": ref(EndpointSeen)}}),
            errors=KEYED,
        ),
        "POST": Operation(
            "makeWebhook",
            "Make an endpoint",
            "key",
            scope="webhooks",
            bodies={"application/json": ref(NewEndpoint)},
            result=_SECRET_TOO,
            errors=(*KEYED, *BODIED, "conflict"),
        ),
    },
    "/v1/webhooks/{id}": {
        "GET": Operation(
            "readWebhook",
            "Read an endpoint",
            "key",
            scope="webhooks",
            parameters=_ID,
            result=ref(EndpointSeen),
            errors=(*KEYED, "not_found"),
        ),
        "PATCH": Operation(
            "changeWebhook",
            "Change an endpoint, pause it, or let it go on",
            "key",
            scope="webhooks",
            parameters=_ID,
            bodies={"application/json": ref(EndpointChange)},
            result=ref(EndpointSeen),
            errors=(*KEYED, *BODIED, "not_found", "conflict"),
        ),
        "DELETE": Operation(
            "removeWebhook",
            "Remove an endpoint, with what it was owed",
            "key",
            scope="webhooks",
            parameters=_ID,
            result=object_of({"webhook_id": schema_of(Identifier)}),
            errors=(*KEYED, "not_found", "conflict"),
        ),
    },
    "/v1/webhooks/{id}/secret": {
        "POST": Operation(
            "rotateWebhookSecret",
            "Give an endpoint a new secret; the old one signs beside it for a day",
            "key",
            scope="webhooks",
            parameters=_ID,
            result=_SECRET_TOO,
            errors=(*KEYED, "not_found", "conflict"),
        )
    },
    "/v1/webhooks/{id}/test": {
        "POST": Operation(
            "testWebhook",
            "Post a `webhook.test` to an endpoint, once; it is not stored",
            "key",
            scope="webhooks",
            parameters=_ID,
            result=ref(Tested),
            errors=(*KEYED, "not_found"),
        )
    },
    "/v1/webhooks/{id}/deliveries": {
        "GET": Operation(
            "readDeliveries",
            "Read what became of events at an endpoint, the newest first",
            "key",
            scope="webhooks",
            parameters=_ID | _DELIVERIES_QUERY,
            result=ref(DeliveriesPage),
            errors=(*KEYED, "not_found"),
        )
    },
    "/v1/webhooks/{id}/resend": {
        "POST": Operation(
            "resendWebhook",
            "Let events be posted to an endpoint again",
            "key",
            scope="webhooks",
            parameters=_ID,
            bodies={"application/json": ref(Resend)},
            result=object_of({"resent": schema_of(int)}),
            errors=(*KEYED, *BODIED, "not_found"),
        )
    },
}
"""What is said of every route, by path and method."""
