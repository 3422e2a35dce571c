"""An inbox is often an address: it is the same in the configuration, a query, a frame, a command and a token."""

import json
from urllib.parse import quote

import pytest
from clients import (
    ACCOUNT,
    ALICE,
    alices,
    ask,
    config_of,
    configured_key,
    connected,
    event,
    post_events,
    serving,
)

from broker import CommandContext
from broker.cli.client import StreamRequest
from broker.testing import connect

ADDRESSES = [
    "ada+tag@example.com",
    "o'hara&sons@example.com",
    "50%#1!/=?^_`{|}~$*@example.com",
    "a" * 242 + "@example.com",
]
TAGGED = "dm_live_tagged"
each_address = pytest.mark.parametrize("address", ADDRESSES)


def serving_both(address):
    """A broker with a key that reaches everything, and one that reaches the address only."""
    return serving(config_of(alices(configured_key(ALICE), configured_key(TAGGED, inbox_ids=(address,)))))


@each_address
async def test_events_for_an_address_reach_who_asked_for_it_in_the_query(address):
    async with serving_both(address) as served, connected(served.address, f"inbox_ids={quote(address)}") as client:
        assert client.ready["inbox_ids"] == [address]
        answer = await post_events(served.address, [event(1, inbox="in_1"), event(2, inbox=address)], key=ALICE)
        assert answer.status == 200
        assert (await client.next())["inbox_id"] == address


@each_address
async def test_a_key_of_an_address_subscribes_publishes_and_commands_there_and_nowhere_else(address):
    async with serving_both(address) as served, connected(served.address, key=TAGGED) as client:

        @served.broker.command("work")
        async def work(params: dict, context: CommandContext) -> dict:
            return {"inbox": context.inbox_id}

        assert client.ready["inbox_ids"] == [address]
        await client.say(action="unsubscribe", request_id="r0", inbox_ids=[address])
        assert (await client.answer("r0"))["result"]["inbox_ids"] == []
        await client.say(action="subscribe", request_id="r1", inbox_ids=[address])
        assert (await client.answer("r1"))["result"]["inbox_ids"] == [address]
        await client.say(action="work", request_id="r2", inbox_id=address)
        assert (await client.answer("r2"))["result"] == {"inbox": address}
        await client.say(action="publish", request_id="r3", events=event(3, inbox=address))
        frames = [await client.next() for _ in range(2)]  # the answer and the event, in any order
        assert [frame["inbox_id"] for frame in frames if "event_id" in frame] == [address]
        refused = await post_events(served.address, event(4, inbox=f"x{address[1:]}"), key=TAGGED)
        assert (refused.status, refused.code) == (403, "forbidden")


@each_address
async def test_a_token_may_be_for_an_address(address):
    async with serving_both(address) as served:
        body = json.dumps({"inbox_ids": [address]}).encode()
        made = await ask(served.address, "POST", "/v1/websocket/token", key=ALICE, body=body)
        async with connected(served.address, f"token={made.result['token']}", ("Authorization", "")) as client:
            assert client.ready["inbox_ids"] == [address]


@each_address
async def test_our_own_clients_can_name_an_address(address):
    async with serving_both(address) as served:
        query = StreamRequest("", ALICE, (address, "in_1")).at(None).partition("?")[2]
        async with connected(served.address, query) as client:
            assert client.ready["inbox_ids"] == sorted([address, "in_1"])
        async with connect(served.broker, ALICE, inbox_ids=f"{address},in_1") as client:
            assert client.ready["inbox_ids"] == sorted([address, "in_1"])
        async with served.broker.subscribe(ACCOUNT, [address]) as subscriber:
            await served.broker.publish(ACCOUNT, event(1, inbox=address))
            assert (await anext(subscriber)).inbox_id == address


@pytest.mark.parametrize("inbox_ids", ["ada+tag@example.com", "in_1,ada%2Btag@example.com"])
async def test_in_a_query_a_plus_is_a_plus_escaped_or_not(inbox_ids):
    async with serving_both(ADDRESSES[0]) as served, connected(served.address, f"inbox_ids={inbox_ids}") as client:
        assert "ada+tag@example.com" in client.ready["inbox_ids"]
