"""subscriptions.py: groups, who is live, and where the fan-out is. (test_hub.py drives it, too.)"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.fanout.listeners import Listener, State
from broker.fanout.subscriptions import Subscriptions, Tally
from broker.protocol.messages import Entry
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, Selection, TypeFilter

ONLY_A = Selection(frozenset({"a"}))
A_AND_B = Selection(frozenset({"a", "b"}))


def make_listener(woken: list | None = None) -> Listener:
    return Listener(len, lambda: None if woken is None else woken.append(1))


def entry(position: int, inbox: str = "a", event_type: str = "x") -> Entry:
    return Entry(position, 0.0, event_type, inbox, f"e{position}", b"<%d>" % position)


def written(subscriptions: Subscriptions, *batch: Entry) -> dict[Selection, bytes]:
    return {delivery.members[0].group.selection: delivery.data for delivery in subscriptions.advance(list(batch))}


def live(subscriptions: Subscriptions, selection: Selection, types: TypeFilter | None = None) -> Listener:
    return join(subscriptions, entered(subscriptions, selection, types))


def entered(
    subscriptions: Subscriptions, selection: Selection, types: TypeFilter | None = None, woken: list | None = None
) -> Listener:
    listener = make_listener(woken)
    subscriptions.enter(listener, selection, types)
    return listener


def join(subscriptions: Subscriptions, listener: Listener) -> Listener:
    subscriptions.join(listener)
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
    subscriptions.groups.hold(ONLY_A, None)
    assert list(subscriptions.advance([entry(1)])) == []


def test_a_group_that_nobody_holds_is_forgotten_with_its_inboxes():
    subscriptions = Subscriptions(0)
    group = subscriptions.groups.hold(A_AND_B, None)
    assert subscriptions.groups.hold(A_AND_B, None) is group
    everything = subscriptions.groups.hold(EVERYTHING, None)
    subscriptions.groups.release(group)
    assert subscriptions.in_use
    subscriptions.groups.release(group)
    subscriptions.groups.release(everything)
    assert not subscriptions.in_use
    assert not subscriptions.groups._by_inbox
    assert not subscriptions.groups._of_all


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
    listener = entered(subscriptions, ONLY_A)
    listener.position = 4
    assert join(subscriptions, listener).state is State.BEHIND
    assert not listener.group.members
    listener.position = 5
    assert join(subscriptions, listener).state is State.LIVE
    assert (list(listener.group.members), subscriptions.live) == ([listener], 1)


def test_a_listener_ahead_of_the_fan_out_is_woken_when_that_moves():
    subscriptions, woken = Subscriptions(5), []
    listener = entered(subscriptions, ONLY_A, woken=woken)
    listener.position = 7
    assert join(subscriptions, listener).state is State.AHEAD
    assert not woken
    subscriptions.advance([entry(6)])
    assert woken == [1]
    assert listener.state is State.BEHIND
    subscriptions.advance([entry(7)])
    assert woken == [1], "it is asked again when it says so again"


def test_the_position_moves_before_the_members_are_taken():
    subscriptions = Subscriptions(0)
    listener = live(subscriptions, ONLY_A)
    late = entered(subscriptions, ONLY_A)
    (delivery,) = subscriptions.advance([entry(1), entry(2)])
    assert subscriptions.position == 2
    assert join(subscriptions, late).state is State.BEHIND, "who comes now is behind: the batch is not for it"
    late.position = 2
    assert join(subscriptions, late).state is State.LIVE
    assert delivery.members == (listener,)


def test_in_mid_batch_a_listener_is_where_it_was_served_to():
    subscriptions = Subscriptions(0)
    served, waiting = live(subscriptions, ONLY_A), live(subscriptions, ONLY_A)
    subscriptions.advance([entry(1), entry(2)])
    served.position = 2
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


def test_leaving_wakes_the_owner_once_and_a_second_time_changes_nothing():
    subscriptions, woken = Subscriptions(3), []
    listener = join(subscriptions, entered(subscriptions, ONLY_A, woken=woken))
    for _ in range(2):
        subscriptions.leave(listener)
    assert (listener.state, listener.position, subscriptions.live, woken) == (State.BEHIND, 3, 0, [1])


def test_who_leaves_while_it_is_ahead_is_woken_then_and_not_by_the_fan_out():
    subscriptions, woken = Subscriptions(3), []
    listener = entered(subscriptions, ONLY_A, woken=woken)
    listener.position = 4
    join(subscriptions, listener)
    subscriptions.leave(listener)
    assert (listener.state, listener.position, woken) == (State.BEHIND, 4, [1])
    subscriptions.advance([entry(4)])
    subscriptions.settle()
    assert join(subscriptions, listener).state is State.LIVE
    subscriptions.advance([entry(5, "b")])
    assert (listener.state, woken) == (State.LIVE, [1]), "it waits for nothing any more"


@pytest.mark.parametrize("state", [State.LIVE, State.BEHIND, State.AHEAD])
def test_what_is_closed_is_called_in_vain(state):
    """Neither it nor the others of its group hear of anything that is done to it after."""
    subscriptions, woken = Subscriptions(3), []
    other = live(subscriptions, ONLY_A)
    listener = entered(subscriptions, ONLY_A, woken=woken)
    listener.position = {State.LIVE: 3, State.BEHIND: 2, State.AHEAD: 4}[state]
    assert join(subscriptions, listener).state is state
    for _ in range(2):
        subscriptions.close(listener)
        subscriptions.join(listener)
        subscriptions.move(listener, A_AND_B, None)
        subscriptions.leave(listener)
    assert (listener.state, subscriptions.live, woken) == (State.CLOSED, 1, [])
    (delivery,) = subscriptions.advance([entry(4)])
    assert delivery.members == (other,)
    subscriptions.close(other)
    assert not subscriptions.in_use
    assert woken == []


def test_a_group_that_nobody_holds_cannot_be_released():
    subscriptions = Subscriptions(0)
    group = subscriptions.groups.hold(ONLY_A, None)
    subscriptions.groups.release(group)
    again = subscriptions.groups.hold(ONLY_A, None)
    with pytest.raises(ValueError, match="nobody holds"):
        subscriptions.groups.release(group)
    assert again.holders == 1


def test_a_live_one_moves_without_a_break_unless_a_batch_is_still_to_come_to_it():
    subscriptions, woken = Subscriptions(0), []
    served, waiting = (join(subscriptions, entered(subscriptions, ONLY_A, woken=woken)) for _ in range(2))
    subscriptions.move(served, A_AND_B, None)
    subscriptions.move(served, ONLY_A, None)
    assert (served.state, woken) == (State.LIVE, [])
    subscriptions.advance([entry(1), entry(2, "b")])
    served.position = 2
    for listener in (served, waiting):
        subscriptions.move(listener, A_AND_B, None)
    assert (served.state, waiting.state, waiting.position) == (State.LIVE, State.BEHIND, 0)
    assert woken == [1], "who is not live any more is to be fed"


def test_who_left_is_in_no_later_batch():
    subscriptions = Subscriptions(0)
    staying, leaving = live(subscriptions, ONLY_A), live(subscriptions, ONLY_A)
    subscriptions.leave(leaving)
    (delivery,) = subscriptions.advance([entry(1)])
    assert delivery.members == (staying,)


def test_one_event_is_for_all_who_are_live_when_it_comes_to_them_and_were_so_when_it_began():
    """Others come, go, move, end, or catch up from the log while it is on its way."""
    subscriptions = Subscriptions(0)
    written: list[tuple[str, bytes]] = []

    def listening(name: str, inboxes: str) -> Listener:
        listener = Listener(lambda data: written.append((name, data)) or len(data), lambda: None)
        subscriptions.enter(listener, Selection(frozenset(inboxes)), None)
        return join(subscriptions, listener)

    names = ["first", "leaves", "moves", "catches up", "stays", "ends"]
    those = {name: listening(name, f"a{number}") for number, name in enumerate(names)}
    writing = subscriptions.write(subscriptions.advance([entry(1)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.fanout.subscriptions.STEPS_PER_PAUSE", 1)
        next(writing)
        assert written == [("first", b"<1>")]
        subscriptions.leave(those["leaves"])
        subscriptions.move(those["moves"], Selection(frozenset("a9")), None)
        subscriptions.leave(those["catches up"])
        those["catches up"].position = 1
        join(subscriptions, those["catches up"])
        subscriptions.close(those["ends"])
        subscriptions.move(those["first"], Selection(frozenset("a8")), None)
        new = listening("new", "a7")
        list(writing)
    assert written == [("first", b"<1>"), ("stays", b"<1>")]
    states = {name: (listener.state, listener.position) for name, listener in those.items()}
    assert states == {
        "first": (State.LIVE, 1),
        "leaves": (State.BEHIND, 0),
        "moves": (State.BEHIND, 0),
        "catches up": (State.LIVE, 1),
        "stays": (State.LIVE, 1),
        "ends": (State.CLOSED, 0),
    }
    assert (new.state, new.position) == (State.LIVE, 1)


def test_a_group_of_one_that_moves_costs_what_differs_and_leaves_nothing_behind():
    subscriptions = Subscriptions(0)
    listener = live(subscriptions, A_AND_B)
    others = [live(subscriptions, ONLY_A), live(subscriptions, EVERYTHING)]
    for selection in (Selection(frozenset("bc")), EVERYTHING, ONLY_A, Selection(frozenset("d")), A_AND_B):
        subscriptions.move(listener, selection, None)
        for inbox in "abcd":
            (*deliveries,) = subscriptions.advance([entry(subscriptions.position + 1, inbox)])
            subscriptions.settle()
            got = [member for delivery in deliveries for member in delivery.members]
            assert got.count(listener) == (inbox in selection)
            assert got.count(others[0]) == (inbox == "a")
            assert got.count(others[1]) == 1
    for each in (listener, *others):
        subscriptions.close(each)
    assert not subscriptions.in_use
    assert not {**subscriptions.groups._by_inbox, **subscriptions.groups._of_all}


def test_to_move_to_where_it_is_changes_nothing_even_in_mid_batch():
    subscriptions, woken = Subscriptions(0), []
    listener = join(subscriptions, entered(subscriptions, ONLY_A, woken=woken))
    (delivery,) = subscriptions.advance([entry(1), entry(2)])
    subscriptions.move(listener, ONLY_A, None)
    assert (listener.state, woken, delivery.members) == (State.LIVE, [], (listener,))


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


# --- what is counted


def test_an_event_counts_once_for_each_listener_that_was_given_it():
    """Not for one that took nothing, nor for one that left before its turn: these have it from the log."""
    subscriptions = Subscriptions(0)
    live(subscriptions, EVERYTHING)
    live(subscriptions, ONLY_A)
    takes_nothing = Listener(lambda _: 0, lambda: None)
    subscriptions.enter(takes_nothing, EVERYTHING, None)
    join(subscriptions, takes_nothing)
    takes_a_part = Listener(lambda _: 1, lambda: None)
    subscriptions.enter(takes_a_part, EVERYTHING, None)
    join(subscriptions, takes_a_part)
    left = live(subscriptions, EVERYTHING)
    writing = subscriptions.write(subscriptions.advance([entry(1), entry(2, "b"), entry(3)]))
    subscriptions.leave(left)
    assert list(writing) == []
    assert subscriptions.tally.events == 3 + 2 + 0 + 3
    assert (subscriptions.tally.writes, subscriptions.tally.fell_behind) == (4, 2)


def test_who_is_live_is_counted_over_all_accounts():
    tally = Tally()
    first, second = Subscriptions(0, tally), Subscriptions(0, tally)
    leaves, ends = live(first, EVERYTHING), live(second, ONLY_A)
    live(second, EVERYTHING)
    assert tally.live == 3
    first.leave(leaves)
    second.close(ends)
    assert tally.live == 1


# --- what is held by whom


def test_one_that_moves_to_everything_gets_everything_and_one_that_moves_away_does_not():
    subscriptions = Subscriptions(0)
    listener = live(subscriptions, ONLY_A)
    subscriptions.move(listener, EVERYTHING, None)
    assert written(subscriptions, entry(1, "b"), entry(2, "c")) == {EVERYTHING: b"<1><2>"}
    listener.position = 2
    subscriptions.settle()
    subscriptions.move(listener, ONLY_A, None)
    assert written(subscriptions, entry(3, "b"), entry(4, "a")) == {ONLY_A: b"<4>"}


def test_a_step_is_bounded_by_the_groups_of_everything_too(monkeypatch):
    monkeypatch.setattr("broker.fanout.subscriptions.MAX_MATCHES", 2)
    subscriptions = Subscriptions(0)
    for types in (None, TypeFilter(["x"])):
        live(subscriptions, EVERYTHING, types)
    assert [delivery.last for delivery in subscriptions.advance([entry(1), entry(2)])] == [1, 1]


# --- who takes what is written


def taking(subscriptions: Subscriptions, send, woken: list | None = None) -> Listener:
    listener = Listener(send, lambda: None if woken is None else woken.append(1))
    subscriptions.enter(listener, EVERYTHING, None)
    return join(subscriptions, listener)


def test_who_took_a_write_whole_is_at_its_end_and_knows_the_cursor_of_its_last_event():
    subscriptions = Subscriptions(0)
    listener = live(subscriptions, ONLY_A)
    assert list(subscriptions.write(subscriptions.advance([entry(1), entry(2, "b")]))) == []
    assert (listener.position, listener.told, listener.state) == (2, 1, State.LIVE)


def test_one_whose_socket_fails_says_so_to_its_owner_falls_behind_and_holds_up_nobody():
    def fails(_: bytes) -> int:
        raise OSError("gone")

    subscriptions, failures, woken = Subscriptions(0), [], []
    broken = taking(subscriptions, fails, woken)
    broken.send_failed = failures.append
    other = taking(subscriptions, len)
    assert list(subscriptions.write(subscriptions.advance([entry(1)]))) == []
    assert [str(failure) for failure in failures] == ["gone"]
    assert (broken.state, woken) == (State.BEHIND, [1])
    assert (other.state, other.position) == (State.LIVE, 1)


def test_who_took_a_part_is_behind_from_the_end_of_the_batch_on_and_its_stream_has_the_rest():
    subscriptions, parts, woken = Subscriptions(0), [], []
    listener = taking(subscriptions, lambda _: 4, woken)
    listener.sent_part = lambda data, taken: parts.append((data, taken))
    list(subscriptions.write(subscriptions.advance([entry(1), entry(2)])))
    assert parts == [(b"<1><2>", 4)]
    assert (listener.state, listener.position, listener.told, woken) == (State.BEHIND, 2, 2, [1])


def test_who_took_nothing_is_behind_where_it_was():
    subscriptions, woken = Subscriptions(0), []
    listener = taking(subscriptions, lambda _: 0, woken)
    list(subscriptions.write(subscriptions.advance([entry(1)])))
    assert (listener.state, listener.position, listener.told, woken) == (State.BEHIND, 0, 0, [1])


def test_who_leaves_after_a_batch_that_was_not_for_it_is_behind_at_its_end():
    subscriptions = Subscriptions(0)
    listener = live(subscriptions, ONLY_A)
    list(subscriptions.write(subscriptions.advance([entry(1, "b")])))
    subscriptions.settle()
    subscriptions.leave(listener)
    assert (listener.state, listener.position) == (State.BEHIND, 1)
