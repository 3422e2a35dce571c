"""The routes of queues as OpenAPI has them (PROTOCOL section 11)."""

from typing import Final

from ...log.jobs import State
from ...protocol.names import Identifier
from ...queues.looking import DEFAULT_LIMIT, MAX_LIMIT, QueueDeliveries
from ...queues.queue import NewQueue, QueueChange, QueueResend, QueueSeen
from .operations import BODIED, KEYED, Operation
from .parameters import Parameter, deliveries_query
from .schemas import object_of, ref, schema_of

_ID: Final = {"id": Parameter(schema_of(Identifier), "Its `queue_id`.", "path")}
_DELIVERIES_QUERY: Final = deliveries_query(State, DEFAULT_LIMIT, MAX_LIMIT)

QUEUE_STRUCTS: Final = (QueueDeliveries, QueueChange, QueueSeen, NewQueue, QueueResend)
QUEUE_OPERATIONS: Final[dict[str, dict[str, Operation]]] = {
    "/v1/queues": {
        "GET": Operation(
            "listQueues",
            "Read the account's queues; an inbox key sees those of whose inboxes it reaches all",
            "key",
            scope="webhooks",
            result=object_of({"queues": {"type": "array", "items": ref(QueueSeen)}}),
            errors=KEYED,
        ),
        "POST": Operation(
            "makeQueue",
            "Make a queue; the same again is answered with the one that is there",
            "key",
            scope="webhooks",
            bodies={"application/json": ref(NewQueue)},
            result=ref(QueueSeen),
            errors=(*KEYED, *BODIED, "conflict"),
        ),
    },
    "/v1/queues/{id}": {
        "GET": Operation(
            "readQueue",
            "Read a queue",
            "key",
            scope="webhooks",
            parameters=_ID,
            result=ref(QueueSeen),
            errors=(*KEYED, "not_found"),
        ),
        "PATCH": Operation(
            "changeQueue",
            "Change a queue, pause it, or let it go on; its order stays",
            "key",
            scope="webhooks",
            parameters=_ID,
            bodies={"application/json": ref(QueueChange)},
            result=ref(QueueSeen),
            errors=(*KEYED, *BODIED, "not_found", "conflict"),
        ),
        "DELETE": Operation(
            "removeQueue",
            "Remove a queue, with all that waits in it; its leases are over",
            "key",
            scope="webhooks",
            parameters=_ID,
            result=object_of({"queue_id": schema_of(Identifier)}),
            errors=(*KEYED, "not_found", "conflict"),
        ),
    },
    "/v1/queues/{id}/deliveries": {
        "GET": Operation(
            "readQueueDeliveries",
            "Read what became of events of a queue, the newest first",
            "key",
            scope="webhooks",
            parameters=_ID | _DELIVERIES_QUERY,
            result=ref(QueueDeliveries),
            errors=(*KEYED, "not_found"),
        )
    },
    "/v1/queues/{id}/resend": {
        "POST": Operation(
            "resendQueue",
            "Let events of a queue be given again",
            "key",
            scope="webhooks",
            parameters=_ID,
            bodies={"application/json": ref(QueueResend)},
            result=object_of({"resent": schema_of(int)}),
            errors=(*KEYED, *BODIED, "not_found"),
        )
    },
}
"""What is said of every route, by path and method."""
