"""places.py: room before the fan-out, by number and by bytes, first come first served."""

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from trio.testing import wait_all_tasks_blocked as blocked

from broker.fanout import places as rooms
from broker.fanout.places import Place, Places

BIG = rooms.MAX_BYTES


async def test_so_many_and_no_more_until_one_is_given_back():
    places = Places(0)
    taken = [places.take_nowait(1) for _ in range(rooms.MAX_PLACES)]
    assert None not in taken
    assert places.take_nowait(1) is None
    with taken[3]:
        pass
    assert places.take_nowait(1) is not None
    assert places.take_nowait(1) is None


async def test_bytes_count_too_and_one_that_is_larger_than_all_waits_until_nothing_else_is_there():
    places = Places(0)
    first = places.take_nowait(BIG - 10)
    assert places.take_nowait(11) is None
    second = places.take_nowait(10)
    assert places.take_nowait(3 * BIG) is None
    first.give_back()
    assert places.take_nowait(3 * BIG) is None
    second.give_back()
    large = places.take_nowait(3 * BIG)
    assert large is not None
    assert places.take_nowait(1) is None
    large.give_back()
    assert not places.in_use


async def test_what_is_handed_on_is_free_when_the_fan_out_has_passed_it_and_at_once_if_it_has_already():
    places = Places(5)
    for position in (7, 7, 9):
        places.take_nowait(BIG // 3).hand_on(position)
    places.delivered(6)
    assert places.take_nowait(BIG) is None
    places.delivered(7)
    assert places.take_nowait(2 * BIG // 3) is not None
    places.delivered(9)
    place = places.take_nowait(BIG // 3)
    place.hand_on(8)
    assert places.take_nowait(BIG // 3) is not None


async def test_a_place_is_given_back_once_however_often_it_is_said():
    places = Places(0)
    place = places.take_nowait(1)
    other = places.take_nowait(1)
    place.give_back()
    place.give_back()
    place.hand_on(9)
    assert places.in_use
    other.give_back()
    assert not places.in_use


async def test_who_came_first_is_served_first_and_a_small_one_does_not_overtake_a_large_one(nursery):
    places = Places(0)
    holding = places.take_nowait(BIG)
    order = []

    async def take(name, size):
        order.append((name, await places.take(size)))

    for name, size in (("large", BIG), ("small", 1), ("smaller", 0)):
        nursery.start_soon(take, name, size)
        await blocked()
    assert places.take_nowait(0) is None, "nobody goes before those who wait"
    holding.give_back()
    await blocked()
    assert [name for name, _ in order] == ["large"]
    order[0][1].give_back()
    await blocked()
    assert {name for name, _ in order} == {"large", "small", "smaller"}


async def test_those_behind_one_that_is_cancelled_have_its_turn(nursery):
    places = Places(0)
    places.take_nowait(BIG // 2)
    got = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(places.take, BIG)
            await blocked()

            async def take():
                got.append(await places.take(1))

            nursery.start_soon(take)
            await blocked()
            assert got == []
            scope.cancel()
    await blocked()
    assert len(got) == 1


async def test_one_that_is_cancelled_when_it_was_just_granted_gives_its_place_back():
    places = Places(0)
    holding = places.take_nowait(BIG)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(places.take, BIG)
            await blocked()
            scope.cancel()
            holding.give_back()
    assert not places.in_use


class Rooms(RuleBasedStateMachine):
    """Against sums: who holds, what was handed on up to where, and who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places(0)
        self.held: list[Place] = []
        self.handed_on: list[tuple[int, int]] = []
        self.position = 0
        self.stored = 0

    def fits(self, size: int) -> bool:
        sizes = [place.size for place in self.held] + [size for _, size in self.handed_on]
        return len(sizes) < rooms.MAX_PLACES and (not sizes or sum(sizes) + size <= rooms.MAX_BYTES)

    @rule(size=st.sampled_from([0, 1, BIG // 4, BIG // 2, BIG, 2 * BIG]))
    def take(self, size):
        fits = self.fits(size)
        place = self.places.take_nowait(size)
        assert (place is not None) == fits
        if place is not None:
            self.held.append(place)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 20), size=st.integers(1, 3))
    def hand_on(self, which, size):
        place = self.held.pop(which % len(self.held))
        self.stored += size
        self.handed_on.append((self.stored, place.size))
        place.hand_on(self.stored)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 20))
    def give_back(self, which):
        self.held.pop(which % len(self.held)).give_back()

    @rule(by=st.integers(0, 4))
    def deliver(self, by):
        self.position = min(self.position + by, self.stored)
        self.places.delivered(self.position)
        self.handed_on = [item for item in self.handed_on if item[0] > self.position]

    @invariant()
    def it_is_in_use_while_any_is_taken(self):
        assert self.places.in_use == bool(self.held or self.handed_on)


async def test_places_are_what_the_sums_say():
    run_state_machine_as_test(Rooms, settings=settings(max_examples=100, stateful_step_count=40))


async def test_a_place_is_given_back_when_its_block_fails():
    places = Places(0)
    with pytest.raises(ZeroDivisionError), places.take_nowait(1):
        raise ZeroDivisionError
    assert not places.in_use
