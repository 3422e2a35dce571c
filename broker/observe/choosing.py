"""A page of connections for an operator: sorted, searched, a few of however many (`/v1/operator/connections`).

What all of them do is of a look that others share; chosen from it in steps. What only the kernel knows is asked for the
connections of the page alone.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from heapq import merge
from itertools import islice
from math import inf
from typing import Any, Final, Literal, get_args

import trio
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from ..errors import RequestError
from ..protocol.messages import format_time
from ..protocol.names import check_identifier
from .census import Census, ConnectionState, Row, row_of
from .connections import Connections, Transport, some_inboxes

DEFAULT_CHOSEN: Final = 100
MAX_CHOSEN: Final = 200
MAX_OFFSET: Final = 10_000
"""Whoever looks for one further down searches instead."""
MAX_SEARCH: Final = 128
MOST_PAGES: Final = 16
"""Of one look that are kept with it."""
MOST_INBOXES_TOLD: Final = 1_000
"""Of one connection that is looked at alone."""
_SLICE: Final = 256
"""Rows that are chosen from in one step."""

Sort = Literal[
    "opened_at",
    "account_id",
    "client_id",
    "remote",
    "agent",
    "inboxes",
    "behind_events",
    "behind_seconds",
    "held_bytes",
    "commands",
    "silent_seconds",
]
Order = Literal["asc", "desc"]

_KEYS: Final[dict[Sort, Callable[[Row], Any]]] = {
    "opened_at": lambda row: row.entry.number,
    "account_id": lambda row: str(row.entry.key.account_id),
    "client_id": lambda row: row.entry.client_id or "",
    "remote": lambda row: row.entry.remote or "",
    "agent": lambda row: row.entry.agent or "",
    "inboxes": lambda row: inf if row.inboxes is None else row.inboxes,
    "behind_events": lambda row: row.behind_events,
    "behind_seconds": lambda row: -inf if row.behind_since is None else -row.behind_since,
    "held_bytes": lambda row: row.held_bytes,
    "commands": lambda row: row.commands,
    "silent_seconds": lambda row: -row.heard_at,
}


class Wanted(Struct, frozen=True):
    """Which connections are wanted, and in which order."""

    sort: Sort = "behind_events"
    order: Order = "desc"
    state: ConnectionState | None = None
    search: str = ""
    """In lower case: what one of the texts of a connection has in it."""
    account_id: str | None = None
    offset: int = 0
    limit: int = DEFAULT_CHOSEN


class OperatorConnection(Struct, frozen=True):
    """One connection as an operator sees it."""

    connection_id: str
    account_id: str
    key_id: str
    client_id: str | None
    transport: Transport
    remote: str | None
    agent: str | None
    """What the client calls itself: its User-Agent, shortened."""
    opened_at: str
    state: ConnectionState
    """`live`; `behind`: it is fed from the replay window; `paused`: and has taken nothing since the last look."""
    inboxes: int | None
    """How many it is subscribed to; null: all of the account."""
    behind_events: int
    """At most so many events are still to be sent to it."""
    behind_seconds: float
    """How long ago the oldest of them was stored."""
    held_bytes: int
    commands: int
    """That have no answer yet."""
    silent_seconds: float
    """Since when nothing was read from it."""
    rtt_seconds: float | None
    """As the kernel measures it; null where it does not say."""
    bytes_sent: int | None
    watch: bool = False
    """Whether it is a look, which the account's tier does not count."""
    inbox_ids: list[str] | UnsetType = UNSET
    """For one connection alone: its inboxes, sorted, a thousand at most; `["*"]`: all of the account."""
    event_types: list[str] | UnsetType | None = UNSET
    """For one connection alone: its filter; null: all types."""
    request_ids: list[str] | UnsetType = UNSET
    """For one connection alone: of its commands that have no answer yet."""


class OperatorPage(Struct, frozen=True):
    """Some of the connections that an operator asked for."""

    total: int
    """All connections."""
    matching: int
    """Those of them that were asked for."""
    connections: list[OperatorConnection]


class ChosenPage(Struct, frozen=True):
    """A page with the numbers of its connections, which say of those that are alike who comes first."""

    total: int
    matching: int
    rows: list[tuple[int, OperatorConnection]]

    def told(self) -> OperatorPage:
        """Return what an operator is told of it."""
        return OperatorPage(self.total, self.matching, [seen for _, seen in self.rows])


def check_wanted(query: Mapping[str, str]) -> Wanted:
    """Return what a query asks for. Raises `RequestError` (`bad_request`) that names the field."""
    account_id = query.get("account_id")
    if account_id is not None:
        check_identifier(account_id, "account_id", code="bad_request")
    search = query.get("q", "").lower()
    if len(search) > MAX_SEARCH:
        raise RequestError("bad_request", f"At most {MAX_SEARCH} characters can be searched for - at `q`")
    return Wanted(
        _one_of(query, "sort", get_args(Sort), "behind_events"),
        _one_of(query, "order", get_args(Order), "desc"),
        _one_of(query, "state", get_args(ConnectionState), None),
        search,
        account_id,
        _number(query, "offset", 0, 0, MAX_OFFSET),
        _number(query, "limit", DEFAULT_CHOSEN, 1, MAX_CHOSEN),
    )


def _one_of(query: Mapping[str, str], name: str, choices: tuple[Any, ...], default: str | None) -> Any:
    text = query.get(name, default)
    if text is not None and text not in choices:
        raise RequestError("bad_request", f"Expected one of {', '.join(choices)} - at `{name}`")
    return text


def _number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= most):
        raise RequestError("bad_request", f"Expected a number from {least} to {most} - at `{name}`")
    return int(text)


async def page_of(census: Census, wanted: Wanted, connections: Connections) -> ChosenPage:
    """Return the page that is wanted of a look: chosen once for all who want it. Others have their turn meanwhile."""
    page = census.pages.get(wanted)
    if page is None:
        page = await _chosen(census, wanted, connections)
        if wanted.limit <= MAX_CHOSEN and len(census.pages) < MOST_PAGES:
            census.pages[wanted] = page
    return page


async def _chosen(census: Census, wanted: Wanted, connections: Connections) -> ChosenPage:
    """Choose a page. Who has left since the look is left out."""
    key, descending = _KEYS[wanted.sort], wanted.order == "desc"
    matching, runs = 0, list[list[tuple[Any, int, Row]]]()
    for start in range(0, len(census.rows), _SLICE):
        found = [
            (key(row), -row.entry.number if descending else row.entry.number, row)
            for row in census.rows[start : start + _SLICE]
            if _matches(row, wanted)
        ]
        matching += len(found)
        runs.append(sorted(found, reverse=descending))
        await trio.lowlevel.checkpoint()
    chosen = list[tuple[int, OperatorConnection]]()
    best = islice(merge(*runs, reverse=descending), wanted.offset + wanted.limit)
    for number, (_, _, row) in enumerate(best):
        if number >= wanted.offset and connections.has(row.entry):
            chosen.append((row.entry.number, _seen(row, census.at)))
        if number % 64 == 63:
            await trio.lowlevel.checkpoint()
    return ChosenPage(len(census.rows), matching, chosen)


def one_of(census: Census, connections: Connections, connection_id: str) -> OperatorConnection:
    """Return one connection as it is now, with its details. Raises `RequestError` (`not_found`) if there is none."""
    entry = connections.find(connection_id)
    index = bisect_left(census.rows, entry.number, key=lambda row: row.entry.number)
    before = census.rows[index] if index < len(census.rows) else None
    paused = before is not None and before.entry is entry and before.state == "paused"
    row = row_of(entry, before if paused else None)
    inbox_ids, _ = some_inboxes(entry.connected.statistics().selection, MOST_INBOXES_TOLD)
    details = entry.connected.details()
    return replace(
        _seen(row, trio.current_time()),
        inbox_ids=inbox_ids,
        event_types=details.event_types,
        request_ids=details.request_ids,
    )


def _seen(row: Row, now: float) -> OperatorConnection:
    entry, link = row.entry, row.entry.connected.link()
    return OperatorConnection(
        entry.connection_id,
        str(entry.key.account_id),
        entry.key.id,
        entry.client_id,
        entry.transport,
        entry.remote,
        entry.agent,
        format_time(datetime.fromtimestamp(entry.opened_at, UTC)),
        row.state,
        row.inboxes,
        row.behind_events,
        0.0 if row.behind_since is None else _rounded(now - row.behind_since),
        row.held_bytes,
        row.commands,
        _rounded(now - row.heard_at),
        link.rtt_seconds,
        link.bytes_sent,
        entry.watch,
    )


def _rounded(seconds: float) -> float:
    return round(max(seconds, 0.0), 3)


def _matches(row: Row, wanted: Wanted) -> bool:
    entry = row.entry
    if wanted.state not in (None, row.state) or wanted.account_id not in (None, entry.key.account_id):
        return False
    if not wanted.search:
        return True
    texts = (entry.connection_id, entry.key.account_id, entry.key.id, entry.client_id, entry.remote, entry.agent)
    return any(wanted.search in text.lower() for text in texts if text)
