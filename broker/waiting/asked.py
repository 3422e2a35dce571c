"""What a client waits for, checked against its key (PROTOCOL section 11).

Pure.
"""

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..access.keys import Key
from ..access.opening import NAME_BYTES, size_of
from ..config import LimitsConfig
from ..errors import RequestError
from ..protocol.decoding import decode_params, require_few
from ..protocol.messages import Command
from ..protocol.names import ACKED, ALL_INBOXES, InboxName, TypePattern, check_spelling, too_many
from ..protocol.selection import Selection
from ..protocol.wording import any_of, told
from .conditions import Where

MAX_TIMEOUT_SECONDS: Final = 3_600.0
MAX_HTTP_TIMEOUT_SECONDS: Final = 60.0
"""What a single request may last, as a poll may."""
NOW: Final = "now"

_UNKNOWN: Final = re.compile(r"Nothing here is called `([a-z_]{1,32})` - at `\$(?:\.params)?\.where(?=`\Z)")
"""A name that is no condition: it goes into the place if it is a plain one."""

Wanted = Literal["code", "link"]
told("extract", any_of(Wanted))


class WaitParams(Struct, frozen=True):
    """Parameters of `wait_for`: the first event that is like this."""

    inbox_ids: list[InboxName] | Literal["*"] | UnsetType = UNSET
    event_types: Annotated[list[TypePattern], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["message.received"]
    )
    where: Where | None = None
    since: Annotated[str, Meta(min_length=1, description="A cursor, a duration, a time, or `now`.")] = NOW
    timeout_seconds: Annotated[float, Meta(ge=0, le=MAX_TIMEOUT_SECONDS)] = 60.0
    extract: Annotated[list[Wanted], Meta(max_length=2)] = []


class Asked(Struct, frozen=True):
    """A `wait_for` that the key may give. ``selection`` is what it may find, ``size`` about what it costs, in bytes."""

    request_id: str
    selection: Selection
    params: WaitParams
    size: int


def check_wait(
    key: Key, command: Command, request_id: str, limits: LimitsConfig, most_seconds: float = MAX_TIMEOUT_SECONDS
) -> Asked:
    """Return what a client waits for. Raises `RequestError` with the field's path."""
    key.require("subscribe")
    check_spelling(command.paths, "inbox_ids", "event_types", "since", "timeout_seconds", values=command.params)
    require_few(command, "inbox_ids", limits.max_inboxes_per_connection)
    require_few(command, "event_types", limits.max_event_types)
    try:
        params = decode_params(command, WaitParams)
    except RequestError as error:
        raise RequestError(error.code, _UNKNOWN.sub(r"\g<0>.\1", error.message)) from None
    if params.since == ACKED:
        raise RequestError(
            "invalid_params", f"A wait begins at a cursor, not at `{ACKED}` - at `{command.paths['since']}`"
        )
    if params.timeout_seconds > most_seconds:
        path = command.paths["timeout_seconds"]
        raise RequestError("invalid_params", f"A request waits at most {most_seconds:g} seconds - at `{path}`")
    where = command.paths.get("inbox_ids", "$.inbox_ids")
    names = [ALL_INBOXES] if isinstance(params.inbox_ids, UnsetType) else params.inbox_ids
    selection = key.select(names, where)
    if size_of(selection) > limits.max_inboxes_per_connection and not isinstance(params.inbox_ids, UnsetType):
        raise too_many("inbox_ids", limits.max_inboxes_per_connection, where)
    return Asked(request_id, selection, params, command.size + NAME_BYTES * len(names))
