"""selection.py: inboxes as sets, types as filters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import selection
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection, TypeFilter

UNIVERSE = ("a", "b", "c", ACCOUNT_EVENTS)
subsets = st.frozensets(st.sampled_from(UNIVERSE))
selections = st.one_of(subsets.map(Selection), subsets.map(lambda excluded: Selection(None, excluded)))


def inside(some: Selection) -> set[str]:
    """The selection as a plain set; "z" stands for all that nobody has named."""
    return {inbox for inbox in (*UNIVERSE, "z") if inbox in some}


@given(one=selections, other=selections)
def test_minus_and_union_are_those_of_sets(one, other):
    assert inside(one.minus(other)) == inside(one) - inside(other)
    assert inside(one.union(other)) == inside(one) | inside(other)


@given(one=subsets.map(Selection), other=subsets.map(Selection))
def test_what_adds_nothing_makes_no_new_selection(one, other):
    whole = one.union(other)
    assert whole.union(one) is whole
    assert whole.union(other) is whole
    assert whole.minus(whole) == NOTHING


@given(one=selections, other=selections)
def test_equal_selections_are_one_key(one, other):
    if one == other:
        assert hash(one) == hash(other)
        assert inside(one) == inside(other)


def test_everything_holds_the_accounts_own_events_and_nothing_does_not():
    assert ACCOUNT_EVENTS in EVERYTHING
    assert ACCOUNT_EVENTS not in NOTHING
    assert EVERYTHING.minus(EVERYTHING) == NOTHING


@pytest.mark.parametrize(
    ("patterns", "accepted", "refused"),
    [
        (["a.b"], ["a.b"], ["a", "a.b.c", "a.bc"]),
        (["a.*"], ["a.b", "a.b.c"], ["a", "ab", "ab.c", "b.a"]),
        (["a", "b.*"], ["a", "b.c"], ["b", "a.c"]),
        (["a.*", "a.b"], ["a.b", "a.c"], ["a"]),
    ],
)
def test_a_filter_takes_exact_types_and_prefixes_of_whole_words(patterns, accepted, refused):
    types = TypeFilter(patterns)
    for _ in range(2):  # the second time from memory
        assert all(types.accepts(event_type) for event_type in accepted)
        assert not any(types.accepts(event_type) for event_type in refused)


def test_filters_of_the_same_patterns_are_one_key_whatever_their_order():
    assert TypeFilter(["a", "b.*"]) == TypeFilter(["b.*", "a", "a"])
    assert len({TypeFilter(["a", "b.*"]), TypeFilter(["b.*", "a"])}) == 1
    assert TypeFilter(["a"]) != TypeFilter(["a.*"])


def test_a_filters_memory_is_bounded_though_publishers_choose_the_types(monkeypatch):
    monkeypatch.setattr(selection, "_MAX_REMEMBERED_TYPES", 10)
    types = TypeFilter(["t.*"])
    for number in range(100):
        assert types.accepts(f"t.x{number}")
        assert not types.accepts(f"u.x{number}")
        assert len(types._decisions) <= 10


def test_selections_and_filters_say_what_they_are():
    assert "frozenset({'a'})" in repr(Selection(frozenset({"a"})))
    assert repr(TypeFilter(["b", "a.*"])) == "TypeFilter(['a.*', 'b'])"
