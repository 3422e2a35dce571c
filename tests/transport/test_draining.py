"""A drain waits for what is under way on each connection: it is answered, and then the connection is closed."""

import pytest
import trio
import trio_websocket
from commanding import ACCOUNT, configured, connected, serving
from log.test_storage import Gate
from trio.testing import wait_all_tasks_blocked

from broker import AccountConfig, Config, ReplayConfig, ServerConfig, StorageConfig, open_broker
from broker.config import AccountQueueConfig


def on_disk(path):
    config = configured(storage=StorageConfig(path=str(path / "broker.db")), server=ServerConfig(drain_seconds=600))
    alice, bob = config.accounts
    alice = AccountConfig(id=ACCOUNT, keys=alice.keys, queues=(AccountQueueConfig(id="q", order="none"),))
    return Config(accounts=(alice, bob), storage=config.storage, server=config.server)


def mail(number):
    return {"type": "message.received", "inbox_id": "in_1", "event_id": f"e{number}", "payload": {}}


async def closed_by_the_drain(client):
    with pytest.raises(trio_websocket.ConnectionClosed) as closed:
        await client.hear()
    assert closed.value.reason.code == 1012


@pytest.mark.parametrize("asked", ["lease", "ack of leases", "hold of leases", "nack", "ack of a cursor"])
async def test_what_waits_for_the_disk_is_answered_before_the_connection_is_closed(tmp_path, asked):
    async with (
        open_broker(on_disk(tmp_path)) as opened,
        serving(opened) as address,
        connected(address, query="?client_id=agent&inbox_ids=in_2") as client,
    ):
        published = await opened.publish(ACCOUNT, [mail(1), mail(2)])
        [lease] = (await client.ask("lease", "l", queue_id="q"))["leases"]
        commands = {
            "lease": ("lease", {"queue_id": "q", "wait_seconds": 30}),
            "ack of leases": ("ack", {"lease_ids": [lease["lease_id"]]}),
            "hold of leases": ("hold", {"lease_ids": [lease["lease_id"]], "seconds": 60}),
            "nack": ("nack", {"lease_ids": [lease["lease_id"]]}),
            "ack of a cursor": ("ack", {"cursor": published[1].cursor}),
        }
        action, params = commands[asked]
        gate = Gate(opened._disk.storage)
        await client.say(action, "r", **params)
        await client.ask("ping", "p")
        opened.start_draining()
        assert (await client.hear())["type"] == "server.draining"
        await wait_all_tasks_blocked(0.01)
        gate.open()
        answer = await client.answer("r")
        assert "error" not in answer
        assert action != "lease" or len(answer["result"]["leases"]) == 1
        await closed_by_the_drain(client)


async def test_what_is_stored_by_a_publish_that_was_under_way_is_delivered_before_the_connection_is_closed(tmp_path):
    async with (
        open_broker(on_disk(tmp_path)) as opened,
        serving(opened) as address,
        connected(address, query="?inbox_ids=in_1") as client,
    ):
        hub, delivers = opened._hub, False
        take_turns = hub.take_turns
        gate = Gate(opened._disk.storage)
        await client.say("publish", "r", events=[mail(1)])
        await client.ask("ping", "p")
        hub.take_turns = lambda until: take_turns(until) if delivers else None
        opened.start_draining()
        assert (await client.hear())["type"] == "server.draining"
        await wait_all_tasks_blocked(0.01)
        gate.open()
        assert "error" not in await client.answer("r")
        delivers = True
        assert (await client.hear())["event_id"] == "e1"
        await closed_by_the_drain(client)


async def test_a_command_that_is_under_way_is_answered_before_the_connection_is_closed():
    async with (
        open_broker(configured(server=ServerConfig(drain_seconds=600))) as opened,
        serving(opened) as address,
        connected(address) as client,
    ):
        done = trio.Event()

        @opened.command("think")
        async def think(params: dict, context) -> str:
            await done.wait()
            return "thought"

        await client.say("think", "r")
        await client.ask("ping", "p")
        opened.start_draining()
        assert (await client.hear())["type"] == "server.draining"
        await wait_all_tasks_blocked(0.01)
        late = await client.ask("wait_for", "w", inbox_ids=["in_1"], timeout_seconds=3600)
        assert late["event"] is None, "who begins to wait now is told at once"
        done.set()
        assert (await client.answer("r"))["result"] == "thought"
        await closed_by_the_drain(client)


async def test_a_wait_that_reads_older_events_is_answered_before_the_connection_is_closed(archives):
    config = configured(server=ServerConfig(drain_seconds=600), replay=ReplayConfig(max_events_per_account=1))
    async with open_broker(config) as opened, serving(opened) as address, connected(address) as client:
        published = await opened.publish(ACCOUNT, [mail(number) for number in range(4)])
        await wait_all_tasks_blocked()
        archives[0].answering = trio.Event()
        await client.say("wait_for", "w", inbox_ids=["in_1"], since=published[0].cursor, timeout_seconds=60)
        await client.ask("ping", "p")
        opened.start_draining()
        assert (await client.hear())["type"] == "server.draining"
        await wait_all_tasks_blocked(0.01)
        archives[0].answering.set()
        assert (await client.answer("w"))["result"]["event"]["event_id"] == "e1"
        await closed_by_the_drain(client)


async def test_a_wait_is_told_where_to_go_on_before_the_connection_is_closed():
    async with (
        open_broker(configured(server=ServerConfig(drain_seconds=600))) as opened,
        serving(opened) as address,
        connected(address) as client,
    ):
        for number in range(16):
            await client.say("wait_for", f"w{number}", inbox_ids=["in_1"], timeout_seconds=3600)
        await client.ask("ping", "p")
        opened.start_draining()
        frames = [await client.hear() for _ in range(17)]
        said = {frame.get("request_id", frame["type"]) for frame in frames}
        assert said == {"server.draining", *(f"w{number}" for number in range(16))}
        await closed_by_the_drain(client)
