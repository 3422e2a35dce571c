"""When an event is posted again: thirteen attempts in three days, as Standard Webhooks advises.

Pure: time and chance come in as arguments.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from msgspec import Struct

_MINUTE: Final = 60.0
_HOUR: Final = 3_600.0
DELAYS_SECONDS: Final = (
    5.0,
    30.0,
    *(minutes * _MINUTE for minutes in (2, 10, 30)),
    *(hours * _HOUR for hours in (1, 2, 4, 8, 12, 20, 24)),
)
"""What lies between two attempts: 71.7 hours in all."""
MAX_ATTEMPTS: Final = len(DELAYS_SECONDS) + 1
SPREAD: Final = 0.2
"""By how much a delay is shortened or lengthened by chance: what failed together does not come back together."""
LIFETIME_SECONDS: Final = 72 * _HOUR
"""How long an event waits for its endpoint. Its last attempt is made when this is over, if it has one left."""
GRACE_SECONDS: Final = 5 * _MINUTE
"""How long that last attempt may be late before the event is a dead letter without it."""
MAX_RETRY_AFTER_SECONDS: Final = 24 * _HOUR
MAX_ENDPOINT_HOLD_SECONDS: Final = _HOUR


class Verdict(Struct, frozen=True):
    """What follows from an attempt that failed."""

    due_at: float | None
    """When the next one is due; None: there is none."""
    hold_seconds: float
    """For how long the endpoint wants to be left alone, with all its events."""


def after_failure(
    attempts: int, now: float, born_at: float, chance: float, retry_after_seconds: float = 0.0
) -> Verdict:
    """Return what follows when the last of ``attempts`` failed.

    Times are seconds since 1970; the event is the endpoint's since ``born_at``. ``chance`` is between 0 and 1.
    ``retry_after_seconds`` is what the endpoint asked for: it makes the delay longer, never shorter.
    """
    hold_seconds = min(retry_after_seconds, MAX_ENDPOINT_HOLD_SECONDS)
    ends_at = born_at + LIFETIME_SECONDS
    if attempts >= MAX_ATTEMPTS or now >= ends_at:
        return Verdict(None, hold_seconds)
    delay = DELAYS_SECONDS[attempts - 1] * (1 - SPREAD + 2 * SPREAD * chance)
    delay = max(delay, min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS))
    return Verdict(min(now + delay, ends_at), hold_seconds)


def retry_after_of(value: str | None, now: float) -> float:
    """Return the seconds that a `Retry-After` asks for, a number or a date (RFC 9110 section 10.2.3); 0: for none.

    ``now`` is seconds since 1970. What is not understood asks for none.
    """
    if value is None:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(min(int(value[:9]), MAX_RETRY_AFTER_SECONDS))
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, min((moment - datetime.fromtimestamp(now, UTC)).total_seconds(), MAX_RETRY_AFTER_SECONDS))
