"""All connections and accounts as they were at one moment, for operators who look.

One look serves everybody who asks within two seconds, however many they are (`looks`); it is taken in steps. What
changed between two of them tells who has stopped reading, and which accounts are busy.
"""

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Final, Literal

import trio
from msgspec import Struct

from ..access.keys import MAX_CONNECTIONS, Key
from ..fanout.hub import Account
from ..protocol.names import Tier
from ..schedule import Schedule
from .connections import SLICE, Connections, OpenConnection, Transport, inboxes_of
from .looks import Looks

MOST_ACCOUNTS_SHOWN: Final = 10

ConnectionState = Literal["live", "behind", "paused"]


class Row(Struct, gc=False):
    """One connection in a look."""

    entry: OpenConnection
    state: ConnectionState
    """``live``: the fan-out writes to it; ``behind``: it is fed from the log; ``paused``: and takes nothing."""
    position: int
    behind_events: int
    """At most so many events are still to be sent."""
    behind_since: float | None
    held_bytes: int
    commands: int
    inboxes: int | None
    heard_at: float


class AccountSeen(Struct, frozen=True):
    """One account, as an operator sees it."""

    account_id: str
    events_per_second: float
    """Published between two looks."""
    connections: int
    """Those that its tier counts: no looks."""
    max_connections: int | None
    """Of its tier; null: any number, or its tier is not known."""
    window_events: int
    window_bytes: int
    window_seconds: float | None
    """How old the oldest event is that its window holds; null: it holds none."""
    tier: Tier | None = None
    """Null: it is not known: the account is none of the configuration, and nobody is connected."""
    squeezed: bool = False
    """Whether a limit has dropped events from its window that are not too old for it."""


class Census(Struct):
    """A look: what there was at ``at`` (trio's clock)."""

    at: float
    rows: list[Row]
    """In the order of their opening."""
    states: dict[ConnectionState, int]
    transports: dict[Transport, int]
    held_bytes: int = 0
    accounts: list[AccountSeen] = []
    """The busiest, by events, then by connections."""
    heads: dict[str, int] = {}
    """How far each account's log has come."""
    pages: dict[Any, Any] = {}
    """What was chosen of it, by what was wanted."""


class CensusesStatistics(Struct, frozen=True):
    """What is kept of the last look."""

    rows: int
    """Connections in it; 0: it is forgotten, or there were none."""


class Censuses:
    """Looks at all that is connected, at most one in two seconds. Events stay in a window for ``window_seconds``."""

    def __init__(
        self,
        connections: Connections,
        accounts: Callable[[], Iterable[Account]],
        schedule: Schedule,
        window_seconds: float = inf,
        tier_of: Callable[[str], Tier | None] = lambda account_id: None,
    ) -> None:
        self._connections = connections
        self._accounts = accounts
        self._window_seconds = window_seconds
        self._tier_of = tier_of
        self._looks = Looks(self._take, schedule)

    async def look(self) -> Census:
        """Return a look that is at most two seconds old; whoever asks while one is taken waits for that."""
        return await self._looks.look()

    def statistics(self) -> CensusesStatistics:
        """Return what is kept."""
        last = self._looks.last
        return CensusesStatistics(0 if last is None else len(last.rows))

    async def _take(self, before: Census | None) -> Census:
        census = Census(
            trio.current_time(), [], {"live": 0, "behind": 0, "paused": 0}, {"websocket": 0, "sse": 0, "poll": 0}
        )
        stood = {} if before is None else {row.entry.number: row for row in before.rows if row.state != "live"}
        connected: dict[str, tuple[int, Key]] = {}
        entries = self._connections.entries()
        for start in range(0, len(entries), SLICE):
            for entry in entries[start : start + SLICE]:
                row = row_of(entry, stood.get(entry.number))
                census.rows.append(row)
                census.states[row.state] += 1
                census.transports[entry.transport] += 1
                census.held_bytes += row.held_bytes
                number, _ = connected.get(str(entry.key.account_id), (0, entry.key))
                connected[str(entry.key.account_id)] = (number + (not entry.watch), entry.key)
            await trio.lowlevel.checkpoint()
        await self._look_at_accounts(census, before, connected)
        return census

    async def _look_at_accounts(
        self, census: Census, before: Census | None, connected: dict[str, tuple[int, Key]]
    ) -> None:
        """Find the busiest accounts, in steps."""
        busiest: list[tuple[float, int, str, Account]] = []
        accounts = list(self._accounts())
        for start in range(0, len(accounts), SLICE):
            for account in accounts[start : start + SLICE]:
                account_id, head = account.buffer.account_id, account.buffer.head
                census.heads[account_id] = head
                came = 0 if before is None else head - before.heads.get(account_id, head)
                rate = 0.0 if before is None else came / (census.at - before.at)
                busiest.append((rate, connected.get(account_id, (0, None))[0], account_id, account))
            busiest = sorted(busiest, key=lambda told: (-told[0], -told[1], told[2]))[:MOST_ACCOUNTS_SHOWN]
            await trio.lowlevel.checkpoint()
        census.accounts = [
            self._account_of(account, rate, connected.get(account_id), census.at)
            for rate, _, account_id, account in busiest
        ]

    def _account_of(self, account: Account, rate: float, connected: tuple[int, Key] | None, now: float) -> AccountSeen:
        buffer = account.buffer
        too_old_through = buffer.position_before(now - self._window_seconds)
        tier = self._tier_of(buffer.account_id) if connected is None else connected[1].tier
        return AccountSeen(
            buffer.account_id,
            round(rate, 1),
            0 if connected is None else connected[0],
            None if tier is None else MAX_CONNECTIONS[tier],
            len(buffer),
            buffer.bytes,
            round(now - buffer.first().stored_at, 1) if len(buffer) else None,
            tier,
            too_old_through is not None and buffer.dropped_through > too_old_through,
        )


def row_of(entry: OpenConnection, before: Row | None) -> Row:
    """Return what a connection is now; ``before``: what it was in the last look, if it was not live then."""
    connected, now = entry.connected, entry.connected.statistics()
    state: ConnectionState = "live"
    if not now.live:
        stands = before is not None and (before.position, before.held_bytes) == (now.position, now.remainder_bytes)
        state = "paused" if stands else "behind"
    return Row(
        entry,
        state,
        now.position,
        now.behind,
        now.behind_since,
        now.remainder_bytes,
        now.waiting_commands,
        inboxes_of(now.selection),
        connected.last_heard(),
    )
