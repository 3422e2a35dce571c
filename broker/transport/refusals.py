"""What an operator is told of requests that were refused: so many a minute, fewer of one address, the rest counted.

Pure. A stranger who knocks all night fills no log, and hides nobody else's refusal. Nothing of a query or a header is
told: keys are there. Nor is what a client wrote where it was not understood: that may be of a payload.
"""

import re
from collections import Counter
from typing import Final

from ..errors import RequestError
from ..logline import LogLine

WINDOW_SECONDS: Final = 60.0
MOST: Final = 60
"""Refusals that are told in a window."""
MOST_OF_ONE: Final = 10
"""Of these, of one address."""
_LONGEST: Final = 200
_LONGEST_READ: Final = 2_000
_GIVEN: Final = re.compile(
    r"""(?<![A-Za-z&])(?:'(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$))|(?<=number )\S+(?= is)|(?<=called )`.*?`""",
    re.DOTALL,
)
"""What a client gave, where the message of an error quotes it."""


class Refusals:
    """What was told in this minute."""

    def __init__(self) -> None:
        self._ends_at = 0.0
        self._told: Counter[str | None] = Counter()
        self._left_out = 0

    def tell(self, now: float, what: str, remote: str | None, key: str | None, error: RequestError) -> list[LogLine]:
        """Return the lines for the log: none if enough was told; after a minute first what was left out in it.

        ``what`` is the request, ``key`` whose credential it bore, if that is known; ``now`` is of any steady clock.
        """
        lines = []
        if now >= self._ends_at:
            if self._left_out:
                lines.append(LogLine("more requests were refused", requests=self._left_out))
            self._ends_at, self._left_out = now + WINDOW_SECONDS, 0
            self._told.clear()
        if self._told.total() >= MOST or self._told[remote] >= MOST_OF_ONE:
            self._left_out += 1
            return lines
        self._told[remote] += 1
        said = _without_quotes(error.message)
        line = LogLine(
            "request refused", request=what, remote=remote, key=key, status=error.status, code=error.code, message=said
        )
        return [*lines, line]


def _without_quotes(message: str) -> str:
    """Return what an error says in the broker's own words."""
    return ascii(_GIVEN.sub("...", message[:_LONGEST_READ]))[1:-1][:_LONGEST]
