"""Whose credential it is, for as long as its connections live: keys known outside, asked for again at their time."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    OPERATOR,
    Outside,
    alices,
    ask,
    config_of,
    configured_key,
    connected,
    event,
    numbers,
    open_socket,
    opening,
    post_events,
    said,
    serving,
    token_of,
    until,
    upgrade_head,
)
from trio.testing import MockClock

from broker import CloseCode, RateConfig, RatesConfig, RequestError, TierRatesConfig, open_broker
from broker.access.keys import digest_of
from broker.access.lookup import MAX_ASKING, RETRY_SECONDS
from broker.access.watched import MAX_ASKING_AGAIN

ONE, TWO = "dm_live_one", "dm_live_two"
DIGEST = digest_of(ONE)


@pytest.fixture
def clock():
    """Nobody here waits for long; clients that only listen are alive, for their kernel acknowledges."""
    return MockClock(rate=0.01, autojump_threshold=0.002)


def listening(address, query="", key=ONE):
    """A client that may be waited for very long."""
    return connected(address, query, key=key, seconds=1e6)


@asynccontextmanager
async def served_and_asking(**answers):
    """A served broker that has one key of its own, and whom it asks for others."""
    outside = Outside(**answers)
    async with serving(config_of(alices(tier="enterprise")), access=outside) as served:
        yield served, outside


def watched(served) -> int:
    return served.broker.statistics().keyring.watched


# --- who is asked for


async def test_a_key_of_the_configuration_is_never_asked_for_nor_is_an_operators(clock):
    async with served_and_asking() as (served, outside):
        async with connected(served.address, key=ALICE) as client:
            await client.ping()
        await post_events(served.address, [], key=ALICE)
        await post_events(served.address, [], key=OPERATOR)
        assert (await post_events(served.address, [], key="dm_operator_nobody")).status == 401
        async with connected(served.address, key=await token_of(served.address, ALICE)):
            pass
        await trio.sleep(100)
        assert outside.asked == []


@pytest.mark.parametrize("credential", ["wst_nothing", "secret", "dm_operator_one", "DM_LIVE_ONE", "wst_.x"])
async def test_nobody_is_asked_for_what_is_no_key(credential, clock):
    async with served_and_asking(one=said()) as (served, outside):
        assert (await opening(served.address, key=credential)).status == 401
        assert outside.asked == []


async def test_a_key_known_outside_does_what_a_configured_one_does(clock):
    async with served_and_asking(one=said(), two=said(inbox_ids=["in_1"], scopes=["subscribe"])) as (served, outside):
        async with connected(served.address, "inbox_ids=*", key=ONE) as one, connected(served.address, key=TWO) as two:
            assert one.ready["account_id"] == two.ready["account_id"] == ACCOUNT
            assert two.ready["inbox_ids"] == ["in_1"]
            assert (await post_events(served.address, [event(1), event(2, inbox="in_2")], key=ONE)).status == 200
            assert numbers([await one.next(), await one.next(), await two.next()]) == [1, 2, 1]
        assert (await post_events(served.address, [event(1)], key=TWO)).status == 403
        assert (await opening(served.address, "inbox_ids=in_2", key=TWO)).status == 403
        assert [digest for digest, _ in outside.asked] == [digest_of(ONE), digest_of(TWO)]


async def test_none_is_401_and_whatever_is_raised_is_503(clock):
    async with served_and_asking(two=ValueError("no")) as (served, _):
        refused, unavailable = await opening(served.address, key=ONE), await opening(served.address, key=TWO)
        assert (refused.status, refused.code) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert (unavailable.status, unavailable.code) == (503, "unavailable")
        assert served.broker.statistics().slots.connections == 0


async def test_the_tier_that_is_said_bounds_the_connections(clock):
    async with (
        served_and_asking(one=said(tier="free", account_id="acct_out")) as (served, _),
        connected(served.address, key=ONE),
    ):
        assert (await opening(served.address, key=ONE)).status == 429


async def test_an_operator_publishes_for_accounts_that_only_others_know(clock):
    stray = [event(1, account_id="acct_elsewhere")]
    async with (
        served_and_asking(one=said(account_id="acct_elsewhere")) as (served, _),
        connected(served.address, "inbox_ids=*", key=ONE) as client,
    ):
        assert (await post_events(served.address, stray, key=OPERATOR)).status == 200
        assert numbers([await client.next()]) == [1]
    async with serving(config_of(alices())) as served:
        answer = await post_events(served.address, stray, key=OPERATOR)
        assert (answer.status, answer.code) == (404, "not_found")
        own = [event(1, account_id=ACCOUNT)]
        assert (await post_events(served.address, own, key=OPERATOR)).status == 200


async def test_a_token_of_a_key_known_outside_is_asked_for_again_at_its_opening(clock):
    async with served_and_asking(one=said(ttl_seconds=1, inbox_ids=["in_1", "in_2"])) as (served, outside):
        token = await token_of(served.address, ONE, inbox_ids=["in_2"])
        async with connected(served.address, key=token) as client:
            assert client.ready["inbox_ids"] == ["in_2"]
        await trio.sleep(2)
        outside.knows(DIGEST, said(ttl_seconds=1, inbox_ids=["in_1"]))
        assert (await opening(served.address, "inbox_ids=in_2", key=token)).status == 403
        async with connected(served.address, key=token) as client:
            assert client.ready["inbox_ids"] == []
        await trio.sleep(2)
        outside.knows(DIGEST, None)
        assert (await opening(served.address, key=token)).status == 401
        assert {digest for digest, _ in outside.asked} == {DIGEST}


async def test_a_client_that_leaves_while_its_key_is_asked_for_leaves_nothing(clock):
    async with served_and_asking(one=said(ttl_seconds=5)) as (served, outside):
        outside.hold()
        with trio.move_on_after(1):
            await opening(served.address, key=ONE)
        outside.let_go()
        await until(lambda: not served.server.exchanges)
        await until(lambda: not served.server.connections)
        assert served.broker.statistics().slots.connections == 0
        await trio.sleep(10)
        assert watched(served) == 0


# --- asked for again


async def test_a_key_with_connections_is_asked_for_again_at_its_time_and_401_closes_them(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20), two=said(ttl_seconds=20)) as (served, outside),
        listening(served.address) as first,
        listening(served.address) as second,
        listening(served.address, key=TWO) as other,
    ):
        await trio.sleep(50)
        assert [digest for digest, _ in outside.asked].count(DIGEST) == 3
        assert {remote for _, remote in outside.asked} == {"127.0.0.1"}
        await first.ping()
        outside.knows(DIGEST, None)
        assert await first.until_closed() == CloseCode.REVOKED
        assert await second.until_closed() == CloseCode.REVOKED
        assert served.broker.statistics().slots.connections == 1
        await other.ping()


async def test_when_the_answer_is_less_the_connection_keeps_the_rest_and_is_told(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20)) as (served, outside),
        listening(served.address, "inbox_ids=in_3,in_2,in_1") as client,
    ):
        outside.knows(DIGEST, said(ttl_seconds=20, inbox_ids=["in_9", "in_3", "in_1"]))
        assert await client.next() == {"type": "connection.updated", "inbox_ids": ["in_1", "in_3"]}
        events = [event(1, inbox="in_2"), event(2, inbox=None), event(3, inbox="in_9"), event(4, inbox="in_3")]
        await served.broker.publish(ACCOUNT, events)
        assert numbers([await client.next()]) == [4]
        await client.say(action="subscribe", request_id="s", inbox_ids=["in_2"])
        assert (await client.answer("s"))["error"]["code"] == "forbidden"


async def test_when_the_answer_is_the_same_or_more_nothing_is_said(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20, inbox_ids=["in_1"])) as (served, outside),
        listening(served.address) as client,
    ):
        await trio.sleep(30)
        outside.knows(DIGEST, said(ttl_seconds=20))
        await trio.sleep(35)
        assert len(outside.asked) == 4
        await client.say(action="subscribe", request_id="s", inbox_ids=["in_2"])
        answer = await client.next()
        assert (answer["request_id"], answer["result"]["inbox_ids"]) == ("s", ["in_1", "in_2"])


async def test_a_key_that_is_now_of_another_account_is_gone(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20)) as (served, outside),
        listening(served.address) as client,
    ):
        outside.knows(DIGEST, said(ttl_seconds=20, account_id="acct_other"))
        assert await client.until_closed() == CloseCode.REVOKED


async def test_while_nobody_answers_connections_stay_and_the_key_is_asked_for_again_later(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20)) as (served, outside),
        listening(served.address, "inbox_ids=*") as client,
    ):
        outside.knows(DIGEST, RequestError("unavailable", "later"))
        await trio.sleep(20 + 3.5 * RETRY_SECONDS)
        assert len(outside.asked) == 5
        await served.broker.publish(ACCOUNT, event(1))
        assert numbers([await client.next()]) == [1]
        async with connected(served.address, key=ONE) as newcomer:
            await newcomer.ping()
        outside.knows(DIGEST, None)
        assert await client.until_closed() == CloseCode.REVOKED


async def test_what_an_opening_learns_holds_for_the_connections_that_are_there(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20)) as (served, outside),
        listening(served.address, "inbox_ids=in_1,in_2") as client,
    ):
        outside.knows(DIGEST, RequestError("unavailable", "later"))
        await trio.sleep(21)
        outside.knows(DIGEST, said(ttl_seconds=1000, inbox_ids=["in_1"]))
        async with connected(served.address, key=ONE):
            assert (await client.next())["inbox_ids"] == ["in_1"]
            assert trio.current_time() < 20 + RETRY_SECONDS


async def test_many_connections_of_one_key_ask_one_question(clock):
    async with served_and_asking(one=said(ttl_seconds=20)) as (served, outside), AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(listening(served.address))
        await trio.sleep(50)
        assert len(outside.asked) == 3


async def test_newcomers_need_not_wait_for_all_the_keys_that_are_asked_for_again(clock):
    answers = {f"{number}": said(ttl_seconds=20) for number in range(MAX_ASKING + 10)}
    async with served_and_asking(**answers, one=said()) as (served, outside), AsyncExitStack() as stack:
        for number in answers:
            await stack.enter_async_context(listening(served.address, key=f"dm_live_{number}"))
        outside.hold()
        outside.most_at_once = 0
        await trio.sleep(21)
        assert outside.most_at_once == MAX_ASKING_AGAIN < MAX_ASKING
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, served.address, "POST", "/v1/events?key=dm_live_one")
            await until(lambda: outside.asked[-1][0] == DIGEST)
            outside.let_go()


async def test_nothing_is_kept_of_a_key_that_nobody_watches_after_its_time(clock):
    async with served_and_asking(one=said(ttl_seconds=20)) as (served, outside):
        for _ in range(3):
            async with listening(served.address) as client:
                assert watched(served) == 1
                await client.ping()
        await until(lambda: not served.server.connections)
        await trio.sleep(21)
        assert watched(served) == 0
        assert len(outside.asked) == 1


async def test_a_connection_that_comes_back_inside_the_time_is_asked_for_at_its_end(clock):
    async with served_and_asking(one=said(ttl_seconds=20)) as (served, outside):
        async with listening(served.address):
            pass
        await trio.sleep(10)
        async with listening(served.address) as client:
            outside.knows(DIGEST, None)
            assert await client.until_closed() == CloseCode.REVOKED
            assert 20 <= trio.current_time() < 21


async def test_configured_keys_are_watched_only_while_they_have_connections(clock):
    async with serving(config_of(alices(tier="enterprise"))) as served:
        async with connected(served.address), connected(served.address):
            assert watched(served) == 1
        await until(lambda: not served.server.connections)
        assert watched(served) == 0
        assert served.broker.statistics().keyring.lookup is None


# --- keys that move between the configuration and the outside


async def test_a_key_that_leaves_the_configuration_stays_if_somebody_outside_knows_it(clock):
    async with (
        served_and_asking(alice=said(ttl_seconds=20, inbox_ids=["in_1"])) as (served, outside),
        listening(served.address, "inbox_ids=in_1,in_2", key=ALICE) as client,
    ):
        served.broker.reload(config_of())
        assert await client.next() == {"type": "connection.updated", "inbox_ids": ["in_1"]}
        await trio.sleep(21)
        assert [digest for digest, _ in outside.asked] == [digest_of(ALICE)] * 2
        outside.knows(digest_of(ALICE), None)
        assert await client.until_closed() == CloseCode.REVOKED


@pytest.mark.parametrize("answer", [None, RequestError("unavailable", "later")])
async def test_a_key_that_leaves_the_configuration_is_gone_if_nobody_outside_says_that_he_knows_it(answer, clock):
    async with served_and_asking(alice=answer) as (served, _), listening(served.address, key=ALICE) as client:
        served.broker.reload(config_of())
        assert await client.until_closed() == CloseCode.REVOKED


async def test_a_key_that_enters_the_configuration_is_what_that_says_and_asked_for_no_more(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20)) as (served, outside),
        listening(served.address, "inbox_ids=in_1,in_2") as client,
    ):
        served.broker.reload(config_of(alices(configured_key(ONE, inbox_ids=("in_2",)))))
        assert await client.next() == {"type": "connection.updated", "inbox_ids": ["in_2"]}
        outside.knows(DIGEST, None)
        await trio.sleep(100)
        await client.ping()
        assert len(outside.asked) == 1


async def test_what_is_said_outside_of_a_key_that_the_configuration_has_by_then_changes_nothing(clock):
    """The question was under way when it was loaded."""
    async with served_and_asking(one=said(ttl_seconds=5)) as (served, outside), listening(served.address) as client:
        outside.hold()
        await until(lambda: len(outside.asked) == 2)
        served.broker.reload(config_of(alices(configured_key(ONE))))
        outside.knows(DIGEST, None)
        outside.let_go()
        await trio.sleep(20)
        await client.ping()
        assert len(outside.asked) == 2


async def test_in_the_library_any_async_function_may_be_asked(clock):
    asked = []

    async def access(digest, remote):
        asked.append((digest, remote))
        return said(account_id="acct_library")

    async with open_broker(access=access) as opened:
        key = await opened.keyring.authenticate(ONE, None)
        assert (key.account_id, asked) == ("acct_library", [(DIGEST, None)])


async def test_that_a_key_is_gone_is_learned_by_an_opening_too(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=20)) as (served, outside),
        listening(served.address, "inbox_ids=*") as client,
    ):
        outside.knows(DIGEST, RequestError("unavailable", "later"))
        await trio.sleep(21)
        outside.knows(DIGEST, None)
        assert (await opening(served.address, key=ONE)).status == 401
        assert await client.until_closed() == CloseCode.REVOKED
        assert trio.current_time() < 20 + RETRY_SECONDS


async def test_a_key_that_was_configured_for_a_while_is_again_what_was_said_outside(clock):
    async with (
        served_and_asking(one=said(ttl_seconds=3600, inbox_ids=["in_1"])) as (served, _),
        listening(served.address) as client,
    ):
        served.broker.reload(config_of(alices(configured_key(ONE))))
        await client.say(action="subscribe", request_id="s", inbox_ids=["in_2"])
        assert (await client.answer("s"))["result"]["inbox_ids"] == ["in_1", "in_2"]
        served.broker.reload(config_of())
        with trio.fail_after(60):
            assert await client.next() == {"type": "connection.updated", "inbox_ids": ["in_1"]}


async def test_a_key_that_left_the_configuration_while_its_opening_waited_is_not_let_in_unasked(clock, held_cursor):
    """Nobody outside ever knew it, and nobody answers now."""
    async with (
        served_and_asking(alice=RequestError("unavailable", "later")) as (served, _),
        await open_socket(served.address) as stream,
    ):
        await stream.send_all(upgrade_head("since=5m", key=ALICE))
        await until(lambda: served.server.exchanges)
        served.broker.reload(config_of())
        held_cursor.set()
        assert (await stream.receive_some(1_000))[9:12] in (b"401", b"503")


async def test_new_rates_hold_for_open_connections_of_keys_known_outside_too(clock):
    slow = TierRatesConfig(events_per_connection=RateConfig(per_second=0.001, burst=1))
    async with served_and_asking(one=said(ttl_seconds=3600)) as (served, _), listening(served.address) as client:
        served.broker.reload(config_of(alices(), rates=RatesConfig(enterprise=slow)))
        for number, code in ((1, None), (2, "rate_limited")):
            await client.say(action="publish", request_id=f"r{number}", events=event(number))
            assert (await client.answer(f"r{number}")).get("error", {}).get("code") == code
