"""`GET /debug/tasks`: who runs under whom, what connections do, and that it is bounded whatever there is."""

from contextlib import AsyncExitStack

import pytest
import trio
from clients import ALICE, INBOXES, OPERATOR, ask, connected, event, open_socket, read_until, serving, token_of, until

import broker.observe.grouped
import broker.observe.looks
from broker.observe.connections import Connections
from broker.observe.grouped import MOST_GROUPS, MOST_SAMPLES, grouped_tree
from broker.observe.grouped import SLICE as GROUPED_SLICE
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


# --- grouped -----------------------------------------------------------------


def groups_of(group):
    """A group and all under it."""
    return [group, *(below for child in group["under"] for below in groups_of(child))]


@pytest.fixture
def a_look_each_time(monkeypatch):
    """Whoever asks is given a new look."""
    monkeypatch.setattr(broker.observe.looks, "LOOK_SECONDS", 0.0)


async def test_clients_that_do_the_same_are_one_group_with_their_number_and_some_of_their_ids():
    clients = MOST_SAMPLES + 3
    async with serving() as served, AsyncExitStack() as stack:
        ids = set()
        for _ in range(clients):
            client = await stack.enter_async_context(connected(served.address))
            ids.add(client.ready["connection_id"])
        await until(lambda: served.broker.statistics().hub.live == clients)
        tree = await tree_of(served, "?grouped=1")
        [idle] = [group for group in groups_of(tree["root"]) if group["does"] == "websocket: idle"]
        assert (idle["name"], idle["tasks"], idle["under"]) == (SERVES_A_CLIENT, clients, [])
        assert len(idle["connection_ids"]) == MOST_SAMPLES
        assert set(idle["connection_ids"]) < ids
        branch = await tree_of(served, f"?under={idle['connection_ids'][0]}")
        assert branch["root"]["tasks"]
        assert tree["tasks"] == sum(group["tasks"] for group in groups_of(tree["root"]))


async def test_clients_are_grouped_by_what_carries_them_and_what_they_do(a_look_each_time):
    async with serving() as served, AsyncExitStack() as stack:

        @served.broker.command("think")
        async def think(params: dict, context) -> None:
            await trio.sleep_forever()

        thinker = await stack.enter_async_context(connected(served.address))
        await thinker.say(action="think", request_id="r1")
        await until(lambda: served.connection(thinker).statistics().waiting_commands)
        slow = await stack.enter_async_context(connected(served.address, "inbox_ids=*", receive_buffer_bytes=4096))
        for number in range(8):
            await served.broker.publish("acct_alice", event(number, size=200_000))
        await until(lambda: not served.connection(slow).statistics().live)
        stream = await stack.enter_async_context(await open_socket(served.address))
        head = f"GET /v1/events/stream?inbox_ids=in_1 HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {ALICE}\r\n\r\n"
        await stream.send_all(head.encode())
        await read_until(stream, b"connection.ready")
        done = {group["does"]: group["tasks"] for group in groups_of((await tree_of(served, "?grouped=1"))["root"])}
        assert {does: done[does] for does in done if does} == {
            "websocket: commands under way": 1,
            "websocket: catching up": 1,
            "sse: idle": 1,
        }


async def test_the_tree_and_its_groups_are_made_once_for_all_who_ask_within_two_seconds():
    async with serving() as served:
        for query in ("", "?grouped=1"):
            first = await tree_of(served, query)
            async with connected(served.address):
                assert await tree_of(served, query) == first


@pytest.mark.parametrize("query", ["grouped=yes", "grouped=1&under=conn_1"])
async def test_what_cannot_be_grouped_is_a_bad_request_that_names_the_field(query):
    async with serving() as served:
        answer = await ask(served.address, "GET", f"/debug/tasks?{query}", key=OPERATOR)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "`grouped`" in answer.message


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


async def test_any_number_of_tasks_is_grouped_in_short_steps_and_what_is_in_no_group_is_counted(monkeypatch):
    steps = [0]
    checkpoint, children_of = trio.lowlevel.checkpoint, broker.observe.grouped.children_of

    async def counted():
        steps.append(0)
        await checkpoint()

    def counted_children(task):
        for child in children_of(task):
            steps[-1] += 1
            yield child

    async with trio.open_nursery() as nursery:
        root = await nursery.start(parent, 3_000)
        monkeypatch.setattr(broker.observe.grouped, "children_of", counted_children)
        monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
        tree = await grouped_tree(Connections(), root)
        monkeypatch.undo()
        nursery.cancel_scope.cancel()
    assert tree.tasks == 3_001
    assert len(tree.root.under) == MOST_GROUPS - 1
    assert tree.root.more == 3_000 - (MOST_GROUPS - 1)
    assert max(steps) <= GROUPED_SLICE
