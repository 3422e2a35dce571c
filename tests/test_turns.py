"""turns.py: long work in steps, and others in between."""

from collections import Counter
from functools import partial
from itertools import count

import pytest
import trio
from steps import Rounds
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from broker.turns import FIRST_LET_IN, FULL_SECONDS, LONG_SECONDS, MOST_LET_IN, Turns, in_turns


def steps_of(count, value="done"):
    for _ in range(count):
        yield
    return value


async def test_between_two_steps_everybody_else_has_a_turn():
    turns = []

    async def other(*, task_status):
        task_status.started()
        while True:
            turns.append(None)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        await nursery.start(other)
        assert await in_turns(steps_of(10)) == "done"
        nursery.cancel_scope.cancel()
    # Who of two is first within one turn of the loop is chance: the last one may be missed.
    assert len(turns) >= 9


async def test_what_takes_one_step_is_done_at_once():
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await in_turns(steps_of(0)) == "done"
        await in_turns(steps_of(1))
        raise AssertionError("more than one step has a checkpoint")
    assert scope.cancelled_caught


async def test_what_a_step_raises_comes_out():
    def steps():
        yield
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        await in_turns(steps())


async def test_of_many_at_the_turnstile_one_goes_on_between_two_looks_at_the_network_who_came_first_first():
    turns, rounds, went = Turns(), Rounds(), []

    async def go_twice(name: int) -> None:
        for _ in range(2):
            await turns.take("acct")
            went.append((name, rounds.number))

    trio.lowlevel.add_instrument(rounds)
    async with trio.open_nursery() as nursery:
        for name in range(10):
            nursery.start_soon(go_twice, name)
    trio.lowlevel.remove_instrument(rounds)
    assert len({number for _, number in went}) == len(went) == 20
    names = [name for name, _ in went]
    assert names[:10] == names[10:]
    assert sorted(names[:10]) == list(range(10))


async def test_the_turnstile_is_a_checkpoint_even_where_nobody_waits():
    with assert_checkpoints():
        await Turns().take(None)


async def test_the_turns_go_round_the_accounts_however_many_clients_one_of_them_has():
    turns, went = Turns(), []

    async def go(who: str | None) -> None:
        await turns.take(who)
        went.append(who)

    async with trio.open_nursery() as nursery:
        for who in ["crowd"] * 50 + ["one", None, "two"]:
            nursery.start_soon(go, who)
    assert max(went.index(who) for who in ("one", None, "two")) <= 5
    assert went.count("crowd") == 50


async def test_who_is_cancelled_before_its_turn_keeps_nobody_waiting():
    turns, went = Turns(), []

    async def go(who: str) -> None:
        await turns.take(who)
        went.append(who)

    async with trio.open_nursery() as nursery, trio.open_nursery() as cancelled:
        for who in ["crowd", "crowd", "one"]:
            cancelled.start_soon(go, who)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(go, "two")
        cancelled.cancel_scope.cancel()
    assert went[-1] == "two"
    with trio.fail_after(60):
        await turns.take("crowd")


async def test_what_is_to_be_done_later_is_done_one_thing_between_two_looks_at_the_network_round_the_accounts():
    turns, rounds, done = Turns(), Rounds(), []

    def act(who: str) -> None:
        done.append((who, rounds.number))

    trio.lowlevel.add_instrument(rounds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        for who in ["crowd"] * 20 + ["one", "two"]:
            turns.later(who, partial(act, who))
        assert done == []
        await wait_all_tasks_blocked()
        turns.later("one", partial(act, "again"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(rounds)
    assert len({number for _, number in done}) == len(done) == 23
    names = [who for who, _ in done]
    assert {"one", "two"} <= set(names[:4])
    assert names[-1] == "again"


async def test_those_who_take_turns_and_what_is_done_later_do_not_hold_each_other_up():
    turns, went = Turns(), []

    async def go(who: str) -> None:
        await turns.take(who)
        went.append(who)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as crowd:
            for _ in range(50):
                crowd.start_soon(go, "crowd")
            await trio.lowlevel.checkpoint()
            turns.later("crowd", partial(went.append, "later"))
        nursery.cancel_scope.cancel()
    assert went.index("later") <= 5


# --- as many as there is room for ----------------------------------------------

STEP_SECONDS = 0.0005
"""What each step lasts by the clock of these tests."""


@pytest.fixture
def clock(monkeypatch):
    """Time as `turns` sees it: it passes where a test lets it."""
    now = [0.0]
    monkeypatch.setattr("broker.turns.perf_counter", lambda: now[0])
    monkeypatch.setattr("broker.turns.thread_time", lambda: now[0])
    return now


async def work_at_once(turns: Turns, clock: list[float], those: list[str]) -> list[tuple[str, int]]:
    """Let all of them come in and do a step; return who did it in which turn of the loop."""
    rounds, went = Rounds(), []

    async def work(who: str) -> None:
        await turns.come_in(who)
        clock[0] += STEP_SECONDS
        went.append((who, rounds.number))

    trio.lowlevel.add_instrument(rounds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as working:
            for who in those:
                working.start_soon(work, who)
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(rounds)
    return went


async def test_in_one_turn_of_the_loop_there_is_room_for_so_much_and_the_rest_waits(clock):
    went = await work_at_once(Turns(), clock, ["crowd"] * 200)
    assert len(went) == 200
    by_turn = Counter(number for _, number in went)
    assert max(by_turn.values()) * STEP_SECONDS <= FULL_SECONDS + 2 * LONG_SECONDS
    assert max(by_turn.values()) >= FULL_SECONDS / STEP_SECONDS


async def test_who_waits_for_room_comes_in_round_the_accounts(clock):
    went = await work_at_once(Turns(), clock, ["crowd"] * 200 + ["one", "two"])
    names = [who for who, _ in went]
    assert max(names.index("one"), names.index("two")) < 30


async def test_of_many_that_are_woken_at_once_few_go_on_in_one_turn_of_the_loop_round_the_accounts(clock):
    turns, rounds, woken = Turns(), Rounds(), []
    trio.lowlevel.add_instrument(rounds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        clock[0] += LONG_SECONDS  # time does not pass: each turn of the loop seems short
        for who in ["crowd"] * 200 + ["one", "two"]:
            turns.wake(who, lambda who=who: woken.append((who, rounds.number)))
        assert len(woken) == FIRST_LET_IN, "where few are woken none waits"
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(rounds)
    assert len(woken) == 202
    assert max(Counter(number for _, number in woken).values()) <= MOST_LET_IN
    names = [who for who, _ in woken]
    assert max(names.index("one"), names.index("two")) < 2 * FIRST_LET_IN


async def test_strangers_are_as_often_next_as_all_accounts_together(clock):
    turns, went = Turns(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        for name in [f"acct_{number}" for number in range(8)] * 50:
            turns.wake(name, partial(went.append, "account"))
        for _ in range(100):
            turns.wake(("127.0.0.1",), partial(went.append, "stranger"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(went) == 500
    assert went[FIRST_LET_IN : FIRST_LET_IN + 200].count("stranger") == 100


async def test_each_who_is_woken_let_in_or_takes_his_turn_is_told_of(clock):
    turns, told = Turns(), []
    turns.woken = partial(told.append, "woken")

    async def come_late() -> None:
        clock[0] += 2 * FULL_SECONDS
        await turns.come_in("crowd")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        for _ in range(100):
            turns.wake("crowd", list)
        await wait_all_tasks_blocked()
        assert len(told) == 100
        for _ in range(10):
            nursery.start_soon(turns.take, "crowd")
        await wait_all_tasks_blocked()
        assert len(told) == 110
        await turns.come_in("crowd")
        assert len(told) == 110, "there was room: nobody waited"
        for _ in range(10):
            nursery.start_soon(come_late)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(told) == 120


async def test_what_other_programs_take_of_the_processor_lets_in_no_fewer(clock, monkeypatch):
    turns, went, rounds = Turns(), [], Rounds()
    monkeypatch.setattr("broker.turns.perf_counter", partial(next, count(0.0, 1_000.0)))
    trio.lowlevel.add_instrument(rounds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        began = rounds.number
        for _ in range(20 * MOST_LET_IN):
            turns.wake("crowd", partial(went.append, "woken"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(rounds)
    assert len(went) == 20 * MOST_LET_IN
    assert rounds.number - began < 100


async def test_who_is_woken_and_who_waits_for_room_do_not_hold_each_other_up(clock):
    turns, went = Turns(), []

    async def work() -> None:
        await turns.come_in("waits")
        clock[0] += STEP_SECONDS
        went.append("waits")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as working:
            for _ in range(100):
                working.start_soon(work)
                turns.wake("sleeps", partial(went.append, "sleeps"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert went.count("waits") == went.count("sleeps") == 100
    assert {"waits", "sleeps"} <= set(went[FIRST_LET_IN : 5 * FIRST_LET_IN])


async def test_who_is_woken_has_his_turn_though_there_is_room_for_one_and_others_wait_for_room_without_end(clock):
    turns, went = Turns(), []

    async def work() -> None:
        for _ in range(40):
            await turns.come_in("waits")
            clock[0] += 2 * LONG_SECONDS
            went.append("waits")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as working:
            for _ in range(10):
                working.start_soon(work)
            while len(went) < 100:
                await trio.lowlevel.checkpoint()
            for _ in range(2 * FIRST_LET_IN):
                turns.wake("sleeps", partial(went.append, "sleeps"))
        nursery.cancel_scope.cancel()
    assert [went.index("sleeps", 100) < 130, went[:300].count("sleeps")] == [True, 2 * FIRST_LET_IN]


async def test_where_there_is_room_nobody_waits_at_all(clock):
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await turns.come_in("one")
        assert not scope.cancelled_caught
        clock[0] += 2 * FULL_SECONDS
        assert turns.full
        await trio.lowlevel.checkpoint()
        assert not turns.full
        nursery.cancel_scope.cancel()


async def test_at_the_end_whoever_waits_goes_on_and_what_was_to_be_done_later_is_done(monkeypatch):
    turns, done = Turns(), []
    monkeypatch.setattr("broker.turns.FULL_SECONDS", -1)

    async def wait() -> None:
        await turns.come_in("one")
        done.append("in")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, trio.open_nursery() as running:
            running.start_soon(turns.run)
            await wait_all_tasks_blocked()
            for _ in range(100):
                nursery.start_soon(wait)
                turns.later("one", partial(done.append, "later"))
            await trio.lowlevel.checkpoint()
            running.cancel_scope.cancel()
    assert Counter(done) == {"in": 100, "later": 100}
    turns.later("one", partial(done.append, "now"))
    assert done[-1] == "now"


async def test_without_anybody_who_lets_in_there_is_always_room(clock):
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    clock[0] += 1_000
    assert not turns.full
    assert not Turns().full
