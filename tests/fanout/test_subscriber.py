"""An in-process subscriber: slow readers, gaps, cursors, and being cancelled."""

import pytest
import trio
from clients import configured, event
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import assert_checkpoints
from trio.testing import wait_all_tasks_blocked as blocked

from broker import BrokerClosedError, Event, Gap, ReplayConfig, open_broker
from broker.fanout import hub


async def take(subscriber, count: int) -> list[Event | Gap]:
    with trio.fail_after(60):
        return [await anext(subscriber) for _ in range(count)]


def numbers(items) -> list[int]:
    return [item.payload["number"] for item in items]


async def test_it_yields_events_in_their_order_as_they_come():
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        for number in range(50):
            await opened.publish("acct", event(number))
            assert numbers(await take(subscriber, 1)) == [number]


async def test_it_waits_where_there_is_nothing_and_is_woken_by_the_next_event():
    async with open_broker() as opened, opened.subscribe("acct") as subscriber, trio.open_nursery() as nursery:
        got = []

        async def read() -> None:
            got.extend(await take(subscriber, 1))

        nursery.start_soon(read)
        await blocked()
        assert got == []
        await opened.publish("acct", event(1))
        await blocked()
        assert numbers(got) == [1]


async def test_it_can_be_iterated():
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        await opened.publish("acct", [event(n) for n in range(5)])
        got = []
        async for item in subscriber:
            got.append(item)
            if len(got) == 5:
                break
        assert numbers(got) == [0, 1, 2, 3, 4]


async def test_each_step_is_a_checkpoint():
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        await opened.publish("acct", [event(1), event(2)])
        for _ in range(2):
            with assert_checkpoints():
                await anext(subscriber)


async def test_a_reader_cancelled_while_it_waits_misses_nothing():
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        for number in range(5):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(take, subscriber, 1)
                    await blocked()
                    scope.cancel()
            await opened.publish("acct", [event(2 * number), event(2 * number + 1)])
            assert numbers(await take(subscriber, 2)) == [2 * number, 2 * number + 1]


@given(ticks=st.lists(st.integers(0, 12), min_size=1, max_size=15))
@settings(max_examples=50)
async def test_a_reader_cancelled_anywhere_misses_nothing_and_gets_nothing_twice(ticks):
    got: list[Event | Gap] = []
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:

        async def read() -> None:
            async for item in subscriber:
                got.append(item)

        for number, wait in enumerate(ticks):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read)
                    await opened.publish("acct", [event(3 * number + n) for n in range(3)])
                    for _ in range(wait):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        got += await take(subscriber, 3 * len(ticks) - len(got))
    assert numbers(got) == list(range(3 * len(ticks)))


async def test_a_slow_reader_is_told_how_many_it_missed_and_gets_what_the_window_holds():
    config = configured(replay=ReplayConfig(max_events_per_account=10))
    async with open_broker(config) as opened, opened.subscribe("acct", ["a"]) as subscriber:
        await opened.publish("acct", event(0, inbox="a"))
        assert numbers(await take(subscriber, 1)) == [0]
        last_read = subscriber.cursor
        published = []
        for number in range(1, 101):
            published += await opened.publish("acct", event(number, inbox="ab"[number % 2]))
            await blocked()
        gap, *rest = await take(subscriber, 6)
        assert isinstance(gap, Gap)
        assert gap.count == len([n for n in range(1, 91) if n % 2 == 0])
        assert (gap.from_, gap.to) == (last_read, published[89].cursor)
        assert numbers(rest) == [92, 94, 96, 98, 100]


async def test_a_gap_counts_before_event_types():
    config = configured(replay=ReplayConfig(max_events_per_account=10))
    async with open_broker(config) as opened, opened.subscribe("acct", event_types=["rare"]) as subscriber:
        for number in range(100):
            await opened.publish("acct", event(number))
            await blocked()
        (gap,) = await take(subscriber, 1)
        assert gap.count == 90


async def test_a_slow_reader_for_whom_nothing_was_dropped_sees_no_gap():
    config = configured(replay=ReplayConfig(max_events_per_account=10))
    async with open_broker(config) as opened, opened.subscribe("acct", ["quiet"]) as subscriber:
        for number in range(100):
            await opened.publish("acct", event(number, inbox="busy"))
            await blocked()
        # An account event is dropped for it as well; this one is still there.
        await opened.publish("acct", event(100, inbox="quiet"))
        assert numbers(await take(subscriber, 1)) == [100]


async def test_a_slow_reader_holds_up_neither_the_publisher_nor_another_reader():
    async with open_broker() as opened, opened.subscribe("acct"), opened.subscribe("acct") as quick:
        with trio.fail_after(60):
            for number in range(200):
                await opened.publish("acct", event(number))
        assert numbers(await take(quick, 200)) == list(range(200))


async def test_a_slow_reader_keeps_nothing_but_its_position():
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        await opened.publish("acct", [event(n) for n in range(5_000)])
        await blocked()
        assert not subscriber._ready
        await take(subscriber, 1)
        assert len(subscriber._ready) < 300


async def test_its_cursor_is_that_of_the_last_event_read_and_good_for_coming_back():
    async with open_broker() as opened:
        async with opened.subscribe("acct") as subscriber:
            start = subscriber.cursor
            published = await opened.publish("acct", [event(n) for n in range(10)])
            assert subscriber.cursor == start
            await take(subscriber, 4)
            assert subscriber.cursor == published[3].cursor
        async with opened.subscribe("acct", since=subscriber.cursor) as again:
            assert again.replay.count == 6
            assert numbers(await take(again, 6)) == [4, 5, 6, 7, 8, 9]
        async with opened.subscribe("acct", since=start) as again:
            assert numbers(await take(again, 10)) == list(range(10))


async def test_after_a_gap_its_cursor_is_the_gaps_end():
    async with open_broker() as opened:
        await opened.publish("acct", [event(1), event(2)])
        await blocked()
        async with opened.subscribe("acct", since="cunknown") as subscriber:
            (gap,) = await take(subscriber, 1)
            assert subscriber.cursor == gap.to
        async with opened.subscribe("acct", since=gap.to) as again:
            assert again.replay.recovered
            assert numbers(await take(again, 2)) == [1, 2]


async def test_without_since_there_is_no_replay():
    async with open_broker() as opened:
        await opened.publish("acct", event(1))
        await blocked()
        async with opened.subscribe("acct") as subscriber:
            assert subscriber.replay is None
            await opened.publish("acct", event(2))
            assert numbers(await take(subscriber, 1)) == [2]


@pytest.mark.parametrize("count", [255, 256, 257, 1_000])
async def test_a_long_replay_is_whole(count):
    async with open_broker() as opened:
        async with opened.subscribe("acct") as subscriber:
            start = subscriber.cursor
        await opened.publish("acct", [event(n) for n in range(count)])
        async with opened.subscribe("acct", since=start) as subscriber:
            await opened.publish("acct", event(count))
            assert numbers(await take(subscriber, count + 1)) == list(range(count + 1))


# --- how it ends


async def rest(subscriber, got: list) -> None:
    """Note all that comes until the iteration ends."""
    async for item in subscriber:
        got += [item]


async def test_when_the_broker_drains_it_ends_after_the_last_event():
    """Of one that has read nothing yet, of one that waits, and of one for which nothing is."""
    async with open_broker() as opened, opened.subscribe("acct") as late, opened.subscribe("acct") as waiting:
        async with opened.subscribe("acct", ["quiet"]) as quiet, trio.open_nursery() as nursery:
            found: dict[object, list] = {late: [], waiting: [], quiet: []}
            for subscriber in (waiting, quiet):
                nursery.start_soon(rest, subscriber, found[subscriber])
            await blocked()
            await opened.publish("acct", [event(n) for n in range(1_000)])
            opened.start_draining()
            with trio.fail_after(60):
                await rest(late, found[late])
        assert [len(items) for items in found.values()] == [1_000, 1_000, 0]
        assert numbers(found[late]) == numbers(found[waiting]) == list(range(1_000))
        with pytest.raises(StopAsyncIteration):
            await anext(late)


async def test_it_ends_after_the_last_event_however_far_the_fan_out_is_from_that(monkeypatch):
    monkeypatch.setattr(hub, "BATCH_EVENTS", 1)
    monkeypatch.setattr(hub, "TURN_SECONDS", 0.0)
    async with open_broker() as opened, opened.subscribe("acct") as subscriber:
        got: list[Event | Gap] = []
        for account in ("acct", "acct_busy", "acct_busier"):
            await opened.publish(account, [event(n) for n in range(100)])
        opened.start_draining()
        await rest(subscriber, got)
        assert numbers(got) == list(range(100))


async def test_one_that_has_ended_with_the_drain_stays_so_when_the_broker_is_gone():
    async with trio.open_nursery() as nursery:
        async with open_broker() as opened:
            subscriber = await nursery.start(subscribed, opened)
            opened.start_draining()
            await rest(subscriber, [])
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)
        nursery.cancel_scope.cancel()


async def test_when_the_broker_is_gone_it_says_so_after_what_can_still_be_read():
    errors = []

    async def read(subscriber, got: list) -> None:
        try:
            await rest(subscriber, got)
        except BrokerClosedError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        async with open_broker() as opened:
            waiting = await nursery.start(subscribed, opened)
            late = await nursery.start(subscribed, opened)
            nursery.start_soon(read, waiting, [])
            await opened.publish("acct", [event(1), event(2)])
            await blocked()
        got: list[Event | Gap] = []
        await read(late, got)
        assert numbers(got) == [1, 2]
        with pytest.raises(BrokerClosedError):
            async with opened.subscribe("acct"):
                raise AssertionError("there is nothing to subscribe to")
        await blocked()
        assert len(errors) == 2
        nursery.cancel_scope.cancel()


async def subscribed(opened, *, task_status) -> None:
    """Subscribe for longer than the broker may live."""
    async with opened.subscribe("acct") as subscriber:
        task_status.started(subscriber)
        await trio.sleep_forever()


async def test_after_its_block_it_is_closed():
    async with open_broker() as opened:
        async with opened.subscribe("acct") as subscriber:
            await opened.publish("acct", event(1))
        with pytest.raises(trio.ClosedResourceError):
            await anext(subscriber)
        await opened.publish("acct", event(2))
        with pytest.raises(trio.ClosedResourceError):
            await anext(subscriber)
        assert opened.statistics().hub.live == 0
        assert not opened._subscribers._open, "nothing is kept of it"


async def test_one_that_waits_and_is_asked_again_has_missed_nothing_meanwhile():
    """Though the window has dropped events since it was fed last: of types that it does not want."""
    config = configured(replay=ReplayConfig(max_events_per_account=10))
    async with open_broker(config) as opened, opened.subscribe("acct", event_types=["rare"]) as subscriber:
        got: list[Event | Gap] = []
        for round_number in range(2):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(rest, subscriber, got)
                    await blocked()
                    scope.cancel()
            for number in range(100 * (1 - round_number)):
                await opened.publish("acct", event(number))
                await blocked()
        assert got == []
        await opened.publish("acct", event(100, type="rare"))
        assert numbers(await take(subscriber, 1)) == [100]
