"""The HTTP routes (PROTOCOL section 6): a table of paths, methods and handlers.

A handler gets the broker and a request and returns a `Response`, or an `Upgrade` to hand the connection over.
What it refuses it raises as `RequestError`; `http11` makes the answer of it.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from ..access.admission import admit
from ..access.keys import Key, credential_of
from ..access.opening import Opening, check_opening
from ..broker import Broker
from ..errors import BadCommandError, BadFrameError, RequestError
from ..protocol.decoding import decode_command, decode_struct
from ..protocol.messages import TokenRequest
from .http11 import Request, Response, json_response
from .upgrade import Upgrade, check_upgrade

_NDJSON: Final = "application/x-ndjson"


Handler = Callable[[Broker, Request], Awaitable[Response | Upgrade]]


async def handle(broker: Broker, request: Request) -> Response | Upgrade:
    """Find the route of a request and let it answer. Raises `RequestError`."""
    methods = ROUTES.get(request.path)
    if methods is None:
        raise RequestError("not_found", "There is nothing at this path")
    handler = methods.get(request.method)
    if handler is None:
        allowed = ", ".join(methods)
        message = f"{request.method} is not allowed here, but {allowed}"
        raise RequestError("method_not_allowed", message, headers=(("Allow", allowed),))
    return await handler(broker, request)


async def _authenticate(broker: Broker, request: Request, *, tokens: bool = False) -> Key:
    """Return the key of a request's credential; of a token only where ``tokens`` open the door."""
    header = request.header(b"authorization")
    authorization = None if header is None else header.decode("latin-1")
    credential = credential_of(authorization, request.query())
    key = await broker.keyring.authenticate(credential, request.remote)
    if not tokens:
        key.require_key()
    return key


async def open_stream(broker: Broker, request: Request) -> Response | Upgrade:
    """`GET /v1/stream`: judge everything about the opening before the upgrade (PROTOCOL section 2)."""
    check_upgrade(request)
    broker.require_open()
    key = await _authenticate(broker, request, tokens=True)
    most = broker.config.limits.max_inboxes_per_connection

    def judge() -> tuple[Key, Opening]:
        worth = broker.keyring.confirm(key)
        return worth, check_opening(worth, request.query(), most)

    if "since" in request.query():
        judge()  # who is refused is not kept waiting
        with broker.hold(str(key.account_id)) as account:
            await broker.wait_for_cursor(account, request.query()["since"])
    # From the end of this to the connection's own first step lies no checkpoint: the slot cannot be lost.
    return Upgrade(*await admit(broker.slots, judge), request.head_bytes)


async def make_token(broker: Broker, request: Request) -> Response | Upgrade:
    """`POST /v1/websocket/token`: a short-lived token of the key (PROTOCOL section 1)."""
    broker.require_open()
    key = await _authenticate(broker, request)
    body = await request.body()
    return json_response(broker.keyring.issue(key, decode_struct(body or b"{}", TokenRequest)))


async def publish_events(broker: Broker, request: Request) -> Response | Upgrade:
    """`POST /v1/events`: publish one event, a list, or NDJSON (PROTOCOL section 6)."""
    broker.require_open()
    key = await _authenticate(broker, request)
    key.require("publish")
    content_type = (request.header(b"content-type") or b"").decode("latin-1")
    ndjson = content_type.partition(";")[0].strip().lower() == _NDJSON
    published = await broker.publish_raw(key, await request.body(), ndjson=ndjson)
    return json_response({"events": published})


async def give_command(broker: Broker, request: Request) -> Response | Upgrade:
    """`POST /v1/commands`: one command, as over the stream (PROTOCOL section 4)."""
    broker.require_open()
    key = await _authenticate(broker, request)
    if key.is_operator:
        raise RequestError("forbidden", "An operator key gives no commands")
    try:
        command = decode_command((await request.body()).decode())
    except UnicodeDecodeError:
        raise RequestError("invalid_json", "The body is not UTF-8") from None
    except (BadFrameError, BadCommandError) as bad:
        raise bad.error from None
    trace = request.header(b"traceparent")
    traceparent = None if trace is None else trace.decode("latin-1")
    return json_response(await broker.do_command(key, command, traceparent))


async def alive(broker: Broker, request: Request) -> Response | Upgrade:
    """`GET /healthz`: the process lives."""
    return json_response({"status": "ok"})


async def ready(broker: Broker, request: Request) -> Response | Upgrade:
    """`GET /readyz`: it takes connections."""
    broker.require_open()
    return json_response({"status": "ready"})


ROUTES: Final[dict[str, dict[str, Handler]]] = {
    "/v1/stream": {"GET": open_stream},
    "/v1/events": {"POST": publish_events},
    "/v1/commands": {"POST": give_command},
    "/v1/websocket/token": {"POST": make_token},
    "/healthz": {"GET": alive, "HEAD": alive},
    "/readyz": {"GET": ready, "HEAD": ready},
}
