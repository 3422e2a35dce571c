"""Why a connection ended, and whether and when to come back. Pure."""

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

STAY_AWAY_CODES: Final = frozenset({1002, 1007, 1008, 4401, 4409})
STAY_AWAY_STATUSES: Final = frozenset({400, 401, 403, 404, 426})
MAX_WAIT_SECONDS: Final = 60.0
_WORDS: Final = {
    1000: "closed",
    1001: "the broker or something before it went away",
    1002: "broken framing",
    1006: "the connection was lost",
    1007: "text that is not UTF-8",
    1008: "too many bad frames",
    1009: "a message was too big",
    1011: "the broker failed",
    1012: "the broker restarts",
    4401: "the key was revoked",
    4408: "the broker heard nothing of this client",
    4409: "another connection of the same client_id took over",
}


@dataclass(frozen=True)
class Ending:
    """How a connection ended: by a close ``code``, or refused with a ``status`` and the refusal's own code."""

    reason: str
    code: int | str | None = None
    status: int | None = None
    wait_seconds: float = 0.0
    """At least so long it is to be waited."""

    @property
    def come_back(self) -> bool:
        """Whether to open again."""
        return self.code not in STAY_AWAY_CODES and self.status not in STAY_AWAY_STATUSES


def closed(code: int | None, reason: str = "", wait_seconds: float = 0.0) -> Ending:
    """Return the end of a connection that was open; ``code`` None: it broke."""
    code = 1006 if code is None else code
    said = _WORDS.get(code, f"closed with {code}")
    return Ending(f"{said} ({reason})" if reason and reason != said else said, code, wait_seconds=wait_seconds)


def not_opened(why: str) -> Ending:
    """Return the end of an opening that came to nothing."""
    return Ending(why, 1006)


def refused(status: int, code: str | None, message: str | None, retry_after: str | None, now: float) -> Ending:
    """Return the end of an opening that was refused; ``now`` is seconds since 1970."""
    said = f"refused with {status}: {message or code or 'no reason given'}"
    return Ending(said, code, status, retry_after_seconds(retry_after, now))


def retry_after_seconds(value: str | None, now: float) -> float:
    """Return the seconds of a Retry-After, a number or a date (RFC 9110 section 10.2.3); 0 for none."""
    if value is None:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


class BackOff:
    """How long to wait before the next attempt: by chance, up to twice as long each time. ``chance``: 0 to 1."""

    def __init__(self, first_seconds: float) -> None:
        self._first = first_seconds
        self.attempts = 0

    def succeeded(self) -> None:
        """Begin anew."""
        self.attempts = 0

    def next(self, ending: Ending, chance: float) -> float:
        """Return the seconds to wait after an ending."""
        self.attempts += 1
        limit = min(MAX_WAIT_SECONDS, self._first * 2.0 ** min(self.attempts - 1, 30))
        if ending.code == 1012 and ending.wait_seconds:
            return ending.wait_seconds
        waited = chance * limit
        return waited if math.isclose(ending.wait_seconds, 0.0) else ending.wait_seconds + waited
