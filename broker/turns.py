"""Turns: long work is done in steps, and everybody else has a turn between two of them.

A turn of the loop is all that is done between two looks at the network. Of the steps of many clients it has room for
one of a kind that many others follow from (`Turns.take`), and for a millisecond's worth of others (`Turns.come_in`).
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable
from time import perf_counter, thread_time
from typing import Final, Generic, TypeVar

import trio

FULL_SECONDS: Final = 0.001
"""A turn of the loop that has lasted so long takes in nobody more."""
LONG_SECONDS: Final = 0.002
"""After one that has lasted so long half as many of those who wait are let in; after one of half of that, twice."""
FIRST_LET_IN: Final = 8
MOST_LET_IN: Final = 16
"""Little, for what they begin goes on in the turns that follow, beside those who are let in then."""

T = TypeVar("T")
Who = Hashable | None
"""For whom a turn is: an account's id; anything else is what is known of a stranger."""


def _nothing() -> None:
    """Do nothing."""


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


class _Round(Generic[T]):
    """What waits, by whom it is for. The next is of another account each time, and each second one of a stranger.

    So one account whose thousand clients wait is one in the round; and who comes anew, of whatever account, through
    whatever proxy, is as often next as all who came before.
    """

    def __init__(self, lot: Callable[[], T]) -> None:
        self._lot = lot
        self._strangers: OrderedDict[Who, T] = OrderedDict()
        self._accounts: OrderedDict[Who, T] = OrderedDict()
        """Both in the order of their turns."""
        self._turn_of_strangers = False

    def __bool__(self) -> bool:
        return bool(self._strangers or self._accounts)

    def lot(self, who: Who) -> T:
        """Return what waits for somebody, to add to it."""
        those = self._those(who)
        lot = those.get(who)
        if lot is None:
            lot = those[who] = self._lot()
        return lot

    def take(self) -> tuple[Who, T]:
        """Take out what waits for who is next. Of an empty round there is none."""
        self._turn_of_strangers = not self._turn_of_strangers
        first, second = self._accounts, self._strangers
        if self._turn_of_strangers:
            first, second = second, first
        return (first or second).popitem(last=False)

    def put_back(self, who: Who, lot: T) -> None:
        """Let the rest of what waits for somebody wait for his next turn."""
        self._those(who)[who] = lot

    def _those(self, who: Who) -> OrderedDict[Who, T]:
        return self._accounts if isinstance(who, str) else self._strangers


class _Waiting:
    """Those who wait."""

    def __init__(self) -> None:
        self._round = _Round(trio.lowlevel.ParkingLot)

    def __bool__(self) -> bool:
        return bool(self._round)

    async def wait(self, who: Who) -> None:
        """Wait until it is one's turn."""
        await self._round.lot(who).park()

    def let_one_go(self) -> bool:
        """Let the next one go on in the next turn of the loop. Returns whether there was one."""
        while self._round:
            who, lot = self._round.take()
            if lot:  # else all who waited were cancelled
                lot.unpark()
                if lot:
                    self._round.put_back(who, lot)
                return True
        return False


class _Acts:
    """What is to be done."""

    def __init__(self) -> None:
        self._round: _Round[deque[Callable[[], None]]] = _Round(deque)

    def __bool__(self) -> bool:
        return bool(self._round)

    def add(self, who: Who, act: Callable[[], None]) -> None:
        self._round.lot(who).append(act)

    def do_one(self) -> None:
        """Do the next one."""
        who, acts = self._round.take()
        act = acts.popleft()
        if acts:
            self._round.put_back(who, acts)
        act()


class _Clock(trio.abc.Instrument):
    """Knows when this turn of the loop began, and how many were woken in it."""

    began = 0.0
    woken = 0

    def after_io_wait(self, timeout: float) -> None:
        self.began = perf_counter()
        self.woken = 0


class Turns:
    """A turnstile, and a door, for the steps of many. Both go round the accounts."""

    def __init__(self) -> None:
        self._taken = False
        """Whether somebody is passing, or will be in the next turn of the loop."""
        self._next = _Waiting()
        self._acts = _Acts()
        """What is to be done later."""
        self._added = trio.Event()
        self._clock = _Clock()
        self._running = False
        """Whether somebody sees to those who wait; else nobody does: there is room, and later is now."""
        self._outside = _Waiting()
        self._asleep = _Acts()
        self._came = trio.Event()
        self.woken: Callable[[], None] = _nothing
        """Called for each that is woken, is let in after he has waited for that, or takes his turn."""

    # --- one at a time

    async def take(self, who: Who) -> None:
        """Let all others have their turn, then go on: one between two looks at the network."""
        if self._taken:
            await self._next.wait(who)
            self._taken = self._next.let_one_go()
        else:
            self._taken = True
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self._taken = self._next.let_one_go()
        self.woken()

    def later(self, who: Who, act: Callable[[], None]) -> None:
        """Do this when it is its turn, by a task of `run`; it must not raise."""
        if self._running:
            self._acts.add(who, act)
            self._added.set()
        else:
            act()

    # --- as many as there is room for

    @property
    def full(self) -> bool:
        """Whether so much was done in this turn of the loop that whoever wants to begin is to wait for another."""
        return self._running and perf_counter() - self._clock.began > FULL_SECONDS

    async def come_in(self, who: Who) -> None:
        """Go on at once if this turn of the loop has room for that, else in one that has."""
        if self.full:
            self._came.set()
            await self._outside.wait(who)

    def wake(self, who: Who, act: Callable[[], None]) -> None:
        """Wake somebody by ``act``: at once if few were woken in this turn of the loop, else in one with room for that.

        What many are woken for at once is work of the next turn, whatever room this one has. It must not raise.
        """
        if not self._running:
            act()
        elif self._clock.woken < FIRST_LET_IN and not self._asleep:
            self._clock.woken += 1
            self.woken()
            act()
        else:
            self._asleep.add(who, act)
            self._came.set()

    # --- who sees to it

    async def run(self) -> None:
        """Do what is to be done later, and let in who waits outside, for ever; at the end, all at once."""
        trio.lowlevel.add_instrument(self._clock)
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._act)
                nursery.start_soon(self._let_in)
        finally:
            self._running = False
            trio.lowlevel.remove_instrument(self._clock)
            while self._outside.let_one_go():
                pass
            for acts in (self._asleep, self._acts):
                while acts:
                    acts.do_one()

    async def _act(self) -> None:
        while True:
            await self._added.wait()
            self._added = trio.Event()
            while self._acts:
                await self.take(self)
                self._acts.do_one()

    async def _let_in(self) -> None:
        """Let in as many in each turn of the loop as it bears: it is known by how much work the last one was.

        By the processor's time: what other programs take of it is no reason to let in fewer.
        """
        most, wakes = FIRST_LET_IN, False
        while True:
            await self._came.wait()
            self._came = trio.Event()
            while self._outside or self._asleep:
                began = thread_time()
                for _ in range(most):
                    wakes = not wakes  # from turn to turn, too: of one kind there may always be more
                    if self._asleep and (wakes or not self._outside):
                        self.woken()
                        self._asleep.do_one()
                    elif self._outside.let_one_go():
                        self.woken()
                await trio.lowlevel.checkpoint()
                if thread_time() - began < LONG_SECONDS / 2:
                    await trio.lowlevel.checkpoint()  # some may have had their step after this task had its own
                lasted = thread_time() - began
                if lasted > LONG_SECONDS:
                    most = max(1, most // 2)
                elif lasted < LONG_SECONDS / 2:
                    most = min(MOST_LET_IN, most * 2)
