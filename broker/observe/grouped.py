"""The tree of tasks with what is alike in it told once: so many clients are idle, so many are catching up.

Tasks of one name under one task are a group, whatever their number; those that serve a connection are told apart by
what that does, and what is under each of them is asked for alone (`tasks`). All is read in steps.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final

import trio
from msgspec import Struct, field

from ..errors import RequestError
from ..schedule import Schedule
from .connections import Connections, OpenConnection
from .looks import Looks
from .tasks import Tree, children_of, name_of, places_of, task_tree

MOST_GROUPS: Final = 500
"""That are told of; the ones nearest to the root first."""
MOST_SAMPLES: Final = 5
"""Connections that are named, of a group."""
SLICE: Final = 64
"""Tasks that are counted in one step: each costs some microseconds."""


class TaskGroup(Struct):
    """Tasks that are alike."""

    name: str
    does: str
    """Of those that serve connections: by what these are carried, and what they do."""
    at: str
    """Where the first of them is in the broker's own code, or, if nowhere, in what else it runs."""
    waits_for: str
    """What that waits in there."""
    tasks: int = 0
    """How many they are."""
    connection_ids: list[str] = field(default_factory=list)
    """Some of the connections that they serve, five at most."""
    under: list["TaskGroup"] = field(default_factory=list)
    """What runs under them, all together; of those that serve connections nothing."""
    more: int = 0
    """Tasks under them that are in none of these groups."""


class GroupedTree(Struct, frozen=True):
    """What `GET /debug/tasks?grouped=1` answers."""

    root: TaskGroup
    tasks: int
    """That were counted, all together; those under connections are not."""


class Tasks:
    """What runs, for operators: the tree and its groups, each at most once in two seconds for all who ask."""

    def __init__(self, connections: Connections, schedule: Schedule) -> None:
        self._connections = connections
        self._trees = Looks[Tree](lambda _: task_tree(connections, _root()), schedule)
        self._groups = Looks[GroupedTree](lambda _: grouped_tree(connections, _root()), schedule)

    async def asked(self, query: Mapping[str, str]) -> Tree | GroupedTree:
        """Return what a query asks for. Raises `RequestError` (`bad_request`, `not_found`)."""
        grouped, under = query.get("grouped", "0"), query.get("under")
        if grouped not in ("0", "1"):
            raise RequestError("bad_request", f"Expected 1, got {grouped[:20]!r} - at `grouped`")
        if under is not None:
            if grouped == "1":
                raise RequestError("bad_request", "Under a connection nothing is grouped - at `grouped`")
            return await task_tree(self._connections, self._connections.find(under).task)
        return await (self._groups if grouped == "1" else self._trees).look()


def _root() -> trio.lowlevel.Task:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return root


async def grouped_tree(connections: Connections, root: trio.lowlevel.Task) -> GroupedTree:
    """Return the groups under a task. Others have their turn meanwhile."""
    serving = await connections.by_task()
    top = _group_of(root, "")
    top.tasks = counted = told = 1
    waiting = deque([(top, [root])])
    while waiting:
        group, members = waiting.popleft()
        groups: dict[tuple[str, str], tuple[TaskGroup, list[trio.lowlevel.Task]]] = {}
        for task in members:
            for child in children_of(task):
                counted += 1
                if counted % SLICE == 0:
                    await trio.lowlevel.checkpoint()
                entry = serving.get(child)
                key = name_of(child), "" if entry is None else _does(entry)
                found = groups.get(key)
                if found is None:
                    if told >= MOST_GROUPS:
                        group.more += 1
                        continue
                    told += 1
                    found = groups[key] = _group_of(child, key[1]), []
                    group.under.append(found[0])
                found[0].tasks += 1
                if entry is None:
                    found[1].append(child)
                elif len(found[0].connection_ids) < MOST_SAMPLES:
                    found[0].connection_ids.append(entry.connection_id)
        waiting.extend(groups.values())
        await trio.lowlevel.checkpoint()
    return GroupedTree(top, counted)


def _group_of(task: trio.lowlevel.Task, does: str) -> TaskGroup:
    return TaskGroup(name_of(task), does, *places_of(task))


def _does(entry: OpenConnection) -> str:
    now = entry.connected.statistics()
    if now.close_code is not None:
        what = "closing"
    elif now.waiting_commands:
        what = "commands under way"
    else:
        what = "idle" if now.live else "catching up"
    return f"{entry.transport}: {what}"
