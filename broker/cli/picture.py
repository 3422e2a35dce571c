"""What `broker top` shows, before it is on a terminal: what is known, in which order, and as plain lines."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct, field

from ..observe.census import ConnectionState
from ..observe.choosing import OperatorConnection, OperatorPage, Order, Sort
from ..observe.live import Snapshot
from .figures import Rates, bytes_text, duration_text, is_another_run, number_text, rates_between, seconds_text
from .lines import plain

HISTORY: Final = 120
"""Seconds of rates that are kept for bars."""
SIGNS: Final[dict[ConnectionState, str]] = {"live": "●", "behind": "▲", "paused": "■"}
SORTS: Final[dict[str, Sort]] = {
    "b": "behind_events",
    "t": "behind_seconds",
    "h": "held_bytes",
    "c": "commands",
    "s": "silent_seconds",
    "i": "inboxes",
    "o": "opened_at",
    "a": "account_id",
}
"""By the key that is pressed for it."""
_UPWARDS: Final = frozenset({"account_id"})
"""What one wants to see in this order first."""
_STATES: Final[tuple[ConnectionState | None, ...]] = (None, "behind", "paused", "live")

Contact = Literal["connecting", "live", "lost"]
"""Whether the broker tells of itself."""


class Picture(Struct):
    """All that is shown."""

    url: str
    contact: Contact = "connecting"
    said: str = ""
    """Why the broker does not tell of itself."""
    snapshot: Snapshot | None = None
    rates: Rates | None = None
    page: OperatorPage | None = None
    sort: Sort = "behind_events"
    order: Order = "desc"
    only: ConnectionState | None = None
    incoming: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    outgoing: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    restarts: int = 0
    """Since it is watched."""

    def take(self, snapshot: Snapshot) -> None:
        """Show what a broker tells of itself now."""
        restarted = self.snapshot is not None and is_another_run(self.snapshot, snapshot, lost=self.contact == "lost")
        before, self.snapshot, self.contact, self.said = self.snapshot, snapshot, "live", ""
        self.restarts += restarted
        self.rates = None if before is None or restarted else rates_between(before, snapshot)
        if self.rates is not None:
            self.incoming.append(self.rates.published_per_second)
            self.outgoing.append(self.rates.delivered_per_second)

    def lose(self, why: str) -> None:
        """Show that the broker does not tell of itself, and why; what it told last stays."""
        self.contact, self.said, self.rates = "lost", why, None

    def press(self, key: str) -> bool:
        """Do what a key is for. Returns whether other connections are wanted now."""
        if key in SORTS:
            self.sort = SORTS[key]
            self.order = "asc" if self.sort in _UPWARDS else "desc"
        elif key == "r":
            self.order = "asc" if self.order == "desc" else "desc"
        elif key == "f":
            self.only = _STATES[(_STATES.index(self.only) + 1) % len(_STATES)]
        else:
            return False
        return True

    def wanted(self, limit: int) -> dict[str, str]:
        """Return the query for the connections that are to be shown."""
        query = {"sort": self.sort, "order": self.order, "limit": str(limit)}
        return query if self.only is None else {**query, "state": self.only}


# --- in words ----------------------------------------------------------------


def contact_words(picture: Picture) -> str:
    """Return how the broker is."""
    snapshot = picture.snapshot
    if picture.contact != "live" or snapshot is None:
        told = "" if snapshot is None else f" (what was told last is of {snapshot.at[11:19]})"
        return f"{picture.contact}: {picture.said}{told}" if picture.said else picture.contact
    words = "draining" if snapshot.draining else "serving"
    if snapshot.keeper is not None:
        words += ", keeper of webhooks and queues" if snapshot.keeper else ", not the keeper of webhooks and queues"
    restarted = "" if not picture.restarts else f", restarts seen: {picture.restarts}"
    return f"{words}, up {duration_text(snapshot.uptime_seconds)}{restarted}"


def connections_words(snapshot: Snapshot) -> str:
    """Return how many connections there are, and what they do."""
    counts = snapshot.connections
    carried = f"websocket {counts.websocket:,}, sse {counts.sse:,}, poll {counts.poll:,}"
    does = f"live {counts.live:,}, behind {counts.behind:,}, paused {counts.paused:,}"
    return f"connections {counts.total:,} ({does}; {carried}), held {bytes_text(snapshot.held_bytes)}"


def delay_words(rates: Rates | None) -> str:
    """Return how long deliveries took, and how late the event loop was."""
    if rates is None:
        return "publish → kernel -, loop lag -"
    p50, p99 = seconds_text(rates.delay_p50_seconds), seconds_text(rates.delay_p99_seconds)
    return f"publish → kernel p50 {p50}, p99 {p99}; loop lag p99 {seconds_text(rates.loop_lag_p99_seconds)}"


def loss_words(snapshot: Snapshot, rates: Rates | None) -> str:
    """Return what was missed, and by how much that has grown."""
    counters = snapshot.counters
    now = f" (now +{rates.gaps:,})" if rates is not None and rates.gaps else ""
    return f"gaps {counters.gaps:,}{now}, events missed {counters.gap_events:,}, fell behind {counters.fell_behind:,}"


def window_words(snapshot: Snapshot) -> str:
    """Return what the replay window holds."""
    window = snapshot.window
    reach = f"{window.seconds:g} s"
    if window.shortest_seconds < window.seconds:
        reach = f"{window.shortest_seconds:g} s of {reach}"
    held, most = bytes_text(window.bytes), bytes_text(window.max_bytes)
    on_disk = "" if window.disk_seconds is None else f"; on disk {duration_text(window.disk_seconds)}"
    return f"window {window.events:,} events, {held} of {most}, reaches {reach}{on_disk}"


def refused_words(snapshot: Snapshot) -> str:
    """Return what was refused since the start, the most frequent first."""
    refused = sorted(snapshot.counters.refused.items(), key=lambda told: -told[1])[:5]
    return "refused " + (", ".join(f"{reason} {count:,}" for reason, count in refused) or "nothing")


def line_of(picture: Picture) -> str:
    """Return it in one line."""
    snapshot, rates = picture.snapshot, picture.rates
    if snapshot is None or picture.contact != "live":
        return plain(contact_words(picture))
    counts = snapshot.connections
    told = [
        snapshot.at[11:19],
        contact_words(picture),
        f"connections {counts.total:,} (behind {counts.behind:,}, paused {counts.paused:,})",
    ]
    if rates is not None:
        told += [
            f"in {number_text(rates.published_per_second)}/s",
            f"out {number_text(rates.delivered_per_second)}/s",
            f"p99 {seconds_text(rates.delay_p99_seconds)}",
            f"lag {seconds_text(rates.loop_lag_p99_seconds)}",
        ]
    told.append(f"gaps {snapshot.counters.gaps:,}")
    return plain("  ".join(told))


COLUMNS: Final = ("state", "account", "client", "address", "behind", "for", "held", "cmds", "silent", "rtt", "agent")
"""Of the table of connections."""


def cells_of(connection: OperatorConnection) -> tuple[str, ...]:
    """Return what stands in the columns for a connection; nothing in it does anything to a terminal."""
    behind = connection.behind_events
    return tuple(
        plain(text)
        for text in (
            f"{SIGNS[connection.state]} {connection.state}",
            connection.account_id,
            connection.client_id or connection.connection_id[:13],
            connection.remote or "-",
            number_text(behind) if behind else "-",
            seconds_text(connection.behind_seconds) if behind else "-",
            bytes_text(connection.held_bytes) if connection.held_bytes else "-",
            number_text(connection.commands) if connection.commands else "-",
            seconds_text(connection.silent_seconds),
            seconds_text(connection.rtt_seconds),
            connection.agent or connection.transport,
        )
    )


def lines_of(picture: Picture) -> Iterator[str]:
    """Yield all of it as lines, for where there is no terminal; nothing in them does anything to one."""
    return map(plain, _lines_of(picture))


def _lines_of(picture: Picture) -> Iterator[str]:
    yield line_of(picture)
    snapshot = picture.snapshot
    if snapshot is None:
        return
    yield connections_words(snapshot)
    yield delay_words(picture.rates)
    yield loss_words(snapshot, picture.rates)
    yield window_words(snapshot)
    yield refused_words(snapshot)
    for account in snapshot.accounts:
        of = "" if account.max_connections is None else f" of {account.max_connections}"
        yield (
            f"account {account.account_id}: {number_text(account.events_per_second)} events/s,"
            f" connections {account.connections:,}{of}, window {account.window_events:,} events,"
            f" {bytes_text(account.window_bytes)}{', cut short' if account.squeezed else ''}"
        )
    page = picture.page
    if page is None or not page.connections:
        return
    rows = [COLUMNS, *map(cells_of, page.connections)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def document_of(picture: Picture) -> dict[str, Any]:
    """Return it for programs: what the broker told, and what follows from two snapshots."""
    told: dict[str, Any] = {"contact": picture.contact, "url": picture.url}
    if picture.said:
        told["said"] = picture.said
    parts = {"snapshot": picture.snapshot, "rates": picture.rates, "page": picture.page}
    return told | {name: msgspec.to_builtins(part) for name, part in parts.items()}
