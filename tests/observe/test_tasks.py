"""`GET /debug/tasks`: who runs under whom, what connections do, and that it is bounded whatever there is."""

from contextlib import AsyncExitStack

import pytest
import trio
from clients import ALICE, INBOXES, OPERATOR, ask, connected, event, serving, token_of

from broker.observe.connections import Connections
from broker.observe.tasks import MOST_NAMES, MOST_OF_ONE_NAME, MOST_TASKS, SLICE, task_tree

SERVES_A_CLIENT = "broker.transport.server._Server.serve_client"


async def tree_of(served, query=""):
    answer = await ask(served.address, "GET", f"/debug/tasks{query}", key=OPERATOR)
    assert answer.status == 200, answer.body
    return answer.json["result"]


def tasks_of(task):
    """A task and all under it."""
    return [task, *(below for child in task["tasks"] for below in tasks_of(child))]


async def test_every_task_of_the_broker_is_told_with_where_it_waits():
    async with serving() as served:
        tree = await tree_of(served)
    tasks = {task["name"]: task for task in tasks_of(tree["root"])}
    assert len(tasks_of(tree["root"])) == tree["told"]
    assert tasks["broker.fanout.hub.Hub.deliver"]["at"].startswith("broker.fanout.hub.Hub.deliver:")
    assert tasks["broker.fanout.hub.Hub.deliver"]["waits_for"] == "trio._sync.Event.wait"
    assert tasks["broker.observe.lag.LoopLag.run"]["waits_for"].startswith("trio._timeouts.sleep")
    assert SERVES_A_CLIENT in tasks


async def test_the_task_of_a_connection_says_what_the_connection_does():
    async with serving() as served, connected(served.address, "inbox_ids=in_1&client_id=worker") as client:
        tree = await tree_of(served)
        [task] = [task for task in tasks_of(tree["root"]) if "connection" in task]
        assert task["name"] == SERVES_A_CLIENT
        assert task["connection"]["connection_id"] == client.ready["connection_id"]
        assert (task["connection"]["client_id"], task["connection"]["inbox_ids"]) == ("worker", ["in_1"])
        [of_connection] = [
            task
            for task in tasks_of((await tree_of(served, f"?under={client.ready['connection_id']}"))["root"])
            if "connection" in task
        ]
        assert of_connection["connection"] == task["connection"]


async def test_under_an_unknown_connection_there_is_nothing():
    async with serving() as served:
        answer = await ask(served.address, "GET", "/debug/tasks?under=conn_0", key=OPERATOR)
        assert (answer.status, answer.code) == (404, "not_found")


async def test_of_many_tasks_of_one_name_some_are_told_and_all_are_counted():
    clients = MOST_OF_ONE_NAME + 5
    async with serving() as served, AsyncExitStack() as stack:
        for _ in range(clients):
            await stack.enter_async_context(connected(served.address))
        tasks = tasks_of((await tree_of(served))["root"])
        assert len([task for task in tasks if "connection" in task]) <= MOST_OF_ONE_NAME
        [more] = [task["more"] for task in tasks if task["more"]]
        assert more == {SERVES_A_CLIENT: clients + 1 - MOST_OF_ONE_NAME}, "one more asks for the tree"


async def test_nothing_that_a_client_sent_is_told():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        await client.say(action="publish", request_id="r1", events=event(1, word="a_word_of_mine"))
        await client.answer("r1")
        answer = await ask(served.address, "GET", "/debug/tasks", key=OPERATOR)
        assert ALICE.encode() not in answer.body
        assert b"a_word_of_mine" not in answer.body


@pytest.mark.parametrize("key", [ALICE, INBOXES])
async def test_tasks_are_for_operators(key):
    async with serving() as served:
        answer = await ask(served.address, "GET", "/debug/tasks", key=key)
        assert (answer.status, answer.code) == (403, "forbidden")
        assert (await ask(served.address, "GET", "/debug/tasks", key=await token_of(served.address))).status == 403
        assert (await ask(served.address, "GET", "/debug/tasks")).status == 401


# --- bounded -----------------------------------------------------------------


async def parent(children, *, task_status):
    async with trio.open_nursery() as nursery:
        for number in range(children):
            nursery.start_soon(trio.sleep_forever, name=f"child_{number}")
        task_status.started(trio.lowlevel.current_task())


async def test_a_tree_of_any_size_is_told_in_short_steps_and_in_part(monkeypatch):
    read, steps = [], []
    checkpoint = trio.lowlevel.checkpoint
    name = type(trio.lowlevel.current_task()).iter_await_frames

    def counted_frames(task):
        read.append(task)
        return name(task)

    async def counted():
        steps.append(len(read))
        read.clear()
        await checkpoint()

    async with trio.open_nursery() as nursery:
        root = await nursery.start(parent, 3_000)
        monkeypatch.setattr(trio.lowlevel.Task, "iter_await_frames", counted_frames)
        monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
        tree = await task_tree(Connections(), root)
        monkeypatch.undo()
        nursery.cancel_scope.cancel()
    assert tree.told == MOST_TASKS
    assert len(tree.root.tasks) == MOST_TASKS - 1
    assert sum(tree.root.more.values()) == 3_000 - (MOST_TASKS - 1)
    assert len(tree.root.more) == MOST_NAMES + 1
    assert max(steps) <= SLICE + 1
