"""Acknowledging with a log on disk: over restarts and kills, and against webhooks that wait for it."""

import random
from functools import partial

import pytest
import trio
from clients import connected
from log.test_storage import Gate, limited
from processes import KEY as PROCESS_KEY
from processes import serving
from trio.testing import wait_all_tasks_blocked

from broker import ReplayConfig, RequestError, StorageConfig, open_broker
from broker.keys import hash_key
from broker.testing import ACCOUNT, config, connect


@pytest.fixture
def on_disk(tmp_path):
    return config(storage=StorageConfig(path=str(tmp_path / "broker.db"), synchronous="normal"))


def event(number, inbox="a"):
    return {"type": "message.received", "inbox_id": inbox, "event_id": f"e{number}", "payload": {}}


async def publish(broker, numbers):
    return [told.cursor for told in await broker.publish(ACCOUNT, [event(number) for number in numbers])]


async def received(client, number):
    return [(await client.receive())["event_id"] for _ in range(number)]


def agent(broker, **query):
    return connect(broker, **({"client_id": "agent", "since": "acked"} | query))


# --- restarts


async def test_a_client_goes_on_after_a_restart_where_it_acknowledged(on_disk):
    async with open_broker(on_disk) as broker, agent(broker) as client:
        cursors = await publish(broker, range(3))
        await received(client, 3)
        assert (await client.ask("ack", {"cursor": cursors[1], "event_ids": ["e2"]}))["acked"] == 3
    async with open_broker(on_disk) as broker, agent(broker) as client:
        assert client.ready["cursor"] == cursors[1]
        assert await received(client, 1) == ["e2"]


async def test_a_client_that_came_for_the_first_time_misses_nothing_over_a_restart(on_disk):
    async with open_broker(on_disk) as broker:
        async with agent(broker):
            pass
        await publish(broker, range(2))
    async with open_broker(on_disk) as broker, agent(broker) as client:
        assert await received(client, 2) == ["e0", "e1"]


async def test_what_memory_does_not_hold_any_more_comes_from_the_disk_until_it_is_acknowledged(tmp_path):
    storage = StorageConfig(path=str(tmp_path / "broker.db"), synchronous="normal")
    async with open_broker(config(storage=storage, replay=ReplayConfig(max_events_per_account=3))) as broker:
        async with agent(broker):
            pass
        cursors = await publish(broker, range(10))
        for begin in (0, 4, 10):
            async with agent(broker) as client:
                assert client.ready["replay"] == {"recovered": True, "count": 10 - begin}
                assert await received(client, 10 - begin) == [f"e{number}" for number in range(begin, 10)]
                end = cursors[3 if begin == 0 else 9]
                assert (await client.ask("ack", {"cursor": end}))["cursor"] == end


async def test_while_the_disk_is_full_a_client_that_is_known_is_served(on_disk):
    async with open_broker(on_disk) as broker:
        async with agent(broker):
            await publish(broker, range(1))
        storage = broker._disk.storage
        await storage.write(limited(1))
        for name in ("agent", "newcomer", "newcomer"):
            gate, told = Gate(storage), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come, broker, name)
                await wait_all_tasks_blocked()
                too_much = "CREATE TABLE x AS SELECT zeroblob(1000000)"
                storage.begin_write(lambda c, statement=too_much: c.execute(statement), lambda _, told=told: told.set())
                gate.open()
                await told.wait()


async def come(broker, name):
    if name == "agent":
        async with agent(broker) as client:
            assert await received(client, 1) == ["e0"]
    else:
        with pytest.raises(RequestError) as refused:
            async with agent(broker, client_id=name):
                pass
        assert refused.value.code == "unavailable"


async def test_a_subscriber_in_the_program_goes_on_after_a_restart(on_disk):
    worker = {"client_id": "worker", "since": "acked"}
    async with open_broker(on_disk) as broker, broker.subscribe(ACCOUNT, **worker) as events:
        await publish(broker, range(2))
        await anext(events)
        await events.ack()
    async with open_broker(on_disk) as broker, broker.subscribe(ACCOUNT, **worker) as events:
        assert (await anext(events)).event_id == "e1"


async def test_an_acknowledgement_is_answered_and_a_first_opening_ready_after_the_commit(on_disk):
    async with open_broker(on_disk) as broker, agent(broker) as client:
        cursors = await publish(broker, range(1))
        await received(client, 1)
        gate = Gate(broker._disk.storage)
        answered = []

        async def ask(action, **params):
            answered.append(await client.ask(action, params))

        async def come():
            async with agent(broker, client_id="other") as other:
                answered.append(other.ready["type"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(ask, "ack", cursor=cursors[0]))
            nursery.start_soon(come)
            await wait_all_tasks_blocked()
            assert answered == []
            gate.open()
        assert len(answered) == 2


async def test_after_a_kill_a_client_goes_on_at_the_last_that_it_was_told_or_later(tmp_path):
    settings = tmp_path / "broker.toml"
    key = f'[[accounts.keys]]\nid = "key_a"\nsha256 = "{hash_key(PROCESS_KEY)}"\n'
    settings.write_text(f'[[accounts]]\nid = "acct_a"\ntier = "enterprise"\n{key}')
    chance = random.Random(5)
    told, came, published = None, [], []
    for turn in range(4):
        with serving("--config", settings, "--storage", tmp_path / "broker.db") as (process, url):
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            async with connected(address, "inbox_ids=*&client_id=agent&since=acked", key=PROCESS_KEY) as client:
                start = client.ready["cursor"]
                assert client.ready.get("replay", {}).get("recovered")
                came = came or [start]
                assert start in came[came.index(told or start) :], "what was told is on disk"
                came = came[: came.index(start) + 1]
                numbers = range(20 * turn, 20 * turn + 20)
                published += [f"e{number}" for number in numbers]
                await client.say(action="publish", request_id=f"p{turn}", events=[event(number) for number in numbers])
                while len(came) - 1 < len(published):
                    frame = await client.next()
                    if "event_id" in frame:
                        assert frame["event_id"] == published[len(came) - 1], "none is missing, none out of order"
                        came.append(frame["cursor"])
                for cursor in sorted(chance.sample(came[came.index(start) + 1 :], 6), key=came.index):
                    await client.say(action="ack", request_id="a", cursor=cursor)
                answers = chance.randint(1, 6)
                while answers:
                    frame = await client.next()
                    if frame.get("request_id") == "a":
                        answers -= 1
                        told = frame["result"]["cursor"]
                process.kill()
                process.wait()
