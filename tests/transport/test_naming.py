"""What connections name has a budget, for each account and in all: `limits.max_names_bytes`."""

import tracemalloc
from contextlib import AsyncExitStack
from weakref import ref

import msgspec
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    alices,
    ask,
    config_of,
    configured,
    configured_key,
    connected,
    opening,
    serving,
    token_of,
    until,
)
from eventstreams import reading

from broker import LimitsConfig
from broker.access.opening import NAME_BYTES, USUAL_BYTES

SHARE = 400_000
"""Of one account."""
EACH = 200
"""Names that a client subscribes to at once: 50 kB of them, of which a part is usual."""
NARROW = configured(limits=LimitsConfig(max_names_bytes=4 * SHARE))


def inboxes(of, count=EACH, size=100):
    """So many names, each of so many characters."""
    return [f"{of}_{number}_".ljust(size, "x") for number in range(count)]


def cost_of(count=EACH, size=100):
    """What an account's connection with these, and the account's own events, is counted as."""
    return count * (size + NAME_BYTES) + NAME_BYTES - USUAL_BYTES


async def asked(client, action, names, **fields):
    await client.say(action=action, request_id="r", inbox_ids=names, **fields)
    return await client.answer("r")


def refused(answer):
    """What is wrong with an answer that is no refusal for want of room; None: nothing."""
    error = answer["error"]
    says_it = "subscriptions name too much" in error["message"] and "limits.max_names_bytes" in error["message"]
    return None if (error["code"], says_it, error["retry_after_ms"] > 0) == ("unavailable", True, True) else error


async def full(stack, served):
    """Let the account's connections name all that they may; return them, and one that got no room for as much."""
    clients = []
    while True:
        client = await stack.enter_async_context(connected(served.address))
        answer = await asked(client, "subscribe", inboxes(f"c{len(clients)}"))
        if "error" in answer:
            assert refused(answer) is None
            return clients, client
        clients.append(client)


# --- how much, and whose -----------------------------------------------------


async def test_an_accounts_subscriptions_hold_no_more_names_than_its_share_and_others_still_subscribe():
    async with serving(NARROW) as served, AsyncExitStack() as stack:
        clients, _ = await full(stack, served)
        held = served.broker.names.bytes
        assert held == served.broker.statistics().names_bytes == len(clients) * cost_of()
        assert SHARE - cost_of() < held <= SHARE
        other = await stack.enter_async_context(connected(served.address, key=BOB))
        assert len((await asked(other, "subscribe", inboxes("b")))["result"]["inbox_ids"]) == EACH


async def test_all_accounts_together_hold_no_more_than_the_whole():
    secrets = [f"dm_live_{number}" for number in range(5)]
    accounts = [
        msgspec.structs.replace(alices(configured_key(secret), tier="enterprise"), id=f"acct_{number}")
        for number, secret in enumerate(secrets)
    ]
    config = config_of(*accounts, limits=LimitsConfig(max_names_bytes=4 * cost_of()))
    async with serving(config) as served, AsyncExitStack() as stack:
        answers = [
            await asked(await stack.enter_async_context(connected(served.address, key=key)), "subscribe", inboxes("a"))
            for key in secrets
        ]
        assert ["result" in answer for answer in answers] == [True] * 4 + [False]
        assert refused(answers[-1]) is None


async def test_usual_subscriptions_are_never_counted():
    config = configured(limits=LimitsConfig(max_names_bytes=1))
    async with serving(config) as served:
        for names in (inboxes("a", 40, 254), inboxes("a", 90, 30), ["*"]):
            async with connected(served.address, "inbox_ids=" + ",".join(names)) as opened:
                assert len(opened.ready["inbox_ids"]) == len(names)
            async with connected(served.address) as client:
                assert len((await asked(client, "subscribe", names))["result"]["inbox_ids"]) == len(names)
        assert served.broker.names.bytes == 0


async def test_what_the_program_that_embeds_the_broker_subscribes_to_is_not_counted():
    config = configured(limits=LimitsConfig(max_names_bytes=1))
    async with serving(config) as served, served.broker.subscribe(ACCOUNT, inboxes("a", 2_000)):
        assert served.broker.names.bytes == 0


async def test_what_a_key_reaches_by_itself_is_not_counted_and_a_part_of_it_is():
    reach = inboxes("k", 2_000)
    config = config_of(
        alices(configured_key(ALICE, inbox_ids=tuple(reach))), limits=LimitsConfig(max_names_bytes=4_000_000)
    )
    async with serving(config) as served, connected(served.address) as client:
        assert len(client.ready["inbox_ids"]) == 2_000
        assert served.broker.names.bytes == 0
        answer = await asked(client, "unsubscribe", reach[:1])
        assert len(answer["result"]["inbox_ids"]) == 1_999
        assert served.broker.names.bytes > 0
        assert len((await asked(client, "subscribe", ["*"]))["result"]["inbox_ids"]) == 2_000
        assert served.broker.names.bytes == 0


async def test_what_a_token_reaches_is_counted_for_as_long_as_its_connection_lives():
    async with serving(NARROW) as served:
        names = inboxes("t", 300, 6)
        token = await token_of(served.address, inbox_ids=names)
        async with connected(served.address, f"token={token}", ("Authorization", "")) as client:
            held = served.broker.names.bytes
            assert held == 300 * (6 + NAME_BYTES) - USUAL_BYTES
            assert (await asked(client, "unsubscribe", ["*"]))["result"]["inbox_ids"] == []
            assert served.broker.names.bytes == held
        await until(lambda: served.broker.names.bytes == 0)


# --- refused -----------------------------------------------------------------


async def test_a_subscribe_that_finds_no_room_changes_nothing_and_may_come_again():
    async with serving(NARROW) as served, AsyncExitStack() as stack:
        clients, client = await full(stack, served)
        held = served.broker.names.bytes
        assert (await asked(client, "subscribe", []))["result"]["inbox_ids"] == []
        assert refused(await asked(client, "subscribe", inboxes("more"), since="5m")) is None
        assert served.broker.names.bytes == held
        assert len((await asked(clients[0], "subscribe", []))["result"]["inbox_ids"]) == EACH
        await served.broker.publish(ACCOUNT, {"type": "a.b", "inbox_id": inboxes("more")[0], "payload": {}})
        await served.broker.publish(ACCOUNT, {"type": "a.b", "payload": {"number": 7}})
        assert (await client.next_event())["payload"] == {"number": 7}


async def test_an_opening_that_finds_no_room_is_refused_before_the_upgrade_and_takes_nobodys_place():
    query = "client_id=me&inbox_ids=" + ",".join(inboxes("q", 1_200, 9))
    async with serving(NARROW) as served, AsyncExitStack() as stack:
        me = await stack.enter_async_context(connected(served.address, "client_id=me"))
        await full(stack, served)
        for answer in (
            await opening(served.address, query),
            await ask(served.address, "GET", f"/v1/events/stream?{query}", key=ALICE),
            await ask(served.address, "GET", f"/v1/events?wait=60&{query}", key=ALICE),
        ):
            assert (answer.status, int(answer.headers["retry-after"]) > 0) == (503, True)
            assert refused(answer.json) is None
        await me.ping()
        assert served.broker.statistics().slots.connections == len(served.server.connections)


# --- given back --------------------------------------------------------------


async def test_what_is_unsubscribed_or_left_makes_room():
    async with serving(NARROW) as served, AsyncExitStack() as stack:
        clients, late = await full(stack, served)
        await asked(clients[0], "unsubscribe", inboxes("c0"))
        assert "result" in await asked(late, "subscribe", inboxes("late"))
        another = await stack.enter_async_context(connected(served.address))
        assert refused(await asked(another, "subscribe", inboxes("another"))) is None
        held = served.broker.names.bytes
        await clients[1].stream.aclose()
        await until(lambda: served.broker.names.bytes == held - cost_of())
        assert "result" in await asked(another, "subscribe", inboxes("another"))
        assert refused(await asked(clients[0], "subscribe", inboxes("c0"))) is None
        await asked(another, "subscribe", ["*"])
        assert "result" in await asked(clients[0], "subscribe", inboxes("c0"))
    assert served.broker.names.bytes == 0


async def test_streams_and_polls_that_wait_hold_what_they_name_until_they_end():
    query = "inbox_ids=" + ",".join(names := inboxes("q", 1_000, 8))
    cost = cost_of(len(names), 8)
    async with serving(NARROW) as served:
        names = served.broker.names
        async with connected(served.address, query):
            assert names.bytes == cost
        await until(lambda: names.bytes == 0)
        async with reading(served.address, query):
            await until(lambda: names.bytes == cost)
        await until(lambda: names.bytes == 0)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: ask(served.address, "GET", f"/v1/events?wait=60&{query}", key=ALICE))
            await until(lambda: names.bytes == 2 * cost)
            served.broker.start_draining()
        assert names.bytes == 0


async def test_what_an_opening_named_and_its_client_gave_up_is_kept_nowhere():
    async with (
        serving(NARROW) as served,
        connected(served.address, "inbox_ids=" + ",".join(inboxes("q", 50))) as client,
    ):
        followed = ref(served.connection(client).session.follower.selection)
        await asked(client, "unsubscribe", ["*"])
        assert followed() is None


async def test_what_is_followed_no_more_is_kept_nowhere():
    async with serving(NARROW) as served, connected(served.address) as client:
        await asked(client, "subscribe", inboxes("a"))
        followed = ref(served.connection(client).session.follower.selection)
        await asked(client, "subscribe", ["*"])
        assert followed() is None


async def test_nothing_is_kept_of_what_was_refused():
    config = configured(limits=LimitsConfig(max_names_bytes=1))
    async with serving(config) as served, connected(served.address) as client:
        tracemalloc.start()
        try:
            assert refused(await asked(client, "subscribe", inboxes("a", 2_000, 250))) is None
            await client.ping()
            assert tracemalloc.get_traced_memory()[0] < 250_000
        finally:
            tracemalloc.stop()


async def test_a_key_that_reaches_less_gives_back():
    names = inboxes("n")

    def reaching(*inbox_ids):
        key = configured_key(ALICE, inbox_ids=inbox_ids or None)
        return config_of(alices(key), limits=LimitsConfig(max_names_bytes=4 * SHARE))

    async with serving(reaching()) as served, connected(served.address) as client:
        await asked(client, "subscribe", names)
        assert served.broker.names.bytes == cost_of()
        served.broker.reload(reaching(*names[:150], "else"))
        while (await client.next())["type"] != "connection.updated":
            pass
        assert served.broker.names.bytes == 150 * (100 + NAME_BYTES) - USUAL_BYTES
