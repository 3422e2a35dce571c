"""Polling over real sockets: pages, waiting, what is missed, and who may."""

import json
from itertools import pairwise

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    LISTENER,
    OPERATOR,
    PUBLISHER,
    ask,
    config_of,
    configured,
    configured_key,
    connected,
    event,
    numbers,
    serving,
    token_of,
    until,
)
from trio.testing import wait_all_tasks_blocked as blocked

from broker import AccountConfig, ReplayConfig
from broker.turns import FIRST_LET_IN, MOST_LET_IN


async def poll(served, query="", key=ALICE):
    """A page: of all inboxes, unless the query or the key says which."""
    if "inbox_ids" not in query and key != INBOXES:
        query += "&inbox_ids=*"
    answer = await ask(served.address, "GET", f"/v1/events?{query}", key=key)
    assert answer.status == 200, answer.body
    return answer.json["result"]


async def refusal(served, query="", key=ALICE):
    answer = await ask(served.address, "GET", f"/v1/events?{query}", key=key)
    return answer.status, answer.code, answer.message


def seen(page):
    return numbers(page["events"])


def waiting(served, count=1):
    """Whether so many polls wait: each has a slot."""
    return lambda: served.broker.statistics().slots.connections == count


# --- pages -------------------------------------------------------------------


async def test_without_since_a_poll_gives_the_cursor_of_the_head():
    async with serving() as served:
        [published] = await served.broker.publish(ACCOUNT, event(1))
        page = await poll(served)
        assert page == {"events": [], "cursor": published.cursor}
        await served.broker.publish(ACCOUNT, event(2))
        assert seen(await poll(served, f"since={page['cursor']}")) == [2]


async def test_a_page_brings_events_as_the_stream_does_and_says_that_none_is_missing():
    async with serving() as served:
        start = (await poll(served))["cursor"]
        async with connected(served.address, "inbox_ids=*") as client:
            await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
            streamed = [await client.next(), await client.next()]
        page = await poll(served, f"since={start}")
    assert page["events"] == streamed
    assert page["replay"] == {"recovered": True, "count": 2}
    assert page["cursor"] == streamed[-1]["cursor"]


async def test_pages_of_any_size_follow_each_other_without_loss_or_repeat():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        for start in range(0, 700, 100):
            await served.broker.publish(ACCOUNT, [event(n) for n in range(start, start + 100)])
        found = []
        for limit in (1, 256, 257, 99, 100):
            page = await poll(served, f"since={cursor}&limit={limit}")
            assert len(page["events"]) <= limit
            found += seen(page)
            cursor = page["cursor"]
    assert found == list(range(700))


async def test_a_hundred_events_are_a_page_unless_more_are_asked_for():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        await served.broker.publish(ACCOUNT, [event(n) for n in range(150)])
        assert len((await poll(served, f"since={cursor}"))["events"]) == 100


async def test_a_page_has_4_mib_at_most():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        for n in range(30):
            await served.broker.publish(ACCOUNT, event(n, size=200_000))
        answer = await ask(served.address, "GET", f"/v1/events?inbox_ids=*&since={cursor}&limit=1000", key=ALICE)
        assert 3_900_000 < len(answer.body) < 4_300_000
        rest = await poll(served, f"since={answer.json['result']['cursor']}&limit=1000")
    assert seen(answer.json["result"]) + seen(rest) == list(range(30))


async def test_only_what_was_asked_for_comes_and_the_cursor_moves_past_the_rest():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        await served.broker.publish(ACCOUNT, [event(1, inbox="in_2"), event(2, type="other.type"), event(3)])
        [last] = await served.broker.publish(ACCOUNT, event(4, inbox="in_2"))
        page = await poll(served, f"since={cursor}&inbox_ids=in_1&event_types=test.*")
    assert seen(page) == [3]
    assert page["cursor"] == last.cursor
    assert page["replay"]["count"] == 2


async def test_without_inbox_ids_an_account_key_gets_the_accounts_own_events_as_on_the_stream():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
        answer = await ask(served.address, "GET", f"/v1/events?since={cursor}", key=ALICE)
    assert seen(answer.json["result"]) == [2]


async def test_an_inbox_key_sees_its_inboxes_only():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox="in_9"), event(3, inbox=None)])
        assert seen(await poll(served, f"since={cursor}", key=INBOXES)) == [1]


async def test_a_gap_is_not_recovered_and_what_the_window_holds_comes():
    async with serving(configured(replay=ReplayConfig(max_events_per_account=3))) as served:
        cursor = (await poll(served))["cursor"]
        for n in range(5):
            await served.broker.publish(ACCOUNT, event(n))
        page = await poll(served, f"since={cursor}")
        assert seen(page) == [2, 3, 4]
        assert page["replay"] == {"recovered": False, "count": 3}
        assert (await poll(served, f"since={page['cursor']}"))["replay"] == {"recovered": True, "count": 0}


async def test_a_cursor_of_another_account_is_unknown_and_brings_nothing_of_it():
    async with serving() as served:
        cursor = (await poll(served, key=BOB))["cursor"]
        await served.broker.publish("acct_bob", event(1))
        await served.broker.publish(ACCOUNT, event(2))
        page = await poll(served, f"since={cursor}")
    assert seen(page) == [2]
    assert page["replay"]["recovered"] is False


async def test_a_poll_goes_on_where_its_client_last_acknowledged():
    async with serving() as served:
        assert (await poll(served, "client_id=agent&since=acked"))["replay"] == {"recovered": True, "count": 0}
        told = await served.broker.publish(ACCOUNT, [event(1), event(2), event(3)])
        async with connected(served.address, "inbox_ids=*&client_id=agent&since=acked") as client:
            assert (await client.next())["cursor"] == told[0].cursor
            await client.say(action="ack", request_id="r", cursor=told[0].cursor)
            assert (await client.answer("r"))["result"]["acked"] == 1
        for _ in range(2):  # to read is not to acknowledge
            page = await poll(served, "client_id=agent&since=acked")
            assert (seen(page), page["replay"]) == ([2, 3], {"recovered": True, "count": 2})
        await poll(served, f"client_id=agent&since={told[0].cursor}&limit=1")
        assert seen(await poll(served, "client_id=agent&since=acked")) == [2, 3]
        assert await refusal(served, "since=acked") == (400, "bad_request", "`acked` needs a `client_id` - at `since`")


# --- waiting -----------------------------------------------------------------


async def test_a_poll_that_waits_is_answered_by_the_first_event():
    async with serving() as served, trio.open_nursery() as nursery:
        pages = []

        async def wait():
            pages.append(await poll(served, "wait=60&inbox_ids=in_1"))

        nursery.start_soon(wait)
        await until(waiting(served))
        await served.broker.publish(ACCOUNT, event(1, inbox="in_2"))
        [published] = await served.broker.publish(ACCOUNT, event(2))
        await until(lambda: pages)
        assert seen(pages[0]) == [2]
        assert pages[0]["cursor"] == published.cursor
        assert served.broker.statistics().slots.connections == 0


async def test_a_poll_that_finds_something_does_not_wait():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        await served.broker.publish(ACCOUNT, event(1))
        assert seen(await poll(served, f"wait=60&since={cursor}")) == [1]


async def test_a_poll_that_waited_in_vain_has_a_cursor_to_go_on_from():
    async with serving() as served:
        page = await poll(served, "wait=0.05")
        assert page["events"] == []
        await served.broker.publish(ACCOUNT, event(1))
        assert seen(await poll(served, f"since={page['cursor']}")) == [1]


async def test_a_poll_that_waits_counts_as_a_connection_and_one_that_does_not_does_not():
    free = config_of(AccountConfig(id=ACCOUNT, tier="free", keys=(configured_key(ALICE),)))
    async with serving(free) as served, connected(served.address):
        assert (await poll(served))["events"] == []
        status, code, _ = await refusal(served, "wait=1")
    assert (status, code) == (429, "connection_limit")


@pytest.mark.parametrize("query", ["client_id=me&wait=60", "wait=60"])
async def test_a_poll_that_waits_answers_early_for_its_successor_or_a_drain(query):
    async with serving() as served, trio.open_nursery() as nursery:
        pages = []

        async def wait():
            pages.append(await poll(served, query))

        nursery.start_soon(wait)
        await until(waiting(served))
        if "client_id" in query:
            await poll(served, "client_id=me&wait=0.01")
        else:
            served.broker.start_draining()
        await until(lambda: pages)
        assert pages[0]["events"] == []


async def test_of_many_polls_that_wait_a_drain_lets_a_few_at_a_time_answer():
    """All at once were a turn of the loop of 80 ms for 1,500."""
    count, left = 100, []

    class Turns(trio.abc.Instrument):
        def before_io_wait(self, timeout):
            left.append(served.broker.connections.statistics().open.get(("enterprise", "poll"), 0))

    async with serving() as served, trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(poll, served, "wait=60")
        await until(waiting(served, count))
        await blocked()
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        served.broker.start_draining()
        await until(lambda: left[-1:] == [0])
        trio.lowlevel.remove_instrument(turns)
    assert max(before - after for before, after in pairwise([count, *left])) <= FIRST_LET_IN + MOST_LET_IN


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind():
    async with serving() as served:
        with trio.move_on_after(0.2):
            await poll(served, "wait=60")
        await until(lambda: served.broker.statistics().slots.connections == 0)


async def test_a_key_that_is_revoked_while_its_poll_waits_gets_no_event():
    async with serving() as served, trio.open_nursery() as nursery:
        answers = []

        async def wait():
            answers.append(await refusal(served, "wait=60"))

        nursery.start_soon(wait)
        await until(waiting(served))
        served.broker.reload(config_of(AccountConfig(id=ACCOUNT, keys=(configured_key(BOB),))))
        await until(lambda: answers)
        assert answers[0][:2] == (401, "unauthorized")


async def test_a_key_that_is_narrowed_while_its_poll_waits_gets_what_it_still_reaches():
    async with serving() as served, trio.open_nursery() as nursery:
        pages = []

        async def wait():
            pages.append(await poll(served, "wait=60"))

        nursery.start_soon(wait)
        await until(waiting(served))
        narrowed = configured_key(ALICE, inbox_ids=("in_2",))
        served.broker.reload(config_of(AccountConfig(id=ACCOUNT, keys=(narrowed,))))
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox="in_2")])
        await until(lambda: pages)
        assert set(seen(pages[0])) <= {2}


# --- who may, and how it is asked --------------------------------------------


@pytest.mark.parametrize("key", [PUBLISHER, OPERATOR])
async def test_who_may_not_subscribe_may_not_poll(key):
    async with serving() as served:
        assert (await refusal(served, key=key))[:2] == (403, "forbidden")


async def test_a_subscriber_may_poll_and_a_token_may_not():
    async with serving() as served:
        assert (await poll(served, key=LISTENER))["events"] == []
        token = await token_of(served.address)
        answer = await ask(served.address, "GET", f"/v1/events?token={token}")
    assert (answer.status, answer.code) == (403, "forbidden")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=1.5", "limit"),
        ("limit=", "limit"),
        ("wait=61", "wait"),
        ("wait=-1", "wait"),
        ("wait=nan", "wait"),
        ("wait_seconds=5", "The name is `wait` - at `wait_seconds`"),
        ("timeout=5", "The name is `wait` - at `timeout`"),
        ("since=", "since"),
        ("inbox_ids=a,,b", "inbox_ids"),
        ("event_types=A", "event_types"),
        ("client_id=a%20b", "client_id"),
    ],
)
async def test_a_bad_query_is_refused_by_the_name_of_its_field(query, named):
    async with serving() as served:
        status, code, message = await refusal(served, query)
    assert (status, code) == (400, "bad_request")
    assert named in message


async def test_while_the_broker_drains_nobody_polls():
    async with serving() as served, connected(served.address):
        served.broker.start_draining()
        answer = await ask(served.address, "GET", "/v1/events", key=ALICE)
    assert (answer.status, answer.code) == (503, "draining")
    assert "retry-after" in answer.headers


async def test_the_answer_is_one_line_of_json():
    async with serving() as served:
        cursor = (await poll(served))["cursor"]
        body = b'{"type":"a.b","payload":{"text":"two\\nlines",\n"n":1}}'
        await ask(served.address, "POST", "/v1/events", key=ALICE, body=body)
        answer = await ask(served.address, "GET", f"/v1/events?inbox_ids=*&since={cursor}", key=ALICE)
    assert b"\n" not in answer.body
    assert json.loads(answer.body)["result"]["events"][0]["payload"] == {"text": "two\nlines", "n": 1}
