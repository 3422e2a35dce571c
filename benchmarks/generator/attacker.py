"""A hostile client: does what a row of the table says, again and again, in a process of its own."""

import math
from dataclasses import dataclass

import trio

from ..hostile.client import UnexpectedError
from ..hostile.row import Row
from ..hostile.table import ROWS
from ..hostile.target import Target
from .opening import raise_open_files_limit


@dataclass(frozen=True)
class Attacked:
    """What came of it: how often it was done whole, and what the broker answered otherwise than it promises."""

    times: int
    unexpected: str


class Attacker:
    """Does any row.

    Args:
        control: not used: nothing is received between calls.
    """

    def __init__(self, control: int) -> None:
        raise_open_files_limit()

    def attack(self, name: str, target: Target, seconds: float, most_times: float = math.inf) -> Attacked:
        """Do what a row says to a broker until time is up, or it was done so many times."""
        return trio.run(_attack, ROWS[name], target, seconds, most_times)


async def _attack(row: Row, target: Target, seconds: float, most_times: float) -> Attacked:
    times, unexpected = 0, ""
    with trio.move_on_after(seconds):
        while times < most_times and not unexpected:
            unexpected = await _attack_once(row, target)
            times += not unexpected
    return Attacked(times, unexpected)


async def _attack_once(row: Row, target: Target) -> str:
    """Return what the broker answered otherwise than it promises, "" if nothing."""
    unexpected = ""
    try:
        await row.attack(target)
    except* UnexpectedError as group:
        unexpected = str(_first(group))
    return unexpected


def _first(group: BaseException) -> BaseException:
    return _first(group.exceptions[0]) if isinstance(group, BaseExceptionGroup) else group
