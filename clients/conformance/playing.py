"""Plays scenes, several at a time, and tells how they went."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from .expecting import MismatchError
from .stage import Scene, Stage, open_stage

SCENE_SECONDS: Final = 120.0
AT_ONCE: Final = 4


@dataclass(frozen=True)
class Outcome:
    """How a scene went; ``mismatch`` is empty if the client did what it must."""

    scene: Scene
    command: tuple[str, ...]
    """What started its drivers."""
    seconds: float
    mismatch: str = ""


async def play(scene: Scene, command: Sequence[str]) -> Outcome:
    """Play one scene with the driver that ``command`` starts."""
    began, mismatch = time.monotonic(), ""
    stages: list[Stage] = []
    try:
        with trio.fail_after(SCENE_SECONDS):
            async with open_stage(scene, command) as stage:
                stages.append(stage)
                await scene.play(stage)
                await stage.end()
    except* (MismatchError, trio.TooSlowError) as group:
        found = _first_of(group)
        mismatch = str(found) if isinstance(found, MismatchError) else f"not over after {SCENE_SECONDS:g} s"
        mismatch += "".join(_told_by(stage) for stage in stages)
    return Outcome(scene, tuple(command), time.monotonic() - began, mismatch)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _told_by(stage: Stage) -> str:
    said = []
    for driver in stage.drivers:
        said.append(f"\n  {driver.name} has written:")
        said += [f"\n    {item}" for item in driver.trace[-20:]]
        said += [f"\n  | {line}" for line in driver.complaints]
    return "".join(said)


async def play_all(
    scenes: Iterable[tuple[Scene, Sequence[str]]], tell: Callable[[Outcome], None], at_once: int = AT_ONCE
) -> None:
    """Play scenes, each with its driver's command; ``tell`` hears of each as soon as it is over."""
    limit = trio.CapacityLimiter(at_once)

    async def one(scene: Scene, command: Sequence[str]) -> None:
        async with limit:
            outcome = await play(scene, command)
        tell(outcome)

    async with trio.open_nursery() as nursery:
        for scene, command in scenes:
            nursery.start_soon(one, scene, command)
