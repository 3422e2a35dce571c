"""intake.py: the one way in, from the library and over HTTP; engines that store at once, and that must wait."""

import json

import msgspec
import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    INBOXES,
    OPERATOR,
    ask,
    config_of,
    configured,
    connected,
    event,
    half_sent,
    key_of,
    numbers,
    open_socket,
    opening,
    post_events,
    serving,
    take_all_places,
    until,
    upgrade_head,
)
from steps import counting
from trio.testing import wait_all_tasks_blocked as blocked

from broker import (
    AccountConfig,
    Broker,
    LimitsConfig,
    NewEvent,
    RateConfig,
    RatesConfig,
    RequestError,
    TierRatesConfig,
    open_broker,
)
from broker.fanout.places import MAX_PLACES
from broker.intake.batch import ANSWER_SLICE
from broker.intake.intake import MAX_ACCOUNTS

MANY = 3_000
LISTS = 5
SLICE_EVENTS = 129
"""Small events that are checked in one step, and the one that fills it."""


def limited(**limits: int):
    return configured(limits=LimitsConfig(**limits))


def body_of(number: int, **fields) -> bytes:
    return json.dumps([event(n, **fields) for n in range(number)]).encode()


# --- how many at once --------------------------------------------------------


async def test_a_list_that_is_too_long_is_refused_when_one_too_many_is_seen_whoever_sends_it():
    with counting("broker.intake.intake.prepare_event") as checked:
        async with serving(limited(max_events_per_request=5)) as served, connected(served.address) as client:
            with pytest.raises(RequestError, match=r"More than 5 events \(max_events_per_request\)") as raised:
                await served.broker.publish(ACCOUNT, [event(n) for n in range(100)])
            assert raised.value.code == "too_large"
            for body, headers in (
                (body_of(100), ()),
                (b"\n".join([json.dumps(event()).encode()] * 100), (("Content-Type", "application/x-ndjson"),)),
            ):
                answer = await post_events(served.address, body, *headers)
                assert (answer.status, answer.code) == (413, "too_large")
                assert "More than 5 events (max_events_per_request)" in answer.message
            await client.say(action="publish", request_id="p", params={"events": [event(n) for n in range(100)]})
            error = (await client.answer("p"))["error"]
            assert error["code"] == "too_large"
            assert "More than 5 events (max_events_per_request) - at `$.params.events`" in error["message"]
            assert served.broker.statistics().published == 0
            assert checked.total <= 3 * 5, "no more than may come are looked at"
            assert (await post_events(served.address, body_of(5))).status == 200
            assert client.ready["limits"]["max_events_per_request"] == 5


# --- others have their turn --------------------------------------------------


async def test_a_long_list_given_to_the_library_lets_others_have_their_turn():
    async with open_broker() as opened:
        with counting("broker.intake.intake.prepare_event") as checked:
            published = await opened.publish("acct", [event(n) for n in range(MANY)])
        assert checked.total == len(published) == MANY
        assert checked.most <= SLICE_EVENTS


@pytest.mark.parametrize("size", [0, 20_000], ids=["small", "large"])
async def test_a_long_list_over_http_is_checked_and_answered_in_short_steps(size):
    number = MANY if not size else 100
    async with serving() as served:
        with (
            counting("broker.intake.intake.prepare_event") as checked,
            counting("broker.intake.batch.encode", lambda json: json.count(b"event_id")) as answered,
        ):
            answer = await post_events(served.address, body_of(number, size=size))
        assert (answer.status, checked.total, answered.total) == (200, number, number)
        assert checked.most <= (SLICE_EVENTS if not size else 2)
        assert answered.most <= ANSWER_SLICE
        cursors = [item["cursor"] for item in answer.result["events"]]
        assert len(set(cursors)) == number


async def test_a_long_list_over_a_socket_is_checked_and_answered_in_short_steps():
    async with serving() as served, connected(served.address) as client:
        with (
            counting("broker.intake.intake.prepare_event") as checked,
            counting("broker.intake.batch.encode", lambda json: json.count(b"event_id")) as answered,
        ):
            await client.say(action="publish", request_id="p", events=[event(n) for n in range(MANY)])
            answer = await client.answer("p")
        assert len(answer["result"]["events"]) == checked.total == answered.total == MANY
        assert checked.most <= SLICE_EVENTS
        assert answered.most <= ANSWER_SLICE


async def test_of_many_long_lists_at_once_one_goes_on_between_two_looks_at_the_network():
    async with open_broker() as opened:
        with (
            counting("broker.intake.intake.prepare_event") as checked,
            counting("broker.intake.batch._published", len) as answered,
        ):
            async with trio.open_nursery() as nursery:
                for number in range(LISTS):
                    nursery.start_soon(opened.publish, f"acct_{number}", [event(n) for n in range(MANY)])
                    await trio.lowlevel.checkpoint()  # the first slice of each is checked at once
        assert checked.total == answered.total == LISTS * MANY
        assert checked.most_of_turn <= 2 * SLICE_EVENTS
        assert answered.most_of_turn <= 2 * ANSWER_SLICE


async def test_of_an_accounts_long_lists_one_is_checked_after_the_other_and_another_accounts_beside_them():
    stored = []

    async def publish(account_id):
        await opened.publish(account_id, [event(n) for n in range(MANY)])
        stored.append((account_id, checked.total))

    async with open_broker() as opened:
        with counting("broker.intake.intake.prepare_event") as checked:
            async with trio.open_nursery() as nursery:
                for account_id in [ACCOUNT] * LISTS + ["acct_other"]:
                    nursery.start_soon(publish, account_id)
    assert "acct_other" in [account_id for account_id, _ in stored[:2]]
    _, checked_by_then = stored[0]
    assert checked_by_then < 2.5 * MANY, "what is checked of a list is kept until all of it is"


async def test_a_long_lists_answer_waits_for_no_list_that_is_still_being_checked():
    checked_by_then = []

    async def post():
        assert (await post_events(served.address, body_of(MANY))).status == 200
        checked_by_then.append(checked.total)

    async with serving() as served:
        with counting("broker.intake.intake.prepare_event") as checked:
            async with trio.open_nursery() as nursery:
                for _ in range(LISTS):
                    nursery.start_soon(post)
    assert checked_by_then[0] <= LISTS * MANY / 2, "what is told of a list is kept until its answer is written"


async def test_what_was_checked_of_a_publish_is_not_kept_beside_the_log():
    async with serving() as served, connected(served.address) as client:
        intake, outcomes = served.broker.intake, []
        batch = intake.batch(served.connection(client).session.key, body_of(10))
        assert intake.prepare_slice(batch)
        intake.begin(batch, await intake.places(batch), outcomes.append)
        assert not batch.by_account
        assert [len(stored) for stored in outcomes] == [10]


async def test_frames_are_made_in_the_fan_outs_turns_not_in_the_step_that_stores_a_list():
    async with open_broker() as opened:
        with counting("broker.log.replay.encode_event") as framed:
            await opened.publish("acct", [event(n) for n in range(MANY)])
            await blocked()
        assert framed.total == MANY
        assert framed.most <= 1_024, "what is taken in one turn, or little more"


# --- whose events ------------------------------------------------------------


@pytest.mark.parametrize("bad", [NewEvent("a", {}, account_id="acct_bob"), {**event(1), "account_id": "acct_bob"}])
async def test_the_librarys_event_for_another_account_is_refused_and_named(bad):
    async with open_broker() as opened:
        with pytest.raises(RequestError, match=r"\$\[1\]\.account_id") as raised:
            await opened.publish("acct_alice", [event(0), bad])
        assert raised.value.code == "invalid_params"
        assert opened.statistics().published == 0
        await opened.publish("acct_bob", bad)


async def test_an_id_taken_in_one_inbox_is_free_in_all_others():
    async with serving() as served, connected(served.address, "inbox_ids=*") as client:
        mine = await post_events(served.address, event(1, inbox="in_1", event_id="evt_msg_42"), key=INBOXES)
        for number, inbox in ((2, "in_9"), (3, None)):
            answer = await post_events(served.address, event(number, inbox=inbox, event_id="evt_msg_42"))
            assert "duplicate" not in answer.result["events"][0]
            again = await post_events(served.address, event(9, inbox=inbox, event_id="evt_msg_42"))
            assert again.result["events"] == [{**answer.result["events"][0], "duplicate": True}]
        again = await post_events(served.address, event(9, inbox="in_1", event_id="evt_msg_42"), key=INBOXES)
        assert again.result["events"] == [{**mine.result["events"][0], "duplicate": True}]
        assert numbers([await client.next() for _ in range(3)]) == [1, 2, 3]


# --- an engine that must wait ------------------------------------------------


async def test_a_publish_is_answered_when_the_engine_has_stored_it(engines):
    async with open_broker() as opened, trio.open_nursery() as nursery:
        published = []

        async def publish() -> None:
            published.extend(await opened.publish("acct", [event(1), event(2)]))

        nursery.start_soon(publish)
        await blocked()
        assert (published, opened.statistics().published) == ([], 0)
        async with opened.subscribe("acct") as subscriber:
            engines[0].commit()
            await blocked()
            assert len(published) == opened.statistics().published == 2
            assert [(await anext(subscriber)).cursor for _ in range(2)] == [item.cursor for item in published]


async def test_a_publisher_that_is_cancelled_while_the_engine_stores_loses_only_the_answer(engines):
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(opened.publish, "acct", [event(1), event(2)])
                await blocked()
                scope.cancel()
        assert opened.statistics().published == 0
        engines[0].commit()
        assert [(await anext(subscriber)).payload["number"] for _ in range(2)] == [1, 2]
        assert opened.statistics().published == 2
        await blocked()
        assert not opened._hub.account("acct").places.in_use


async def test_what_the_engine_refuses_is_not_stored_and_its_publisher_is_told_why(engines):
    async with open_broker() as opened:
        async with trio.open_nursery() as nursery:
            for _ in range(2 * MAX_PLACES):

                async def publish() -> None:
                    with pytest.raises(RequestError, match="the disk is full"):
                        await opened.publish("acct", event(1))

                nursery.start_soon(publish)
            for _ in range(2 * MAX_PLACES):
                await blocked()
                engines[0].refuse(RequestError("unavailable", "the disk is full"))
        statistics = opened.statistics()
        assert (statistics.published, statistics.duplicates, statistics.replay.events) == (0, 0, 0)
        assert not opened._hub.account("acct").places.in_use


async def test_rates_are_taken_once_though_the_engine_must_wait(engines):
    rates = RatesConfig(enterprise=TierRatesConfig(events_per_account=RateConfig(per_second=0.01, burst=4)))
    async with serving(configured(rates=rates)) as served, trio.open_nursery() as nursery:
        for number in (1, 3):
            begun = len(engines[0].begun)
            nursery.start_soon(post_events, served.address, body_of(number))
            await until(lambda begun=begun: len(engines[0].begun) > begun)
        assert [len(by_account[ACCOUNT]) for by_account, _, _ in engines[0].begun] == [1, 3]
        assert (await post_events(served.address, body_of(1))).code == "rate_limited"
        engines[0].commit(2)


async def test_an_engine_that_must_wait_lets_an_account_have_no_more_places_than_any(engines):
    async with open_broker() as opened, trio.open_nursery() as nursery:
        for number in range(MAX_PLACES + 2):
            nursery.start_soon(opened.publish, "acct", event(number))
        nursery.start_soon(opened.publish, "other", event(0))
        await blocked()
        assert len(engines[0].begun) == MAX_PLACES + 1
        while engines[0].begun:
            engines[0].commit()
            await blocked()
        assert opened.statistics().published == MAX_PLACES + 3


async def test_an_operators_list_is_begun_as_one_and_answered_in_its_order(engines):
    events = [event(n, account_id=name) for n, name in enumerate(["acct_bob", ACCOUNT, "acct_bob", ACCOUNT])]
    async with serving() as served, trio.open_nursery() as nursery:
        answers = []

        async def publish() -> None:
            named = [{**item, "event_id": f"e{n}"} for n, item in enumerate(events)]
            answers.append(await post_events(served.address, named, key=OPERATOR))

        nursery.start_soon(publish)
        await until(lambda: engines[0].begun)
        [(by_account, _, _)] = engines[0].begun
        assert {name: [e.event_id for e in of] for name, of in by_account.items()} == {
            "acct_bob": ["e0", "e2"],
            ACCOUNT: ["e1", "e3"],
        }
        engines[0].commit()
        await until(lambda: answers)
        assert [item["event_id"] for item in answers[0].result["events"]] == ["e0", "e1", "e2", "e3"]


async def test_an_operators_publish_that_may_not_be_stored_gives_all_its_places_back():
    events = [event(n, account_id=name) for n, name in enumerate(["acct_bob", ACCOUNT])]
    whole = configured()
    broker = Broker(whole)
    for _ in range(2 * MAX_PLACES):
        broker.reload(whole)
        batch = broker.intake.batch(key_of(broker, OPERATOR), json.dumps(events).encode())
        assert broker.intake.prepare_slice(batch)
        places = broker.intake.places_nowait(batch)
        broker.reload(msgspec.structs.replace(whole, operators=()))
        with pytest.raises(RequestError, match="unauthorized"):
            broker.intake.begin(batch, places, pytest.fail)
    assert not any(account.places.in_use for account in broker._hub.accounts())


async def test_an_operators_list_is_for_so_many_accounts_at_most_and_takes_their_places_in_short_steps():
    names = [f"acct_{number:04}" for number in range(MAX_ACCOUNTS + 1)]
    config = config_of(*[AccountConfig(id=name) for name in names])
    async with serving(config) as served:
        events = [event(account_id=name) for name in names]
        refused = await post_events(served.address, events, key=OPERATOR)
        assert (refused.status, refused.code) == (413, "too_large")
        assert f"`$[{MAX_ACCOUNTS}].account_id`" in refused.message
        with counting("broker.fanout.places.Places.take_nowait") as taken:
            answer = await post_events(served.address, [*events[:-1], event(account_id=names[0])], key=OPERATOR)
        assert len(answer.result["events"]) == MAX_ACCOUNTS + 1
        assert taken.total == MAX_ACCOUNTS
        assert taken.most <= 64


async def test_where_one_account_has_no_place_none_is_taken_in_another():
    events = [event(n, account_id=name) for n, name in enumerate(["acct_bob", ACCOUNT])]
    async with serving() as served:
        places = take_all_places(served)
        batch = served.broker.intake.batch(key_of(served.broker, OPERATOR), json.dumps(events).encode())
        assert served.broker.intake.prepare_slice(batch)
        assert served.broker.intake.places_nowait(batch) is None
        assert not served.broker._hub.account("acct_bob").places.in_use
        for place in places:
            place.give_back()


# --- the log is attached before a stream opens -------------------------------


async def test_while_the_engine_is_away_nobody_opens_a_stream_and_the_broker_is_not_ready(engines):
    async with serving() as served:
        engines[0].is_away = True
        for answer in (await opening(served.address), await ask(served.address, "GET", "/readyz")):
            assert (answer.status, answer.code) == (503, "unavailable")
            assert answer.headers["retry-after"]
        assert (await ask(served.address, "GET", "/healthz")).status == 200
        engines[0].is_away = False
        async with connected(served.address):
            assert (await ask(served.address, "GET", "/readyz")).status == 200


async def test_a_stream_opens_when_its_accounts_log_is_attached_and_what_it_asks_for_is_reached(engines):
    async with serving() as served, await open_socket(served.address) as stream:
        engines[0].attaching = trio.Event()
        await stream.send_all(upgrade_head("since=5m"))
        await until(lambda: served.server.exchanges)
        await blocked(0.01)
        assert not served.broker.slots.holders(ACCOUNT)
        assert engines[0].reached == []
        engines[0].attaching.set()
        with trio.fail_after(60):
            assert bytes(await stream.receive_some(100)).startswith(b"HTTP/1.1 101")
        assert engines[0].reached == [(ACCOUNT, "5m")]
        assert served.broker._hub.account(ACCOUNT).uses == 1
    await blocked()
    assert served.broker._hub.account(ACCOUNT).uses == 0


async def test_an_opening_that_is_refused_in_the_end_holds_no_account():
    async with serving() as served:
        for query, key in (("inbox_ids=in_3", INBOXES), ("", OPERATOR), ("since=", ALICE)):
            assert (await opening(served.address, query, key=key)).status in (400, 403)
        assert all(account.uses == 0 for account in served.broker._hub.accounts())
        assert "None" not in {account.buffer.account_id for account in served.broker._hub.accounts()}


async def test_the_library_reaches_what_it_asks_for_too(engines):
    async with open_broker() as opened, opened.subscribe("acct", since="5m"):
        assert engines[0].reached == [("acct", "5m")]


# --- bodies under way --------------------------------------------------------


async def test_bodies_under_way_are_held_until_they_are_answered_and_more_is_unavailable(engines):
    body = body_of(5, size=200)
    async with serving(limited(max_bodies_bytes=6 * len(body))) as served, trio.open_nursery() as nursery:
        bodies = served.broker.bodies
        nursery.start_soon(post_events, served.address, body)
        await until(lambda: engines[0].begun)
        assert bodies.bytes == len(body)
        refused = await post_events(served.address, body)
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "unavailable", "1")
        engines[0].commit()
        await until(lambda: not bodies.bytes)
        nursery.start_soon(post_events, served.address, body)
        await until(lambda: engines[0].begun)
        engines[0].commit()


async def test_a_body_of_a_client_that_leaves_is_not_held():
    body = body_of(5, size=200)
    async with serving() as served:
        async with half_sent(served.address, "/v1/events", body):
            await until(lambda: served.broker.bodies.bytes)
        await until(lambda: not served.broker.bodies.bytes)
