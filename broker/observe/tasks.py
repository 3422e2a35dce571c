"""The tree of trio's tasks as it is now: who runs under whom, where each waits, and what each connection does.

Nothing but names, lines and what `connections` tells is in it: no argument, no variable, no payload. It is read in
steps, so a task may have ended while others were looked at.
"""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

import trio
from msgspec import UNSET, Struct, UnsetType

from .connections import Connections, ConnectionSeen, OpenConnection, seen

MOST_TASKS: Final = 1_000
"""That are told of; the ones nearest to the root first."""
MOST_OF_ONE_NAME: Final = 20
"""Under one task; of the others it is told how many they are."""
MOST_NAMES: Final = 100
"""Of others under one task; the rest is one number."""
SLICE: Final = 32
"""Tasks that are read in one step: each costs some ten microseconds."""
_MACHINERY: Final = ("trio._core._traps", "trio._core._run", "trio.lowlevel")
_LONGEST_NAME: Final = 200


class TaskSeen(Struct):
    """One task, and those under it."""

    name: str
    at: str
    """Where it is in the broker's own code, or, if nowhere, in what else it runs: a function and a line."""
    waits_for: str
    """What it waits in there."""
    tasks: list["TaskSeen"]
    more: dict[str, int]
    """How many others of which name are under it, who are not told of."""
    connection: ConnectionSeen | UnsetType = UNSET
    """What it serves."""


class Tree(Struct, frozen=True):
    """What `GET /debug/tasks` answers."""

    root: TaskSeen
    told: int
    """Tasks in it."""


async def task_tree(connections: Connections, root: trio.lowlevel.Task) -> Tree:
    """Return the tree under a task, with what each connection in it does. Others have their turn meanwhile."""
    serving = await connections.by_task()
    top = _seen(root, serving)
    told = 1
    waiting = deque([(root, top)])
    while waiting:
        task, above = waiting.popleft()
        names = Counter[str]()
        for number, child in enumerate(children_of(task), start=1):
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()
            name = name_of(child)
            names[name] += 1
            if names[name] > MOST_OF_ONE_NAME or told >= MOST_TASKS:
                counted_as = name if name in above.more or len(above.more) < MOST_NAMES else "others"
                above.more[counted_as] = above.more.get(counted_as, 0) + 1
                continue
            told += 1
            below = _seen(child, serving)
            above.tasks.append(below)
            waiting.append((child, below))
        await trio.lowlevel.checkpoint()
    return Tree(top, told)


def children_of(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Yield the tasks that run under one."""
    for nursery in list(task.child_nurseries):
        yield from nursery.child_tasks


def name_of(task: trio.lowlevel.Task) -> str:
    """Return what a task is called."""
    return task.name[:_LONGEST_NAME]


def places_of(task: trio.lowlevel.Task) -> tuple[str, str]:
    """Return where a task is in the broker's own code, or, if nowhere, in what else it runs; and what it waits in."""
    frames = [
        (str(frame.f_globals.get("__name__", "")), frame.f_code.co_qualname, line)
        for frame, line in task.iter_await_frames()
    ]
    ours = [f"{module}.{name}:{line}" for module, name, line in frames if module.split(".")[0] == "broker"]
    others = [f"{module}.{name}:{line}" for module, name, line in frames if not module.startswith("trio.")]
    waits = [f"{module}.{name}" for module, name, _ in frames if module not in _MACHINERY]
    return (ours or others or [""])[-1], (waits or [""])[-1]


def _seen(task: trio.lowlevel.Task, serving: dict[trio.lowlevel.Task, OpenConnection]) -> TaskSeen:
    connection = serving.get(task)
    return TaskSeen(name_of(task), *places_of(task), [], {}, UNSET if connection is None else seen(connection))
