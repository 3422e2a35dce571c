"""What a client asks for when it opens a stream, checked against its key (PROTOCOL section 2).

Pure.
"""

from collections.abc import Collection, Mapping
from typing import Final

from msgspec import Struct

from ..config import LimitsConfig
from ..errors import RequestError
from ..protocol.names import ACKED, check_identifier, check_list, check_since, check_spelling, too_many
from ..protocol.selection import ACCOUNT_EVENTS, Selection, TypeFilter
from .keys import Key

NAME_BYTES: Final = 150
"""What the name of an inbox costs beside its characters: a string, a place in a set, and where its listeners are."""
USUAL_BYTES: Final = 16_384
"""What a connection may name as a part of what it costs anyway: some 90 inboxes with names of 30 characters."""


class Opening(Struct, frozen=True):
    """What a client asks for when it opens a stream (PROTOCOL section 2), checked."""

    selection: Selection
    since: str | None
    event_filter: TypeFilter | None
    client_id: str | None = None
    watch: bool = False
    """Whether it is a look, beside the connections of the account's tier."""
    named_bytes: int = 0
    """What it names, as `named_bytes` counts it."""


def check_opening(key: Key, query: Mapping[str, str], limits: LimitsConfig) -> Opening:
    """Return what a query asks for. Raises `RequestError` (`bad_request`, `forbidden`)."""
    if key.is_operator:
        raise RequestError("forbidden", "An operator key opens no stream")
    for name in ("inbox_ids", "since"):
        if name in query:
            key.require("subscribe")
    given = {name: name for name in query}
    check_spelling(given, "inbox_ids", "event_types", "since", "client_id", code="bad_request")
    since = query.get("since")
    if since is not None:
        check_since(since)
    selection = key.initial_selection()
    if "inbox_ids" in query:
        names = query["inbox_ids"].split(",")
        check_list(names, "inbox_ids")
        selection = key.select(names, "inbox_ids")
        if size_of(selection) > limits.max_inboxes_per_connection:
            raise too_many("inbox_ids", limits.max_inboxes_per_connection, "inbox_ids", code="bad_request")
    event_filter = None
    if "event_types" in query:
        patterns = query["event_types"].split(",")
        check_list(patterns, "event_types", limits.max_event_types)
        event_filter = TypeFilter(patterns)
    client_id = query.get("client_id")
    if client_id is not None:
        check_identifier(client_id, "client_id", code="bad_request")
    if since == ACKED and client_id is None:
        raise RequestError("bad_request", f"`{ACKED}` needs a `client_id` - at `since`")
    is_look = _is_look(key, query)
    return Opening(selection, since, event_filter, client_id, is_look, named_bytes(key, selection.names))


def _is_look(key: Key, query: Mapping[str, str]) -> bool:
    """Whether somebody only looks; he takes nobody's place: neither of the tier's connections nor of a client."""
    watch = query.get("watch", "0")
    if watch not in ("0", "1"):
        raise RequestError("bad_request", f"Expected 1, got {watch[:20]!r} - at `watch`")
    if watch == "0":
        return False
    key.require("subscribe")
    if "client_id" in query:
        raise RequestError("bad_request", "A look (`watch=1`) is no client of its own - at `client_id`")
    return True


def size_of(selection: Selection) -> int:
    """Return how many inboxes a selection names; 0 for all."""
    return 0 if selection.inboxes is None else len(selection.inboxes) - (ACCOUNT_EVENTS in selection.inboxes)


def named_bytes(key: Key, names: frozenset[str]) -> int:
    """Return what a connection costs by its names, about, beyond what is usual.

    All that a key reaches by itself its operator has named, and it is kept once for all connections. What a token
    reaches is kept as long as the connection, whatever that follows.
    """
    if key.narrowed_inbox_ids is not None:
        return unusual(bytes_of(key.narrowed_inbox_ids))
    return 0 if names == key.inbox_ids else unusual(bytes_of(names))


def bytes_of(names: Collection[str]) -> int:
    """Return what names of inboxes cost in memory, about."""
    return sum(map(len, names)) + NAME_BYTES * len(names)


def unusual(size: int) -> int:
    """Return what of the names of a connection is beyond what is usual."""
    return max(0, size - USUAL_BYTES)
