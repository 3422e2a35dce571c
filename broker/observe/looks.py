"""One look at much, for all who ask within two seconds; forgotten when nobody asks any more."""

from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import trio

from ..schedule import Schedule

LOOK_SECONDS: Final = 2.0
"""How old a look may be that is given to whoever asks."""
KEPT_SECONDS: Final = 10.0
"""How long one is kept when nobody asks."""

LookT = TypeVar("LookT")


class Looks(Generic[LookT]):
    """Gives what ``take`` makes, at most once in two seconds. ``take`` is given the last look, if it is still kept."""

    def __init__(self, take: Callable[[LookT | None], Awaitable[LookT]], schedule: Schedule) -> None:
        self._take = take
        self._schedule = schedule
        self._taking = trio.Lock()
        self.last: LookT | None = None
        """What is kept."""
        self._taken_at = 0.0
        self._asked_at = 0.0

    async def look(self) -> LookT:
        """Return a look that is at most two seconds old; whoever asks while one is taken waits for that."""
        self._asked_at = trio.current_time()
        async with self._taking:
            last = self.last
            if last is None or trio.current_time() - self._taken_at >= LOOK_SECONDS:
                if last is None:
                    self._schedule.add(self._asked_at + KEPT_SECONDS, self._forget)
                taken_at = trio.current_time()
                self.last = last = await self._take(last)
                self._taken_at = taken_at
            return last

    def _forget(self, now: float) -> float | None:
        """Keep nothing if nobody has asked for a while; else say when to look at that again."""
        if now - self._asked_at < KEPT_SECONDS:
            return self._asked_at + KEPT_SECONDS
        self.last = None
        return None
