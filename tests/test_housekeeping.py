"""What is done by the clock: everybody is called in time, in slices, and what is removed is forgotten."""

import gc
import weakref

import pytest
import trio
from clients import configured, event
from trio.testing import wait_all_tasks_blocked as blocked

from broker import ReplayConfig, open_broker
from broker.commands import Commands
from broker.config import Config
from broker.housekeeping import FORGET_SECONDS, MAX_EXPIRY_SECONDS, Heartbeats, expire_and_forget
from broker.hub import Hub
from broker.retention import ReplayBuffers


@pytest.fixture
async def heartbeats(nursery):
    made = Heartbeats()
    nursery.start_soon(made.run)
    await blocked()
    return made


async def test_everybody_is_called_when_it_is_due_and_again_when_it_wants(heartbeats, autojump_clock):
    called = []

    def every_three(now: float) -> float:
        called.append(("three", now))
        return now + 3

    def once(now: float) -> None:
        called.append(("once", now))

    heartbeats.add(1, every_three)
    heartbeats.add(2, once)
    await trio.sleep(8)
    assert called == [("three", 1), ("once", 2), ("three", 4), ("three", 7)]


async def test_one_that_is_due_before_all_others_is_called_in_time(heartbeats, autojump_clock):
    called = []
    heartbeats.add(100, lambda now: called.append(now))
    await trio.sleep(1)
    heartbeats.add(5, lambda now: called.append(now))
    await trio.sleep(10)
    assert called == [5]
    await trio.sleep(100)
    assert called == [5, 100]


async def test_one_that_is_due_already_is_called_at_once(heartbeats, autojump_clock):
    await trio.sleep(10)
    called = []
    heartbeats.add(3, lambda now: called.append(now))
    await blocked()
    assert called == [10]


async def test_those_that_are_due_together_are_called_in_the_order_of_their_coming(heartbeats, autojump_clock):
    called = []
    for number in range(10):
        heartbeats.add(1, lambda _, number=number: called.append(number))
    await trio.sleep(2)
    assert called == list(range(10))


async def test_one_that_was_removed_is_not_called(heartbeats, autojump_clock):
    called = []
    remove = heartbeats.add(1, lambda now: called.append(now))
    kept = heartbeats.add(1, lambda now: called.append(-now))
    remove()
    remove()
    await trio.sleep(5)
    assert called == [-1]
    kept()


async def test_one_may_remove_itself_while_it_is_called(heartbeats, autojump_clock):
    called = []

    def beat(now: float) -> float:
        called.append(now)
        remove()
        return now + 1

    remove = heartbeats.add(1, beat)
    await trio.sleep(5)
    assert called == [1]


async def test_nothing_is_kept_of_one_that_was_removed(heartbeats, autojump_clock):
    class Somebody:
        def beat(self, now: float) -> float:
            return now + 30

    somebody = Somebody()
    reference = weakref.ref(somebody)
    heartbeats.add(1_000, somebody.beat)()
    del somebody
    gc.collect()
    assert reference() is None


async def test_thousands_that_are_due_together_let_others_have_their_turn(heartbeats, autojump_clock):
    called = 0

    def beat(_: float) -> None:
        nonlocal called
        called += 1

    for _ in range(1_000):
        heartbeats.add(5, beat)
    await trio.sleep(4.9)
    seen = set()
    with trio.fail_after(10):
        await trio.sleep_until(5)
        while called < 1_000:
            await trio.lowlevel.checkpoint()
            seen.add(called)
    assert len(seen) > 3


async def test_with_nobody_to_call_it_sleeps(autojump_clock, nursery):
    heartbeats = Heartbeats()
    nursery.start_soon(heartbeats.run)
    await trio.sleep(1_000)
    called = []
    heartbeats.add(1_001, lambda now: called.append(now))
    await trio.sleep(10)
    assert called == [1_001]


@pytest.mark.parametrize(("seconds", "late"), [(300, MAX_EXPIRY_SECONDS), (2, 0.5)])
async def test_events_leave_the_window_soon_after_their_time(autojump_clock, seconds, late):
    async with open_broker(configured(replay=ReplayConfig(seconds=seconds))) as opened:
        await opened.publish("acct", event(1))
        await trio.sleep(seconds)
        assert opened.statistics().replay.events == 1
        await trio.sleep(2 * late + 0.001)
        assert opened.statistics().replay.events == 0


async def test_many_events_that_are_old_together_are_dropped_in_slices(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(seconds=10))) as opened:
        for _ in range(10):
            await opened.publish("acct", [event(n) for n in range(500)])
        await trio.sleep(9)
        held = set()
        with trio.fail_after(10):
            while opened.statistics().replay.events:
                held.add(opened.statistics().replay.events)
                await trio.sleep_until(11) if trio.current_time() < 11 else await trio.lowlevel.checkpoint()
        assert len(held) > 5
        assert opened.statistics().replay.dropped == 5_000


async def test_accounts_of_which_nothing_is_left_are_forgotten(autojump_clock, nursery):
    buffers = ReplayBuffers(ReplayConfig(seconds=10), b"x" * 16)
    hub = Hub(buffers)
    nursery.start_soon(expire_and_forget, hub, buffers, Commands(Config()), 10)
    for number in range(200):
        hub.account(f"acct_{number}")
    used = hub.account("acct_7")
    used.holders += 1
    await trio.sleep(FORGET_SECONDS - 2)
    assert hub.statistics().accounts == 200
    await trio.sleep(4)
    assert hub.statistics().accounts == 1
    assert hub.account("acct_7") is used
    used.holders -= 1
    await trio.sleep(FORGET_SECONDS + 2)
    assert hub.statistics().accounts == 0
