"""A right is judged in the step in which it is used: what a key began before it lost it is neither stored nor done."""

import json

import msgspec
import pytest
from clients import (
    ACCOUNT,
    ALICE,
    OPERATOR,
    Outside,
    alices,
    config_of,
    configured_key,
    connected,
    event,
    half_sent,
    key_of,
    post_events,
    said,
    serving,
    take_all_places,
    until,
)
from trio.testing import wait_all_tasks_blocked as blocked

from broker import AccountConfig, Broker, Config, RequestError

WHOLE = config_of(alices(), AccountConfig(id="acct_bob"))


def with_key(**fields) -> Config:
    """Alice's key reaches this."""
    return config_of(alices(configured_key(ALICE, **fields)), AccountConfig(id="acct_bob"))


LOST = {
    "the key is gone": (config_of(alices(configured_key("dm_live_other"))), "unauthorized"),
    "the account is gone": (config_of(AccountConfig(id="acct_bob")), "unauthorized"),
    "it may not publish": (with_key(scopes=("subscribe",)), "forbidden"),
    "it does not reach the inbox": (with_key(inbox_ids=("in_2",)), "forbidden"),
    "it is of another account": (
        config_of(AccountConfig(id=ACCOUNT), AccountConfig(id="acct_bob", keys=(configured_key(ALICE),))),
        "forbidden",
    ),
}
lost = pytest.mark.parametrize(("config", "code"), LOST.values(), ids=LOST)
LOST_BY_OPERATOR = {
    "the operator is gone": (msgspec.structs.replace(WHOLE, operators=()), "unauthorized"),
    "the account is gone": (config_of(AccountConfig(id="acct_bob")), "not_found"),
}


@lost
async def test_a_post_whose_body_ends_after_its_key_lost_the_right_is_not_stored(config, code):
    body = json.dumps([event(1), event(2)]).encode()
    async with serving(WHOLE) as served, half_sent(served.address, "/v1/events", body) as send_the_rest:
        await until(lambda: served.broker.bodies.bytes)
        served.broker.reload(config)
        answer = await send_the_rest()
        assert answer.code == code
        assert served.broker.statistics().published == served.broker.statistics().replay.events == 0


@pytest.mark.parametrize(("config", "code"), LOST_BY_OPERATOR.values(), ids=LOST_BY_OPERATOR)
async def test_a_post_of_an_operator_whose_right_is_gone_is_not_stored(config, code):
    body = json.dumps([event(1, account_id=ACCOUNT), event(2, account_id="acct_bob")]).encode()
    async with serving(WHOLE) as served, half_sent(served.address, "/v1/events", body, OPERATOR) as send_the_rest:
        await until(lambda: served.broker.bodies.bytes)
        served.broker.reload(config)
        assert (await send_the_rest()).code == code
        assert served.broker.statistics().published == 0


@pytest.mark.parametrize("key", [ALICE, OPERATOR])
async def test_a_right_that_is_lost_after_the_events_were_checked_is_lost(key):
    for config, code in (LOST if key == ALICE else LOST_BY_OPERATOR).values():
        broker = Broker(WHOLE)
        batch = broker.intake.batch(key_of(broker, key), json.dumps(event(1, account_id=ACCOUNT)).encode())
        assert broker.intake.prepare_slice(batch)
        places = broker.intake.places_nowait(batch)
        broker.reload(config)
        with pytest.raises(RequestError) as raised:
            broker.intake.begin(batch, places, pytest.fail)
        assert raised.value.code == code


async def test_what_the_key_keeps_is_stored_though_it_was_changed_meanwhile():
    broker = Broker(WHOLE)
    batch = broker.intake.batch(key_of(broker, ALICE), json.dumps([event(1), event(2)]).encode())
    assert broker.intake.prepare_slice(batch)
    places = broker.intake.places_nowait(batch)
    broker.reload(with_key(scopes=("publish",), inbox_ids=("in_1",)))
    ended = []
    broker.intake.begin(batch, places, ended.append)
    assert [len(stored) for stored in ended] == [2]


async def test_a_publish_that_waits_on_a_socket_is_not_stored_when_its_key_has_lost_the_inbox():
    async with serving(WHOLE) as served, connected(served.address) as client:
        places = take_all_places(served)
        await client.say(action="publish", request_id="lost", events=event(1, inbox="in_1"))
        await client.say(action="publish", request_id="kept", events=event(2, inbox="in_2"))
        await client.ping()
        served.broker.reload(with_key(inbox_ids=("in_2",)))
        for place in places:
            place.give_back()
        answers = {}
        while len(answers) < 2:
            frame = await client.next()
            if frame["type"] == "response":
                answers[frame["request_id"]] = frame
        assert answers["lost"]["error"]["code"] == "forbidden"
        assert len(answers["kept"]["result"]["events"]) == 1
        assert served.broker.statistics().published == 1


async def test_a_publish_that_waits_on_a_socket_is_not_stored_when_its_key_is_gone(quick_close):
    async with serving(WHOLE) as served, connected(served.address) as client:
        places = take_all_places(served)
        await client.say(action="publish", request_id="lost", events=event(1))
        await client.ping()
        served.broker.reload(LOST["the key is gone"][0])
        for place in places:
            place.give_back()
        assert await client.until_closed() == 4401
        await served.until_gone()
        assert served.broker.statistics().published == 0
        assert not served.broker.bodies.bytes


LOST_BY_COMMAND = {
    "the key is gone": LOST["the key is gone"],
    "it may not command": (with_key(scopes=("publish",)), "forbidden"),
    "it does not reach the inbox": (with_key(inbox_ids=("in_2",)), "forbidden"),
}


@pytest.mark.parametrize(("config", "code"), LOST_BY_COMMAND.values(), ids=LOST_BY_COMMAND)
async def test_a_command_whose_body_ends_after_its_key_lost_the_right_is_not_done(config, code):
    body = json.dumps({"action": "work", "inbox_id": "in_1", "params": {}}).encode()
    async with serving(WHOLE) as served:
        done = []

        @served.broker.command("work")
        async def work(params, context):
            done.append(params)

        async with half_sent(served.address, "/v1/commands", body) as send_the_rest:
            await until(lambda: served.broker.bodies.bytes)
            served.broker.reload(config)
            assert (await send_the_rest()).code == code
        await blocked()
        assert done == []
        served.broker.reload(WHOLE)
        async with half_sent(served.address, "/v1/commands", body) as send_the_rest:
            assert (await send_the_rest()).status == 200
        assert done == [{}]


async def test_a_live_connection_goes_on_publishing_though_what_was_said_of_its_key_was_displaced(monkeypatch):
    monkeypatch.setattr("broker.access.lookup.MAX_KEPT", 1)
    outside = Outside(one=said(), two=said())
    async with serving(WHOLE, access=outside) as served, connected(served.address, key="dm_live_one") as client:
        assert (await post_events(served.address, event(1), key="dm_live_two")).status == 200
        await client.say(action="publish", request_id="r1", events=event(2))
        assert len((await client.answer("r1"))["result"]["events"]) == 1
        assert served.broker.statistics().published == 2
