"""What an operator watches while it changes: the broker's figures in one small frame a second (`/v1/operator/live`).

All who watch are given the same frame: it is made once, however many they are, and has a bound whatever the size of the
broker. Counters are totals since the start: whoever watches makes rates of them.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import trio
from msgspec import Struct

from ..config import Config
from ..durations import BOUNDS, DurationsStatistics
from ..errors import RequestError
from ..protocol.messages import encode, format_time
from .census import AccountSeen, Census, Censuses
from .connections import ConnectionClosed, Connections
from .statistics import BrokerStatistics

MAX_FRAME_BYTES: Final = 8_192
"""Of a snapshot: where names are long, fewer of the connections that were closed lately are told of."""
EVERY_SECONDS: Final = (1, 60)
"""How many seconds may lie between two frames, for one who watches: from and to."""
MAX_WATCHING: Final = 64
"""Who may watch at once: each costs the writing of a frame a second."""
WATCH_RETRY_MS: Final = 5_000
FRESH_SECONDS: Final = 0.5
"""How old a frame may be that is given once more."""


class ConnectionCounts(Struct, frozen=True):
    """How many connections there are, by what they do and by what carries them."""

    total: int
    live: int
    behind: int
    paused: int
    websocket: int
    sse: int
    poll: int


class LiveCounters(Struct, frozen=True):
    """What was counted since the start."""

    published: int
    delivered: int
    fell_behind: int
    gaps: int
    gap_events: int
    """Events that were missed in gaps, as far as their number is known."""
    refused: Mapping[str, int]
    """Requests, by error code."""


class Buckets(Struct, frozen=True):
    """Durations since the start: ``counts`` has one more than ``buckets``, the upper bounds in seconds."""

    buckets: tuple[float, ...]
    counts: tuple[int, ...]


class LiveWindow(Struct, frozen=True):
    """The replay window in memory, over all accounts."""

    events: int
    bytes: int
    max_bytes: int
    seconds: float
    """How far back it reaches by its configuration."""
    shortest_seconds: float
    """How far back that one reached which last lost an event to a limit of events or bytes; else ``seconds``."""
    disk_seconds: float | None
    """How far back the log on disk reaches; null: there is none, and what memory drops is lost."""


class Snapshot(Struct, frozen=True, tag_field="type", tag="operator.snapshot"):
    """A broker at one moment, as its operators see it."""

    at: str
    version: str
    uptime_seconds: float
    draining: bool
    connections: ConnectionCounts
    held_bytes: int
    """Of frames that kernels did not take yet."""
    counters: LiveCounters
    delay_seconds: Buckets
    """From publish to when the kernel has it for the last subscriber of a batch."""
    loop_lag_seconds: Buckets
    window: LiveWindow
    accounts: list[AccountSeen]
    """The ten busiest."""
    closed: list[ConnectionClosed]
    """Connections that ended last, the last one first: twenty at most."""
    keeper: bool | None = None
    """Whether this node keeps webhooks and queues for others, or stands by; null: neither."""


class LiveStatistics(Struct, frozen=True):
    """Who watches."""

    watching: int


class Live:
    """Makes the frames. ``statistics`` and ``config`` are the broker's, read when a frame is made."""

    def __init__(
        self,
        censuses: Censuses,
        statistics: Callable[[], BrokerStatistics],
        config: Callable[[], Config],
        connections: Connections,
        version: str,
    ) -> None:
        self._censuses = censuses
        self._statistics = statistics
        self._config = config
        self._connections = connections
        self._version = version
        self.together: Callable[[Snapshot], Awaitable[Snapshot]] | None = None
        """What makes the figures of this process those of the broker; None: it is all of the broker."""
        self._began_at = 0.0
        self._watching = 0
        self._making = trio.Lock()
        self._frame = b""
        self._made_at = -1.0
        """By trio's clock; less than 0: none was made."""

    def begin(self) -> None:
        """Let the time begin that the broker is up."""
        self._began_at = trio.current_time()

    async def frame(self, *, new: bool = False) -> bytes:
        """Return the JSON of a `Snapshot`, half a second old at most, or new; others have their turn meanwhile."""
        async with self._making:
            if new or self._made_at < 0 or trio.current_time() - self._made_at >= FRESH_SECONDS:
                snapshot = await self.own()
                if self.together is not None:
                    snapshot = await self.together(snapshot)
                self._frame, self._made_at = encode_snapshot(snapshot), trio.current_time()
            return self._frame

    async def own(self) -> Snapshot:
        """Return the figures of this process alone."""
        return self._snapshot(await self._censuses.look())

    def watch(self) -> Callable[[], None]:
        """Count one more who watches; return what takes that back. Raises `RequestError` if there are too many."""
        if self._watching >= MAX_WATCHING:
            raise RequestError("rate_limited", f"{MAX_WATCHING} watch already", retry_after_ms=WATCH_RETRY_MS)
        self._watching += 1

        def leave() -> None:
            self._watching -= 1

        return leave

    def statistics(self) -> LiveStatistics:
        """Return who watches."""
        return LiveStatistics(self._watching)

    def _snapshot(self, census: Census) -> Snapshot:
        statistics = self._statistics()
        hub, replay, config = statistics.hub, statistics.replay, self._config()
        settings, storage = config.replay, config.storage
        squeezed = replay.squeezed_seconds
        return Snapshot(
            format_time(datetime.fromtimestamp(time.time(), UTC)),
            self._version,
            round(trio.current_time() - self._began_at, 1),
            statistics.draining,
            ConnectionCounts(len(census.rows), **census.states, **census.transports),
            census.held_bytes,
            LiveCounters(
                statistics.published,
                hub.events,
                hub.fell_behind,
                hub.gaps,
                hub.missed,
                statistics.connections.refused,
            ),
            _buckets(hub.last_delivery),
            _buckets(statistics.loop_lag),
            LiveWindow(
                replay.events,
                replay.bytes,
                settings.max_bytes_total,
                settings.seconds,
                settings.seconds if squeezed is None else round(squeezed, 1),
                None if storage.path is None or config.engine.url is not None else storage.keep_seconds,
            ),
            census.accounts,
            self._connections.closed_lately(),
            None if statistics.keeper is None else statistics.keeper.held,
        )


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return a snapshot as JSON of at most `MAX_FRAME_BYTES`: what does not fit of the closed ones is left out."""
    frame = encode(snapshot)
    while len(frame) > MAX_FRAME_BYTES and snapshot.closed:
        snapshot.closed.pop()
        frame = encode(snapshot)
    return frame


def _buckets(durations: DurationsStatistics) -> Buckets:
    return Buckets(BOUNDS, durations.counts)
