"""settling.py: what acknowledgements ask of the one writer, and that no account asks too much at once."""

from functools import partial

import pytest

from broker.errors import RequestError
from broker.fanout.acknowledged import Acknowledged
from broker.fanout.covered import Covered, Stretch
from broker.fanout.settling import CURSOR, SHARE, SLICE, Settling, Shares
from broker.log.letters_acked import Acknowledged as Settled
from broker.protocol.selection import EVERYTHING


class SlowOutbox:
    """An outbox that answers when the test says so."""

    def __init__(self):
        self.asked = []
        self.endpoints = 1

    def waits_for(self, account_id, client_id):
        return self.endpoints

    def acknowledge(self, account_id, client_id, told, **what):
        self.asked.append((account_id, what.get("event_ids") or "cursor", told))

    def hold(self, account_id, client_id, told, *, event_ids, seconds, reach):
        self.asked.append((account_id, event_ids, told))

    def answer(self, outcome=None):
        _, what, told = self.asked.pop(0)
        told(outcome or Settled(len(what), [what[0]] if what != "cursor" else [], 0))


def client_of(account):
    return Acknowledged().client(account, "key", "agent")


def ids(count, begin=0):
    return Covered([], frozenset(f"e{number}" for number in range(begin, begin + count)), EVERYTHING)


UP_TO_A_CURSOR = Covered([Stretch(1, 5, EVERYTHING, None)], frozenset(["e9"]), EVERYTHING)


@pytest.fixture
def outbox():
    return SlowOutbox()


@pytest.fixture
def settling(outbox):
    return Settling(outbox)


@pytest.mark.parametrize("how", ["acknowledge", "hold"])
def test_a_long_command_is_settled_slice_by_slice_and_told_once(outbox, settling, how):
    told = []
    do = settling.acknowledge if how == "acknowledge" else partial(settling.hold, seconds=5)
    do(client_of("acct_a"), ids(2 * SLICE + 1), told=told.append)
    slices = []
    while outbox.asked:
        assert (len(outbox.asked), told) == (1, [])
        slices.append(len(outbox.asked[0][1]))
        outbox.answer()
    assert slices == [SLICE, SLICE, 1]
    assert [(each.acked, len(each.claimed)) for each in told] == [(2 * SLICE + 1, 3)]


def test_a_cursor_and_ids_are_both_settled(outbox, settling):
    told = []
    settling.acknowledge(client_of("acct_a"), UP_TO_A_CURSOR, told.append)
    assert outbox.asked[0][1] == "cursor"
    outbox.answer(Settled(3, ["e1"], 5))
    assert outbox.asked[0][1] == ["e9"]
    outbox.answer(Settled(0, ["e9"], 0))
    assert [(each.acked, each.claimed) for each in told] == [(3, ["e1", "e9"])]


def test_an_account_has_its_share_under_way_and_others_theirs(outbox, settling):
    for number in range(100):
        settling.acknowledge(client_of("acct_a"), ids(SLICE, number), lambda _: None)
    settling.acknowledge(client_of("acct_b"), ids(1), lambda _: None)
    assert [account for account, *_ in outbox.asked] == ["acct_a"] * (SHARE // SLICE) + ["acct_b"]


def test_ids_count_once_for_each_endpoint_that_waits(outbox, settling):
    outbox.endpoints = 16
    for number in range(100):
        settling.acknowledge(client_of("acct_a"), ids(10, 10 * number), lambda _: None)
    assert [len(what) for _, what, _ in outbox.asked] == [SLICE // 16] * (SHARE // SLICE)


def test_short_ones_are_under_way_together(outbox, settling):
    for number in range(2 * SHARE):
        settling.acknowledge(client_of("acct_a"), ids(1, number), lambda _: None)
    assert len(outbox.asked) == SHARE
    for _ in range(SHARE):
        outbox.answer()
    assert len(outbox.asked) == SHARE


def test_what_failed_is_told_and_the_next_has_its_turn(outbox, settling):
    told = []
    for number in range(3):
        settling.acknowledge(client_of("acct_a"), ids(SHARE, number), told.append)
    while outbox.asked:
        outbox.answer(RequestError("unavailable", "The disk is full"))
    assert [outcome.code for outcome in told] == ["unavailable"] * 3


def test_of_an_account_that_has_nothing_under_way_nothing_is_kept(outbox, settling):
    for _ in range(3):
        settling.acknowledge(client_of("acct_a"), UP_TO_A_CURSOR, lambda _: None)
    while outbox.asked:
        outbox.answer()
    assert settling.shares._used == settling.shares._waiting == {}


def test_what_costs_more_than_the_share_is_done_alone():
    begun, shares = [], Shares(2 * CURSOR)
    for name, cost in (("a", 1), ("b", 100), ("c", 1)):
        shares.take("acct_a", cost, partial(begun.append, name))
    assert begun == ["a"]
    shares.give_back("acct_a", 1)
    assert begun == ["a", "b"]
    shares.give_back("acct_a", 100)
    assert begun == ["a", "b", "c"]


def test_what_ends_in_the_step_in_which_it_begins_keeps_the_order():
    begun, shares = [], Shares(1)

    def begin(name):
        begun.append(name)
        shares.give_back("acct_a", 1)

    for name in "abc":
        shares.take("acct_a", 1, partial(begin, name))
    assert begun == ["a", "b", "c"]
