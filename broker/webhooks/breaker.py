"""How much an endpoint is asked at once: nothing while it does not answer, little when it does again.

Pure: time comes in as an argument (seconds of a clock that does not jump). A breaker is in one of three states:

| state | posts at once | what may follow |
|---|---|---|
| closed | `most`, or fewer after it was open | 5 failures running: open |
| open until a time | none; from then on one, the probe | the probe is begun: probing |
| probing | none beside the probe | success: closed, one at once, then doubling; failure: open, twice as long |

A probe without an outcome leaves it open for another.
"""

from typing import Final, Literal

from msgspec import Struct

FAILURES_TO_OPEN: Final = 5
FIRST_OPEN_SECONDS: Final = 30.0
MAX_OPEN_SECONDS: Final = 3_600.0
MOST_AT_ONCE: Final = 8

State = Literal["closed", "open", "probing"]


class Breaker(Struct):
    """One endpoint's. ``most``: how many posts it may have under way."""

    most: int = MOST_AT_ONCE
    state: State = "closed"
    failures: int = 0
    """Running."""
    at_once: int = MOST_AT_ONCE
    """How many posts may be under way while it is closed."""
    open_seconds: float = 0.0
    """For how long it was opened last; 0: never since it last closed for good."""
    until: float = 0.0
    """Until when it is open."""
    held_until: float = 0.0
    """Until when the endpoint asked to be left alone."""

    def room(self, under_way: int, now: float) -> int:
        """Return how many posts may be begun now, beside those under way."""
        if now < self.held_until or self.state == "probing":
            return 0
        if self.state == "open":
            return 1 if now >= self.until and not under_way else 0
        return max(0, min(self.most, self.at_once) - under_way)

    def opens_at(self) -> float:
        """Return from when on something may be begun, if not now."""
        return max(self.held_until, self.until if self.state == "open" else 0.0)

    def begun(self) -> None:
        """Hear that a post is begun."""
        if self.state == "open":
            self.state = "probing"

    def succeeded(self) -> None:
        """Hear that one was taken."""
        if self.state == "closed":
            self.at_once = min(self.most, self.at_once * 2)
            if self.at_once >= self.most:
                self.open_seconds = 0.0
        else:
            self.state, self.at_once = "closed", 1
        self.failures = 0

    def failed(self, now: float) -> None:
        """Hear that one was not."""
        self.failures += 1
        if self.state == "probing" or (self.state == "closed" and self.failures >= FAILURES_TO_OPEN):
            self.state = "open"
            self.open_seconds = min(max(FIRST_OPEN_SECONDS, self.open_seconds * 2), MAX_OPEN_SECONDS)
            self.until = now + self.open_seconds

    def given_up(self, now: float) -> None:
        """Hear that one was not finished: nothing is known of the endpoint by it."""
        if self.state == "probing":
            self.state, self.until = "open", now

    def hold(self, seconds: float, now: float) -> None:
        """Leave the endpoint alone for a while: it asked for it."""
        self.held_until = max(self.held_until, now + seconds)

    def reset(self) -> None:
        """Forget what was: the endpoint is another."""
        self.state, self.failures, self.at_once = "closed", 0, self.most
        self.open_seconds = self.until = self.held_until = 0.0
