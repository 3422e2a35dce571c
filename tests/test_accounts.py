"""accounts.py: what is kept of accounts is made when it is asked for, and goes when it is idle, in bounded steps."""

from itertools import pairwise

import pytest

from broker.accounts import Accounts


class Thing:
    """Something kept of an account, with things to forget."""

    def __init__(self, account_id: str) -> None:
        self.account_id = account_id
        self.old = 0
        self.used = False
        self.looks = 0

    def forget(self, now: float, most: int) -> int:
        self.looks += 1
        forgotten = min(self.old, most)
        self.old -= forgotten
        return forgotten

    def idle(self, now: float) -> bool:
        return not (self.old or self.used)


def test_the_same_is_given_until_it_is_idle_and_another_afterwards():
    accounts = Accounts(Thing)
    one = accounts.open("a")
    one.used = True
    assert accounts.open("a") is one
    assert not accounts.forget(0.0, most=10)
    assert accounts.open("a") is one
    one.used = False
    assert not accounts.forget(0.0, most=10)
    assert len(accounts) == 0
    assert accounts.open("a") is not one


def test_who_made_it_hears_what_is_gone_and_nothing_else():
    gone = []
    accounts = Accounts(Thing, gone.append)
    kept, idle = accounts.open("kept"), accounts.open("idle")
    kept.used = True
    accounts.forget(0.0, most=10)
    assert gone == [idle]
    assert list(accounts) == [kept]


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_a_round_looks_at_every_account_once_in_steps_of_a_bounded_size(most):
    accounts = Accounts(Thing)
    things = [accounts.open(f"a{number}") for number in range(10)]
    for thing in things:
        thing.used = True
    steps = 0
    more = True
    while more:
        before = sum(thing.looks for thing in things)
        more = accounts.forget(0.0, most=most)
        assert sum(thing.looks for thing in things) - before <= most
        steps += 1
    assert steps == max(1, -(-10 // most))
    assert [thing.looks for thing in things] == [1] * 10


def test_what_an_account_has_to_forget_counts_and_all_of_it_is_forgotten():
    accounts = Accounts(Thing)
    things = [accounts.open(f"a{number}") for number in range(3)]
    things[1].old = 95
    left = [95]
    while accounts.forget(0.0, most=10):
        left.append(things[1].old)
    assert max(before - after for before, after in pairwise(left)) <= 10
    assert len(accounts) == 0


def test_an_account_that_comes_during_a_round_is_looked_at_in_the_next():
    accounts = Accounts(Thing)
    for name in "abc":
        accounts.open(name).used = True
    assert accounts.forget(0.0, most=1)
    late = accounts.open("late")
    while accounts.forget(0.0, most=1):
        pass
    assert late.looks == 0
    assert accounts.open("late") is late
    while accounts.forget(0.0, most=1):
        pass
    assert late.looks == 1
