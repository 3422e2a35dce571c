"""Token buckets: how often something may be done.

Pure: time comes in as an argument (monotonic seconds).
"""

import math
from typing import Final

from msgspec import Struct

from ..config import RateConfig
from ..errors import RequestError

_ROUNDING: Final = 1e-5
"""So much of a token may be missing: the sums of floating point. It is owed, so nobody gains by it."""


class TokenBucket(Struct):
    """``per_second`` tokens come in, at most ``burst`` are kept. A new bucket is full."""

    per_second: float
    burst: float
    tokens: float
    filled_at: float

    @classmethod
    def full(cls, per_second: float, burst: float, now: float) -> "TokenBucket":
        """Return a full bucket."""
        return cls(per_second, burst, burst, now)

    def wait_seconds(self, amount: float, now: float) -> float:
        """Return in how many seconds ``amount`` could be taken; 0 if it can be now.

        What is more than the bucket can ever hold may be taken from a full one, which then owes the rest.
        """
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.per_second)
        self.filled_at = now
        missing = min(amount, self.burst) - self.tokens
        return missing / self.per_second if missing > _ROUNDING else 0.0

    def is_full(self, now: float) -> bool:
        """Whether it holds all that it can: then it is as good as a new one."""
        return self.wait_seconds(self.burst, now) == 0

    def change(self, per_second: float, burst: float, now: float) -> None:
        """Go on with another rate: what came in until now stays, as far as there is room."""
        self.wait_seconds(0, now)
        self.per_second, self.burst = per_second, burst
        self.tokens = min(self.tokens, burst)

    def take(self, amount: float) -> None:
        """Take an amount for which `wait_seconds` returned 0."""
        self.tokens -= amount


def require_of_all(buckets: list[TokenBucket], amount: float, now: float, what: str) -> None:
    """Raise `RequestError` (`rate_limited`) with when to come back, if an amount cannot be taken from every bucket."""
    wait = max((bucket.wait_seconds(amount, now) for bucket in buckets), default=0.0)
    if wait > 0:
        raise RequestError("rate_limited", f"Too many {what}", retry_after_ms=math.ceil(wait * 1000))


def take_from_all(buckets: list[TokenBucket], amount: float, now: float, what: str) -> None:
    """Take an amount from every bucket, or from none. Raises `RequestError` (`rate_limited`) with when to come back."""
    require_of_all(buckets, amount, now, what)
    for bucket in buckets:
        bucket.take(amount)


class Rates:
    """The buckets of one tier's rates, of one account or one connection; a rate that is not set limits nothing."""

    __slots__ = ("commands", "events")

    def __init__(self) -> None:
        self.commands: list[TokenBucket] = []
        self.events: list[TokenBucket] = []

    def change(self, commands: RateConfig | None, events: RateConfig | None, now: float) -> None:
        """Set the rates; a bucket that is there keeps what is in it."""
        _change(self.commands, commands, now)
        _change(self.events, events, now)


def _change(buckets: list[TokenBucket], rate: RateConfig | None, now: float) -> None:
    if rate is None:
        buckets.clear()
        return
    burst = rate.burst or max(1, rate.per_second)
    if buckets:
        buckets[0].change(rate.per_second, burst, now)
    else:
        buckets.append(TokenBucket.full(rate.per_second, burst, now))
