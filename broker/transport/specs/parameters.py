"""What may stand in a query, and how credentials are given, in the words of both documents.

Pure.
"""

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ...protocol.names import Identifier, InboxName, TypePattern
from .schemas import Json, schema_of


class Parameter(Struct, frozen=True):
    """What a request may say beside its body: the schema of its value, and what it does."""

    schema: Json
    words: str
    place: Literal["query", "header", "path"] = "query"


def _parameter(annotation: Any, words: str) -> Parameter:
    return Parameter(schema_of(annotation), words)


OPENING_QUERY: Final = {
    "inbox_ids": _parameter(
        Annotated[list[InboxName], Meta(min_length=1)],
        "Subscribe at once, separated by commas; `*`: all that the key reaches.",
    ),
    "since": _parameter(
        Annotated[str, Meta(min_length=1)],
        "Replay what came after a cursor, or what is held since a duration ago (`90s`, `5m`) or a time; `acked`: after "
        "what this `client_id` last acknowledged.",
    ),
    "event_types": _parameter(
        Annotated[list[TypePattern], Meta(min_length=1)],
        "Only these types, or prefixes with `.*`, separated by commas; for live and replayed events.",
    ),
    "client_id": _parameter(
        Identifier,
        "A slot of your own: with the same key and name you take it over, and your older connection ends.",
    ),
    "watch": _parameter(
        Literal["0", "1"],
        "`1`: a look, for people: the scope `subscribe` alone, beside the tier's connections. An account has one; the "
        "newer one ends the older (4409). It has no `client_id` and takes no work.",
    ),
}
"""Of whatever follows events (PROTOCOL section 2)."""

_QUERY_CREDENTIALS: Final = {
    "key": "A key, where no header can be sent. It stands in the URL: prefer the header.",
    "token": "A connection token, where no header can be sent.",
}


def security_schemes(api_key: Literal["apiKey", "httpApiKey"]) -> dict[str, Json]:
    """Return how a credential may be given (PROTOCOL section 1); the standards differ in their word for ``api_key``."""
    in_query = {
        name: {"type": api_key, "in": "query", "name": name, "description": words}
        for name, words in _QUERY_CREDENTIALS.items()
    }
    subprotocol = "For browsers: a token as `bearer.wst_…`, offered beside `daimon.v1`."
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key, or where it opens a stream a token."},
        **in_query,
        "subprotocol": {
            "type": api_key,
            "in": "header",
            "name": "Sec-WebSocket-Protocol",
            "description": subprotocol,
        },
    }


def deliveries_query(state: Any, default_limit: int, max_limit: int) -> dict[str, Parameter]:
    """Return the query of a page of deliveries; ``state`` is the type of the states that they may be in."""
    limit = {**schema_of(Annotated[int, Meta(ge=1, le=max_limit)]), "default": default_limit}
    return {
        "state": Parameter(schema_of(state), "Only those in this state."),
        "event_id": Parameter(schema_of(Identifier), "Only those of this event."),
        "before": Parameter(schema_of(str), "The `next` of the last page."),
        "limit": Parameter(limit, "At most so many."),
    }
