"""The HTTP routes (PROTOCOL section 6): a table of paths, methods and handlers.

A handler gets the broker and a request and returns a `Response`, or a `Handover` of the client's connection.
What it refuses it raises as `RequestError`; `http11` makes the answer of it. The right comes first, then the size, then
the body: nothing is read of a client that may not send it.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from time import time
from typing import Any, Final, TypeVar

from msgspec import Raw, Struct
from msgspec.structs import replace

from ..access.admission import Judge, admit
from ..access.keys import Key
from ..access.opening import Opening, check_opening
from ..broker import Broker
from ..errors import BadCommandError, BadFrameError, RequestError
from ..observe.metrics import TEXT_FORMAT
from ..protocol.decoding import decode_command
from ..protocol.messages import Command, TokenRequest
from ..protocol.names import Scope, check_no_inbox, check_traceparent
from ..version import __version__
from . import together
from .asking import (
    MAX_SMALL_BODY_BYTES,
    authenticate,
    decoded,
    held_answer,
    held_response,
    hold,
    is_small,
    read,
    read_as,
)
from .browsers import cross_origin_headers, preflight_headers
from .connection import Connection
from .hooking import WEBHOOK_ROUTES, webhooks_of
from .life import Admitted
from .operating import check_every, live_answer
from .pages import PAGE_PATHS, show_page
from .polling import poll
from .queueing import QUEUE_ROUTES, queues_of
from .request import Request
from .response import Response, command_response, head_of_lasting, json_response
from .specs.asyncapi import asyncapi
from .specs.openapi import openapi
from .sse import CONTENT_TYPE, HEADERS, EventStream
from .stream import ClientStream
from .upgrade import check_upgrade

_NDJSON: Final = "application/x-ndjson"
_LOOKING: Final = frozenset({"GET", "HEAD"})
ThingsT = TypeVar("ThingsT")


class Handover(Struct, frozen=True):
    """Who takes a client's connection over, for as long as its answer lasts: made by ``connection``."""

    admitted: Admitted
    connection: Callable[[Broker, ClientStream, Admitted], Connection | EventStream]


Handler = Callable[[Broker, Request], Awaitable[Response | Handover]]
_Routes = dict[str, dict[str, Handler]]


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
    admitted = await _admitted(broker, request, query, "subscribe")
    chunked = request.http_version == "1.1"
    headers = (*HEADERS, *cross_origin_headers(request, broker.config.browsers.origins))
    head = head_of_lasting(CONTENT_TYPE, headers, time(), chunked=chunked)
    return Handover(admitted, partial(EventStream, head=head, chunked=chunked))


async def _admitted(broker: Broker, request: Request, query: Mapping[str, str], scope: Scope | None = None) -> Admitted:
    """Return who may open a stream, what he asks for, his slot, and his account and names, held until they are let go.

    With ``scope`` only a key that carries it may.
    """
    broker.require_ready()
    key = await authenticate(broker, request, tokens=True)
    judge = _judge_of(broker, query, key, scope)
    since = query.get("since")
    holding = broker.hold(str(key.account_id))
    async with AsyncExitStack() as stack:
        client_id = None
        if since is not None or key.is_operator:
            client_id = judge()[1].client_id  # who is refused is not kept waiting; operators have no account to hold
        account = await stack.enter_async_context(holding)
        if since is not None:
            await broker.reach(account, since, key, client_id)
        worth, opening, slot, named = await admit(broker.slots, broker.names, judge)
        stack.pop_all()
        return Admitted(worth, opening, slot, account, holding, named, request.remote, request.agent)


def _judge_of(broker: Broker, query: Mapping[str, str], key: Key, scope: Scope | None = None) -> Judge:
    """Return what says, in the very step in which it is asked, what a key and a query are worth."""

    def judge() -> tuple[Key, Opening]:
        worth = broker.keyring.confirm(key)
        if worth.account_id != key.account_id:
            raise RequestError("unavailable", "The key has just moved to another account", retry_after_ms=0)
        opening = check_opening(worth, query, broker.config.limits)
        if scope is not None:
            worth.require(scope)
        return worth.looking() if opening.watch else worth, opening

    return judge


async def read_events(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/events`: the next page of events, waited for if that is asked (PROTOCOL section 6)."""
    broker.require_ready()
    key = await authenticate(broker, request)
    key.require("subscribe")
    judge = _judge_of(broker, request.query(), key)
    _, opening = judge()  # who is refused is not kept waiting
    held = hold(broker, request, key)
    since = request.query().get("since")
    async with broker.hold(str(key.account_id)) as account:
        if since is not None:
            await broker.reach(account, since, key, opening.client_id)
        return held_answer(held, await poll(broker, request, account, key, judge))


async def make_token(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/websocket/token`: a short-lived token of the key (PROTOCOL section 1)."""
    broker.require_open()
    key = await authenticate(broker, request)
    body = await request.body(MAX_SMALL_BODY_BYTES) or b"{}"
    asked = decoded(body, TokenRequest, "inbox_ids", "scopes", "ttl_seconds")
    return json_response(broker.keyring.issue(broker.keyring.confirm(key), asked))


async def publish_events(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/events`: publish one event, a list, or NDJSON (PROTOCOL section 6)."""
    broker.require_open()
    key = await authenticate(broker, request)
    broker.intake.require(key)
    check_no_inbox({name: name for name in request.query()}, code="bad_request")
    content_type = (request.header(b"content-type") or b"").decode("latin-1")
    ndjson = content_type.partition(";")[0].strip().lower() == _NDJSON
    body, held = await read(broker, request, key, broker.config.limits.max_body_bytes)
    trace = _trace_of(request)
    return held_answer(held, Raw(await broker.intake.publish_raw(key, body, ndjson=ndjson, traceparent=trace)))


async def give_command(broker: Broker, request: Request) -> Response | Handover:
    """`POST /v1/commands`: one command, as over the stream (PROTOCOL section 4)."""
    broker.require_open()
    key = await authenticate(broker, request)
    if key.is_operator:
        raise RequestError("forbidden", "An operator key gives no commands")
    if not is_small(request):
        broker.commands.require(key)
    trace = _trace_of(request)
    body, held = await read(broker, request, key, broker.config.limits.max_message_bytes)
    do = partial(broker.do_command, key, _command_of(body), trace)
    return held_response(held, command_response(await request.unless_client_leaves(do)))


def _trace_of(request: Request) -> str | None:
    """Return the trace that a request is part of; None if it says none. Raises `RequestError` if it says two."""
    trace = request.header(b"traceparent")
    return None if trace is None else check_traceparent(trace.decode("latin-1"))


def _command_of(body: bytes) -> Command:
    try:
        return decode_command(body.decode())
    except UnicodeDecodeError:
        raise RequestError("invalid_json", "The body is not UTF-8") from None
    except (BadFrameError, BadCommandError) as bad:
        raise bad.error.again() from None


async def list_connections(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/connections`: who is connected, to an account or, for operators, to any (PROTOCOL section 6)."""
    key = await authenticate(broker, request)
    key.require_whole_account()
    held = hold(broker, request, key)
    return held_answer(held, await together.connections(broker, key.account_id, request.query().get("after", "")))


async def close_connection(broker: Broker, request: Request) -> Response | Handover:
    """`DELETE /v1/connections/{id}`: close one of them with 1001 (PROTOCOL section 6)."""
    key = await authenticate(broker, request)
    key.require_whole_account()
    connection_id = request.path.rpartition("/")[2]
    await together.close(broker, key.account_id, connection_id)
    return json_response({"connection_id": connection_id})


def _of_account(
    found: Callable[[Broker], ThingsT],
    answering: Callable[[ThingsT, Key, str, Any], Awaitable[Any]],
    kind: type[Struct] | None,
) -> Handler:
    """Return a handler of `/v1/webhooks…` or `/v1/queues…`, which an account has by their ids (sections 9 and 11)."""

    async def handler(broker: Broker, request: Request) -> Response | Handover:
        key = await authenticate(broker, request)
        key.require("webhooks")
        things, its_id = found(broker), "".join(request.path.split("/")[3:4])
        if request.method not in _LOOKING:
            broker.require_open()
        if kind is not None:
            asked, held = await read_as(broker, request, key, kind)
            return held_answer(held, await answering(things, key, its_id, asked))
        held = hold(broker, request, key)
        return held_answer(held, await answering(things, key, its_id, request.query()))

    return handler


def _routes_of_account(found: Callable[[Broker], Any], table: Mapping[str, Mapping[str, Any]]) -> _Routes:
    return {
        path: {method: _of_account(found, *each) for method, each in of_path.items()} for path, of_path in table.items()
    }


async def watch_live(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/operator/live`: the broker's figures, again and again (PROTOCOL section 6)."""
    key = await _authenticate_operator(broker, request)
    every_seconds = check_every(request.query())
    request.when_answered(broker.live.watch())
    return live_answer(broker, every_seconds, lambda: broker.keyring.confirm(key))


async def choose_connections(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/operator/connections`: connections that an operator searches and sorts (PROTOCOL section 6)."""
    key = await _authenticate_operator(broker, request)
    held = hold(broker, request, key)
    return held_answer(held, await together.chosen(broker, request.query()))


async def read_connection(broker: Broker, request: Request) -> Response | Handover:
    """`GET /v1/operator/connections/{id}`: one of them, with all that is known of it (PROTOCOL section 6)."""
    key = await _authenticate_operator(broker, request)
    connection_id = request.path.rpartition("/")[2]
    return held_answer(hold(broker, request, key), await together.connection(broker, connection_id))


async def close_any_connection(broker: Broker, request: Request) -> Response | Handover:
    """`DELETE /v1/operator/connections/{id}`: close one with 1001, as `DELETE /v1/connections/{id}` does."""
    await _authenticate_operator(broker, request)
    return await close_connection(broker, request)


async def _authenticate_operator(broker: Broker, request: Request) -> Key:
    key = await authenticate(broker, request)
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


ROUTES: Final[_Routes] = {
    "/v1/stream": {"GET": open_stream},
    "/v1/events": {"GET": read_events, "POST": publish_events},
    "/v1/events/stream": {"GET": open_event_stream},
    "/v1/commands": {"POST": give_command},
    "/v1/websocket/token": {"POST": make_token},
    "/v1/connections": {"GET": list_connections},
    "/v1/connections/{id}": {"DELETE": close_connection},
    **_routes_of_account(webhooks_of, WEBHOOK_ROUTES),
    **_routes_of_account(queues_of, QUEUE_ROUTES),
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
