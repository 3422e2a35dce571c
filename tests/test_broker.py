"""The broker as a library: publishing, waiting, cancelling, subscribing, and what is left afterwards."""

import gc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
import trio
from clients import ACCOUNT, ALICE, BOB, OPERATOR, configured, event, key_of
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked as blocked

from broker import (
    Broker,
    BrokerClosedError,
    Event,
    Gap,
    LimitsConfig,
    NewEvent,
    Published,
    ReplayConfig,
    RequestError,
    Subscriber,
    open_broker,
)
from broker.fanout.places import MAX_PLACES


async def take(subscriber: Subscriber, count: int) -> list[Event | Gap]:
    with trio.fail_after(60):
        return [await anext(subscriber) for _ in range(count)]


async def take_numbers(subscriber: Subscriber, count: int) -> list[int]:
    return [item.payload["number"] for item in await take(subscriber, count)]


def by_trios_clock(broker: Broker, monkeypatch: pytest.MonkeyPatch, set_forward: float = 0) -> Callable[[], datetime]:
    """Let the clock on the wall go with trio's, set forward by so many seconds; return it."""
    start = datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp() + set_forward
    monkeypatch.setattr(broker._engine, "_wall_clock", lambda: start + trio.current_time())
    return lambda: datetime.fromtimestamp(start + trio.current_time(), UTC)


# --- publishing --------------------------------------------------------------


async def test_one_event_is_published():
    async with open_broker() as opened, opened.subscribe("acct", ["in_1"]) as subscriber:
        (published,) = await opened.publish("acct", NewEvent("test.event", {"number": 1}, inbox_id="in_1"))
        (got,) = await take(subscriber, 1)
        assert published == Published(got.event_id, got.cursor)
        assert got.type == "test.event"
        assert got.inbox_id == "in_1"
        assert got.payload == {"number": 1}
        assert abs(got.created_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("make", [list, tuple, iter], ids=["list", "tuple", "iterator"])
async def test_a_sequence_of_events_and_mappings_is_published_in_its_order(make):
    events = [NewEvent("test.event", {"number": 0}), {"type": "test.event", "payload": {"number": 1}}, event(2)]
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        published = await opened.publish("acct", make(events))
        assert [item.duplicate for item in published] == [False] * 3
        assert await take_numbers(subscriber, 3) == [0, 1, 2]


async def test_a_mapping_that_is_no_dict_is_published():
    from types import MappingProxyType

    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        await opened.publish("acct", MappingProxyType({"type": "a", "payload": {}}))
        assert [item.type for item in await take(subscriber, 1)] == ["a"]


async def test_no_events_are_published_at_once():
    async with open_broker() as opened:
        assert await opened.publish("acct", []) == []
        assert opened.statistics().published == 0


async def test_fields_that_are_given_are_kept():
    moment = datetime(2026, 11, 23, 12, tzinfo=timezone(timedelta(hours=2)))
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        made = NewEvent("a.b", {"é": [1, None, "x\n"]}, inbox_id="i@x.example", event_id="mine", created_at=moment)
        await opened.publish("acct", made)
        (got,) = await take(subscriber, 1)
        assert (got.type, got.event_id, got.inbox_id, got.created_at) == ("a.b", "mine", "i@x.example", moment)
        assert got.payload == {"é": [1, None, "x\n"]}


BAD = {
    "no type": ({"payload": {}}, "type"),
    "no payload": ({"type": "a"}, "payload"),
    "a type that is none": (NewEvent("A", {}), "type"),
    "a type of the broker's": (NewEvent("server.draining", {}), "type"),
    "a payload that is no object": (NewEvent("a", [1]), "payload"),
    "a payload that is no JSON": (NewEvent("a", {"x": object()}), ""),
    "a payload with a lone surrogate": (NewEvent("a", {"x": "\ud800"}), ""),
    "an inbox that is no name": (NewEvent("a", {}, inbox_id="a b"), "inbox_id"),
    "an id that is no name": (NewEvent("a", {}, event_id=""), "event_id"),
    "a time without a zone": (NewEvent("a", {}, created_at=datetime(2026, 1, 1)), "created_at"),
    "a mapping with a number for a name": ({1: 2}, ""),
    "text": ("x", "Expected a `NewEvent` or a mapping, not str - at `$[1]`"),
    "nothing": (None, "not NoneType"),
    "a number that JSON does not have": (NewEvent("a", {"x": [1.0, float("nan")]}), "`$[1].payload.x[1]`"),
}


@pytest.mark.parametrize(("bad", "field"), BAD.values(), ids=BAD.keys())
async def test_an_error_names_the_field_and_nothing_of_the_list_is_published(bad, field):
    async with open_broker() as opened:
        with pytest.raises(RequestError) as raised:
            await opened.publish("acct", [event(1), bad, event(2)])
        assert raised.value.code in {"invalid_params", "invalid_json"}
        assert "$[1]" in raised.value.message
        assert field in raised.value.message
        assert opened.statistics().published == 0


async def test_a_payload_that_holds_itself_is_refused():
    payload: dict = {}
    payload["x"] = payload
    async with open_broker() as opened:
        with pytest.raises(RequestError, match=r"\$\[0\]"):
            await opened.publish("acct", NewEvent("a", payload))


async def test_an_account_that_is_no_name_is_refused():
    async with open_broker() as opened:
        for act in (opened.publish("a b", []), opened.subscribe("").__aenter__()):
            with pytest.raises(RequestError, match="account_id"):
                await act


@pytest.mark.parametrize("given", [{"inbox_ids": "inbox_a"}, {"event_types": "message.received"}])
async def test_one_string_where_a_list_is_meant_is_refused_with_the_list(given):
    async with open_broker() as opened:
        [(name, value)] = given.items()
        with pytest.raises(TypeError, match=rf"`{name}` .*\['{value}'\]"):
            await opened.subscribe("acct", **given).__aenter__()


@pytest.mark.parametrize("given", ["x", b"{}", 5, None], ids=repr)
async def test_what_is_no_event_and_no_list_is_refused_by_its_name(given):
    async with open_broker() as opened:
        with pytest.raises(TypeError, match=rf"`events` is an event or a list of events, not {type(given).__name__}"):
            await opened.publish("acct", given)


@pytest.mark.parametrize("name", ["inbox_ids", "event_types"])
@pytest.mark.parametrize("given", [5, b"message.received", True], ids=repr)
async def test_what_is_no_list_of_names_is_refused_by_its_name(name, given):
    async with open_broker() as opened:
        said = rf"`{name}` is a list of names, not {type(given).__name__}"
        with pytest.raises(TypeError, match=said):
            await opened.subscribe("acct", **{name: given}).__aenter__()
        with pytest.raises(TypeError, match=said):
            await opened.wait_for("acct", **{name: given})


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"since": 5}, "since"),
        ({"since": None}, "since"),
        ({"where": "x"}, "where"),
        ({"where": {"from": 5}}, "where.from"),
        ({"timeout_seconds": "60"}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"inbox_ids": [5]}, "inbox_ids"),
        ({"event_types": [5]}, "event_types"),
        ({"extract": [5]}, "extract"),
    ],
    ids=repr,
)
async def test_a_wait_for_something_of_another_type_is_refused_by_its_name(arguments, place):
    async with open_broker() as opened:
        with pytest.raises(RequestError) as raised:
            await opened.wait_for("acct", **arguments)
        assert place in raised.value.message


async def test_an_event_over_the_limit_is_too_large():
    config = configured(limits=LimitsConfig(max_event_bytes=1_000))
    async with open_broker(config) as opened:
        with pytest.raises(RequestError) as raised:
            await opened.publish("acct", [event(1), event(2, size=1_000)])
        assert raised.value.code == "too_large"
        assert "$[1]" in raised.value.message
        assert opened.statistics().published == 0


async def test_the_same_event_again_is_not_published_again():
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        (first,) = await opened.publish("acct", event(1, event_id="e"))
        again = await opened.publish("acct", [event(2, event_id="e"), event(3, event_id="f"), event(4, event_id="f")])
        assert again[0] == Published("e", first.cursor, duplicate=True)
        assert [item.duplicate for item in again] == [True, False, True]
        assert again[1].cursor == again[2].cursor
        assert await take_numbers(subscriber, 2) == [1, 3]
        statistics = opened.statistics()
        assert (statistics.published, statistics.duplicates) == (2, 2)
        with trio.fail_after(60):
            for _ in range(2 * MAX_PLACES):
                assert (await opened.publish("acct", event(1, event_id="e")))[0].duplicate


async def test_an_id_is_free_again_when_the_window_has_dropped_it():
    config = configured(replay=ReplayConfig(max_events_per_account=2))
    async with open_broker(config) as opened:
        await opened.publish("acct", event(1, event_id="e"))
        await opened.publish("acct", [event(2), event(3), event(4)])
        await blocked()
        assert not (await opened.publish("acct", event(5, event_id="e")))[0].duplicate


async def test_an_event_that_says_no_time_bears_that_of_its_coming(monkeypatch):
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        moments = [datetime(2026, 11, 23, 10, 0, 0, 123_000, tzinfo=UTC), datetime(2026, 11, 23, 10, 0, 1, tzinfo=UTC)]
        for moment in moments:
            monkeypatch.setattr("time.time_ns", lambda moment=moment: round(moment.timestamp() * 1_000) * 1_000_000 + 7)
            await opened.publish("acct", event())
        assert [item.created_at for item in await take(subscriber, 2)] == moments


async def test_ids_made_by_the_broker_are_unique_and_in_order_of_time():
    async with open_broker() as opened:
        made = [item.event_id for item in await opened.publish("acct", [event(n) for n in range(500)])]
        assert len(set(made)) == 500
        assert made == sorted(made)


# --- publishing while the fan-out is behind ----------------------------------


def behind() -> Broker:
    """A broker whose fan-out does nothing: none of its tasks run."""
    return Broker(configured())


async def fill(broker: Broker, account_id: str = ACCOUNT) -> int:
    """Publish until the next publish would wait; return how many were stored."""
    for number in range(MAX_PLACES):
        with trio.fail_after(60):
            await broker.publish(account_id, event(number))
    return MAX_PLACES


async def test_a_publisher_waits_while_the_fan_out_is_behind_and_goes_on_when_it_is_not():
    broker = behind()
    stored = await fill(broker)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.publish, ACCOUNT, event(99))
        await blocked()
        assert broker.statistics().published == stored
        nursery.start_soon(broker._hub.deliver)
        await blocked()
        assert broker.statistics().published == stored + 1
        nursery.cancel_scope.cancel()


async def test_one_account_that_is_behind_holds_up_no_other():
    broker = behind()
    await fill(broker)
    with trio.fail_after(60):
        await broker.publish("acct_bob", event(1))


async def test_a_publisher_cancelled_while_it_waits_has_stored_nothing_and_takes_no_place():
    broker = behind()
    stored = await fill(broker)
    for _ in range(2 * MAX_PLACES):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(broker.publish, ACCOUNT, event(99))
                await blocked()
                scope.cancel()
    assert broker.statistics().published == stored
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker._hub.deliver)
        await fill(broker)
        await blocked()
        nursery.cancel_scope.cancel()
    account = broker._hub.account(ACCOUNT)
    assert account.uses == 0
    places = [account.places.take_nowait(1) for _ in range(MAX_PLACES)]
    assert None not in places


async def test_an_operators_publish_waits_for_all_accounts_before_it_stores_anything():
    broker = behind()
    await fill(broker, "acct_bob")
    body = b'[{"type":"a","payload":{},"account_id":"acct_alice"},{"type":"a","payload":{},"account_id":"acct_bob"}]'
    key = key_of(broker, OPERATOR)
    with trio.move_on_after(0.01):
        await broker.intake.publish_raw(key, body)
    assert broker.statistics().replay.events == MAX_PLACES
    assert all(account.uses == 0 for account in broker._hub.accounts())
    assert not broker._hub.account(ACCOUNT).places.in_use, "nor is a place kept where there was one"


async def test_publishes_that_fail_take_no_place():
    broker = behind()
    alice, bob = key_of(broker, ALICE), key_of(broker, BOB)
    for _ in range(2 * MAX_PLACES):
        with pytest.raises(RequestError):
            await broker.publish(ACCOUNT, {"type": "A"})
        with pytest.raises(RequestError):
            await broker.intake.publish_raw(alice, b'{"type":"A"}')
        with pytest.raises(RequestError):
            await broker.intake.publish_raw(bob, b'{"type":"a","payload":{},"account_id":"acct_alice"}')
    await fill(broker)
    with trio.move_on_after(0.01) as waiting:
        await broker.intake.publish_raw(alice, b'{"type":"a","payload":{}}')
    assert waiting.cancelled_caught
    with trio.fail_after(60):
        await broker.intake.publish_raw(bob, b'{"type":"a","payload":{}}')


async def test_an_engine_that_fails_takes_no_place(monkeypatch):
    broker = behind()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(broker._engine, "begin", fail)
        for _ in range(2 * MAX_PLACES):
            with pytest.raises(ZeroDivisionError):
                await broker.publish(ACCOUNT, event(1))
    assert await fill(broker)


@given(ticks=st.integers(0, 10), size=st.sampled_from([1, 300]), competitors=st.sampled_from([0, 1, 20]))
@settings(max_examples=66)
async def test_a_publisher_cancelled_anywhere_has_stored_nothing_or_stored_and_delivered_all(ticks, size, competitors):
    async with open_broker(configured()) as opened, opened.subscribe(ACCOUNT, ["mine"]) as subscriber:
        scope = trio.CancelScope()
        finished = False

        async def publish() -> None:
            nonlocal finished
            with scope:
                await opened.publish(ACCOUNT, [event(n, inbox="mine") for n in range(size)])
                finished = True

        async with trio.open_nursery() as nursery:
            for number in range(competitors):
                nursery.start_soon(opened.publish, ACCOUNT, event(number, inbox="other"))
            nursery.start_soon(publish)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        stored = opened.statistics().replay.events - competitors
        assert stored in (0, size)
        assert not finished or stored == size
        if stored:
            assert await take_numbers(subscriber, size) == list(range(size))
        await blocked()
        assert opened._hub.account(ACCOUNT).subscriptions.position == opened._hub.account(ACCOUNT).buffer.head


# --- subscribing -------------------------------------------------------------


async def test_without_inboxes_everything_of_the_account_comes_and_nothing_of_another():
    async with open_broker() as opened, opened.subscribe("one") as subscriber:
        await opened.publish("other", event(1))
        await opened.publish("one", [event(2), event(3, inbox=None), event(4, inbox="in_9")])
        assert await take_numbers(subscriber, 3) == [2, 3, 4]


async def test_with_inboxes_only_theirs_and_the_accounts_own_come():
    async with open_broker() as opened, opened.subscribe("one", ["a", "b"]) as subscriber:
        await opened.publish("one", [event(n, inbox=inbox) for n, inbox in enumerate(["a", "c", None, "b"])])
        assert await take_numbers(subscriber, 3) == [0, 2, 3]


async def test_with_no_inboxes_only_the_accounts_own_events_come():
    async with open_broker() as opened, opened.subscribe("one", []) as subscriber:
        await opened.publish("one", [event(1), event(2, inbox=None)])
        assert await take_numbers(subscriber, 1) == [2]


async def test_event_types_hold_for_live_and_replayed_events():
    kinds = ["a.b", "a.c", "b", "a.b.c", "ab"]
    async with open_broker() as opened:
        async with opened.subscribe("one", event_types=["a.*", "b"]) as subscriber:
            start = subscriber.cursor
            await opened.publish("one", [event(n, type=kind) for n, kind in enumerate(kinds)])
            assert await take_numbers(subscriber, 4) == [0, 1, 2, 3]
        async with opened.subscribe("one", event_types=["a.*", "b"], since=start) as subscriber:
            assert subscriber.replay.count == 5
            assert await take_numbers(subscriber, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"inbox_ids": ["a b"]}, "inbox_ids[0]"),
        ({"inbox_ids": ["a", ""]}, "inbox_ids[1]"),
        ({"event_types": ["a", "A"]}, "event_types[1]"),
        ({"event_types": []}, "event_types"),
        ({"since": ""}, "`since`"),
        ({"since": 5}, "Expected a cursor, a duration or a time, as text, not int - at `since`"),
        ({"since": timedelta(minutes=5)}, "not timedelta - at `since`"),
        ({"client_id": 5}, "`client_id`"),
        ({"inbox_ids": [5]}, "inbox_ids[0]"),
        ({"event_types": [None]}, "event_types[0]"),
    ],
)
async def test_a_bad_name_is_refused_and_named(arguments, field):
    async with open_broker() as opened:
        with pytest.raises(RequestError) as raised:
            async with opened.subscribe("one", **arguments):
                pass
        assert field in raised.value.message
        assert opened.statistics().hub.accounts == 0 or not opened._hub.account("one").in_use


async def test_since_a_cursor_replays_what_came_after_it():
    async with open_broker() as opened:
        published = await opened.publish("one", [event(n) for n in range(10)])
        await blocked()
        async with opened.subscribe("one", since=published[3].cursor) as subscriber:
            assert (subscriber.replay.recovered, subscriber.replay.count) == (True, 6)
            await opened.publish("one", event(10))
            assert await take_numbers(subscriber, 7) == list(range(4, 11))


async def test_since_a_cursor_that_the_fan_out_has_not_passed_counts_what_came_after_it():
    async with open_broker() as opened:
        published = await opened.publish("one", [event(n) for n in range(10)])
        async with opened.subscribe("one", since=published[3].cursor) as subscriber:
            assert (subscriber.replay.recovered, subscriber.replay.count) == (True, 6)


async def test_since_a_duration_or_a_time_replays_what_was_stored_since_then(autojump_clock, monkeypatch):
    async with open_broker() as opened:
        day = by_trios_clock(opened, monkeypatch)
        await opened.publish("one", event(1))
        await trio.sleep(60)
        await opened.publish("one", event(2))
        await trio.sleep(30)
        for since, expected in [
            ("100s", [1, 2]),
            ("2m", [1, 2]),
            ("45s", [2]),
            ("29000ms", []),
            ((day() - timedelta(seconds=45)).isoformat(), [2]),
            ((day() - timedelta(minutes=30)).isoformat(), [1, 2]),
            ((day() + timedelta(minutes=30)).isoformat(), []),
        ]:
            async with opened.subscribe("one", since=since) as subscriber:
                assert subscriber.replay.recovered, since
                assert subscriber.replay.count == len(expected), since
                assert await take_numbers(subscriber, len(expected)) == expected


async def test_a_time_finds_what_was_stored_at_it_though_the_clock_on_the_wall_was_set_back_since(
    autojump_clock, monkeypatch
):
    config = configured(replay=ReplayConfig(seconds=7_200, max_events_per_account=3))
    async with open_broker(config) as opened:
        day = by_trios_clock(opened, monkeypatch)
        await opened.publish("one", event(1))
        await trio.sleep(60)
        before = day() - timedelta(seconds=1)
        await opened.publish("one", event(2))
        day = by_trios_clock(opened, monkeypatch, set_forward=-3_600)
        await trio.sleep(60)
        await opened.publish("one", event(3))
        await blocked()
        for since, expected in [
            (before.isoformat(), [2, 3]),
            (day().isoformat(), [1, 2, 3]),  # what was stored later by the clock of then is not left out
            ("90s", [2, 3]),
            ("30s", [3]),
        ]:
            async with opened.subscribe("one", since=since) as subscriber:
                assert (subscriber.replay.recovered, subscriber.replay.count) == (True, len(expected)), since
                assert await take_numbers(subscriber, len(expected)) == expected
        await opened.publish("one", [event(4), event(5)])
        await blocked()
        async with opened.subscribe("one", since=before.isoformat()) as subscriber:
            assert not subscriber.replay.recovered, "the second was dropped"
            gap, *_ = await take(subscriber, 4)
            assert gap.count == 1
        async with opened.subscribe("one", since=(before + timedelta(seconds=2)).isoformat()) as subscriber:
            assert (subscriber.replay.recovered, subscriber.replay.count) == (True, 0)


async def test_since_an_unknown_cursor_is_a_gap_without_a_count_and_then_the_whole_window():
    async with open_broker() as opened:
        await opened.publish("one", [event(1), event(2)])
        async with opened.subscribe("one", since="cunknown") as subscriber:
            assert not subscriber.replay.recovered
            gap, *rest = await take(subscriber, 3)
            assert isinstance(gap, Gap)
            assert (gap.from_, gap.count) == (None, None)
            assert [item.payload["number"] for item in rest] == [1, 2]


async def test_since_beyond_the_window_is_a_gap_with_the_exact_count():
    config = configured(replay=ReplayConfig(max_events_per_account=5))
    async with open_broker(config) as opened:
        published = await opened.publish("one", [event(n, inbox="ab"[n % 2]) for n in range(4)])
        await opened.publish("one", [event(n, inbox="ab"[n % 2]) for n in range(4, 20)])
        await blocked()
        async with opened.subscribe("one", ["a"], since=published[1].cursor) as subscriber:
            gap, *rest = await take(subscriber, 3)
            assert gap.count == len([n for n in range(2, 15) if n % 2 == 0])
            assert gap.from_ == published[1].cursor
            assert [item.payload["number"] for item in rest] == [16, 18]


async def test_old_events_leave_the_window_and_are_counted(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(seconds=10))) as opened:
        published = await opened.publish("one", [event(1), event(2)])
        await trio.sleep(12)
        assert opened.statistics().replay.events == 0
        assert opened.statistics().replay.dropped == 2
        async with opened.subscribe("one", since=published[0].cursor) as subscriber:
            assert not subscriber.replay.recovered
            (gap,) = await take(subscriber, 1)
            assert gap.count == 1
        async with opened.subscribe("one", since=published[1].cursor) as subscriber:
            assert subscriber.replay.recovered


async def test_a_cursor_given_out_before_the_fan_out_is_there_is_waited_for(monkeypatch):
    monkeypatch.setattr("broker.broker.AHEAD_SECONDS", 600)
    broker = behind()
    (published,) = await broker.publish(ACCOUNT, event(1))
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def subscribe() -> None:
            async with broker.subscribe(ACCOUNT, since=published.cursor) as subscriber:
                assert subscriber.replay.recovered
                assert subscriber.replay.count == 0
            done.set()

        nursery.start_soon(subscribe)
        await blocked()
        assert not done.is_set()
        nursery.start_soon(broker._hub.deliver)
        with trio.fail_after(60):
            await done.wait()
        nursery.cancel_scope.cancel()


async def test_two_brokers_are_independent():
    async with open_broker() as one, open_broker() as two:
        (published,) = await one.publish("acct", event(1, event_id="e"))
        assert not (await two.publish("acct", event(2, event_id="e")))[0].duplicate
        async with two.subscribe("acct", since=published.cursor) as subscriber:
            assert not subscriber.replay.recovered
            gap, got = await take(subscriber, 2)
            assert gap.from_ is None
            assert got.payload["number"] == 2
        one.start_draining()
        assert not two.draining.is_set()
        await two.publish("acct", event(3))


# --- its life ----------------------------------------------------------------


async def test_while_it_drains_it_publishes_nothing():
    async with open_broker(configured()) as opened:
        opened.start_draining()
        assert opened.statistics().draining
        with pytest.raises(BrokerClosedError):
            await opened.publish("acct", event(1))
        for act in (
            lambda: opened.intake.batch(key_of(opened, ALICE), b"[]"),
            lambda: opened.require_open(),
        ):
            with pytest.raises(RequestError) as raised:
                act()
            assert raised.value.code == "draining"
        assert opened.statistics().published == 0


async def test_leaving_the_blocks_frees_everything(autojump_clock):
    config = configured(replay=ReplayConfig(seconds=10))
    async with open_broker(config) as opened:
        for number in range(5):
            async with opened.subscribe(f"acct_{number}", ["a"]) as one, opened.subscribe(f"acct_{number}") as two:
                await opened.publish(f"acct_{number}", event(1, inbox="a"))
                await take(one, 1)
                await take(two, 1)
                await blocked()
                assert not opened.statistics().hub.live
        assert opened.statistics().hub.accounts == 5
        # The window, the hour for which positions are known, a bucket, and the next round of forgetting.
        await trio.sleep(10 + 3_600 + 600 + 60)
        statistics = opened.statistics()
        assert statistics.hub.accounts == 0
        assert statistics.hub.queued_accounts == 0
        assert (statistics.replay.accounts, statistics.replay.events, statistics.replay.bytes) == (0, 0, 0)


async def test_an_account_in_use_is_never_forgotten(autojump_clock):
    config = configured(replay=ReplayConfig(seconds=10))
    async with open_broker(config) as opened, opened.subscribe("acct") as subscriber:
        await trio.sleep(10_000)
        await opened.publish("acct", event(1))
        assert await take_numbers(subscriber, 1) == [1]


async def test_an_account_that_is_held_is_let_go_once_however_often_it_is_said():
    async with open_broker() as opened:
        hold, other = opened.hold("acct"), opened.hold("acct")
        async with other as account:
            assert await hold.__aenter__() is account
            assert account.uses == 2
            await hold.aclose()
            await hold.aclose()
            assert account.uses == 1
        assert account.uses == 0


async def test_cancelling_the_block_ends_it_at_once():
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with open_broker() as opened, opened.subscribe("acct"):
            await opened.publish("acct", event(1))
            scope.cancel()
            await trio.sleep_forever()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_a_failure_in_a_task_of_the_broker_ends_it_loudly(monkeypatch):
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_broker() as opened:
            monkeypatch.setattr(opened._hub, "take_turns", lambda _: 1 / 0)
            await opened.publish("acct", event(1))
            await trio.sleep_forever()


async def test_an_exception_of_the_block_is_not_hidden():
    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        async with open_broker():
            raise ValueError


async def test_nothing_keeps_a_broker_that_has_ended():
    import weakref

    async with open_broker() as opened, opened.subscribe("acct"):
        await opened.publish("acct", event(1))
    reference = weakref.ref(opened)
    del opened
    gc.collect()
    assert reference() is None


async def test_after_its_end_it_publishes_nothing():
    async with open_broker() as opened:
        pass
    with pytest.raises(BrokerClosedError):
        await opened.publish("acct", event(1))


async def test_a_publisher_that_waits_when_the_drain_begins_is_refused():
    broker = behind()
    stored = await fill(broker)
    refused = trio.Event()

    async def publish() -> None:
        with pytest.raises(BrokerClosedError):
            await broker.publish(ACCOUNT, event(99))
        refused.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await blocked()
        broker.start_draining()
        nursery.start_soon(broker._hub.deliver)
        await blocked()
        nursery.cancel_scope.cancel()
    assert refused.is_set()
    assert broker.statistics().published == stored
