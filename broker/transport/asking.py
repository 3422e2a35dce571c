"""Whose a request is, and what its body says: what handlers of the HTTP routes ask first (PROTOCOL sections 1 and 6).

What is read of a client, and what is answered, is held in its account's budget until the client has the answer.
"""

from typing import Any, Final, Literal, TypeVar

from msgspec import Raw, Struct, json

from ..access.keys import Key, credential_of
from ..broker import Broker
from ..budget import Held
from ..protocol.decoding import decode_struct
from ..protocol.names import check_near_names, check_spelling, is_given
from .request import Request
from .response import Response, json_response
from .upgrade import offered_subprotocols

MAX_SMALL_BODY_BYTES: Final = 16_384
"""All that may be said of a token; and what is read of a command or an event that may not come to anything."""
StructT = TypeVar("StructT", bound=Struct)


async def authenticate(broker: Broker, request: Request, *, tokens: bool = False) -> Key:
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


def hold(broker: Broker, request: Request, key: Key) -> Held:
    """Hold bytes for a request until its client has taken the answer. Raises `RequestError` if there is no room."""
    held = broker.bodies.hold(key.account_id)
    request.when_answered(held.let_go)
    return held


def held_answer(held: Held, result: Any) -> Response:
    """Return an answer, and hold its bytes instead of the body's."""
    return held_response(held, json_response(result))


def held_response(held: Held, response: Response) -> Response:
    """Return a response that is made, and hold its bytes instead of the body's."""
    held.settle(response.size)
    return response


async def read(broker: Broker, request: Request, key: Key, max_bytes: int) -> tuple[bytes, Held]:
    """Read a body; its bytes are held.

    Raises `RequestError`: ``too_large``, and ``unavailable`` if there is no room, now or as it grows.
    """
    held = hold(broker, request, key)
    announced = request.body_bytes or 0
    if announced <= max_bytes:
        held.require(announced)
    return await request.body(max_bytes, held.grow), held


def is_small(request: Request) -> bool:
    """Whether a body is so short that nothing is saved by judging before it is read."""
    return request.body_bytes is not None and request.body_bytes <= MAX_SMALL_BODY_BYTES


async def read_as(broker: Broker, request: Request, key: Key, kind: type[StructT]) -> tuple[StructT, Held]:
    """Read a JSON body as a struct; its bytes are held. Raises `RequestError`."""
    body, held = await read(broker, request, key, broker.config.limits.max_message_bytes)
    return decoded(body, kind, "inbox_ids", "event_types", "since"), held


def decoded(
    body: bytes,
    kind: type[StructT],
    *narrowing: Literal["inbox_ids", "event_types", "since", "scopes", "ttl_seconds"],
) -> StructT:
    """Decode a body; refuse what is nearly the name of a field that narrows: ignored, it would leave all."""
    found = decode_struct(body, kind)
    names = json.decode(body, type=dict[str, Raw])
    check_spelling({name: f"$.{name}" for name in names}, *narrowing, values=names)
    check_near_names(names, [name for name in narrowing if not is_given(name, names)])
    return found
