"""`wait_for`: the first event that fits, from the window or live, and where to go on from (PROTOCOL section 11)."""

import tracemalloc
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from random import Random

import msgspec
import pytest
import trio
from clients import until
from commanding import ACCOUNT, ALICE, BOB, INBOXES, LISTENER, OPERATOR, configured, connected, post, serving
from steps import Work, counting
from trio.testing import wait_all_tasks_blocked as blocked

from broker import BrokerClosedError, Config, LimitsConfig, ReplayConfig, RequestError, open_broker
from broker.access.keys import Key
from broker.access.opening import NAME_BYTES
from broker.protocol.decoding import decode_command
from broker.turns import FIRST_LET_IN, MOST_LET_IN
from broker.waiting import filed, waits, watch
from broker.waiting.asked import check_wait
from broker.waiting.waits import MAX_OF_ALL_INBOXES, MAX_OF_CONNECTION


def mail(n, inbox_id="in_1", **fields):
    message = {
        "message_id": f"msg_{n}",
        "from": "Acme <hello@acme.com>",
        "to": ["ada@x.com"],
        "subject": f"Mail {n}",
        **fields,
    }
    return {"type": "message.received", "event_id": f"evt_{n}", "inbox_id": inbox_id, "payload": {"message": message}}


def event_id(frame):
    return frame["result"]["event"] and frame["result"]["event"]["event_id"]


async def test_who_waits_gets_the_first_event_that_fits_and_nothing_else_is_held_up(autojump_clock):
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        await client.say("wait_for", "w1", inbox_ids=["in_1"], where={"subject": "code"}, extract=["code"])
        await client.say("ping", "p1")
        assert (await client.hear())["request_id"] == "p1"
        await opened.publish(
            ACCOUNT, [mail(1), mail(2, "in_2", subject="code 1"), mail(3, subject="Your code: 493201")]
        )
        answer = await client.hear()
        assert (answer["request_id"], answer["action"]) == ("w1", "wait_for")
        assert event_id(answer) == "evt_3"
        assert answer["result"]["cursor"] == answer["result"]["event"]["cursor"]
        assert answer["result"]["extracted"] == {"code": ["493201"]}


async def test_an_event_that_is_there_already_is_found_from_a_cursor_and_not_from_now(autojump_clock):
    async with open_broker(configured()) as opened:
        cursors = [published.cursor for published in await opened.publish(ACCOUNT, [mail(1), mail(2), mail(3)])]
        found = await opened.wait_for(ACCOUNT, since=cursors[0])
        assert (found.event.event_id, found.cursor) == ("evt_2", cursors[1])
        assert (await opened.wait_for(ACCOUNT, since="5m")).event.event_id == "evt_1"
        assert (await opened.wait_for(ACCOUNT, since=found.cursor)).event.event_id == "evt_3"
        assert (await opened.wait_for(ACCOUNT, timeout_seconds=1)).event is None


async def test_time_over_is_an_answer_with_the_cursor_to_go_on_from(autojump_clock):
    async with open_broker(configured()) as opened:
        [first] = await opened.publish(ACCOUNT, mail(1))
        began = trio.current_time()
        over = await opened.wait_for(ACCOUNT, timeout_seconds=30)
        assert (over.event, trio.current_time() - began) == (None, 30)
        assert over.cursor == first.cursor
        await opened.publish(ACCOUNT, mail(2))
        assert (await opened.wait_for(ACCOUNT, since=over.cursor, timeout_seconds=0)).event.event_id == "evt_2"


async def test_who_runs_out_of_time_in_the_middle_of_what_was_read_goes_on_behind_what_was_looked_at(
    mock_clock, monkeypatch
):
    looked_at = []

    def look(mail):
        looked_at.append(mail)
        if len(looked_at) == 2:
            mock_clock.jump(60)
        return False

    monkeypatch.setattr(waits, "condition", lambda _: look)
    monkeypatch.setattr(waits, "_LOOK_BYTES", 1)
    async with open_broker(configured()) as opened:
        published = await opened.publish(ACCOUNT, [mail(n) for n in range(5)])
        over = await opened.wait_for(ACCOUNT, since="5m", timeout_seconds=30)
        assert (over.event, over.cursor) == (None, published[1].cursor)


async def test_a_wait_of_no_time_gives_the_cursor_of_now_so_that_no_older_code_is_taken(autojump_clock):
    async with open_broker(configured()) as opened:
        await opened.publish(ACCOUNT, mail(1, subject="code 111111"))
        now = await opened.wait_for(ACCOUNT, timeout_seconds=0)
        assert now.event is None
        await opened.publish(ACCOUNT, mail(2, subject="code 222222"))
        found = await opened.wait_for(ACCOUNT, since=now.cursor, extract=["code"])
        assert found.extracted.code == ["222222"]


async def test_what_is_looked_through_and_does_not_fit_moves_the_cursor_on(autojump_clock):
    async with open_broker(configured()) as opened:
        published = await opened.publish(ACCOUNT, [mail(n) for n in range(1_000)])
        over = await opened.wait_for(ACCOUNT, where={"subject": "nothing"}, since="5m", timeout_seconds=0)
        assert (over.event, over.cursor) == (None, published[-1].cursor)


async def test_what_comes_while_it_waits_and_does_not_fit_moves_the_cursor_on(autojump_clock):
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:
        over = []

        async def wait():
            over.append(await opened.wait_for(ACCOUNT, where={"subject": "nothing"}, timeout_seconds=5))

        nursery.start_soon(wait)
        await blocked()
        published = await opened.publish(ACCOUNT, [mail(1), mail(2)])
        await trio.sleep(6)
        assert [(each.event, each.cursor) for each in over] == [(None, published[-1].cursor)]


async def test_other_types_inboxes_and_accounts_are_not_for_who_waits(autojump_clock):
    async with open_broker(configured()) as opened:
        async with trio.open_nursery() as nursery:
            found = []

            async def wait():
                found.append(
                    await opened.wait_for(ACCOUNT, ["message.bounced"], inbox_ids=["in_1"], timeout_seconds=60)
                )

            nursery.start_soon(wait)
            await blocked()
            bounced = {"type": "message.bounced", "payload": {}}
            await opened.publish(ACCOUNT, [mail(1), {**bounced, "inbox_id": "in_2", "event_id": "evt_b2"}])
            await opened.publish("acct_bob", {**bounced, "inbox_id": "in_1"})
            await blocked()
            assert not found
            await opened.publish(ACCOUNT, {**bounced, "inbox_id": "in_1", "event_id": "evt_b1"})
        assert found[0].event.event_id == "evt_b1"


async def test_an_inbox_key_finds_in_its_inboxes_and_asks_for_no_others():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address, INBOXES) as client:
        await client.say("wait_for", "w1", inbox_ids=["in_3"])
        refused = await client.hear()
        assert refused["error"]["code"] == "forbidden"
        assert "$.inbox_ids[0]" in refused["error"]["message"]
        await client.say("wait_for", "w2")
        await client.ask("ping", "p1")
        await opened.publish(ACCOUNT, [mail(1, "in_3"), mail(2, "in_2")])
        while "result" not in (answer := await client.hear()):
            pass
        assert event_id(answer) == "evt_2"


async def test_a_gap_before_the_event_is_in_the_answer(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(max_events_per_account=2))) as opened:
        [first, *_] = await opened.publish(ACCOUNT, [mail(1), mail(2), mail(3), mail(4), mail(5)])
        await blocked()
        found = await opened.wait_for(ACCOUNT, since=first.cursor)
        assert found.event.event_id == "evt_4"
        assert (found.gap.from_, found.gap.count) == (first.cursor, 2)
        unknown = await opened.wait_for(ACCOUNT, since="cnobody", where={"subject": "Mail 5"})
        assert (unknown.event.event_id, unknown.gap.from_, unknown.gap.count) == ("evt_5", None, None)
        nothing = await opened.wait_for(ACCOUNT, since=first.cursor, where={"subject": "none"}, timeout_seconds=0)
        assert (nothing.event, nothing.gap.from_, nothing.gap.count) == (None, first.cursor, 2)


async def test_what_is_missed_again_while_it_waits_is_one_gap_with_what_was_missed_before(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(max_events_per_account=2))) as opened:
        [first, *_] = await opened.publish(ACCOUNT, [mail(n) for n in range(1, 6)])
        await blocked()
        async with trio.open_nursery() as nursery:
            found = []

            async def wait():
                found.append(await opened.wait_for(ACCOUNT, since=first.cursor, where={"subject": "Mail 99"}))

            nursery.start_soon(wait)
            await blocked()
            published = await opened.publish(ACCOUNT, [mail(n) for n in (6, 7, 8, 9, 99)])
        assert (found[0].gap.from_, found[0].gap.to, found[0].gap.count) == (first.cursor, published[2].cursor, 2 + 3)


async def test_where_storage_does_not_answer_nothing_is_said_of_where_to_go_on(autojump_clock, archives):
    async with open_broker(configured(replay=ReplayConfig(max_events_per_account=2))) as opened:
        [first, *_] = await opened.publish(ACCOUNT, [mail(n) for n in range(1, 6)])
        await blocked()
        archives[0].answering = trio.Event()
        began = trio.current_time()
        with pytest.raises(RequestError) as refused:
            await opened.wait_for(ACCOUNT, since=first.cursor, timeout_seconds=3)
        assert (refused.value.code, refused.value.retry_after_ms) == ("unavailable", 1_000)
        assert trio.current_time() - began == 3 + waits.LOOK_SECONDS


async def test_over_http_it_waits_a_minute_at_most_and_needs_no_scope_but_subscribe():
    async with open_broker(configured()) as opened, serving(opened) as address:
        await opened.publish(ACCOUNT, mail(1, subject="code 493201"))
        answer = await post(address, {"action": "wait_for", "since": "5m", "extract": ["code", "link"]}, LISTENER)
        assert answer.status_code == 200
        assert answer.json()["result"]["extracted"] == {"code": ["493201"], "link": []}
        too_long = await post(address, {"action": "wait_for", "timeout_seconds": 61})
        assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "invalid_params")
        assert "$.timeout_seconds" in too_long.json()["error"]["message"]
        over = await post(address, {"action": "wait_for", "timeout_seconds": 0.01})
        assert over.json()["result"]["event"] is None
        assert (await post(address, {"action": "wait_for"}, OPERATOR)).status_code == 403


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"where": {"form": "x"}}, "form"),
        ({"params": {"where": {"from": 7}}}, "$.params.where.from"),
        ({"inbox_id": "in_1"}, "inbox_ids"),
        ({"event_types": ["x"] * 101}, "event types"),
        ({"extract": ["code", "link", "code"]}, "$.extract"),
        ({"where": {"sender": "x"}}, "`$.where.sender`"),
        ({"params": {"where": {"sender": "x"}}}, "`$.params.where.sender`"),
        ({"where": {"S3CRET": "x"}}, "`$.where`"),
        ({"timeout_seconds": "soon"}, "$.timeout_seconds"),
        ({"timeout": 5}, "The name is `timeout_seconds` - at `$.timeout`"),
        ({"wait_seconds": 5}, "The name is `timeout_seconds` - at `$.wait_seconds`"),
        ({"since": "acked"}, "`$.since`"),
    ],
)
async def test_what_cannot_be_waited_for_is_refused_by_the_name_of_its_field(params, path):
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        await client.say("wait_for", "w1", **params)
        error = (await client.hear())["error"]
        assert error["code"] == "invalid_params"
        assert path in error["message"]


def test_a_key_without_the_scope_waits_for_nothing():
    key = Key("key", ACCOUNT, frozenset({"command", "publish"}))
    with pytest.raises(RequestError, match="subscribe"):
        check_wait(key, decode_command('{"action":"wait_for"}'), "r1", LimitsConfig())


@pytest.mark.parametrize("name", ["event_types", "inbox_ids", "extract"])
async def test_one_string_where_a_list_is_meant_is_a_type_error(name):
    async with open_broker(configured()) as opened:
        with pytest.raises(TypeError, match=name):
            await opened.wait_for(ACCOUNT, **{name: "code"})


async def test_no_more_than_so_many_waits_of_a_connection_are_under_way_and_room_comes_back():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        for number in range(MAX_OF_CONNECTION):
            await client.say("wait_for", f"w{number}", inbox_ids=["in_1"])
        await client.say("wait_for", "more", inbox_ids=["in_1"])
        refused = await client.hear()
        assert (refused["request_id"], refused["error"]["code"]) == ("more", "rate_limited")
        assert refused["error"]["retry_after_ms"]
        await opened.publish(ACCOUNT, mail(1))
        answers = [await client.hear() for _ in range(MAX_OF_CONNECTION)]
        assert {event_id(answer) for answer in answers} == {"evt_1"}
        await client.say("wait_for", "again", since="5m")
        assert event_id(await client.hear()) == "evt_1"


async def test_no_more_than_so_many_of_an_account_wait_and_nothing_is_kept_of_those_that_are_over(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(waits, "MAX_OF_ACCOUNT", 2)
    async with open_broker(configured()) as opened:
        wait = partial(opened.wait_for, inbox_ids=["in_1"], timeout_seconds=5)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(wait, ACCOUNT)
            await blocked()
            with pytest.raises(RequestError) as refused:
                await wait(ACCOUNT)
            assert (refused.value.code, refused.value.retry_after_ms) == ("rate_limited", 1_000)
            assert (await wait("acct_bob")).event is None
        assert (await wait(ACCOUNT)).event is None
        assert (await opened.wait_for(ACCOUNT, timeout_seconds=0)).event is None
        assert (opened.waits._under_way, opened.waits._of_all_inboxes) == ({}, {})


NAMED = [f"in_{number:03}" for number in range(1_000)]
COST = len(NAMED) * (len(NAMED[0]) + NAME_BYTES)
"""Of what a wait for these keeps, at least."""


async def test_what_a_wait_names_is_held_for_as_long_as_it_is_under_way_over_the_stream_and_http():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        async with trio.open_nursery() as nursery:
            await client.say("wait_for", "w1", inbox_ids=NAMED)
            await client.ask("ping", "p1")
            assert COST < opened.bodies.bytes < 1.2 * COST
            nursery.start_soon(post, address, {"action": "wait_for", "params": {"inbox_ids": NAMED}})
            await until(lambda: opened.bodies.bytes > 2 * COST)
            nursery.start_soon(partial(opened.wait_for, ACCOUNT, inbox_ids=NAMED))
            await until(lambda: opened.waits.statistics().under_way == 3)
            assert opened.bodies.bytes < 2.5 * COST  # the program's own wait is not held
            await opened.publish(ACCOUNT, mail(1, NAMED[0]))
            assert event_id(await client.hear()) == "evt_1"
        await client.say("wait_for", "w2", inbox_ids=NAMED, timeout_seconds=0)
        assert event_id(await client.hear()) is None
        assert opened.bodies.bytes == 0
        await client.say("wait_for", "w3", inbox_ids=NAMED)
        await client.ask("ping", "p3")
        assert opened.bodies.bytes > COST
    assert opened.bodies.bytes == 0


async def test_a_wait_that_finds_no_room_is_told_when_to_come_back_and_nothing_of_it_is_kept():
    config = configured(limits=LimitsConfig(max_bodies_bytes=6 * COST))
    async with open_broker(config) as opened, serving(opened) as address, connected(address) as client:
        await client.say("wait_for", "w1", inbox_ids=NAMED)
        await client.ask("ping", "p1")
        held = opened.bodies.bytes
        await client.say("wait_for", "w2", inbox_ids=NAMED)
        refused = await client.hear()
        assert (refused["request_id"], refused["error"]["code"]) == ("w2", "unavailable")
        assert (refused["error"]["retry_after_ms"], "limits.max_bodies_bytes" in refused["error"]["message"]) == (
            1_000,
            1,
        )
        answer = await post(address, {"action": "wait_for", "inbox_ids": NAMED})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert (opened.bodies.bytes, opened.waits.statistics().under_way) == (held, 1)
        async with connected(address, BOB) as other:
            await other.say("wait_for", "w1", inbox_ids=NAMED, timeout_seconds=0)
            assert event_id(await other.hear()) is None
        await opened.publish(ACCOUNT, mail(1, NAMED[0]))
        assert event_id(await client.hear()) == "evt_1"
        await client.say("wait_for", "w3", inbox_ids=NAMED, timeout_seconds=0)
        assert event_id(await client.hear()) is None


async def test_a_wait_keeps_nothing_of_its_message_but_what_it_says():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        tracemalloc.start()
        try:
            for number in range(8):
                await client.say("wait_for", f"w{number}", inbox_ids=["in_1"], nothing="x" * 500_000)
            await client.ask("ping", "p1")
            assert opened.waits.statistics().under_way == 8
            assert tracemalloc.get_traced_memory()[0] < 1_000_000
        finally:
            tracemalloc.stop()


async def test_few_of_an_account_wait_for_any_inbox(autojump_clock):
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:
        for _ in range(MAX_OF_ALL_INBOXES):
            nursery.start_soon(partial(opened.wait_for, ACCOUNT, timeout_seconds=100))
        await blocked()
        with pytest.raises(RequestError) as caught:
            await opened.wait_for(ACCOUNT)
        assert caught.value.code == "rate_limited"
        assert (await opened.wait_for(ACCOUNT, inbox_ids=["in_1"], timeout_seconds=0)).event is None
        assert (await opened.wait_for("acct_bob", timeout_seconds=0)).event is None
        await trio.sleep(101)
        assert (await opened.wait_for(ACCOUNT, timeout_seconds=0)).event is None


async def test_when_the_client_leaves_its_waits_end_and_leave_nothing():
    async with open_broker(configured()) as opened, serving(opened) as address:
        async with connected(address) as client:
            await client.say("wait_for", "w1")
            await client.ask("ping", "p1")
            assert opened.waits.statistics().under_way == 1
        await blocked(0.05)
        assert opened.waits.statistics().under_way == 0


async def test_when_the_key_is_narrowed_what_it_does_not_reach_is_not_told():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address, ALICE) as client:
        await client.say("wait_for", "w1")
        await client.ask("ping", "p1")
        opened.reload(_with_alice_reaching("in_2"))
        await opened.publish(ACCOUNT, [mail(1, "in_1"), mail(2, "in_2")])
        while "result" not in (answer := await client.hear()):
            pass
        assert event_id(answer) == "evt_2"


def _with_alice_reaching(inbox_id):
    config = configured()
    account, *rest = config.accounts
    keys = tuple(
        msgspec.structs.replace(key, inbox_ids=(inbox_id,)) if key.id == "key_alice" else key for key in account.keys
    )
    return msgspec.structs.replace(config, accounts=(msgspec.structs.replace(account, keys=keys), *rest))


async def test_a_request_whose_key_is_revoked_while_it_waits_is_told_nothing():
    async with open_broker(configured()) as opened, serving(opened) as address, trio.open_nursery() as nursery:

        async def revoke():
            await blocked(0.05)
            assert opened.waits.statistics().under_way == 1
            opened.reload(Config())
            await opened.publish("acct_bob", mail(1))

        nursery.start_soon(revoke)
        answer = await post(address, {"action": "wait_for", "timeout_seconds": 30}, BOB)
        assert answer.status_code == 401


async def test_when_the_broker_drains_who_waits_is_told_the_cursor():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        await client.say("wait_for", "w1", timeout_seconds=3600)
        await client.ask("ping", "p1")
        [published] = await opened.publish(ACCOUNT, {"type": "note.added", "payload": {}, "inbox_id": "in_1"})
        opened.start_draining()
        while (answer := await client.hear())["type"] != "response":
            pass
        assert answer["result"] == {"event": None, "cursor": published.cursor}
        with pytest.raises(BrokerClosedError):
            await opened.wait_for(ACCOUNT)


async def test_a_thousand_waits_of_one_account_find_each_its_own(autojump_clock):
    async with open_broker(configured()) as opened:
        found = {}

        async def wait(n):
            answer = await opened.wait_for(ACCOUNT, inbox_ids=[f"in_{n}"], timeout_seconds=60)
            found[n] = answer.event.event_id

        async with trio.open_nursery() as nursery:
            for n in range(1_000):
                nursery.start_soon(wait, n)
            await blocked()
            await opened.publish(ACCOUNT, [mail(n, f"in_{n}") for n in range(1_000)])
        assert found == {n: f"evt_{n}" for n in range(1_000)}


# --- a thousand that look at each event


@contextmanager
def counting_looks(slice_of=watch.SLICE):
    """Count the work of looking, as it counts itself."""
    work, spend = Work(), filed.Work.spend
    count = work.counted(lambda amount: amount, amount=lambda amount: amount)

    def spend_counted(self, amount):
        count(amount)
        return spend(self, amount)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filed.Work, "spend", spend_counted)
        patch.setattr(watch, "SLICE", slice_of)
        trio.lowlevel.add_instrument(work)
        try:
            yield work
        finally:
            trio.lowlevel.remove_instrument(work)


@asynccontextmanager
async def waiting_each(opened, wheres, inbox_id="in_1"):
    """Let one wait for each of these conditions, until the block ends."""
    async with trio.open_nursery() as nursery:
        for where in wheres:
            asked = partial(opened.wait_for, ACCOUNT, inbox_ids=[inbox_id], where=where, timeout_seconds=1_000)
            nursery.start_soon(asked)
        await blocked()
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "where",
    [
        lambda n: {"contains": "nothing that is there"},
        lambda n: {"from": f"somebody.{n}@acme.com"},
        lambda n: {"from": f"@acme{n}.com", "subject": "mail"},
        lambda n: {"to": f"ada{n}@x.com"},
        lambda n: {"thread_id": f"thread_{n}"},
        lambda n: {"in_reply_to": f"msg_{n}", "contains": "mail"},
    ],
)
async def test_a_thousand_waits_for_one_address_one_thread_or_the_same_text_each_cost_what_one_costs(where):
    async with open_broker(configured()) as opened:
        costs = []
        for number in (1, 1_000):
            async with waiting_each(opened, map(where, range(number))):
                with counting_looks() as looks:
                    await opened.publish(ACCOUNT, mail(len(costs)))
                    await blocked()
            costs.append(looks.total)
        assert costs[1] == costs[0]


async def test_a_thousand_waits_for_as_many_texts_are_looked_at_in_short_steps_and_the_mail_is_read_once():
    async with open_broker(configured()) as opened:
        async with waiting_each(opened, ({"contains": f"text number {n}."} for n in range(1_000))):
            with counting_looks() as looks, counting("broker.waiting.watch.mail_of") as reads:
                await opened.publish(ACCOUNT, mail(1, body="x" * 20_000))
                await blocked()
        assert 5_000 < looks.total < 20_000
        assert looks.most_of_turn < watch.SLICE + 2 * filed.CHUNK
        assert reads.total == 1


async def test_events_that_nobody_waits_for_cost_next_to_nothing_however_many_wait():
    async with open_broker(configured()) as opened:
        async with waiting_each(opened, ({"contains": f"text number {n}."} for n in range(1_000))):
            with counting_looks() as looks, counting("broker.waiting.watch.mail_of") as reads:
                await opened.publish(ACCOUNT, [mail(n, "in_2") for n in range(100)])
                await blocked()
        assert looks.total == 100
        assert reads.total == 0


async def test_of_many_that_one_event_is_for_few_are_woken_in_one_turn_of_the_loop():
    async with open_broker(configured()) as opened, waiting_each(opened, [{"subject": "mail"}] * 300):
        with counting("broker.waiting.waits._Wait._found") as found:
            await opened.publish(ACCOUNT, mail(1))
            await blocked()
        assert found.total == 300
        assert found.most_of_turn <= FIRST_LET_IN + MOST_LET_IN


async def test_subscribers_have_an_event_before_anybody_who_waits_is_looked_at_for_it_and_the_next_one_in_the_middle(
    monkeypatch,
):
    monkeypatch.setattr("broker.fanout.hub.TURN_SECONDS", 0.0)  # each few listeners are a turn of the fan-out
    async with open_broker(configured()) as opened, opened.hold(ACCOUNT) as account, trio.open_nursery() as nursery:
        behind = []
        spend = filed.Work.spend

        def look(self, amount):
            if not behind:
                nursery.start_soon(opened.publish, ACCOUNT, mail(2))
            behind.append(account.buffer.head > account.subscriptions.settled)
            return spend(self, amount)

        async def listen():
            async with opened.subscribe(ACCOUNT) as subscriber:
                async for _ in subscriber:
                    pass

        for _ in range(500):
            nursery.start_soon(listen)
        async with waiting_each(opened, ({"contains": f"text number {n}."} for n in range(1_000))):
            monkeypatch.setattr(watch, "SLICE", 2 * filed.CHUNK)
            monkeypatch.setattr(filed.Work, "spend", look)
            await opened.publish(ACCOUNT, mail(1))
            await blocked()
        assert not behind[0]
        assert sum(behind) <= 4, "a slice, and not more, before the fan-out of the next event"
        assert len(behind) > 40
        nursery.cancel_scope.cancel()


async def test_who_waits_while_more_comes_than_the_window_holds_is_told_what_is_missing(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(max_events_per_account=2))) as opened:
        found = []

        async def wait():
            found.append(await opened.wait_for(ACCOUNT, where={"subject": "Mail 5"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await blocked()
            published = await opened.publish(ACCOUNT, [mail(n) for n in range(6)])
        assert (found[0].event.event_id, found[0].cursor) == ("evt_5", published[5].cursor)
        assert (found[0].gap.count, found[0].gap.to) == (4, published[3].cursor)


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_waits_however_often_the_time_is_over_finds_the_first_event_that_fits(
    seed, autojump_clock, monkeypatch
):
    """Waits begin at random times, from now or from a cursor, and go on from the cursor that they were told."""
    monkeypatch.setattr(watch, "SLICE", 3)
    monkeypatch.setattr(watch, "_BATCH_EVENTS", 2)
    random = Random(seed)
    stored, cursors = [], []
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:

        async def wait():
            await trio.sleep(random.uniform(0, 10))
            inboxes = random.choice([["in_1"], ["in_2"], ["in_1", "in_3"], None])
            number = random.randrange(4)
            where, fits = random.choice(
                [
                    (None, lambda event: True),
                    ({"subject": f"text {number}"}, lambda event: event["number"] == number),
                    ({"thread_id": f"t{number}"}, lambda event: event["number"] == number),
                    ({"from": f"{number}@"}, lambda event: event["number"] == number),
                ]
            )
            begin = random.choice([len(stored), random.randrange(len(stored) + 1)])
            since = "now" if begin == len(stored) else cursors[begin - 1] if begin else "1h"
            while (
                found := await opened.wait_for(
                    ACCOUNT, inbox_ids=inboxes, where=where, since=since, timeout_seconds=random.choice([0, 0.01, 1])
                )
            ).event is None:
                since = found.cursor
            right = next(
                event for event in stored[begin:] if (inboxes is None or event["inbox"] in inboxes) and fits(event)
            )
            assert (found.event.event_id, found.cursor, found.gap) == (right["id"], cursors[right["at"]], None)

        async with trio.open_nursery() as waits:
            for _ in range(60):
                waits.start_soon(wait)
            last = 20
            for step in range(last * 10):
                await trio.sleep(0.1)
                if step % 50 == 49:
                    await trio.sleep(1)
                batch = []
                for _ in range(random.choice([1, 1, 2, 7])):
                    n, number, inbox = len(stored), random.randrange(4), random.choice(["in_1", "in_2", "in_3"])
                    stored.append({"number": number, "inbox": inbox, "id": f"evt_{n}", "at": n})
                    batch.append(
                        mail(n, inbox, subject=f"Text {number}", thread_id=f"t{number}", **{"from": f"{number}@x.com"})
                    )
                cursors += [published.cursor for published in await opened.publish(ACCOUNT, batch)]
        nursery.cancel_scope.cancel()
