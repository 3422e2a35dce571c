"""Counting what the code does between two checkpoints: work, not time."""

import pkgutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import pytest
import trio

T = TypeVar("T")


class Work(trio.abc.Instrument):
    """Counts calls. ``most`` is the most of them that any step of any task made, ``total`` all.

    ``most_of_turn`` is the most that all steps made between two looks at what the network brought.
    """

    def __init__(self) -> None:
        self._in_step = 0
        self._in_turn = 0
        self.most = 0
        self.most_of_turn = 0
        self.total = 0

    def counted(self, function: Callable[..., Any], amount: Callable[[Any], int] = lambda _: 1) -> Callable[..., Any]:
        """The same function, counting: one a call, or as much as ``amount(result)`` says."""

        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self._in_step += amount(result)
            return result

        return call

    def before_task_step(self, task: object) -> None:
        self._in_step = 0

    def after_task_step(self, task: object) -> None:
        self.most = max(self.most, self._in_step)
        self.total += self._in_step
        self._in_turn += self._in_step
        self._in_step = 0

    def before_io_wait(self, timeout: float) -> None:
        self.most_of_turn = max(self.most_of_turn, self._in_turn)
        self._in_turn = 0


@contextmanager
def counting(target: str, amount: Callable[[Any], int] = lambda _: 1) -> Iterator[Work]:
    """Count the calls of what stands at this dotted name, inside the block, which must run in trio."""
    work = Work()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, work.counted(pkgutil.resolve_name(target), amount))
        trio.lowlevel.add_instrument(work)
        try:
            yield work
        finally:
            trio.lowlevel.remove_instrument(work)


class Rounds(trio.abc.Instrument):
    """Counts the turns of the loop: how often the network was looked at."""

    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


class Growth(trio.abc.Instrument):
    """Notes how long a list is at each look at the network."""

    def __init__(self, watched: Sequence[Any]) -> None:
        self._watched = watched
        self._lengths = [0]

    def before_io_wait(self, timeout: float) -> None:
        self._lengths.append(len(self._watched))

    @property
    def most(self) -> int:
        """By how much it grew at most between two."""
        return max(after - before for before, after in pairwise(self._lengths))


def result_of(steps: Generator[Any, None, T]) -> T:
    """What comes of steps in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value
