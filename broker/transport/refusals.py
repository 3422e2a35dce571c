"""What an operator is told of requests that were refused: so many a minute, fewer of one address, the rest counted.

Pure. A stranger who knocks all night fills no log, and hides nobody else's refusal. Nothing of a query or a header is
told: keys are there.
"""

from collections import Counter
from typing import Final

from ..errors import RequestError

WINDOW_SECONDS: Final = 60.0
MOST: Final = 60
"""Refusals that are told in a window."""
MOST_OF_ONE: Final = 10
"""Of these, of one address."""
_LONGEST: Final = 200


class Refusals:
    """What was told in this minute."""

    def __init__(self) -> None:
        self._ends_at = 0.0
        self._told: Counter[str | None] = Counter()
        self._left_out = 0

    def tell(self, now: float, what: str, remote: str | None, key: str | None, error: RequestError) -> list[str]:
        """Return the lines for the log: none if enough was told; after a minute first what was left out in it.

        ``what`` is the request, ``key`` whose credential it bore, if that is known; ``now`` is of any steady clock.
        """
        lines = []
        if now >= self._ends_at:
            if self._left_out:
                lines.append(f"{self._left_out:,} more refusals were not told")
            self._ends_at, self._left_out = now + WINDOW_SECONDS, 0
            self._told.clear()
        if self._told.total() >= MOST or self._told[remote] >= MOST_OF_ONE:
            self._left_out += 1
            return lines
        self._told[remote] += 1
        # As ASCII: a client's own words may be in the message, and must not look like another line.
        message = ascii(error.message)[1:-1][:_LONGEST]
        who = f"{remote or 'unknown address'}, {key or 'no known key'}"
        return [*lines, f"refused: {what} ({who}): {error.status} {error.code}: {message}"]
