"""budget.py: bytes under way, for each account and in all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.budget import SHARES, Budget, Held, of_bodies
from broker.errors import RequestError

MOST = 400
accounts = st.sampled_from(["a", "b", "c", "d", "e", None])


def budget() -> Budget:
    return of_bodies(MOST)


def test_bytes_are_held_until_the_block_ends_however_it_ends():
    bodies = budget()
    with bodies.hold("a", 10) as held:
        held.grow(20)
        assert bodies.bytes == held.size == 30
    assert bodies.bytes == 0
    with pytest.raises(ZeroDivisionError), bodies.hold("a", 10):
        raise ZeroDivisionError
    assert bodies.bytes == 0


def test_an_account_has_a_quarter_and_others_have_theirs():
    bodies = budget()
    held = bodies.hold("a", 100)
    with pytest.raises(
        RequestError, match=r"The account's requests under way .* together .*max_bodies_bytes"
    ) as raised:
        held.grow(1)
    assert (raised.value.code, raised.value.status) == ("unavailable", 503)
    assert raised.value.retry_after_ms
    assert held.size == 100, "what was refused is not held"
    bodies.hold("b", 100)
    bodies.hold(None, 100)


def test_all_together_have_the_whole():
    bodies = budget()
    for account_id in "abcd":
        bodies.hold(account_id, 100)
    with pytest.raises(RequestError, match=r"The requests under way .* together .*max_bodies_bytes") as raised:
        bodies.hold("e", 1)
    assert raised.value.retry_after_ms


def test_to_ask_for_room_holds_nothing():
    bodies = budget()
    held = bodies.hold("a", 40)
    held.require(60)
    with pytest.raises(RequestError, match="account's"):
        held.require(61)
    assert held.size == bodies.bytes == 40


def test_what_is_there_already_is_held_be_there_room_or_not_and_who_comes_next_finds_none():
    bodies = budget()
    held = bodies.hold("a", 10)
    held.settle(150)
    assert held.size == bodies.bytes == 150
    with pytest.raises(RequestError):
        bodies.hold("a", 0)
    for account_id in "bcd":
        bodies.hold(account_id, 100)  # what "a" has too much takes nothing from the others
    with pytest.raises(RequestError):
        bodies.hold("e", 1)
    held.settle(99)
    bodies.hold("a", 1)
    held.let_go()
    assert bodies.bytes == 301


def test_who_is_to_hold_another_amount_needs_room_for_what_is_more():
    bodies = budget()
    held = bodies.hold("a", 60)
    held.become(100)
    with pytest.raises(RequestError, match="account's"):
        held.become(101)
    assert held.size == bodies.bytes == 100, "what was refused has changed nothing"
    held.settle(150)
    held.become(120)  # less never needs room
    assert held.size == bodies.bytes == 120


@given(steps=st.lists(st.tuples(accounts, st.integers(0, 120), st.booleans()), max_size=60))
def test_what_is_held_is_what_was_taken_and_not_given_back_and_never_more_than_the_limits(steps):
    bodies, holding = budget(), []
    for account_id, size, lets_go in steps:
        mine = sum(held.size for name, held in holding if name == account_id)
        fits = mine + size <= MOST // SHARES and bodies.bytes + size <= MOST
        try:
            holding.append((account_id, bodies.hold(account_id, size)))
            assert fits
        except RequestError:
            assert not fits
        if lets_go and holding:
            held: Held = holding.pop(0)[1]
            held.let_go()
            held.let_go()
        assert bodies.bytes == sum(held.size for _, held in holding)
    for _, held in holding:
        held.let_go()
    assert bodies.bytes == 0
    assert not bodies._of_accounts, "nothing is kept of who holds nothing"
