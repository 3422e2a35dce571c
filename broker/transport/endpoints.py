"""The HTTP routes (PROTOCOL section 6): a table of paths, methods and handlers.

A handler gets the broker and a request and returns a `Response`, or a `Handover` of the client's connection.
What it refuses it raises as `RequestError`; `http11` makes the answer of it. The right comes first, then the size, then
the body: nothing is read of a client that may not send it.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from time import time
from typing import Any, Final, Literal, TypeVar

from msgspec import Raw, Struct, json
from msgspec.structs import replace

from ..access.admission import Judge, admit
from ..access.keys import Key, credential_of
from ..access.opening import Opening, check_opening
from ..broker import Broker
from ..errors import NEED_A_LOG_ON_DISK, BadCommandError, BadFrameError, RequestError
from ..intake.budget import Held
from ..observe.metrics import TEXT_FORMAT
from ..protocol.decoding import decode_command, decode_struct
from ..protocol.messages import Command, TokenRequest
from ..protocol.names import check_near_names, check_spelling, check_traceparent
from ..queues.working import require_queues
from ..version import __version__
from ..webhooks.endpoint import EndpointChange, NewEndpoint, Resend
from ..webhooks.webhooks import Webhooks
from . import together
from .browsers import cross_origin_headers, preflight_headers
from .connection import Connection
from .life import Admitted
from .operating import check_every, live_answer
from .pages import PAGE_PATHS, show_page
from .polling import poll
from .queueing import QUEUE_ROUTES, Answering
from .request import Request
from .response import Response, command_response, head_of_lasting, json_response
from .specs.asyncapi import asyncapi
from .specs.openapi import openapi
from .sse import CONTENT_TYPE, HEADERS, EventStream
from .stream import ClientStream
from .upgrade import check_upgrade, offered_subprotocols

MAX_SMALL_BODY_BYTES: Final = 16_384
"""All that may be said of a token; and what is read of a command or an event that may not come to anything."""
_NDJSON: Final = "application/x-ndjson"
StructT = TypeVar("StructT", bound=Struct)


class Handover(Struct, frozen=True):
    """Who takes a client's connection over, for as long as its answer lasts: made by ``connection``."""

    admitted: Admitted
    connection: Callable[[Broker, ClientStream, Admitted], Connection | EventStream]


Handler = Callable[[Broker, Request], Awaitable[Response | Handover]]


async def handle(broker: Broker, request: Request) -> Response | Handover:
    """Judge the page that a request comes from, if it comes from one, and let its route answer.

    Raises `RequestError`.
    """
    headers = cross_origin_headers(request, broker.config.browsers.origins)
    try:
        answer = await _route(broker, request)
    except RequestError as error:
        raise error.with_headers(headers) from None
    if headers and isinstance(answer, Response):
        return replace(answer, headers=answer.headers + headers)
    return answer


async def _route(broker: Broker, request: Request) -> Response | Handover:
    """Find the route of a request and let it answer. Raises `RequestError`."""
    route = route_of(request.path)
    methods = None if route is None else ROUTES[route]
    if methods is None and request.path != _EVERYTHING:
        raise RequestError("not_found", "There is nothing at this path")
    allowed = _allowed(request.path, methods)
    if request.method == "OPTIONS":
        return Response(204, headers=(("Allow", ", ".join(allowed)), *preflight_headers(request, allowed)))
    if methods is None or request.method not in allowed:
        message = f"{request.method} is not allowed here, but {' and '.join(allowed)}"
        raise RequestError("method_not_allowed", message, headers=(("Allow", ", ".join(allowed)),))
    return await methods["GET" if request.method == "HEAD" else request.method](broker, request)


def route_of(path: str) -> str | None:
    """Return which of the routes a path is; None if it is none. The last part of one, or that before, is an `{id}`."""
    above, _, last = path.rpartition("/")
    candidates = (path, f"{above}/{{id}}", f"{above.rpartition('/')[0]}/{{id}}/{last}")
    return next((candidate for candidate in candidates if candidate in ROUTES), None)


def _allowed(path: str, methods: Mapping[str, Handler] | None) -> list[str]:
    """Return the methods of a path; None: of any. HEAD is wherever GET is, but where an answer would last."""
    if methods is None:
        return ["GET", "HEAD", "POST", "OPTIONS"]
    head = ["HEAD"] if "GET" in methods and path not in _LASTING else []
    return [*methods, *head, "OPTIONS"]


async def _authenticate(broker: Broker, request: Request, *, tokens: bool = False) -> Key:
    """Return the key of a request's credential; of a token only where ``tokens`` open the door."""
    header = request.header(b"authorization")
    authorization = None if header is None else header.decode("latin-1")
    offered = offered_subprotocols(request) if tokens else ()
    credential = credential_of(authorization, request.query(), offered)
    key = await broker.keyring.authenticate(credential, request.remote)
    request.account_id = key.account_id
    request.key = f"{key.id} of {key.account_id or 'the operator'}"
    if not tokens:
        key.require_key()
    return key


async def open_stream(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/stream`: judge everything about the opening before the upgrade (PROTOCOL section 2)."""
    head = check_upgrade(request)
    admitted = await _admitted(broker, request, request.query())
    # From the end of this to the connection's own first step lies no checkpoint: the slot cannot be lost.
    return Handover(admitted, partial(Connection, head=head))


async def open_event_stream(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/events/stream`: the stream as Server-Sent Events, to be read only (PROTOCOL section 6)."""
    last = request.header(b"last-event-id")
    query = request.query() if not last else {**request.query(), "since": last.decode("latin-1")}
    admitted = await _admitted(broker, request, query)
    chunked = request.http_version == "1.1"
    headers = (*HEADERS, *cross_origin_headers(request, broker.config.browsers.origins))
    head = head_of_lasting(CONTENT_TYPE, headers, time(), chunked=chunked)
    return Handover(admitted, partial(EventStream, head=head, chunked=chunked))


async def _admitted(broker: Broker, request: Request, query: Mapping[str, str]) -> Admitted:
    """Return who may open a stream, what he asks for, his slot, and his account, held until the stack is closed."""
    broker.require_ready()
    key = await _authenticate(broker, request, tokens=True)
    judge = _judge_of(broker, query, key)
    since = query.get("since")
    hold = broker.hold(str(key.account_id))
    async with AsyncExitStack() as stack:
        client_id = None
        if since is not None or key.is_operator:
            client_id = judge()[1].client_id  # who is refused is not kept waiting; operators have no account to hold
        account = await stack.enter_async_context(hold)
        if since is not None:
            await broker.reach(account, since, key, client_id)
        worth, opening, slot = await admit(broker.slots, judge)
        stack.pop_all()
        return Admitted(worth, opening, slot, account, hold, request.remote, request.agent)


def _judge_of(broker: Broker, query: Mapping[str, str], key: Key) -> Judge:
    """Return what says, in the very step in which it is asked, what a key and a query are worth."""

    def judge() -> tuple[Key, Opening]:
        worth = broker.keyring.confirm(key)
        if worth.account_id != key.account_id:
            raise RequestError("unavailable", "The key has just moved to another account", retry_after_ms=0)
        opening = check_opening(worth, query, broker.config.limits)
        return worth.looking() if opening.watch else worth, opening

    return judge


async def read_events(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/events`: the next page of events, waited for if that is asked (PROTOCOL section 6)."""
    broker.require_ready()
    key = await _authenticate(broker, request)
    key.require("subscribe")
    judge = _judge_of(broker, request.query(), key)
    _, opening = judge()  # who is refused is not kept waiting
    held = _hold(broker, request, key)
    since = request.query().get("since")
    async with broker.hold(str(key.account_id)) as account:
        if since is not None:
            await broker.reach(account, since, key, opening.client_id)
        return _held_answer(held, await poll(broker, request, account, key, judge))


async def make_token(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/websocket/token`: a short-lived token of the key (PROTOCOL section 1)."""
    broker.require_open()
    key = await _authenticate(broker, request)
    body = await request.body(MAX_SMALL_BODY_BYTES) or b"{}"
    asked = _decoded(body, TokenRequest, "inbox_ids", "scopes", "ttl_seconds")
    return json_response(broker.keyring.issue(broker.keyring.confirm(key), asked))


async def publish_events(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/events`: publish one event, a list, or NDJSON (PROTOCOL section 6)."""
    broker.require_open()
    key = await _authenticate(broker, request)
    broker.intake.require(key)
    content_type = (request.header(b"content-type") or b"").decode("latin-1")
    ndjson = content_type.partition(";")[0].strip().lower() == _NDJSON
    body, held = await _read(broker, request, key, broker.config.limits.max_body_bytes)
    trace = _trace_of(request)
    return _held_answer(held, Raw(await broker.intake.publish_raw(key, body, ndjson=ndjson, traceparent=trace)))


async def give_command(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/commands`: one command, as over the stream (PROTOCOL section 4)."""
    broker.require_open()
    key = await _authenticate(broker, request)
    if key.is_operator:
        raise RequestError("forbidden", "An operator key gives no commands")
    if not _is_small(request):
        broker.commands.require(key)
    trace = _trace_of(request)
    body, held = await _read(broker, request, key, broker.config.limits.max_message_bytes)
    do = partial(broker.do_command, key, _command_of(body), trace)
    return _held_response(held, command_response(await request.unless_client_leaves(do)))


def _trace_of(request: Request) -> str | None:
    """Return the trace that a request is part of; None if it says none. Raises `RequestError` if it says two."""
    trace = request.header(b"traceparent")
    return None if trace is None else check_traceparent(trace.decode("latin-1"))


def _hold(broker: Broker, request: Request, key: Key) -> Held:
    """Hold bytes for a request until its client has taken the answer. Raises `RequestError` if there is no room."""
    held = broker.bodies.hold(key.account_id)
    request.when_answered(held.let_go)
    return held


def _held_answer(held: Held, result: Any) -> Response:
    """Return an answer, and hold its bytes instead of the body's."""
    return _held_response(held, json_response(result))


def _held_response(held: Held, response: Response) -> Response:
    held.settle(response.size)
    return response


async def _read(broker: Broker, request: Request, key: Key, max_bytes: int) -> tuple[bytes, Held]:
    """Read a body; its bytes are held.

    Raises `RequestError`: ``too_large``, and ``unavailable`` if there is no room, now or as it grows.
    """
    held = _hold(broker, request, key)
    announced = request.body_bytes or 0
    if announced <= max_bytes:
        held.require(announced)
    return await request.body(max_bytes, held.grow), held


def _is_small(request: Request) -> bool:
    return request.body_bytes is not None and request.body_bytes <= MAX_SMALL_BODY_BYTES


def _command_of(body: bytes) -> Command:
    try:
        return decode_command(body.decode())
    except UnicodeDecodeError:
        raise RequestError("invalid_json", "The body is not UTF-8") from None
    except (BadFrameError, BadCommandError) as bad:
        raise bad.error from None


async def list_connections(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/connections`: who is connected, to an account or, for operators, to any (PROTOCOL section 6)."""
    key = await _authenticate(broker, request)
    key.require_whole_account()
    held = _hold(broker, request, key)
    return _held_answer(held, await together.connections(broker, key.account_id, request.query().get("after", "")))


async def close_connection(broker: Broker, request: Request) -> Response | Handover:
    """`DELETE /v1/connections/{id}`: close one of them with 1001 (PROTOCOL section 6)."""
    key = await _authenticate(broker, request)
    key.require_whole_account()
    connection_id = request.path.rpartition("/")[2]
    await together.close(broker, key.account_id, connection_id)
    return json_response({"connection_id": connection_id})


async def _webhooks_of(broker: Broker, request: Request) -> tuple[Webhooks, Key, str]:
    """Return the webhooks, the key that may see to its account's, and the id in the path, if there is one.

    Raises `RequestError`.
    """
    key = await _authenticate(broker, request)
    key.require("webhooks")
    if broker.webhooks is None:
        raise RequestError("unavailable", f"Webhooks {NEED_A_LOG_ON_DISK}")
    return broker.webhooks, key, "".join(request.path.split("/")[3:4])


async def _read_as(broker: Broker, request: Request, key: Key, kind: type[StructT]) -> tuple[StructT, Held]:
    broker.require_open()
    body, held = await _read(broker, request, key, broker.config.limits.max_message_bytes)
    return _decoded(body, kind, "inbox_ids", "event_types", "since"), held


def _decoded(
    body: bytes,
    kind: type[StructT],
    *narrowing: Literal["inbox_ids", "event_types", "since", "scopes", "ttl_seconds"],
) -> StructT:
    """Decode a body; refuse what is nearly the name of a field that narrows: ignored, it would leave all."""
    decoded = decode_struct(body, kind)
    names = json.decode(body, type=dict[str, Raw])
    check_spelling({name: f"$.{name}" for name in names}, *narrowing)
    check_near_names(names, narrowing)
    return decoded


async def list_webhooks(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/webhooks`: the account's endpoints (PROTOCOL section 9)."""
    webhooks, key, _ = await _webhooks_of(broker, request)
    held = _hold(broker, request, key)
    endpoints = webhooks.endpoints
    return _held_answer(held, {"webhooks": [endpoints.shown(live) for live in endpoints.of(key)]})


async def make_webhook(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/webhooks`: an endpoint (PROTOCOL section 9)."""
    webhooks, key, _ = await _webhooks_of(broker, request)
    asked, held = await _read_as(broker, request, key, NewEndpoint)
    return _held_answer(held, await webhooks.endpoints.make(key, asked))


async def read_webhook(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/webhooks/{id}`: an endpoint, without its secret (PROTOCOL section 9)."""
    webhooks, key, webhook_id = await _webhooks_of(broker, request)
    held = _hold(broker, request, key)
    return _held_answer(held, webhooks.endpoints.shown(webhooks.endpoints.find(key, webhook_id)))


async def change_webhook(broker: Broker, request: Request) -> Response | Handover:
    """`PATCH /v1/webhooks/{id}`: change, pause, or go on (PROTOCOL section 9)."""
    webhooks, key, webhook_id = await _webhooks_of(broker, request)
    change, held = await _read_as(broker, request, key, EndpointChange)
    return _held_answer(held, await webhooks.endpoints.change(key, webhook_id, change))


async def remove_webhook(broker: Broker, request: Request) -> Response | Handover:
    """`DELETE /v1/webhooks/{id}`: remove it, with what it was owed (PROTOCOL section 9)."""
    webhooks, key, webhook_id = await _webhooks_of(broker, request)
    broker.require_open()
    await webhooks.endpoints.remove(key, webhook_id)
    return json_response({"webhook_id": webhook_id})


async def rotate_secret(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/webhooks/{id}/secret`: a new one; the old one signs beside it for a day (PROTOCOL section 9)."""
    webhooks, key, webhook_id = await _webhooks_of(broker, request)
    broker.require_open()
    return _held_answer(_hold(broker, request, key), await webhooks.endpoints.rotate(key, webhook_id))


async def try_webhook(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/webhooks/{id}/test`: one post of an event that is not stored (PROTOCOL section 9)."""
    webhooks, key, webhook_id = await _webhooks_of(broker, request)
    broker.require_open()
    return json_response(await webhooks.try_out(key, webhook_id))


async def list_deliveries(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/webhooks/{id}/deliveries`: what became of events (PROTOCOL section 9)."""
    webhooks, key, webhook_id = await _webhooks_of(broker, request)
    held = _hold(broker, request, key)
    return _held_answer(held, await webhooks.deliveries(key, webhook_id, request.query()))


async def resend(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/webhooks/{id}/resend`: let events be posted again (PROTOCOL section 9)."""
    webhooks, key, webhook_id = await _webhooks_of(broker, request)
    asked, held = await _read_as(broker, request, key, Resend)
    return _held_answer(held, {"resent": await webhooks.resend(key, webhook_id, asked)})


def _of_queues(answering: Answering, kind: type[Struct] | None) -> Handler:
    """Return a handler of `/v1/queues…` (PROTOCOL section 11)."""

    async def handler(broker: Broker, request: Request) -> Response | Handover:
        key = await _authenticate(broker, request)
        key.require("webhooks")
        queues, queue_id = require_queues(broker.queues), "".join(request.path.split("/")[3:4])
        if kind is not None:
            asked, held = await _read_as(broker, request, key, kind)
            return _held_answer(held, await answering(queues, key, queue_id, asked))
        held = _hold(broker, request, key)
        return _held_answer(held, await answering(queues, key, queue_id, request.query()))

    return handler


async def watch_live(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/operator/live`: the broker's figures, again and again (PROTOCOL section 6)."""
    key = await _authenticate_operator(broker, request)
    every_seconds = check_every(request.query())
    request.when_answered(broker.live.watch())
    return live_answer(broker, every_seconds, lambda: broker.keyring.confirm(key))


async def choose_connections(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/operator/connections`: connections that an operator searches and sorts (PROTOCOL section 6)."""
    key = await _authenticate_operator(broker, request)
    held = _hold(broker, request, key)
    return _held_answer(held, await together.chosen(broker, request.query()))


async def read_connection(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/operator/connections/{id}`: one of them, with all that is known of it (PROTOCOL section 6)."""
    key = await _authenticate_operator(broker, request)
    connection_id = request.path.rpartition("/")[2]
    return _held_answer(_hold(broker, request, key), await together.connection(broker, connection_id))


async def close_any_connection(broker: Broker, request: Request) -> Response | Handover:
    """`DELETE /v1/operator/connections/{id}`: close one with 1001, as `DELETE /v1/connections/{id}` does."""
    await _authenticate_operator(broker, request)
    return await close_connection(broker, request)


async def _authenticate_operator(broker: Broker, request: Request) -> Key:
    key = await _authenticate(broker, request)
    key.require_operator()
    return key


async def read_metrics(broker: Broker, request: Request) -> Response | Handover:
    """`GET /metrics`: the broker's figures, as Prometheus reads them (PROTOCOL section 6)."""
    await _authenticate_operator(broker, request)
    return Response(200, await together.metrics(broker), content_type=TEXT_FORMAT)


async def read_tasks(broker: Broker, request: Request) -> Response | Handover:
    """`GET /debug/tasks`: the tree of tasks, its groups, or what serves one connection (PROTOCOL section 6)."""
    await _authenticate_operator(broker, request)
    return json_response(await together.tasks(broker, request.query()))


async def alive(broker: Broker, request: Request) -> Response | Handover:
    """`GET /healthz`: the process lives."""
    return json_response({"status": "ok"})


async def ready(broker: Broker, request: Request) -> Response | Handover:
    """`GET /readyz`: it takes connections, and what is published."""
    broker.require_ready()
    broker.require_storing()
    return json_response({"status": "ready"})


_ASYNCAPI: Final = Response(200, asyncapi(__version__))
_OPENAPI: Final = Response(200, openapi(__version__))


async def describe_stream(broker: Broker, request: Request) -> Response | Handover:
    """`GET /asyncapi.json`: the stream as AsyncAPI has it."""
    return _ASYNCAPI


async def describe_http(broker: Broker, request: Request) -> Response | Handover:
    """`GET /openapi.json`: these routes as OpenAPI has them."""
    return _OPENAPI


ROUTES: Final[dict[str, dict[str, Handler]]] = {
    "/v1/stream": {"GET": open_stream},
    "/v1/events": {"GET": read_events, "POST": publish_events},
    "/v1/events/stream": {"GET": open_event_stream},
    "/v1/commands": {"POST": give_command},
    "/v1/websocket/token": {"POST": make_token},
    "/v1/connections": {"GET": list_connections},
    "/v1/connections/{id}": {"DELETE": close_connection},
    "/v1/webhooks": {"GET": list_webhooks, "POST": make_webhook},
    "/v1/webhooks/{id}": {"GET": read_webhook, "PATCH": change_webhook, "DELETE": remove_webhook},
    "/v1/webhooks/{id}/secret": {"POST": rotate_secret},
    "/v1/webhooks/{id}/test": {"POST": try_webhook},
    "/v1/webhooks/{id}/deliveries": {"GET": list_deliveries},
    "/v1/webhooks/{id}/resend": {"POST": resend},
    **{path: {method: _of_queues(*each) for method, each in methods.items()} for path, methods in QUEUE_ROUTES.items()},
    "/v1/operator/live": {"GET": watch_live},
    "/v1/operator/connections": {"GET": choose_connections},
    "/v1/operator/connections/{id}": {"GET": read_connection, "DELETE": close_any_connection},
    **{path: {"GET": show_page} for path in PAGE_PATHS},
    "/metrics": {"GET": read_metrics},
    "/debug/tasks": {"GET": read_tasks},
    "/healthz": {"GET": alive},
    "/readyz": {"GET": ready},
    "/asyncapi.json": {"GET": describe_stream},
    "/openapi.json": {"GET": describe_http},
}
_LASTING: Final = frozenset({"/v1/stream", "/v1/events", "/v1/events/stream", "/v1/operator/live"})
_EVERYTHING: Final = "*"
"""The target of an OPTIONS that asks for the server as a whole (RFC 9110 section 9.3.7)."""
