"""turns.py: long work in steps, and others in between."""

import pytest
import trio
from trio.testing import assert_checkpoints

from broker.turns import Turns, in_turns


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


class Rounds(trio.abc.Instrument):
    """Counts how often the network was looked at."""

    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_of_many_at_the_turnstile_one_goes_on_between_two_looks_at_the_network_who_came_first_first():
    turns, rounds, went = Turns(), Rounds(), []

    async def go_twice(name: int) -> None:
        for _ in range(2):
            await turns.take()
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
        await Turns().take()
