"""A row of the table: one thing that a client may do, and what that may cost the broker."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from .target import Target

MEBIBYTE: Final = 2**20
MESSAGE_BYTES: Final = MEBIBYTE
"""The greatest WebSocket message by default."""
BODY_BYTES: Final = 8 * MEBIBYTE
"""The greatest body by default."""
TIMES_THE_BODY: Final = 8
"""What a message or a body may cost in memory while it is dealt with, times its own size."""
ACCOUNT_BODIES_BYTES: Final = 32 * MEBIBYTE
"""What bodies under way may hold for one account by default."""


@dataclass(frozen=True)
class Row:
    """One input.

    Args:
        name: of a few words, joined by hyphens.
        does: what the client does, and with which key.
        attack: does it once. Raises `UnexpectedError` if the broker answers otherwise than it promises.
        body_bytes: of the greatest single message or body that it sends.
        may_hold_bytes: what it may make the broker hold at most; 0: `TIMES_THE_BODY`.
        settings: sections of TOML that the broker's configuration has for it.
        asks: whether the broker asks the operator's API for keys and commands that it does not know.
    """

    name: str
    does: str
    attack: Callable[[Target], Awaitable[None]]
    body_bytes: int = 0
    may_hold_bytes: int = 0
    settings: str = ""
    asks: bool = False

    @property
    def most_bytes(self) -> int:
        """What it may make the broker hold at most."""
        return self.may_hold_bytes or TIMES_THE_BODY * self.body_bytes
