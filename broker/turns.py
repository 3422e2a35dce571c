"""Turns: long work is done in steps, and everybody else has a turn between two of them."""

from collections.abc import Generator
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_turns(steps: Generator[None, None, T]) -> T:
    """Do all steps, with a checkpoint after each that is not the last; return their value.

    So what takes one step only is done at once, in the step of whoever calls this.
    """
    while True:
        try:
            next(steps)
        except StopIteration as done:
            value: T = done.value
            return value
        await trio.lowlevel.checkpoint()


class Turns:
    """A turnstile for steps of many. However many pass through it, one comes out between two looks at the network."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def take(self) -> None:
        """Let all others have their turn, then go on; of those who wait here, who came first goes first."""
        # The lock is held over the checkpoint of its own acquiring: who is next goes on a round later.
        async with self._lock:
            pass
