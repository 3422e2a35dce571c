"""publishing.py: the `publish` commands of one connection, in their order, whatever the engine."""

import json

import pytest
import trio
from clients import ACCOUNT, ALICE, configured, connected, event, key_of, numbers, serving, take_all_places, until
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import settle
from trio.testing import wait_all_tasks_blocked as blocked

from broker import LimitsConfig, RequestError, open_broker
from broker.commands.requests import CommandRequest, PublishRequest
from broker.intake.batch import ANSWER_SLICE
from broker.intake.publishing import Publishing
from broker.protocol.decoding import decode_command

MANY = 2_000


def events(number: int, start: int = 0) -> list[dict]:
    return [event(start + n) for n in range(number)]


async def answers_in_order(client, number: int) -> list[dict]:
    """The next answers, in the order in which they come."""
    answers = []
    while len(answers) < number:
        frame = await client.next()
        if frame["type"] == "response":
            answers.append(frame)
    return answers


async def test_a_short_publish_does_not_overtake_a_long_one_of_the_same_client():
    async with (
        serving() as served,
        connected(served.address) as client,
        connected(served.address, "inbox_ids=in_1") as reader,
    ):
        await client.say(action="publish", request_id="long", events=events(MANY))
        await client.say(action="publish", request_id="short", events=event(MANY))
        await client.say(action="publish", request_id="long_again", events=events(MANY, MANY + 1))
        await client.say(action="publish", request_id="short_again", events=event(2 * MANY + 1))
        assert numbers([await reader.next() for _ in range(2 * MANY + 2)]) == list(range(2 * MANY + 2))
        answers = await answers_in_order(client, 4)
        assert {answer["request_id"] for answer in answers} == {"long", "short", "long_again", "short_again"}
        assert all("result" in answer for answer in answers)


async def test_a_short_publish_that_comes_while_another_waits_waits_behind_it():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        places = take_all_places(served)
        await client.say(action="publish", request_id="first", events=event(1))
        await client.ping()
        for place in places:
            place.give_back()
        await client.say(action="publish", request_id="second", events=event(2))
        frames = [await client.next() for _ in range(4)]
        assert numbers(frames) == [1, 2]


@given(gaps=st.lists(st.integers(0, 6), min_size=2, max_size=12))
@settings(max_examples=100)
async def test_whenever_publishes_come_each_begins_once_and_in_its_order(gaps):
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:
        lane = opened.commands.lane(key_of(opened, ALICE))
        publishing = Publishing(opened.intake, opened.bodies, opened.commands, lane)
        answers: list[int] = []
        for number, gap in enumerate(gaps):
            listed = json.dumps(events(number % 2 * 200 + 1, 1_000 * number)).encode()
            request = CommandRequest(decode_command('{"action":"publish"}'), key_of(opened, ALICE), f"r{number}")

            def reply(outcome, number=number):
                assert outcome.error is None
                answers.append(number)

            if publishing.submit(PublishRequest(request, listed, "$"), reply):
                nursery.start_soon(publishing.do_waiting)
            for _ in range(gap):
                await trio.lowlevel.checkpoint()
        await blocked()
        assert answers == list(range(len(gaps)))


async def test_publishes_begin_in_their_order_and_none_waits_for_the_commit_of_another(engines):
    async with serving() as served, connected(served.address) as client:
        for number in range(5):
            await client.say(action="publish", request_id=f"r{number}", events=event(number, event_id=f"e{number}"))
        await until(lambda: len(engines[0].begun) == 5)
        assert [by_account[ACCOUNT][0].event_id for by_account, _, _ in engines[0].begun] == [f"e{n}" for n in range(5)]
        engines[0].commit(2)
        engines[0].refuse(RequestError("unavailable", "no room"))
        engines[0].commit(2)
        answers = await answers_in_order(client, 5)
        assert [answer["request_id"] for answer in answers] == [f"r{n}" for n in range(5)]
        assert [answer.get("error", {}).get("code") for answer in answers] == [None, None, "unavailable", None, None]


async def test_an_engine_that_remembers_is_told_whose_answer_it_is(engines):
    async with serving() as served, connected(served.address, "client_id=agent") as client:
        await client.say(action="publish", request_id="r1", events=event(1))
        await client.say(action="publish", events=event(2))
        await until(lambda: len(engines[0].begun) == 2)
        [mine, nobodys] = [answer for _, _, answer in engines[0].begun]
        assert mine.identity[1:] == ("agent", "r1")
        assert mine.digest
        assert nobodys is None
        settle(engines[0])
        await answers_in_order(client, 2)


@pytest.mark.parametrize("number", [1, ANSWER_SLICE + 1], ids=["short", "long"])
async def test_a_client_that_leaves_while_the_engine_stores_may_ask_again_and_gets_the_first_answer(engines, number):
    async with serving() as served:
        async with connected(served.address) as client:
            await client.say(action="publish", request_id="r1", events=events(number))
            await until(lambda: engines[0].begun)
        await served.until_gone()
        async with connected(served.address) as client:
            await client.say(action="publish", request_id="r1", events=events(number))
            await client.ping()
            assert len(engines[0].begun) == 1, "it is not done again"
            engines[0].commit()
            first = (await answers_in_order(client, 1))[0]["result"]["events"]
            await client.say(action="publish", request_id="r1", events=events(number))
            assert (await answers_in_order(client, 1))[0]["result"]["events"] == first
        buffer = served.broker._hub.account(ACCOUNT).buffer
        assert [buffer.position_of(item["cursor"]) for item in first] == list(range(1, number + 1))
        assert served.broker.statistics().published == number


async def test_a_client_that_leaves_while_its_long_answer_is_written_may_ask_again():
    async with serving() as served:
        async with connected(served.address) as client:
            await client.say(action="publish", request_id="r1", events=events(MANY))
            await until(lambda: served.broker.statistics().published)
        await served.until_gone()
        async with connected(served.address) as client:
            await client.say(action="publish", request_id="r1", events=events(MANY))
            assert len((await answers_in_order(client, 1))[0]["result"]["events"]) == MANY
        assert served.broker.statistics().published == MANY


async def test_publishes_that_wait_hold_their_bytes_and_more_of_them_is_unavailable():
    room = 3 * len(json.dumps(event(1))) + 10
    async with (
        serving(configured(limits=LimitsConfig(max_bodies_bytes=4 * room))) as served,
        connected(served.address) as client,
    ):
        places = take_all_places(served)
        for number in range(5):
            await client.say(action="publish", request_id=f"r{number}", events=event(number))
        refused = await answers_in_order(client, 2)
        assert {answer["request_id"] for answer in refused} == {"r3", "r4"}
        assert all(answer["error"]["code"] == "unavailable" for answer in refused)
        assert all(answer["error"]["retry_after_ms"] for answer in refused)
        assert served.broker.bodies.bytes > 0
        for place in places:
            place.give_back()
        assert all("result" in answer for answer in await answers_in_order(client, 3))
        assert served.broker.bodies.bytes == 0
        await client.say(action="publish", request_id="r3", events=event(1))
        assert "result" in (await answers_in_order(client, 1))[0], "a refusal is not remembered"


async def test_the_bytes_of_publishes_that_wait_are_let_go_when_their_client_leaves():
    async with serving() as served:
        async with connected(served.address) as client:
            take_all_places(served)
            for number in range(3):
                await client.say(action="publish", request_id=f"r{number}", events=event(number))
            await client.ping()
            assert served.broker.bodies.bytes
        await served.until_gone()
        assert served.broker.bodies.bytes == 0
        await blocked()
        assert served.broker.statistics().published == 0


async def test_a_publish_that_fails_inside_is_answered_and_may_be_sent_again(monkeypatch, caplog):
    async with serving() as served:
        async with connected(served.address) as client:
            with monkeypatch.context() as patched:
                patched.setattr(served.broker._engine, "begin", lambda *_: 1 / 0)
                await client.say(action="publish", request_id="r1", events=event(1))
                with trio.fail_after(60):
                    frames, closed = await client.rest()
        assert [frame["error"]["code"] for frame in frames] == ["internal"]
        assert closed.code == 1011
        async with connected(served.address) as client:
            await client.say(action="publish", request_id="r1", events=event(1))
            assert "result" in (await answers_in_order(client, 1))[0]
        assert not served.broker._hub.account(ACCOUNT).places.in_use
