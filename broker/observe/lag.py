"""How late the event loop is: a task that measures how much later it wakes than it wanted to."""

from typing import Final

import trio

from ..durations import Durations, DurationsStatistics

LOOK_SECONDS: Final = 0.5


class LoopLag:
    """What everybody waits for when somebody's step is too long."""

    def __init__(self) -> None:
        self._late = Durations()

    async def run(self) -> None:
        """Measure, for ever."""
        while True:
            due = trio.current_time() + LOOK_SECONDS
            await trio.sleep_until(due)
            self._late.add(trio.current_time() - due)

    def statistics(self) -> DurationsStatistics:
        """Return how late it was, each half second."""
        return self._late.statistics()
