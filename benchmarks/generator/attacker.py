"""A hostile client: does what a row of the table says, again and again, in a process of its own."""

from dataclasses import dataclass

import trio

from ..hostile.client import UnexpectedError
from ..hostile.table import ROWS
from ..hostile.target import Target
from .opening import raise_open_files_limit


@dataclass(frozen=True)
class Attacked:
    """What came of it: how often it was done whole, and what the broker answered otherwise than it promises."""

    times: int
    unexpected: str


class Attacker:
    """Does one row.

    Args:
        name: of the row.
        target: the broker.
        control: not used: nothing is received between calls.
    """

    def __init__(self, name: str, target: Target, control: int) -> None:
        raise_open_files_limit()
        self._row = ROWS[name]
        self._target = target

    def attack(self, seconds: float) -> Attacked:
        """Do it until time is up."""
        return trio.run(self._attack, seconds)

    async def _attack(self, seconds: float) -> Attacked:
        times, unexpected = 0, ""
        with trio.move_on_after(seconds):
            while not unexpected:
                unexpected = await self._attack_once()
                times += not unexpected
        return Attacked(times, unexpected)

    async def _attack_once(self) -> str:
        """Return what the broker answered otherwise than it promises, "" if nothing."""
        unexpected = ""
        try:
            await self._row.attack(self._target)
        except* UnexpectedError as group:
            unexpected = str(_first(group))
        return unexpected


def _first(group: BaseException) -> BaseException:
    return _first(group.exceptions[0]) if isinstance(group, BaseExceptionGroup) else group
