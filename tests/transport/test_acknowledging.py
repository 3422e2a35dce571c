"""`ack`, `hold` and `since=acked` (PROTOCOL sections 2 and 4), as clients see them."""

import pytest
from trio.testing import wait_all_tasks_blocked

from broker import AccountConfig, Acked, Config, Held, KeyConfig, ReplayConfig, RequestError, open_broker
from broker.keys import hash_key
from broker.protocol.messages import TokenRequest
from broker.testing import ACCOUNT, KEY, config, connect

MESSAGE = "message.received"


def event(number: int, inbox: str | None = "a", kind: str = MESSAGE) -> dict:
    return {"type": kind, "payload": {}, "event_id": f"e{number}"} | ({"inbox_id": inbox} if inbox else {})


async def publish(broker, *events) -> list[str]:
    """Publish events; return their cursors."""
    return [told.cursor for told in await broker.publish(ACCOUNT, list(events))]


async def received(client, number: int) -> list[str]:
    return [(await client.receive())["event_id"] for _ in range(number)]


async def refusal(client, action: str, **params) -> tuple[str, str]:
    with pytest.raises(RequestError) as refused:
        await client.ask(action, params)
    return refused.value.code, refused.value.message


def agent(broker, **query):
    """A client with a name of its own that goes on where it last acknowledged."""
    return connect(broker, **({"client_id": "agent", "since": "acked"} | query))


# --- since=acked


async def test_a_client_goes_on_after_what_it_acknowledged():
    async with open_broker(config()) as broker:
        async with agent(broker) as client:
            cursors = await publish(broker, event(1), event(2), event(3))
            assert await received(client, 3) == ["e1", "e2", "e3"]
            assert await client.ask("ack", {"cursor": cursors[1]}) == {"cursor": cursors[1], "acked": 2, "claimed": []}
        async with agent(broker) as client:
            assert client.ready["cursor"] == cursors[1]
            assert client.ready["replay"] == {"recovered": True, "count": 1}
            assert await received(client, 1) == ["e3"]


async def test_a_client_that_is_not_known_begins_at_the_head_and_from_there_the_next_time():
    async with open_broker(config()) as broker:
        await publish(broker, event(1))
        async with agent(broker) as client:
            assert client.ready["replay"] == {"recovered": True, "count": 0}
        await publish(broker, event(2))
        async with agent(broker) as client:
            assert await received(client, 1) == ["e2"]
        async with agent(broker, client_id="other") as other:
            assert other.ready["replay"] == {"recovered": True, "count": 0}


async def test_who_has_no_client_id_has_nothing_acknowledged():
    async with open_broker(config()) as broker:
        with pytest.raises(RequestError) as refused:
            async with connect(broker, since="acked"):
                pass
        assert refused.value.code == "bad_request"
        assert "`since`" in refused.value.message
        async with connect(broker) as client:
            code, message = await refusal(client, "subscribe", inbox_ids=["a"], since="acked")
            assert (code, "`$.params.since`" in message) == ("invalid_params", True)
            for action in ("ack", "hold"):
                code, message = await refusal(client, action, event_ids=["e1"], seconds=1)
                assert (code, "`client_id`" in message) == ("invalid_params", True)


async def test_a_subscribe_replays_what_was_not_acknowledged():
    async with open_broker(config()) as broker:
        async with agent(broker, inbox_ids="a"):
            pass
        await publish(broker, event(1), event(2, "b"))
        async with connect(broker, client_id="agent", inbox_ids="") as client:
            result = await client.ask("subscribe", {"inbox_ids": ["a", "b"], "since": "acked"})
            assert result["replay"] == {"recovered": True, "count": 2}
            assert await received(client, 2) == ["e1", "e2"]
            assert (await client.ask("ack", {"cursor": result["cursor"]}))["acked"] == 0
            cursors = await publish(broker, event(3))
            assert await received(client, 1) == ["e3"]
            assert (await client.ask("ack", {"cursor": cursors[0]}))["acked"] == 3


@pytest.mark.parametrize("narrowed", [{"inbox_ids": ["a"]}, {"scopes": ["subscribe"]}])
async def test_a_token_that_is_narrowed_is_another_client_than_its_key(narrowed):
    async with open_broker(config()) as broker:
        async with agent(broker):
            pass
        await publish(broker, event(1))
        key = await broker.keyring.authenticate(KEY, None)
        whole = broker.keyring.issue(key, TokenRequest()).token
        less = broker.keyring.issue(key, TokenRequest(**narrowed)).token
        async with connect(broker, less, client_id="agent", since="acked") as other:
            assert other.ready["replay"]["count"] == 0
        async with connect(broker, whole, client_id="agent", since="acked") as same:
            assert same.ready["replay"]["count"] == 1


# --- ack


async def test_ids_are_acknowledged_in_any_order_and_come_again_after_a_reconnect():
    async with open_broker(config()) as broker:
        async with agent(broker) as client:
            await publish(broker, event(1), event(2), event(3))
            await received(client, 3)
            answer = await client.ask("ack", {"event_ids": ["e3", "e1", "e3", "nobody"]})
            assert answer == {"cursor": client.ready["cursor"], "acked": 2, "claimed": []}
        async with agent(broker) as client:
            assert await received(client, 3) == ["e1", "e2", "e3"]


async def test_who_acknowledges_ids_first_comes_back_to_where_its_connection_began():
    async with open_broker(config()) as broker:
        await publish(broker, event(1))
        async with connect(broker, client_id="agent") as client:
            await publish(broker, event(2))
            await received(client, 1)
            assert (await client.ask("ack", {"event_ids": ["e2"]}))["cursor"] == client.ready["cursor"]
        async with agent(broker) as client:
            assert await received(client, 1) == ["e2"]


async def test_a_cursor_acknowledges_only_what_passes_the_filter_and_was_subscribed():
    async with open_broker(config()) as broker, agent(broker, inbox_ids="a", event_types="x.*") as client:
        cursors = await publish(
            broker, event(1, kind="x.y"), event(2, kind="y"), event(3, "b", "x.y"), event(4, None, "x.y")
        )
        assert await received(client, 2) == ["e1", "e4"]
        assert (await client.ask("ack", {"cursor": cursors[-1]}))["acked"] == 2


async def test_what_was_sent_before_a_subscribe_is_still_acknowledged_by_a_cursor_after_it():
    async with open_broker(config()) as broker, agent(broker, inbox_ids="a") as client:
        await publish(broker, event(1), event(2, "b"))
        await received(client, 1)
        await client.ask("subscribe", {"inbox_ids": ["b"]})
        [cursor] = await publish(broker, event(3, "b"))
        await received(client, 1)
        assert (await client.ask("ack", {"cursor": cursor}))["acked"] == 2  # e1, e3: e2 was not sent


async def test_with_another_filter_what_came_before_is_no_longer_acknowledged_by_a_cursor():
    async with open_broker(config()) as broker, agent(broker, inbox_ids="a") as client:
        await publish(broker, event(1))
        await received(client, 1)
        await client.ask("subscribe", {"event_types": ["message.*"]})
        [cursor] = await publish(broker, event(2))
        await received(client, 1)
        assert (await client.ask("ack", {"cursor": cursor}))["acked"] == 1
        assert (await client.ask("ack", {"event_ids": ["e1"]}))["acked"] == 1


async def test_a_cursor_acknowledges_once_and_never_goes_back():
    async with open_broker(config()) as broker, agent(broker) as client:
        cursors = await publish(broker, event(1), event(2))
        await received(client, 2)
        for cursor, acked in ((cursors[1], 2), (cursors[1], 0), (cursors[0], 0)):
            assert await client.ask("ack", {"cursor": cursor}) == {
                "cursor": cursors[1],
                "acked": acked,
                "claimed": [],
            }


async def test_what_both_a_cursor_and_an_id_name_counts_once():
    async with open_broker(config()) as broker, agent(broker) as client:
        cursors = await publish(broker, event(1), event(2))
        await received(client, 2)
        answer = await client.ask("ack", {"cursor": cursors[0], "event_ids": ["e1", "e2"]})
        assert (answer["cursor"], answer["acked"]) == (cursors[0], 2)


async def test_an_id_that_several_inboxes_have_is_acknowledged_in_all_in_reach_or_in_the_one_that_is_named():
    keys = (KeyConfig(id="key_two", sha256=hash_key("dm_live_two"), inbox_ids=("a", "b")),)
    account = AccountConfig(id=ACCOUNT, tier="enterprise", keys=keys)
    configured = Config(accounts=(account,))
    async with open_broker(configured) as broker, connect(broker, "dm_live_two", client_id="agent") as client:
        await publish(broker, *(event(1, inbox) for inbox in ("a", "b", "c")))
        assert (await client.ask("ack", {"event_ids": ["e1"]}))["acked"] == 2
        assert (await client.ask("ack", {"event_ids": ["e1"], "inbox_id": "b"}))["acked"] == 1
        code, message = await refusal(client, "ack", event_ids=["e1"], inbox_id="c")
        assert (code, "`$.params.inbox_id`" in message) == ("forbidden", True)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "`cursor`"),
        ({"cursor": ""}, "`$.params.cursor`"),
        ({"cursor": "5m"}, "`$.params.cursor`"),
        ({"cursor": "cnothing.1"}, "`$.params.cursor`"),
        ({"cursor": 7}, "`$.params.cursor`"),
        ({"event_ids": []}, "`$.params.event_ids`"),
        ({"event_ids": ["a b"]}, "`$.params.event_ids[0]`"),
        ({"event_ids": ["e"] * 1_001}, "1,000 event ids - at `$.params.event_ids`"),
        ({"event_ids": ["e"], "inbox_id": "*"}, "`$.params.inbox_id`"),
    ],
)
async def test_an_ack_of_nothing_that_can_be_is_refused_and_says_why(params, said):
    async with open_broker(config()) as broker, connect(broker, client_id="agent") as client:
        code, message = await refusal(client, "ack", **params)
        assert code == "invalid_params"
        assert said in message


async def test_a_cursor_ahead_of_what_was_sent_is_refused():
    async with open_broker(config()) as broker:
        async with agent(broker, room_bytes=0) as client:
            await client.send({"action": "ping", "request_id": "first"})
            await wait_all_tasks_blocked()
            [cursor] = await publish(broker, event(1))
            await client.send({"action": "ack", "request_id": "ahead", "cursor": cursor})
            await wait_all_tasks_blocked()
            client.link.flow()
            answers = [await client.receive() for _ in range(3)]
        [error] = [answer["error"] for answer in answers if answer.get("request_id") == "ahead"]
        assert error["code"] == "invalid_params"
        assert "ahead" in error["message"]


async def test_without_the_scope_subscribe_nothing_is_acknowledged():
    keys = (KeyConfig(id="key_pub", sha256=hash_key("dm_live_pub"), scopes=("publish",)),)
    account = AccountConfig(id=ACCOUNT, tier="enterprise", keys=keys)
    opening = {"client_id": "agent", "inbox_ids": ""}
    async with open_broker(Config(accounts=(account,))) as broker, connect(broker, "dm_live_pub", **opening) as client:
        for action in ("ack", "hold"):
            assert (await refusal(client, action, event_ids=["e1"], seconds=1))[0] == "forbidden"


async def test_a_gap_is_told_of_what_was_not_acknowledged_and_no_cursor_acknowledges_it():
    async with open_broker(config(replay=ReplayConfig(max_events_per_account=2))) as broker:
        async with agent(broker):
            pass
        cursors = await publish(broker, *map(event, range(1, 5)))
        async with agent(broker) as client:
            assert client.ready["replay"] == {"recovered": False, "count": 2}
            assert (await client.receive())["count"] == 2
            assert await received(client, 2) == ["e3", "e4"]
            assert (await client.ask("ack", {"cursor": cursors[-1]}))["acked"] == 2


async def test_a_replay_from_before_the_position_is_not_acknowledged_until_it_is_again():
    async with open_broker(config()) as broker:
        async with agent(broker, inbox_ids="a") as client:
            cursors = await publish(broker, event(1, "b"), event(2), event(3, "b"))
            await received(client, 1)
            await client.ask("ack", {"cursor": cursors[1]})
            await client.ask("subscribe", {"inbox_ids": ["b"], "since": client.ready["cursor"]})
            assert await received(client, 2) == ["e1", "e3"]
            await client.ask("ack", {"cursor": cursors[0]})
        async with agent(broker, inbox_ids="a,b") as client:
            assert await received(client, 2) == ["e2", "e3"]


async def test_a_long_acknowledgement_is_counted_in_turns_and_answers_keep_their_order():
    async with open_broker(config()) as broker:
        async with agent(broker, inbox_ids="a") as client:
            cursors = await publish(broker, *map(event, range(3_000)))
            await received(client, 3_000)
            await client.send({"action": "ack", "request_id": "long", "cursor": cursors[-1]})
            await client.send({"action": "ack", "request_id": "short", "event_ids": ["e1"]})
            answers = [await client.receive() for _ in range(2)]
        assert [(told["request_id"], told["result"]["acked"]) for told in answers] == [("long", 3_000), ("short", 1)]


async def test_an_ack_is_for_the_stream_and_not_for_http():
    async with open_broker(config()) as broker:
        for action in ("ack", "hold"):
            with pytest.raises(RequestError, match=r"is for the stream$"):
                await broker.call(ACCOUNT, action, {"event_ids": ["e1"], "seconds": 1})


# --- hold


async def test_a_hold_says_of_how_many_events_it_knows():
    async with open_broker(config()) as broker, agent(broker) as client:
        await publish(broker, event(1), event(2))
        held = await client.ask("hold", {"event_ids": ["e1", "e2", "nobody"], "seconds": 3_600})
        assert held == {"held": 2, "claimed": []}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"seconds": 1}, "event_ids"),
        ({"event_ids": ["e1"]}, "seconds"),
        ({"event_ids": ["e1"], "seconds": 0}, "`$.params.seconds`"),
        ({"event_ids": ["e1"], "seconds": 3_601}, "`$.params.seconds`"),
    ],
)
async def test_a_hold_for_longer_than_an_hour_or_for_nothing_is_refused(params, said):
    async with open_broker(config()) as broker, connect(broker, client_id="agent") as client:
        code, message = await refusal(client, "hold", **params)
        assert (code, said in message) == ("invalid_params", True)


# --- the library


async def test_a_subscriber_in_the_program_goes_on_where_it_acknowledged():
    async with open_broker(config()) as broker:

        def subscribed():
            return broker.subscribe(ACCOUNT, client_id="worker", since="acked")

        async with subscribed() as events:
            await publish(broker, event(1), event(2))
            first = await anext(events)
            assert (await events.ack()).cursor == first.cursor
            await anext(events)
            assert await events.ack(event_ids=["e1", "e2"]) == Acked(first.cursor, 2)
            assert await events.hold(["e2"], 60) == Held(1)
        async with subscribed() as events:
            assert (await anext(events)).event_id == "e2"


async def test_a_subscriber_without_a_name_or_with_bad_parameters_is_told():
    async with open_broker(config()) as broker:
        with pytest.raises(RequestError, match="`client_id`"):
            async with broker.subscribe(ACCOUNT, since="acked"):
                pass
        async with broker.subscribe(ACCOUNT) as events:
            with pytest.raises(RequestError, match="`client_id`"):
                await events.ack()
        async with broker.subscribe(ACCOUNT, client_id="worker") as events:
            with pytest.raises(RequestError, match=r"event_ids\[0\]"):
                await events.ack(event_ids=["a b"])
            with pytest.raises(TypeError, match="one string"):
                await events.ack(event_ids="e1")
            for given in (5, b"e1"):
                with pytest.raises(TypeError, match="`event_ids` is a list of names, not"):
                    await events.hold(given, 60)
            with pytest.raises(RequestError, match="`cursor`"):
                await events.ack("cnothing.1")
