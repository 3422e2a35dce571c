"""A look (`watch=1`): one connection an account beside its tier's, that takes nobody's place and changes nothing."""

from contextlib import AsyncExitStack

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    OPERATOR,
    alices,
    ask,
    config_of,
    configured_key,
    connected,
    event,
    numbers,
    open_socket,
    opening,
    read_until,
    serving,
    token_of,
    until,
)

from broker import AccountConfig, CloseCode, KeyConfig
from broker.access.keys import digest_of
from broker.access.slots import LOOK, Slots, SlotsStatistics

PUBLISHER = "dm_live_publisher"
"""A key that may not subscribe."""
ONE_INBOX = "dm_live_one_inbox"


def config(tier="free", scopes=("subscribe", "command", "publish")):
    return config_of(
        alices(
            KeyConfig(id="key_alice", sha256=digest_of(ALICE), scopes=scopes),
            KeyConfig(id="key_publisher", sha256=digest_of(PUBLISHER), scopes=("publish",)),
            KeyConfig(id="key_inbox", sha256=digest_of(ONE_INBOX), inbox_ids=("in_1",)),
            tier=tier,
        ),
        AccountConfig(id="acct_bob", tier=tier, keys=(configured_key(BOB),)),
    )


def event_stream(query, key=ALICE):
    return f"GET /v1/events/stream?{query} HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


# --- its place ---------------------------------------------------------------


async def test_a_look_fits_beside_the_connections_of_the_tier_and_they_beside_it():
    async with (
        serving(config("free")) as served,
        connected(served.address, "watch=1&inbox_ids=*") as look,
        connected(served.address, "inbox_ids=*") as agent,
    ):
        assert (await opening(served.address)).status == 429
        await served.broker.publish(ACCOUNT, event(1))
        assert numbers([await look.next()]) == numbers([await agent.next()]) == [1]


async def test_an_account_that_is_full_is_looked_at_and_the_agent_in_it_is_asked_for_nothing():
    async with serving(config("free")) as served, connected(served.address, "inbox_ids=*") as agent:
        async with connected(served.address, "watch=1"):
            await served.broker.publish(ACCOUNT, event(1))
            assert numbers([await agent.next()]) == [1]
            assert served.broker.statistics().slots == SlotsStatistics(accounts=1, connections=2)
        await until(lambda: served.broker.statistics().slots.connections == 1)


async def test_a_newer_look_replaces_the_older_by_whichever_key():
    async with (
        serving(config()) as served,
        connected(served.address, "watch=1") as older,
        connected(served.address, "watch=1", key=ONE_INBOX) as newer,
        connected(served.address, "watch=1", key=BOB) as other_account,
    ):
        assert await older.until_closed() == CloseCode.REPLACED
        for look in (newer, other_account):
            await look.say(action="ping", request_id="r1")
            assert (await look.answer("r1"))["action"] == "ping"


async def test_an_event_stream_is_a_look_too_and_replaces_one_over_a_websocket():
    async with (
        serving(config()) as served,
        connected(served.address, "watch=1") as older,
        await open_socket(served.address) as stream,
    ):
        await stream.send_all(event_stream("watch=1&inbox_ids=*"))
        await read_until(stream, b"connection.ready")
        assert await older.until_closed() == CloseCode.REPLACED
        # The tier's one connection is still free.
        async with connected(served.address), connected(served.address, "watch=1"):
            await read_until(stream, b"0\r\n\r\n")


async def test_a_poll_that_waits_may_be_a_look():
    async with serving(config()) as served, connected(served.address), trio.open_nursery() as nursery:
        path, answers = "/v1/events?watch=1&inbox_ids=*&wait=60", []

        async def poll():
            answers.append(await ask(served.address, "GET", path, key=ALICE))

        nursery.start_soon(poll)
        await until(lambda: len(served.broker.connections) == 2)
        await served.broker.publish(ACCOUNT, event(1))
        await until(lambda: answers)
        assert [len(answer.result["events"]) for answer in answers] == [1]


async def test_a_hundred_looks_one_after_the_other_leave_one_slot_taken():
    async with serving(config()) as served, AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(connected(served.address, "watch=1"))
        await until(lambda: len(served.server.connections) == 1)
        assert served.broker.statistics().slots == SlotsStatistics(1, 1)


def test_a_look_that_was_replaced_gives_nothing_back():
    slots = Slots()
    older, _ = slots.take("a", 1, LOOK)
    newer, replaced = slots.take("a", 1, LOOK)
    assert replaced is older
    older.release()
    assert slots.take("a", 1)[0] is not None
    assert slots.take("a", 1) == (None, None)
    assert slots.take("a", 1, ("key", "agent")) == (None, None)
    newer.release()
    assert slots.take("a", 1) == (None, None)
    assert slots.statistics() == SlotsStatistics(1, 1)


def test_a_look_is_none_of_those_of_whom_one_may_lose_its_slot():
    slots = Slots()
    agent, look = object(), object()
    for holder, name in [(look, LOOK), (agent, None)]:
        slot, _ = slots.take("a", 1, name)
        slot.holder = holder
    assert slots.holders("a") == [agent]


# --- what it may do ----------------------------------------------------------

REFUSED = [
    {"action": "publish", "events": event(1)},
    {"action": "send_email", "inbox_id": "in_1", "params": {}},
    {"action": "lease", "queue_id": "support"},
    {"action": "nack", "lease_ids": ["lse_1"]},
    {"action": "ack", "lease_ids": ["lse_1"]},
    {"action": "hold", "lease_ids": ["lse_1"], "seconds": 5},
]


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: command["action"])
async def test_a_look_changes_nothing_whatever_its_key_may(command):
    async with serving(config()) as served, connected(served.address, "watch=1") as look:

        @served.broker.command("send_email")
        async def send_email(params: dict, context) -> None:
            pytest.fail("a look gave a command")

        await look.say(request_id="r1", **command)
        assert (await look.answer("r1"))["error"]["code"] == "forbidden"
        await look.say(action="subscribe", request_id="r2", inbox_ids=["in_1"])
        assert (await look.answer("r2"))["result"]["inbox_ids"] == ["in_1"]


async def test_a_look_by_a_token_keeps_its_narrowing():
    async with serving(config()) as served:
        token = await token_of(served.address, ALICE, inbox_ids=["in_1"])
        async with connected(served.address, f"watch=1&inbox_ids=*&token={token}", key=None) as look:
            await served.broker.publish(ACCOUNT, [event(1, inbox="in_2"), event(2, inbox="in_1")])
            assert numbers([await look.next()]) == [2]
            await look.say(action="publish", request_id="r1", events=event(3))
            assert (await look.answer("r1"))["error"]["code"] == "forbidden"


async def test_a_key_that_may_more_after_a_reload_may_no_more_by_its_look():
    async with serving(config(scopes=("subscribe",))) as served, connected(served.address, "watch=1") as look:
        served.broker.reload(config(scopes=("subscribe", "publish")))
        await look.say(action="publish", request_id="r1", events=event(1))
        assert (await look.answer("r1"))["error"]["code"] == "forbidden"


async def test_a_look_whose_key_may_no_longer_subscribe_sees_nothing_more():
    async with serving(config()) as served, connected(served.address, "watch=1&inbox_ids=*") as look:
        served.broker.reload(config(scopes=("publish",)))
        assert await look.next() == {"type": "connection.updated", "inbox_ids": []}


# --- refused -----------------------------------------------------------------

REFUSALS = [
    ("watch=1", PUBLISHER, 403, "subscribe"),
    ("watch=1", OPERATOR, 403, "operator"),
    ("watch=1&client_id=agent", ALICE, 400, "`client_id`"),
    ("watch=1&since=acked", ALICE, 400, "`since`"),
    ("watch=yes", ALICE, 400, "`watch`"),
    ("watch=", ALICE, 400, "`watch`"),
]


@pytest.mark.parametrize(("query", "key", "status", "word"), REFUSALS)
async def test_a_look_that_cannot_be_is_refused_with_the_field(query, key, status, word):
    async with serving(config()) as served:
        refused = await opening(served.address, query, key=key)
        assert refused.status == status
        assert word in refused.message


async def test_watch_0_is_a_connection_like_any_other():
    async with serving(config("free")) as served, connected(served.address, "watch=0&client_id=agent"):
        assert (await opening(served.address, "watch=0")).status == 429


# --- who sees it -------------------------------------------------------------


async def test_a_look_is_seen_as_one_and_counts_to_no_tier():
    async with (
        serving(config()) as served,
        connected(served.address, "watch=1") as look,
        connected(served.address) as agent,
    ):
        listed = (await ask(served.address, "GET", "/v1/connections", key=ALICE)).result["connections"]
        assert {seen["connection_id"]: seen.get("watch") for seen in listed} == {
            look.ready["connection_id"]: True,
            agent.ready["connection_id"]: None,
        }
        page = (await ask(served.address, "GET", "/v1/operator/connections", key=OPERATOR)).result
        assert sorted(seen["watch"] for seen in page["connections"]) == [False, True]
        statistics = served.broker.statistics().connections
        assert (sum(statistics.open.values()), statistics.watching) == (2, 1)
        [account] = (await served.broker.censuses.look()).accounts
        assert (account.connections, account.max_connections) == (1, 1)
    assert served.broker.statistics().connections.watching == 0
