"""Brokers that share an engine: what is promised of one holds of all of them together (PROTOCOL section 10)."""

import json
from contextlib import asynccontextmanager

import pytest
import trio
from clients import ACCOUNT, ALICE, alices, ask, config_of, connected, event, numbers, opening, serving, until
from proofs.proving import more
from valkeys import server

from broker import CloseCode
from broker.config import EngineConfig

MOVES = more(50, 1_000)
STEP = 7
"""Events that a client takes before it moves on."""


@pytest.fixture(scope="module")
def engine():
    with server() as running:
        yield running


@pytest.fixture
def engine_url(engine):
    return engine.url


@asynccontextmanager
async def two_nodes(url, tier="developer"):
    """Two brokers, each with a handler of `work` that says where and how often it was done."""
    config = config_of(alices(tier=tier), engine=EngineConfig(url=url))
    async with serving(config) as one, serving(config) as other:
        done = []
        for name, served in (("one", one), ("other", other)):

            @served.broker.command("work")
            async def work(params: dict, context, name=name) -> dict:
                done.append(name)
                return {"by": name, "times": len(done)}

        yield one, other, done


async def test_a_client_that_comes_at_another_node_is_replaced_at_the_first(engine_url):
    async with two_nodes(engine_url) as (one, other, _), connected(one.address, "client_id=agent") as before:
        async with connected(other.address, "client_id=agent") as after:
            assert await before.until_closed() == CloseCode.REPLACED
            await after.ping()
        await until(lambda: one.broker.statistics().slots.connections == 0)


async def test_a_tiers_connections_are_counted_across_nodes(engine_url):
    async with two_nodes(engine_url, "free") as (one, other, _):
        async with connected(one.address):
            refused = await opening(other.address)
            assert (refused.status, refused.code) == (429, "connection_limit")
        await until(lambda: one.broker.statistics().slots.connections == 0)
        async with connected(other.address):
            pass


async def test_who_was_drained_finds_his_slot_free_at_another_node_at_once(engine_url):
    config = config_of(alices(tier="free"), engine=EngineConfig(url=engine_url))
    async with serving(config) as other:
        async with serving(config) as one, connected(one.address) as client:
            one.broker.start_draining()
            assert await client.until_closed() == CloseCode.RESTART
            await one.ended.wait()
        async with connected(other.address):
            pass


async def test_a_node_that_was_stopped_for_longer_than_its_lease_finds_others_in_its_clients_places(engine):
    async with two_nodes(engine.url, "free") as (one, other, _), connected(one.address) as client:
        link = one.broker._engine.link
        engine.command("DEL", link.names.lease(link.node))
        async with connected(other.address) as another:
            link._heard_at -= 10  # as if it had been stopped
            assert await client.until_closed() == CloseCode.HEARTBEAT_MISSED
            await another.ping()


async def test_a_command_that_is_sent_to_two_nodes_is_done_once(engine_url):
    async with two_nodes(engine_url) as (one, other, done):
        body = json.dumps({"action": "work", "request_id": "r1", "params": {"x": 1}}).encode()
        answers = [await ask(served.address, "POST", "/v1/commands", key=ALICE, body=body) for served in (one, other)]
        assert [answer.result for answer in answers] == [{"by": "one", "times": 1}] * 2
        assert done == ["one"]


async def test_a_publish_that_is_sent_to_two_nodes_is_stored_once(engine_url):
    async with two_nodes(engine_url) as (one, other, _), connected(one.address, "inbox_ids=*&client_id=a") as client:
        stored = []
        for served in (one, other):
            async with connected(served.address, "client_id=b") as publisher:
                await publisher.say(action="publish", request_id="r2", events=[event(1), event(2)])
                stored.append((await publisher.answer("r2"))["result"]["events"])
        first, again = stored
        assert [told["event_id"] for told in again] == [told["event_id"] for told in first]
        assert len({told["event_id"] for told in first}) == 2
        assert [told.get("duplicate") for told in again] == [True, True]
        await one.broker.publish(ACCOUNT, event(3))
        assert numbers([await client.next() for _ in range(3)]) == [1, 2, 3]


@pytest.mark.parametrize("named", [False, True], ids=["ids of the broker", "ids of the client"])
async def test_a_publish_with_the_request_id_of_another_is_refused_at_every_node_and_stores_nothing(engine_url, named):
    request_id = f"reused{int(named)}"
    async with two_nodes(engine_url) as (one, other, _), connected(other.address, "inbox_ids=*") as client:
        codes = []
        for served, number in ((one, 1), (other, 2), (other, 1), (one, 2)):
            async with connected(served.address, "client_id=b") as publisher:
                one_event = event(number) | ({"event_id": f"named_{number}"} if named else {})
                await publisher.say(action="publish", request_id=request_id, events=one_event)
                codes.append((await publisher.answer(request_id)).get("error", {}).get("code"))
        assert codes == [None, "request_id_reused", None, "request_id_reused"]
        await one.broker.publish(ACCOUNT, event(3))
        assert numbers([await client.next(), await client.next()]) == [1, 3]


async def test_a_client_comes_back_at_another_node_where_it_acknowledged_last(engine_url):
    async with two_nodes(engine_url) as (one, other, _):
        async with connected(one.address, "inbox_ids=*&client_id=acking&since=acked") as client:
            for number in (1, 2, 3):
                await other.broker.publish(ACCOUNT, event(number))
            frames = [await client.next() for _ in range(3)]
            await client.say(action="ack", request_id="r3", cursor=frames[1]["cursor"])
            assert (await client.answer("r3"))["result"]["acked"] == 2
        async with connected(other.address, "inbox_ids=*&client_id=acking&since=acked") as client:
            assert client.ready["replay"] == {"recovered": True, "count": 1}
            assert numbers([await client.next()]) == [3]


async def test_a_client_that_moves_from_node_to_node_sees_one_stream(engine_url):
    async with two_nodes(engine_url) as nodes, trio.open_nursery() as nursery:
        one, other, _ = nodes

        async def publish_all():
            for number in range(MOVES * STEP):
                await (one, other)[number % 2].broker.publish(ACCOUNT, event(number))

        async with connected(one.address, "inbox_ids=*") as client:
            cursor = client.ready["cursor"]
        nursery.start_soon(publish_all)
        seen: list[int] = []
        while len(seen) < MOVES * STEP:
            query = f"inbox_ids=*&client_id=moving&since={cursor}"
            async with connected((one, other)[len(seen) // STEP % 2].address, query) as client:
                assert client.ready["replay"]["recovered"] is True
                for _ in range(STEP):
                    frame = await client.next()
                    seen.append(frame["payload"]["number"])
                    cursor = frame["cursor"]
        assert seen == list(range(MOVES * STEP))
