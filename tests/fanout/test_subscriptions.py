"""subscriptions.py: groups, who is live, and where the fan-out is. (test_hub.py drives it, too.)"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.fanout.subscriptions import Listener, Subscriptions
from broker.protocol.messages import Entry
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, Selection, TypeFilter

ONLY_A = Selection(frozenset({"a"}))
A_AND_B = Selection(frozenset({"a", "b"}))


def make_listener(woken: list | None = None) -> Listener:
    return Listener(len, lambda: None if woken is None else woken.append(1))


def entry(position: int, inbox: str = "a", event_type: str = "x") -> Entry:
    return Entry(position, 0.0, event_type, inbox, f"e{position}", b"<%d>" % position)


def written(subscriptions: Subscriptions, *batch: Entry) -> dict[Selection, bytes]:
    return {delivery.group.selection: delivery.data for delivery in subscriptions.advance(list(batch))}


def live(subscriptions: Subscriptions, selection: Selection, types: TypeFilter | None = None) -> Listener:
    listener = make_listener()
    listener.position = subscriptions.position
    assert subscriptions.join(listener, subscriptions.hold(selection, types))
    return listener


# --- groups


def test_those_who_want_the_same_share_a_group_and_its_frames_are_joined_once():
    subscriptions = Subscriptions(0)
    first, second = live(subscriptions, ONLY_A), live(subscriptions, Selection(frozenset({"a"})))
    (delivery,) = subscriptions.advance([entry(1), entry(2, "b"), entry(3)])
    assert delivery.members == (first, second)
    assert (delivery.data, delivery.last) == (b"<1><3>", 3)


def test_each_group_gets_the_events_of_its_inboxes_and_types_in_order():
    subscriptions = Subscriptions(0)
    for selection in (ONLY_A, A_AND_B, EVERYTHING, Selection(frozenset({ACCOUNT_EVENTS}))):
        live(subscriptions, selection)
    assert written(subscriptions, entry(1, "b"), entry(2, ""), entry(3, "a"), entry(4, "c")) == {
        ONLY_A: b"<3>",
        A_AND_B: b"<1><3>",
        EVERYTHING: b"<1><2><3><4>",
        Selection(frozenset({ACCOUNT_EVENTS})): b"<2>",
    }


def test_a_group_with_a_filter_is_another_group():
    subscriptions = Subscriptions(0)
    live(subscriptions, ONLY_A)
    live(subscriptions, ONLY_A, TypeFilter(["y"]))
    deliveries = subscriptions.advance([entry(1, "a", "x"), entry(2, "a", "y")])
    assert [delivery.data for delivery in deliveries] == [b"<1><2>", b"<2>"]


def test_nothing_is_joined_for_a_group_in_which_nobody_is_live():
    subscriptions = Subscriptions(0)
    subscriptions.hold(ONLY_A, None)
    assert subscriptions.advance([entry(1)]) == []


def test_a_group_that_nobody_holds_is_forgotten_with_its_inboxes():
    subscriptions = Subscriptions(0)
    group = subscriptions.hold(A_AND_B, None)
    assert subscriptions.hold(A_AND_B, None) is group
    everything = subscriptions.hold(EVERYTHING, None)
    subscriptions.release(group)
    assert subscriptions.in_use
    subscriptions.release(group)
    subscriptions.release(everything)
    assert not subscriptions.in_use
    assert not subscriptions._by_inbox
    assert not subscriptions._of_all


@given(
    groups=st.lists(
        st.tuples(
            st.one_of(
                st.just(EVERYTHING),
                st.frozensets(st.sampled_from("abc"), min_size=1).map(lambda names: Selection(names)),
            ),
            st.sampled_from([None, TypeFilter(["x"])]),
        ),
        max_size=8,
    ),
    batch=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xy")), min_size=1, max_size=8),
)
def test_everybody_gets_exactly_what_it_wants(groups, batch):
    subscriptions = Subscriptions(0)
    listeners = [(live(subscriptions, *group), *group) for group in groups]
    entries = [entry(position, *what) for position, what in enumerate(batch, start=1)]
    got = dict.fromkeys((listener for listener, _, _ in listeners), b"")
    for delivery in subscriptions.advance(entries):
        for listener in delivery.members:
            got[listener] += delivery.data
    for listener, selection, types in listeners:
        wanted = [e for e in entries if e.inbox in selection and (types is None or types.accepts(e.type))]
        assert got[listener] == b"".join(e.frame for e in wanted)


# --- live or behind


def test_a_listener_becomes_live_only_where_the_fan_out_is():
    subscriptions = Subscriptions(5)
    group = subscriptions.hold(ONLY_A, None)
    listener = make_listener()
    listener.position = 4
    assert not subscriptions.join(listener, group)
    assert listener.group is None
    listener.position = 5
    assert subscriptions.join(listener, group)
    assert (listener.group, subscriptions.live) == (group, 1)


def test_a_listener_ahead_of_the_fan_out_is_woken_when_that_moves():
    subscriptions = Subscriptions(5)
    group, woken = subscriptions.hold(ONLY_A, None), []
    listener = make_listener(woken)
    listener.position = 7
    assert not subscriptions.join(listener, group)
    assert not woken
    subscriptions.advance([entry(6)])
    assert woken == [1]
    subscriptions.advance([entry(7)])
    assert woken == [1], "it is asked again when it says so again"


def test_the_position_moves_before_the_members_are_taken():
    subscriptions = Subscriptions(0)
    listener = live(subscriptions, ONLY_A)
    group, late = listener.group, make_listener()
    (delivery,) = subscriptions.advance([entry(1), entry(2)])
    assert subscriptions.position == 2
    assert not subscriptions.join(late, group), "who comes now is behind: the batch is not for it"
    late.position = 2
    assert subscriptions.join(late, group)
    assert delivery.members == (listener,)


def test_in_mid_batch_a_listener_is_where_it_was_served_to():
    subscriptions = Subscriptions(0)
    served, waiting = live(subscriptions, ONLY_A), live(subscriptions, ONLY_A)
    subscriptions.advance([entry(1), entry(2)])
    served.served_through = 2
    assert (subscriptions.position_of(served), subscriptions.position_of(waiting)) == (2, 0)
    for listener in (served, waiting):
        subscriptions.leave(listener)
    assert (served.position, waiting.position, subscriptions.live) == (2, 0, 0)
    subscriptions.settle()


def test_after_a_batch_whoever_is_live_has_all_of_it():
    subscriptions = Subscriptions(0)
    listener = live(subscriptions, Selection(frozenset({"nothing for it"})))
    subscriptions.advance([entry(1)])
    subscriptions.settle()
    assert subscriptions.position_of(listener) == 1


@pytest.mark.parametrize("end", ["leave", "fall_behind"])
def test_to_end_twice_changes_nothing(end):
    subscriptions = Subscriptions(3)
    listener = live(subscriptions, ONLY_A)
    for _ in range(2):
        if end == "leave":
            subscriptions.leave(listener)
        else:
            subscriptions.fall_behind(listener, 3)
    assert (listener.group, listener.position, subscriptions.live) == (None, 3, 0)


def test_who_left_is_in_no_later_batch():
    subscriptions = Subscriptions(0)
    staying, leaving = live(subscriptions, ONLY_A), live(subscriptions, ONLY_A)
    subscriptions.leave(leaving)
    (delivery,) = subscriptions.advance([entry(1)])
    assert delivery.members == (staying,)


def test_a_step_is_bounded_by_events_times_groups_and_the_next_goes_on_where_it_ended(monkeypatch):
    monkeypatch.setattr("broker.fanout.subscriptions.MAX_MATCHES", 6)
    subscriptions = Subscriptions(0)
    for number in range(3):
        live(subscriptions, Selection(frozenset({"a", f"own{number}"})))
    batch = [entry(position) for position in range(1, 6)]
    assert [delivery.last for delivery in subscriptions.advance(batch)] == [2, 2, 2]
    assert subscriptions.position == 2
    subscriptions.settle()
    assert [delivery.last for delivery in subscriptions.advance(batch[2:])] == [4, 4, 4]
