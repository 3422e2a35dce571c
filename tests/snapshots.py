"""What a broker tells its operators, made by hand."""

from broker.observe.census import AccountSeen, ConnectionState
from broker.observe.choosing import OperatorConnection, OperatorPage
from broker.observe.connections import ConnectionClosed
from broker.observe.live import Buckets, ConnectionCounts, LiveCounters, LiveWindow, Snapshot

NASTY = "\x1b[2J[red]\u202e" + "x" * 120


def snapshot(
    *,
    uptime=10.0,
    draining=False,
    published=0,
    delivered=0,
    gaps=0,
    gap_events=0,
    refused=None,
    accounts=0,
    closed=0,
    disk_seconds=None,
) -> Snapshot:
    """A snapshot with these figures, and so many accounts and ended connections of long and nasty names."""
    buckets = Buckets((0.001, 0.1), (published, 0, 0))
    return Snapshot(
        "2026-11-23T10:00:00.000Z",
        "1.2.3",
        uptime,
        draining,
        ConnectionCounts(3, 1, 1, 1, 1, 1, 1),
        2_048,
        LiveCounters(published, delivered, 5, gaps, gap_events, refused or {}),
        buckets,
        buckets,
        LiveWindow(1_000, 500_000, 1_000_000, 300, 211, disk_seconds),
        [AccountSeen(f"{number}{NASTY}", 1.5, 2, 10, 3, 4, 5.0, squeezed=True) for number in range(accounts)],
        [
            ConnectionClosed("2026-11-23T10:00:00.000Z", f"conn_{number}", NASTY, 4408, NASTY, 3.2)
            for number in range(closed)
        ],
    )


def connection(number: int = 0, state: ConnectionState = "live", name: str = "worker") -> OperatorConnection:
    """A connection as an operator sees it."""
    behind = 0 if state == "live" else 1_234
    return OperatorConnection(
        f"conn_{number:024}", "acct_alice", "key_1", name, "websocket", "127.0.0.1", name, "2026-11-23T10:00:00.000Z",
        state, 3, behind, behind / 10, behind, 0, 1.5, 0.002, 10_000,
    )  # fmt: skip


def page(*connections: OperatorConnection) -> OperatorPage:
    """A page with these connections, of two hundred."""
    return OperatorPage(200, 150, list(connections))
