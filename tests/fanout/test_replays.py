"""replays.py: replays that are woven into one, against a model that knows of each inbox how far it was brought."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.fanout.replays import Replays, Stretch
from broker.protocol.selection import NOTHING, Selection

THROUGH = 20
INBOXES = "abcdefgh"


def only(inboxes: str) -> Selection:
    return Selection(frozenset(inboxes))


def test_nothing_is_under_way_until_something_is_begun():
    replays = Replays()
    assert not replays
    replays.begin(only("a"), 3, THROUGH)
    assert (len(replays), replays.position, replays.next()) == (1, 3, Stretch(3, THROUGH, only("a")))


def test_the_one_furthest_behind_goes_on_alone_until_it_meets_the_next():
    replays = Replays()
    for inbox, position in (("a", 8), ("b", 2), ("c", 12)):
        replays.begin(only(inbox), position, THROUGH)
    assert replays.next() == Stretch(2, 8, only("b"))
    replays.advance(5)
    assert replays.next() == Stretch(5, 8, only("b"))
    replays.advance(8)
    assert replays.next() == Stretch(8, 12, only("ab"))
    replays.advance(12)
    assert replays.next() == Stretch(12, THROUGH, only("abc"))
    replays.advance(THROUGH)
    assert not replays


def test_what_begins_where_another_is_joins_it():
    replays = Replays()
    replays.begin(only("a"), 4, THROUGH)
    replays.begin(only("b"), 9, THROUGH)
    replays.begin(only("c"), 4, THROUGH)
    assert len(replays) == 2
    assert replays.next() == Stretch(4, 9, only("ac"))


def test_one_that_skips_ahead_takes_all_that_are_behind_with_it():
    replays = Replays()
    for inbox, position in (("a", 1), ("b", 5), ("c", 9)):
        replays.begin(only(inbox), position, THROUGH)
    assert [(s.after, s.through) for s in replays.behind(7)] == [(5, 7), (1, 7)]
    replays.advance(7)
    assert replays.next() == Stretch(7, 9, only("ab"))


def test_what_is_removed_is_brought_no_more_and_the_positions_stay():
    """So an answer to whoever gives up all of it says up to where it has everything."""
    replays = Replays()
    replays.begin(only("ab"), 1, THROUGH)
    replays.begin(only("c"), 5, THROUGH)
    replays.remove(only("bc"))
    assert replays.next() == Stretch(1, 5, only("a"))
    replays.remove(only("a"))
    assert replays.next() == Stretch(1, 5, NOTHING)


@given(data=st.data())
def test_each_inbox_is_brought_whole_once_and_in_the_order_of_the_log(data):
    replays = Replays()
    brought: dict[str, int] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        new = [inbox for inbox in INBOXES if inbox not in brought]
        what = data.draw(st.sampled_from(["begin", "begin", "advance", "skip", "remove"]))
        if what == "begin" and new:
            inboxes = data.draw(st.lists(st.sampled_from(new), min_size=1, max_size=2, unique=True))
            after = data.draw(st.integers(0, THROUGH - 1))
            replays.begin(Selection(frozenset(inboxes)), after, THROUGH)
            brought |= dict.fromkeys(inboxes, after)
        elif what == "remove" and brought:
            inbox = data.draw(st.sampled_from(sorted(brought)))
            replays.remove(only(inbox))
            del brought[inbox]
        elif what in ("advance", "skip") and replays:
            after, through, selection = replays.next()
            assert selection == Selection(frozenset(inbox for inbox, at in brought.items() if at == after))
            assert not [at for at in brought.values() if at < after or after < at < through]
            position = data.draw(st.integers(after, through if what == "advance" else THROUGH))
            missing = Counter({inbox: position - at for inbox, at in brought.items() if at < position})
            behind = Counter()
            for stretch in replays.behind(position):
                behind.update(dict.fromkeys(stretch.selection.inboxes, stretch.through - stretch.after))
            assert behind == missing
            replays.advance(position)
            brought = {inbox: max(at, position) for inbox, at in brought.items()}
            if position == THROUGH:
                brought.clear()
        assert bool(replays) >= bool(brought)


def test_a_thousand_replays_cost_a_union_for_each_that_meets_another(monkeypatch):
    unions, union = [], Selection.union
    monkeypatch.setattr(Selection, "union", lambda self, other: unions.append(1) or union(self, other))
    replays = Replays()
    for number in range(1_000):
        replays.begin(Selection(frozenset({f"inbox_{number}"})), number * 7 % 1_000, 1_000)
    assert not unions
    steps = 0
    while replays:
        replays.advance(replays.next().through)
        steps += 1
    assert (steps, len(unions)) == (1_000, 999)


def test_where_nothing_is_under_way_nothing_is_next():
    with pytest.raises(IndexError):
        Replays().next()
