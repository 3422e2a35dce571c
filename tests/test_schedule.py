"""schedule.py: everybody is called in time, in slices, and what is removed is forgotten."""

import gc
import weakref
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked as blocked

from broker.schedule import Alarm, Schedule, ScheduleStatistics


@pytest.fixture
async def schedule(nursery):
    made = Schedule()
    nursery.start_soon(made.run)
    await blocked()
    return made


async def test_everybody_is_called_when_it_is_due_and_again_when_it_wants(schedule, autojump_clock):
    called = []

    def every_three(now: float) -> float:
        called.append(("three", now))
        return now + 3

    def once(now: float) -> None:
        called.append(("once", now))

    schedule.add(1, every_three)
    schedule.add(2, once)
    await trio.sleep(8)
    assert called == [("three", 1), ("once", 2), ("three", 4), ("three", 7)]


async def test_one_that_is_due_before_all_others_is_called_in_time(schedule, autojump_clock):
    called = []
    schedule.add(100, lambda now: called.append(now))
    await trio.sleep(1)
    schedule.add(5, lambda now: called.append(now))
    await trio.sleep(10)
    assert called == [5]
    await trio.sleep(100)
    assert called == [5, 100]


async def test_one_that_is_due_already_is_called_at_once(schedule, autojump_clock):
    await trio.sleep(10)
    called = []
    schedule.add(3, lambda now: called.append(now))
    await blocked()
    assert called == [10]


async def test_those_that_are_due_together_are_called_in_the_order_of_their_coming(schedule, autojump_clock):
    called = []
    for number in range(10):
        schedule.add(1, lambda _, number=number: called.append(number))
    await trio.sleep(2)
    assert called == list(range(10))


async def test_one_that_was_removed_is_not_called(schedule, autojump_clock):
    called = []
    remove = schedule.add(1, lambda now: called.append(now))
    kept = schedule.add(1, lambda now: called.append(-now))
    remove()
    remove()
    await trio.sleep(5)
    assert called == [-1]
    kept()


async def test_one_may_remove_itself_while_it_is_called(schedule, autojump_clock):
    called = []

    def call(now: float) -> float:
        called.append(now)
        remove()
        return now + 1

    remove = schedule.add(1, call)
    await trio.sleep(1.5)
    assert schedule.statistics() == ScheduleStatistics(waiting=0)
    await trio.sleep(5)
    assert called == [1]


async def test_nothing_is_kept_of_one_that_was_removed(schedule, autojump_clock):
    class Somebody:
        def call(self, now: float) -> float:
            return now + 30

    somebody = Somebody()
    reference = weakref.ref(somebody)
    schedule.add(1_000, somebody.call)()
    del somebody
    gc.collect()
    assert reference() is None


async def test_thousands_that_are_due_together_let_others_have_their_turn(schedule, autojump_clock):
    called = 0

    def call(_: float) -> None:
        nonlocal called
        called += 1

    for _ in range(1_000):
        schedule.add(5, call)
    await trio.sleep(4.9)
    seen = set()
    with trio.fail_after(10):
        await trio.sleep_until(5)
        while called < 1_000:
            await trio.lowlevel.checkpoint()
            seen.add(called)
    assert len(seen) > 3


async def test_with_nobody_to_call_it_sleeps(autojump_clock, nursery):
    schedule = Schedule()
    nursery.start_soon(schedule.run)
    await trio.sleep(1_000)
    called = []
    schedule.add(1_001, lambda now: called.append(now))
    await trio.sleep(10)
    assert called == [1_001]


async def test_what_was_removed_takes_no_room_until_it_would_have_been_due(autojump_clock):
    """Keys that are asked for in a year, of clients that come and go."""
    schedule = Schedule()
    removals = [schedule.add(31_536_000 + number, lambda _: None) for number in range(1_000)]
    kept = schedule.add(1, lambda _: None)
    for remove in [*removals, *removals]:
        remove()
    assert schedule.statistics() == ScheduleStatistics(waiting=1)
    kept()
    assert schedule.statistics() == ScheduleStatistics(waiting=0)


async def test_one_that_is_removed_by_another_of_its_moment_is_not_called(schedule, autojump_clock):
    called = []
    removals = []

    def remove_the_others(now: float) -> float:
        called.append("first")
        for remove in removals:
            remove()
        return now + 1

    schedule.add(1, remove_the_others)
    removals += [schedule.add(1, lambda _: called.append("second")) for _ in range(3)]
    await trio.sleep(2.5)
    assert called == ["first", "first"]


async def test_of_more_than_a_slice_each_is_called_as_often_as_it_wants(schedule, autojump_clock):
    calls = [0] * 200

    def call_again(number: int, now: float) -> float:
        calls[number] += 1
        return now + 1 + number % 2

    for number in range(200):
        schedule.add(1, partial(call_again, number))
    await trio.sleep(4.5)
    assert calls == [4, 2] * 100


async def test_an_alarm_rings_once_at_the_earliest_time_that_it_was_set_for(schedule, autojump_clock):
    rang = []
    alarm = Alarm()

    def ring() -> None:
        rang.append(trio.current_time())

    began = trio.current_time()
    for seconds in (7, 3, 5):
        alarm.set(schedule, began + seconds, ring)
    assert (alarm.at, schedule.statistics().waiting) == (began + 3, 1)
    await trio.sleep(10)
    assert (rang, alarm.at) == ([began + 3], None)
    alarm.set(schedule, began + 20, ring)
    alarm.clear()
    alarm.clear()
    assert (alarm.at, schedule.statistics().waiting) == (None, 0)
    await trio.sleep(20)
    assert rang == [began + 3]


async def test_an_alarm_may_be_set_again_while_it_rings(schedule, autojump_clock):
    rang = []
    alarm = Alarm()

    def ring() -> None:
        rang.append(trio.current_time())
        if len(rang) < 3:
            alarm.set(schedule, trio.current_time() + 2, ring)

    began = trio.current_time()
    alarm.set(schedule, began + 1, ring)
    await trio.sleep(10)
    assert rang == [began + 1, began + 3, began + 5]
