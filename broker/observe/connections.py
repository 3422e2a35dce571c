"""Who is connected: one list for all, whatever carries them, and how many came, went and were refused.

Whoever opens a connection enters it for as long as it lives. From here it is found by its id, told to end, and read. It
costs a connection one object; nothing here is touched while that lives. The log has a line when it is entered, and one
when it leaves.
"""

import logging
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from operator import attrgetter
from typing import Final, Literal, Protocol

import trio
from msgspec import UNSET, Raw, Struct, UnsetType, field

from ..access.keys import Key
from ..errors import HTTP_STATUS, CloseCode, RequestError
from ..logline import LogLine
from ..protocol.messages import encode, format_time
from ..protocol.names import ALL_INBOXES
from ..protocol.selection import ACCOUNT_EVENTS, Selection

logger = logging.getLogger(__name__)

PAGE_CONNECTIONS: Final = 1_000
MOST_INBOXES_SHOWN: Final = 20
"""Of one connection, which may have ten thousand."""
MOST_CLOSED_SHOWN: Final = 20
"""Of the connections that have ended."""
SLICE: Final = 64
"""Connections that are read in one step: each costs some microseconds."""
_LIST_SLICE: Final = 1_024
"""Connections that are put into a list in one step."""

Transport = Literal["websocket", "sse", "poll"]


class ConnectionStatistics(Struct, frozen=True):
    """What one connection does and holds."""

    selection: Selection
    """What it is subscribed to."""
    live: bool
    """Whether the fan-out writes to it by itself; else it is being fed from the replay buffer."""
    behind: int
    """Positions between what it was sent and the newest event of its account: at most so many events."""
    waiting_commands: int
    """Commands that have no answer yet."""
    remainder_bytes: int
    """Bytes of a frame that the kernel did not take yet."""
    close_code: CloseCode | None
    """With what the broker ends it; None: it lives, or ends without a Close of ours."""
    position: int = 0
    """How far it was fed."""
    behind_since: float | None = None
    """By trio's clock, when the oldest event that it was not sent was stored; None: it was sent all, or is live."""
    ending: str = ""
    """Who ends it, and why."""


class ConnectionDetails(Struct, frozen=True):
    """What is told of one connection, and not of each in a list."""

    event_types: list[str] | None
    """Its filter, sorted; None: all types."""
    request_ids: list[str]
    """Of its commands that have no answer yet, as far as the client gave them any."""


class Link(Struct, frozen=True):
    """What the kernel knows of a connection's TCP; None: it does not say."""

    rtt_seconds: float | None = None
    """A round trip, as the kernel smooths it."""
    bytes_sent: int | None = None
    """Since the start, retransmitted ones among them."""
    bytes_acked: int | None = None
    """What the client's TCP acknowledged since the start."""
    bytes_received: int | None = None
    """What came from it since the start."""


class Ended(Struct, frozen=True):
    """What is told of a connection at its end alone. What is not known is None."""

    code: int | None = None
    """The code of the Close, whoever's it was."""
    commands: int = 0
    """Commands that were answered."""
    gaps: int = 0
    """Gaps that its client was told of."""
    cursor: str | None = None
    """Up to where everything was handed to its kernel."""


class Connected(Protocol):
    """A connection, as far as it is seen from here."""

    def end(self, code: CloseCode, why: str) -> None:
        """End it with a close code."""
        ...

    def last_heard(self) -> float:
        """Return when something was last read from the client, by trio's clock."""
        ...

    def statistics(self) -> ConnectionStatistics:
        """Return what it does and holds."""
        ...

    def details(self) -> ConnectionDetails:
        """Return what is told of it alone."""
        ...

    def link(self) -> Link:
        """Ask the kernel for what it knows, or knew at its end."""
        ...

    def ended(self) -> Ended:
        """Return what it had done by its end; asked for when all its tasks have ended."""
        ...


class OpenConnection(Struct, gc=False):
    """A connection in the list: what is known of it from its opening on. To be made by the task that serves it."""

    connection_id: str
    key: Key
    client_id: str | None
    remote: str | None
    transport: Transport
    connected: Connected
    task: trio.lowlevel.Task = field(default_factory=trio.lowlevel.current_task)
    opened_at: float = field(default_factory=time.time)
    """Seconds since 1970."""
    number: int = 0
    """It grows with each that is entered: the microseconds since 1970 at which that was, at least."""
    agent: str | None = None
    """What the client calls itself: its User-Agent, shortened."""
    watch: bool = False
    """Whether it is a look, which its account's tier does not count."""

    @property
    def log_level(self) -> int:
        """At which level the log tells of it. A poll is one of many requests of its client."""
        return logging.DEBUG if self.transport == "poll" else logging.INFO

    def names(self) -> dict[str, str | None]:
        """Return whose connection it is, as the log says it."""
        return {
            "connection_id": self.connection_id,
            "account_id": self.key.account_id,
            "key_id": self.key.id,
            "client_id": self.client_id,
            "remote": self.remote,
            "transport": self.transport,
        }


class ConnectionClosed(Struct, frozen=True):
    """A connection that has ended."""

    at: str
    connection_id: str
    account_id: str
    code: int | None
    """With what the broker closed it; None: the client left, or there is no such code."""
    reason: str
    lived_seconds: float
    client_id: str | None = None


class ConnectionSeen(Struct, frozen=True):
    """One connection as `GET /v1/connections` tells of it (PROTOCOL section 6)."""

    connection_id: str
    account_id: str
    key_id: str
    remote: str | None
    transport: Transport
    opened_at: str
    inbox_ids: list[str]
    """Some of what it is subscribed to, sorted; `["*"]`: all of the account."""
    inboxes: int | None
    """How many these are in all; None: all of the account."""
    live: bool
    behind: int
    waiting_commands: int
    held_bytes: int
    client_id: str | UnsetType = UNSET
    watch: bool | UnsetType = UNSET
    """True: it is a look, which the account's tier does not count."""


class ConnectionsPage(Struct, frozen=True):
    """Some connections, the ones opened first before the others."""

    connections: list[Raw]
    """The JSON of a `ConnectionSeen` each."""
    next: str | UnsetType = UNSET
    """What to give as `after` for those that come behind them; left out: there are none."""


class Survey(Struct):
    """What all connections are together."""

    behind: int = 0
    """Connections that are fed from the replay buffer."""
    held_bytes: int = 0
    """Of frames that the kernel did not take yet."""


class ConnectionsStatistics(Struct, frozen=True):
    """How many connections there are and were."""

    open: Mapping[tuple[str, ...], int]
    """By tier and transport."""
    watching: int
    """Of these, looks."""
    opened: Mapping[str, int]
    """By transport, since the start."""
    closed: Mapping[str, int]
    """By the code that the broker closed with, since the start; "none": the client left, or there is no such code."""
    refused: Mapping[str, int]
    """Requests that were refused since the start, by error code; "other": by a code of a handler's own."""


class Connections:
    """All open connections of a broker."""

    def __init__(self) -> None:
        self._entries: dict[str, OpenConnection] = {}
        """By their ids, in the order of their numbers; so are those of an account."""
        self._of_accounts: dict[str | None, dict[str, OpenConnection]] = {}
        self._number = 0
        self._open = Counter[tuple[str, ...]]()
        self._watching = 0
        self._opened = Counter[str]()
        self._closed = Counter[str]()
        self._refused = Counter[str]()
        self._closed_lately = deque[ConnectionClosed](maxlen=MOST_CLOSED_SHOWN)

    def __len__(self) -> int:
        return len(self._entries)

    # --- coming and going

    def enter(self, entry: OpenConnection) -> None:
        """Have a connection in the list, until it is made to `leave`."""
        self._number = max(self._number + 1, time.time_ns() // 1_000)
        entry.number = self._number
        self._entries[entry.connection_id] = entry
        self._of_accounts.setdefault(entry.key.account_id, {})[entry.connection_id] = entry
        self._open[entry.key.tier, entry.transport] += 1
        self._watching += entry.watch
        self._opened[entry.transport] += 1
        if logger.isEnabledFor(entry.log_level):
            logger.log(entry.log_level, LogLine("connection opened", **entry.names(), tier=entry.key.tier))

    def leave(self, entry: OpenConnection) -> None:
        """Have a connection no longer in the list, and count how it ended."""
        statistics = entry.connected.statistics()
        code = None if statistics.close_code is None else int(statistics.close_code)
        self._closed["none" if code is None else str(code)] += 1
        now, account_id = time.time(), str(entry.key.account_id)
        lived_seconds = round(max(now - entry.opened_at, 0), 3)
        self._closed_lately.append(
            ConnectionClosed(
                format_time(datetime.fromtimestamp(now, UTC)),
                entry.connection_id,
                account_id,
                code,
                statistics.ending,
                lived_seconds,
                entry.client_id,
            )
        )
        self._open[entry.key.tier, entry.transport] -= 1
        self._watching -= entry.watch
        del self._entries[entry.connection_id]
        of_account = self._of_accounts[entry.key.account_id]
        del of_account[entry.connection_id]
        if not of_account:
            del self._of_accounts[entry.key.account_id]
        if logger.isEnabledFor(entry.log_level):
            logger.log(entry.log_level, _end_of(entry, statistics.ending, lived_seconds))

    def refused(self, error: RequestError) -> None:
        """Count a request that was refused. The codes of handlers are theirs, and of any number: they are one."""
        self._refused[error.code if error.code in HTTP_STATUS else "other"] += 1

    # --- who is there

    def find(self, connection_id: str, account_id: str | None = None) -> OpenConnection:
        """Return a connection of this account (None: of any). Raises `RequestError` (`not_found`) if there is none."""
        entry = self._entries.get(connection_id)
        if entry is None or account_id not in (None, entry.key.account_id):
            raise RequestError("not_found", "There is no such connection")
        return entry

    def close(self, connection_id: str, account_id: str | None) -> None:
        """Close (1001) what `find` returns, or raise what it raises."""
        entry = self.find(connection_id, account_id)
        entry.connected.end(CloseCode.GOING_AWAY, "closed on request")

    async def numbered(self, account_id: str | None, after: str = "") -> tuple[list[tuple[int, Raw]], bool]:
        """Return connections of an account (None: of all) with the numbers that they have, and whether there are more.

        The JSON of a `ConnectionSeen` each: a page of those that were opened after the number that one ended with.
        Others have their turn meanwhile. Raises `RequestError` (`bad_request`) if ``after`` is of no page.
        """
        entries = list((self._entries if account_id is None else self._of_accounts.get(account_id, {})).values())
        start = bisect_right(entries, _number_of(after), key=attrgetter("number"))
        end = start + PAGE_CONNECTIONS
        chosen, more = entries[start:end], len(entries) > end
        rows: list[tuple[int, Raw]] = []
        for index in range(0, len(chosen), SLICE):
            # Names may be long: what is told is written in slices, too.
            rows += [(entry.number, Raw(encode(seen(entry)))) for entry in chosen[index : index + SLICE]]
            await trio.lowlevel.checkpoint()
        return rows, more

    def entries(self) -> list[OpenConnection]:
        """Return all that are open, the ones opened first before the others."""
        return list(self._entries.values())

    def has(self, entry: OpenConnection) -> bool:
        """Whether it is still open."""
        return self._entries.get(entry.connection_id) is entry

    def closed_lately(self) -> list[ConnectionClosed]:
        """Return those that ended last, the last one first."""
        return list(reversed(self._closed_lately))

    async def survey(self) -> Survey:
        """Return what all connections are together; others have their turn meanwhile."""
        survey = Survey()
        entries = list(self._entries.values())
        for index in range(0, len(entries), SLICE):
            for entry in entries[index : index + SLICE]:
                statistics = entry.connected.statistics()
                survey.behind += not statistics.live
                survey.held_bytes += statistics.remainder_bytes
            await trio.lowlevel.checkpoint()
        return survey

    async def by_task(self) -> dict[trio.lowlevel.Task, OpenConnection]:
        """Return the connections by the tasks that serve them; others have their turn meanwhile."""
        entries = list(self._entries.values())
        by_task: dict[trio.lowlevel.Task, OpenConnection] = {}
        for index in range(0, len(entries), _LIST_SLICE):
            by_task |= {entry.task: entry for entry in entries[index : index + _LIST_SLICE]}
            await trio.lowlevel.checkpoint()
        return by_task

    def statistics(self) -> ConnectionsStatistics:
        """Return how many there are and were."""
        return ConnectionsStatistics(
            dict(self._open), self._watching, dict(self._opened), dict(self._closed), dict(self._refused)
        )


def _end_of(entry: OpenConnection, reason: str, seconds: float) -> LogLine:
    """Return what the log says of a connection that has ended."""
    ended, link = entry.connected.ended(), entry.connected.link()
    return LogLine(
        "connection ended",
        **entry.names(),
        reason=reason,
        code=ended.code,
        seconds=seconds,
        commands=ended.commands,
        gaps=ended.gaps,
        cursor=ended.cursor,
        bytes_acked=link.bytes_acked,
        bytes_received=link.bytes_received,
    )


def _number_of(after: str) -> int:
    if not after:
        return 0
    if not (after.isascii() and after.isdigit() and len(after) <= 20):
        raise RequestError("bad_request", "Give what `next` of a page says - at `after`")
    return int(after)


def seen(entry: OpenConnection) -> ConnectionSeen:
    """Return what a connection is and does now."""
    now = entry.connected.statistics()
    inbox_ids, inboxes = some_inboxes(now.selection)
    return ConnectionSeen(
        entry.connection_id,
        str(entry.key.account_id),
        entry.key.id,
        entry.remote,
        entry.transport,
        format_time(datetime.fromtimestamp(entry.opened_at, UTC)),
        inbox_ids,
        inboxes,
        now.live,
        now.behind,
        now.waiting_commands,
        now.remainder_bytes,
        UNSET if entry.client_id is None else entry.client_id,
        entry.watch or UNSET,
    )


def some_inboxes(selection: Selection, most: int = MOST_INBOXES_SHOWN) -> tuple[list[str], int | None]:
    """Return some inboxes of a selection, sorted, and how many there are; None: all."""
    if selection.inboxes is None:
        return [ALL_INBOXES], None
    some = islice((inbox for inbox in selection.inboxes if inbox != ACCOUNT_EVENTS), most)
    return sorted(some), inboxes_of(selection)


def inboxes_of(selection: Selection) -> int | None:
    """Return how many inboxes a selection has; None: all."""
    return None if selection.inboxes is None else len(selection.inboxes) - (ACCOUNT_EVENTS in selection.inboxes)
