"""A row of the table: one thing that a client may do, and what that may cost the broker."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from .target import Target

MEBIBYTE: Final = 2**20
MESSAGE_BYTES: Final = MEBIBYTE
"""The greatest WebSocket message by default."""
BODY_BYTES: Final = 8 * MEBIBYTE
"""The greatest body by default."""
TIMES_THE_BODY: Final = 8
"""What a message or a body may cost in memory while it is dealt with, times its own size."""
SMALL_BYTES: Final = 65_536
"""What is no greater costs nothing that can be told from what everybody else costs."""
SLACK_BYTES: Final = 8 * MEBIBYTE
"""What everybody else, and the allocator, takes meanwhile."""
ACCOUNT_BODIES_BYTES: Final = 32 * MEBIBYTE
"""What bodies under way may hold for one account by default."""
ACCOUNT_NAMES_BYTES: Final = 32 * MEBIBYTE
"""What one account's connections may name by default."""
WINDOW_BYTES: Final = 64 * MEBIBYTE
"""What an account's window may hold by default."""
DROPPED_BYTES: Final = 32 * MEBIBYTE
"""What may be known of an account's events that have left its window: who publishes on and on comes to that."""
DISK_CACHE_BYTES: Final = 16 * MEBIBYTE
"""What SQLite keeps of a log on disk for the thread that writes."""


@dataclass(frozen=True)
class Row:
    """One input.

    Args:
        name: of a few words, joined by hyphens.
        does: what the client does, and with which key.
        attack: does it once. Raises `UnexpectedError` if the broker answers otherwise than it promises.
        message_bytes: of the greatest single message or body that it sends.
        body: makes that body, if its size is not said.
        may_hold_bytes: what it may make the broker keep beside `TIMES_THE_BODY`: a window, a budget, a cache.
        settings: sections of TOML that the broker's configuration has for it.
        asks: whether the broker asks the operator's API for keys and commands that it does not know.
    """

    name: str
    does: str
    attack: Callable[[Target], Awaitable[None]]
    message_bytes: int = 0
    body: Callable[[], bytes] | None = None
    may_hold_bytes: int = 0
    settings: str = ""
    asks: bool = False

    @property
    def has_bound(self) -> bool:
        """Whether it sends something great, or makes the broker keep something."""
        return bool(self.message_bytes > SMALL_BYTES or self.body or self.may_hold_bytes)

    @cached_property
    def most_bytes(self) -> int:
        """What it may make the broker hold at most, if it has a bound."""
        greatest = len(self.body()) if self.body else self.message_bytes
        return self.may_hold_bytes + TIMES_THE_BODY * greatest + SLACK_BYTES
