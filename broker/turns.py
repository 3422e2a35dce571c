"""Turns: long work is done in steps, and everybody else has a turn between two of them."""

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable
from typing import TypeVar

import trio

T = TypeVar("T")
Who = Hashable | None
"""For whom a turn is: an account's id; None: whoever has none."""


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
    """A turnstile for steps of many. However many pass through it, one comes out between two looks at the network.

    It goes round those who wait, account by account: one whose thousand clients wait is one in the round.
    """

    def __init__(self) -> None:
        self._taken = False
        """Whether somebody is passing, or will be in the next turn of the loop."""
        self._waiting: OrderedDict[Who, trio.lowlevel.ParkingLot] = OrderedDict()
        """In the order of their turns."""
        self._acts: OrderedDict[Who, deque[Callable[[], None]]] = OrderedDict()
        """What is to be done later, likewise."""
        self._added = trio.Event()

    async def take(self, who: Who) -> None:
        """Let all others have their turn, then go on. ``who`` is the account for which that is; None: a stranger."""
        if self._taken:
            lot = self._waiting.setdefault(who, trio.lowlevel.ParkingLot())
            await lot.park()
            self._pass_on()
        else:
            self._taken = True
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self._pass_on()

    def _pass_on(self) -> None:
        """Let the next one go on in the next turn of the loop."""
        while self._waiting:
            who, lot = self._waiting.popitem(last=False)
            if lot:  # else all who waited were cancelled
                lot.unpark()
                if lot:
                    self._waiting[who] = lot
                return
        self._taken = False

    def later(self, who: Who, act: Callable[[], None]) -> None:
        """Do this when it is its turn, by the task of `run`; it must not raise."""
        self._acts.setdefault(who, deque()).append(act)
        self._added.set()

    async def run(self) -> None:
        """Do what is to be done later, one act in a turn, for ever."""
        while True:
            await self._added.wait()
            self._added = trio.Event()
            while self._acts:
                await self.take(self)
                who, acts = self._acts.popitem(last=False)
                acts.popleft()()
                if acts:
                    self._acts[who] = acts
