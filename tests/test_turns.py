"""turns.py: long work in steps, and others in between."""

import pytest
import trio

from broker.turns import in_turns


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
