"""The HTTP side as OpenAPI 3.1 describes it (PROTOCOL section 6): every route, what it takes, answers and refuses."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from ...errors import HTTP_STATUS
from ...observe.census import ConnectionState
from ...observe.choosing import (
    DEFAULT_CHOSEN,
    MAX_CHOSEN,
    MAX_OFFSET,
    MAX_SEARCH,
    OperatorConnection,
    OperatorPage,
    Order,
    Sort,
)
from ...observe.connections import ConnectionSeen, ConnectionsPage
from ...observe.grouped import GroupedTree
from ...observe.live import EVERY_SECONDS, Snapshot
from ...observe.metrics import TEXT_FORMAT
from ...observe.tasks import Tree
from ...protocol.messages import Event, NewEvent, Token, TokenRequest
from ..polling import DEFAULT_LIMIT, MAX_LIMIT, MAX_WAIT_SECONDS, Page
from .operations import ALWAYS, BODIED, KEYED, Operation, Who
from .parameters import OPENING_QUERY, Parameter, security_schemes
from .queues import QUEUE_OPERATIONS, QUEUE_STRUCTS
from .schemas import (
    ANYTHING,
    DUPLICATE,
    ERROR_MEANINGS,
    Envelope,
    Error,
    Json,
    PublishResult,
    object_of,
    ref,
    schema_of,
    schemas_of,
)
from .webhooks import WEBHOOK_OPERATIONS, WEBHOOK_STRUCTS

DESCRIPTION: Final = """\
Publishing, polling, commands and tokens over HTTP, on the port of the stream (`/asyncapi.json`). Answers are \
`{"result": …}` or `{"error": {"code", "message"}}`. Ignore fields that you do not know. `HEAD` is wherever `GET` is, \
but where an answer would last; `OPTIONS` answers 204 with `Allow`."""

_EVENTS: Final = {"anyOf": [ref(NewEvent), {"type": "array", "items": ref(NewEvent)}]}
_POLL_QUERY: Final = {
    "limit": Parameter(
        {**schema_of(Annotated[int, Meta(ge=1, le=MAX_LIMIT)]), "default": DEFAULT_LIMIT}, "At most so many events."
    ),
    "wait": Parameter(
        {**schema_of(Annotated[float, Meta(ge=0, le=MAX_WAIT_SECONDS)]), "default": 0},
        "Seconds to wait for the first event. A poll that waits counts as a connection.",
    ),
}
_LAST_EVENT_ID: Final = {
    "Last-Event-ID": Parameter(schema_of(str), "Stands before `since`; browsers send it when they come back.", "header")
}
_TRACEPARENT: Final = {
    "traceparent": Parameter(
        schema_of(str), "The trace that this is part of (W3C Trace Context): carried, if it is valid.", "header"
    )
}
_DOCUMENT: Final = {
    200: {"description": "The document.", "content": {"application/json": {"schema": {"type": "object"}}}}
}
_METRICS: Final = {
    200: {"description": "As Prometheus reads them.", "content": {TEXT_FORMAT: {"schema": {"type": "string"}}}}
}
_SWITCHED: Final = {101: {"description": "A WebSocket; `/asyncapi.json` says what is said on it."}}
_EVENT_STREAM: Final = {
    200: {
        "description": "Frames as on the stream: `data:` is one, as JSON in one line, `id:` its cursor.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_WANTED: Final = {
    "sort": Parameter({**schema_of(Sort), "default": "behind_events"}, "By what they are sorted."),
    "order": Parameter({**schema_of(Order), "default": "desc"}, "Upwards or downwards."),
    "state": Parameter(schema_of(ConnectionState), "Only these."),
    "q": Parameter(
        schema_of(Annotated[str, Meta(max_length=MAX_SEARCH)]),
        "Only those with this in one of their ids, the address or the agent, in capitals or not.",
    ),
    "account_id": Parameter(schema_of(str), "Only those of this account."),
    "offset": Parameter(
        {**schema_of(Annotated[int, Meta(ge=0, le=MAX_OFFSET)]), "default": 0}, "How many of them to leave out."
    ),
    "limit": Parameter(
        {**schema_of(Annotated[int, Meta(ge=1, le=MAX_CHOSEN)]), "default": DEFAULT_CHOSEN},
        "At most so many.",
    ),
}
_LIVE: Final = {
    200: {
        "description": "A `Snapshot` as JSON in one line of `data:`, again and again, each of at most 8 kB.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_CONNECTION_ID: Final = {"id": Parameter(schema_of(str), "Its `connection_id`.", "path")}
_PAGE: Final = {200: {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}}
_PART: Final[dict[int, Json]] = {
    200: {
        "description": "The page, or the part.",
        "content": {f"text/{kind}": {"schema": {"type": "string"}} for kind in ("html", "css", "javascript")}
        | {"image/svg+xml": {"schema": {"type": "string"}}},
    },
    308: {"description": "Without a name: to the page itself."},
}
OPERATIONS: Final[dict[str, dict[str, Operation]]] = {
    "/v1/stream": {
        "GET": Operation(
            "openStream",
            "Open the stream, a WebSocket",
            "key or token",
            parameters=OPENING_QUERY,
            answers=_SWITCHED,
            errors=(*KEYED, "upgrade_required", "connection_limit"),
        )
    },
    "/v1/events": {
        "GET": Operation(
            "pollEvents",
            "Read the next page of events, and wait for it if that is asked",
            "key",
            scope="subscribe",
            parameters=OPENING_QUERY | _POLL_QUERY,
            result=ref(Page),
            errors=(*KEYED, "connection_limit"),
        ),
        "POST": Operation(
            "publishEvents",
            "Publish one event, a list, or NDJSON, all or nothing",
            "key",
            scope="publish",
            parameters=_TRACEPARENT,
            bodies={
                "application/json": _EVENTS,
                "application/x-ndjson": {"type": "string", "description": "An event a line."},
            },
            result=ref(PublishResult),
            errors=(*KEYED, *BODIED, "not_found"),
        ),
    },
    "/v1/events/stream": {
        "GET": Operation(
            "readEventStream",
            "Open the stream as Server-Sent Events, to be read only",
            "key or token",
            scope="subscribe",
            parameters=OPENING_QUERY | _LAST_EVENT_ID,
            answers=_EVENT_STREAM,
            errors=(*KEYED, "connection_limit"),
        )
    },
    "/v1/commands": {
        "POST": Operation(
            "giveCommand",
            "Give one command, as over the stream",
            "key",
            scope="command",
            parameters=_TRACEPARENT,
            bodies={"application/json": ref(Envelope)},
            result=ANYTHING,
            errors=(*KEYED, *BODIED, "unknown_action", "request_id_reused", "timeout"),
            by_handler=True,
        )
    },
    "/v1/websocket/token": {
        "POST": Operation(
            "makeToken",
            "Make a connection token of the key, narrowed or not",
            "key",
            bodies={"application/json": ref(TokenRequest)},
            needs_body=False,
            result=ref(Token),
            errors=(*KEYED, *BODIED),
        )
    },
    "/v1/connections": {
        "GET": Operation(
            "listConnections",
            "Read who is connected, to the account or, for operators, to any",
            "key",
            parameters={"after": Parameter(schema_of(str), "The `next` of the last page.")},
            result=ref(ConnectionsPage),
            errors=KEYED,
        )
    },
    "/v1/connections/{id}": {
        "DELETE": Operation(
            "closeConnection",
            "Close a connection with 1001",
            "key",
            parameters=_CONNECTION_ID,
            result=object_of({"connection_id": schema_of(str)}),
            errors=(*KEYED, "not_found"),
        )
    },
    **WEBHOOK_OPERATIONS,
    **QUEUE_OPERATIONS,
    "/v1/operator/live": {
        "GET": Operation(
            "watchLive",
            "Watch the broker's figures as Server-Sent Events",
            "operator",
            parameters={
                "every": Parameter(
                    {**schema_of(Annotated[int, Meta(ge=EVERY_SECONDS[0], le=EVERY_SECONDS[1])]), "default": 1},
                    "Seconds between two of them.",
                )
            },
            answers=_LIVE,
            errors=KEYED,
        )
    },
    "/v1/operator/connections": {
        "GET": Operation(
            "chooseConnections",
            "Search and sort all connections, as of at most two seconds ago",
            "operator",
            parameters=_WANTED,
            result=ref(OperatorPage),
            errors=KEYED,
        )
    },
    "/v1/operator/connections/{id}": {
        "GET": Operation(
            "readConnection",
            "Read all that is known of one connection",
            "operator",
            parameters=_CONNECTION_ID,
            result=ref(OperatorConnection),
            errors=(*KEYED, "not_found"),
        ),
        "DELETE": Operation(
            "closeAnyConnection",
            "Close a connection with 1001",
            "operator",
            parameters=_CONNECTION_ID,
            result=object_of({"connection_id": schema_of(str)}),
            errors=(*KEYED, "not_found"),
        ),
    },
    "/dashboard": {
        "GET": Operation("showDashboard", "The page of an account", "all", answers=_PAGE, errors=("not_found",))
    },
    "/dashboard/{id}": {
        "GET": Operation(
            "showDashboardPart",
            "The page of operators (`operator`), and the parts of both",
            "all",
            parameters={"id": Parameter(schema_of(str), "The name of a page, or of a part of one.", "path")},
            answers=_PART,
            errors=("not_found",),
        )
    },
    "/metrics": {
        "GET": Operation("readMetrics", "Read the broker's figures", "operator", answers=_METRICS, errors=KEYED)
    },
    "/debug/tasks": {
        "GET": Operation(
            "readTasks",
            "Read the tree of tasks, where each waits, and what each connection does",
            "operator",
            parameters={
                "under": Parameter(schema_of(str), "A `connection_id`: only what serves it."),
                "grouped": Parameter(schema_of(Literal["0", "1"]), "`1`: what is alike is told once, with its number."),
            },
            result={"anyOf": [ref(Tree), ref(GroupedTree)]},
            errors=(*KEYED, "not_found"),
        )
    },
    "/healthz": {
        "GET": Operation("alive", "Whether the process lives", "all", result=object_of({"status": {"const": "ok"}}))
    },
    "/readyz": {
        "GET": Operation(
            "ready",
            "Whether it takes connections",
            "all",
            result=object_of({"status": {"const": "ready"}}),
            errors=("unavailable", "draining"),
        )
    },
    "/asyncapi.json": {"GET": Operation("asyncapi", "The stream as AsyncAPI 3", "all", answers=_DOCUMENT)},
    "/openapi.json": {"GET": Operation("openapi", "This document", "all", answers=_DOCUMENT)},
}
"""What is said of every route, by path and method."""

_SECURITY: Final[dict[Who, tuple[str, ...]]] = {
    "all": (),
    "key": ("bearer", "key"),
    "key or token": ("bearer", "key", "token", "subprotocol"),
    "operator": ("bearer", "key"),
}


def openapi(version: str) -> bytes:
    """Return the document as JSON; ``version`` is the broker's."""
    document = {
        "openapi": "3.1.0",
        "info": {"title": "daimon-broker over HTTP", "version": version, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": {
            path: {method.lower(): _operation(operation) for method, operation in operations.items()}
            for path, operations in OPERATIONS.items()
        },
        "components": {"schemas": _schemas(), "securitySchemes": security_schemes("apiKey")},
    }
    return msgspec.json.encode(document)


def _schemas() -> dict[str, Json]:
    schemas = schemas_of(
        ConnectionSeen,
        ConnectionsPage,
        Envelope,
        Error,
        Event,
        GroupedTree,
        NewEvent,
        OperatorConnection,
        OperatorPage,
        Page,
        PublishResult,
        Snapshot,
        Token,
        TokenRequest,
        Tree,
        *WEBHOOK_STRUCTS,
        *QUEUE_STRUCTS,
    )
    # These structs have their items as they are written already.
    schemas["Page"]["properties"]["events"]["items"] = ref(Event)
    schemas["ConnectionsPage"]["properties"]["connections"]["items"] = ref(ConnectionSeen)
    return schemas


def _operation(operation: Operation) -> Json:
    described: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "security": [{name: [operation.scope] if operation.scope else []} for name in _SECURITY[operation.who]],
        "responses": _answers(operation) | _refusals(operation),
    }
    if operation.who == "operator":
        described["description"] = "Needs an operator key."
    if operation.scope:
        described["description"] = f"Needs the scope `{operation.scope}`."
    if operation.parameters:
        described["parameters"] = [_parameter(name, parameter) for name, parameter in operation.parameters.items()]
    if operation.bodies:
        content = {content_type: {"schema": schema} for content_type, schema in operation.bodies.items()}
        described["requestBody"] = {"required": operation.needs_body, "content": content}
    return described


def _parameter(name: str, parameter: Parameter) -> Json:
    described: Json = {
        "name": name,
        "in": parameter.place,
        "description": parameter.words,
        "schema": parameter.schema,
        "required": parameter.place == "path",
    }
    if parameter.schema.get("type") == "array":
        described |= {"style": "form", "explode": False}  # separated by commas
    return described


def _answers(operation: Operation) -> dict[str, Json]:
    answers = {str(status): answer for status, answer in operation.answers.items()}
    if operation.result is not None:
        schema = _body_of("result", operation.result, by_handler=operation.by_handler)
        answers["200"] = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    return answers


def _refusals(operation: Operation) -> dict[str, Json]:
    """Return the answers that refuse, by status: each with the codes that it may bear."""
    by_status: dict[int, list[str]] = {}
    for code in sorted({*ALWAYS, *operation.errors}, key=lambda code: (HTTP_STATUS[code], code)):
        by_status.setdefault(HTTP_STATUS[code], []).append(code)
    refusals = {
        str(status): _refusal(status, codes, by_handler=operation.by_handler) for status, codes in by_status.items()
    }
    if operation.by_handler:
        words = "What the command's handler refuses, with a code of its own."
        refusals["default"] = _refused(words, ref(Error), by_handler=True)
    return refusals


def _body_of(name: str, schema: Json, *, by_handler: bool) -> Json:
    also = {"duplicate": DUPLICATE} if by_handler else {}
    return object_of({name: schema, **also}, *also)


def _refusal(status: int, codes: list[str], *, by_handler: bool) -> Json:
    words = "; ".join(f"`{code}`: {ERROR_MEANINGS[code]}" for code in codes)
    error = ref(Error) if by_handler else {"allOf": [ref(Error), {"properties": {"code": {"enum": codes}}}]}
    refusal = _refused(f"{words}.", error, by_handler=by_handler)
    if headers := _REFUSAL_HEADERS.get(status):
        refusal["headers"] = {name: {"description": words, "schema": {"type": kind}} for name, kind, words in headers}
    return refusal


def _refused(words: str, error: Json, *, by_handler: bool) -> Json:
    schema = _body_of("error", error, by_handler=by_handler)
    return {"description": words, "content": {"application/json": {"schema": schema}}}


_RETRY_AFTER: Final = ("Retry-After", "integer", "Seconds after which it may be tried again.")
_REFUSAL_HEADERS: Final[dict[int, list[tuple[str, str, str]]]] = {
    401: [("WWW-Authenticate", "string", "`Bearer`.")],
    429: [_RETRY_AFTER],
    503: [_RETRY_AFTER],
}
