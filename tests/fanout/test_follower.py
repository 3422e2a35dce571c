"""follower.py: one place in one log. (The state machine of test_hub.py drives it, too.)"""

from datetime import timedelta, timezone

import pytest
from logs import append, make_buffer, prepared, wall_at

from broker.fanout import follower
from broker.fanout.acknowledged import Acknowledged
from broker.fanout.follower import Follower
from broker.fanout.listeners import Listener
from broker.fanout.subscriptions import Subscriptions
from broker.protocol.messages import Gap
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection, TypeFilter

WALL = wall_at(5.5)
ONLY_A = Selection(frozenset({"a"}))
ONLY_B = Selection(frozenset({"b"}))
A_AND_B = Selection(frozenset({"a", "b"}))


class House:
    """A log and its listeners. Events are named by inbox: ``house.publish("aab")``."""

    def __init__(self, inboxes: str = "", *, delivered: bool = True) -> None:
        self.buffer = make_buffer()
        self.subscriptions = Subscriptions(0)
        self.publish(inboxes, delivered=delivered)

    def publish(self, inboxes: str, event_type: str = "x", *, delivered: bool = True) -> None:
        """Store an event a second; the fan-out passes them unless it is late."""
        for inbox in inboxes:
            position = self.buffer.head + 1
            entry = append(
                self.buffer, prepared(f"e{position}", inbox.strip(), event_type=event_type), position, float(position)
            )
            if delivered:
                self.subscriptions.advance([entry])
                self.subscriptions.settle()

    def drop(self, number: int) -> None:
        for _ in range(number):
            self.buffer.drop_first(0.0)

    def follow(
        self, selection: Selection = EVERYTHING, types: TypeFilter | None = None, at: int | None = None
    ) -> Follower:
        self.woken = []
        self.listener = Listener(len, lambda: self.woken.append(1))
        followed = Follower(self.buffer, self.subscriptions, self.listener, selection, types)
        if at is not None:
            self.listener.position = at
        return followed


def rest(following: Follower) -> list[int | tuple[int | None, int, int | None]]:
    """Take all that comes until it is live: positions of events, and (from, to, count) of gaps."""
    found = []
    for _ in range(1_000):
        item = following.next()
        if item is None:
            return found
        if isinstance(item, Gap):
            found.append((number(item.from_), number(item.to), item.count))
        else:
            found += [entry.position for entry in item]
    raise AssertionError("it never ends")


def number(cursor: str | None) -> int | None:
    return None if cursor is None else int(cursor.rpartition(".")[2])


# --- behind, and live


def test_a_newcomer_starts_where_the_fan_out_is_and_becomes_live_by_asking_for_more():
    house = House("ab")
    followed = house.follow()
    assert not followed.live
    assert followed.next() is None
    assert followed.live
    assert number(followed.cursor) == 2


def test_what_lies_between_the_position_and_the_fan_out_is_sent_in_order():
    house = House("abcab")
    assert rest(house.follow(A_AND_B, at=1)) == [2, 4, 5]


def test_nothing_is_sent_that_the_fan_out_has_not_reached():
    house = House("aa")
    house.publish("aa", delivered=False)
    assert rest(house.follow(at=0)) == [1, 2]


def test_who_is_ahead_of_the_fan_out_waits_for_it():
    house = House("aa")
    house.publish("aaa", delivered=False)
    followed = house.follow(at=4)
    assert rest(followed) == []
    assert not followed.live
    house.subscriptions.advance([house.buffer.first()])
    assert house.woken


def test_long_catching_up_is_many_short_steps(monkeypatch):
    monkeypatch.setattr(follower, "READ_EVENTS", 2)
    followed = House("aaaaa").follow(at=0)
    assert [len(followed.next()) for _ in range(3)] == [2, 2, 1]
    assert followed.next() is None


def test_a_filter_holds_for_what_is_caught_up_and_the_position_passes_what_it_holds_back():
    house = House("a")
    house.publish("a", "y")
    followed = house.follow(types=TypeFilter(["x"]), at=0)
    assert rest(followed) == [1]
    assert followed.position == 2


def test_a_gap_says_what_was_missed_and_only_that():
    house = House("abab")
    house.drop(3)
    assert rest(house.follow(ONLY_A, at=0)) == [(0, 3, 2)]
    assert rest(house.follow(ONLY_A, at=1)) == [(1, 3, 1)]
    assert rest(house.follow(ONLY_B, at=2)) == [4], "nothing of b was dropped after 2"


def test_gaps_that_are_said_are_counted_and_what_was_missed_in_them():
    house = House("abab")
    house.drop(3)
    rest(house.follow(ONLY_A, at=0))
    rest(house.follow(ONLY_B, at=0))
    tally = house.subscriptions.tally
    assert (tally.gaps, tally.missed) == (2, 3)


def test_what_a_gap_has_passed_is_not_acknowledged_by_a_cursor():
    house = House()
    client = Acknowledged().client("acct", "key", "c1")
    followed = Follower(house.buffer, house.subscriptions, Listener(len, lambda: None), EVERYTHING, None, client)
    house.publish("aaa")
    house.drop(2)
    assert rest(followed) == [(0, 2, 2), 3]
    assert [part.after for part in followed.sent.acknowledge(3)] == [2]


def test_a_pause_keeps_the_place():
    house = House("a")
    followed = house.follow()
    rest(followed)
    followed.pause()
    assert not followed.live
    house.publish("aa")
    assert rest(followed) == [2, 3]


def test_what_is_closed_holds_nothing():
    house = House()
    followed = house.follow()
    rest(followed)
    followed.close()
    assert not house.subscriptions.in_use
    assert house.subscriptions.live == 0


def test_what_is_closed_follows_nothing_any_more_whatever_is_called():
    house = House("aab")
    followed, other = house.follow(), house.follow()
    rest(other)
    rest(followed)
    followed.replay(ONLY_A, 0)
    followed.close()
    followed.close()
    followed.change(A_AND_B, None)
    followed.replay(A_AND_B, 0)
    followed.pause()
    house.publish("ab")
    assert followed.closed
    assert (rest(followed), followed.live, followed.news(), followed.selection) == ([], False, None, NOTHING)
    other.pause()
    assert rest(other) == []
    assert house.subscriptions.live == 1


def test_leaving_live_wakes_whoever_is_to_feed_it():
    house = House("ab")
    followed = house.follow(A_AND_B)
    assert not house.woken
    for number, leave in enumerate((followed.pause, lambda: followed.replay(ONLY_A, 0)), start=1):
        rest(followed)
        leave()
        assert len(house.woken) == number


# --- where to start


@pytest.mark.parametrize(
    ("since", "position"),
    [
        ("0s", 5),  # five events, stored at the seconds 1 to 5; now it is 5.5
        ("2s", 3),
        ("2500ms", 2),
        ("1m", 0),
        ((WALL - timedelta(seconds=2)).isoformat(), 3),
        ((WALL + timedelta(hours=1)).isoformat(), 5),
        ((WALL - timedelta(seconds=2)).astimezone(timezone(timedelta(hours=2))).isoformat(), 3),
        ("cnothing.3", None),
        ("", None),
    ],
)
def test_since_is_a_cursor_a_duration_or_a_time(since, position):
    assert House("aaaaa").follow().resolve(since, 5.5) == position


def test_since_a_cursor_is_its_position():
    house = House("aaa")
    assert house.follow().resolve(house.buffer.cursor_at(2), 5.5) == 2


def test_a_start_says_how_many_events_come():
    house = House("aab")
    followed = house.follow(ONLY_A)
    replay, gap = followed.start(1)
    assert (replay.recovered, replay.count, gap) == (True, 1, None)
    assert number(followed.cursor) == 1
    assert rest(followed) == [2]


def test_the_count_of_a_start_is_made_before_the_filter():
    house = House("aa")
    replay, _ = house.follow(types=TypeFilter(["y"])).start(0)
    assert replay.count == 2


def test_a_start_beyond_the_window_brings_the_gap_and_then_what_is_left():
    house = House("aaaa")
    house.drop(2)
    followed = house.follow()
    replay, gap = followed.start(0)
    assert (replay.recovered, replay.count) == (False, 2)
    assert (number(gap.from_), number(gap.to), gap.count) == (0, 2, 2)
    assert number(followed.cursor) == 2
    assert rest(followed) == [3, 4]


def test_an_unknown_start_brings_a_gap_from_nowhere_and_all_that_is_held():
    house = House("aaa")
    house.drop(1)
    followed = house.follow()
    replay, gap = followed.start(None)
    assert (replay.recovered, gap.from_, gap.count) == (False, None, None)
    assert rest(followed) == [2, 3]


def test_age_alone_makes_no_gap():
    house = House("ab")
    house.drop(2)
    replay, gap = house.follow(ONLY_A).start(1)
    assert (replay.recovered, gap) == (True, None), "what was dropped after it was not for this one"


# --- replays of what is added


def test_a_replay_brings_only_what_is_added_and_only_up_to_the_position():
    house = House("abab")
    followed = house.follow(ONLY_A)
    rest(followed)
    followed.change(A_AND_B, None)
    replay, gap = followed.replay(ONLY_B, 1)
    assert (replay.recovered, replay.count, gap) == (True, 2, None)
    assert number(followed.cursor) == 1
    house.publish("ab")
    assert rest(followed) == [2, 4, 5, 6]
    assert followed.live


def test_a_second_replay_is_woven_into_the_first_so_that_resuming_anywhere_misses_nothing(monkeypatch):
    monkeypatch.setattr(follower, "READ_EVENTS", 1)
    house = House("abcabcabc")
    followed = house.follow(Selection(frozenset("abc")))
    rest(followed)
    followed.replay(ONLY_A, 2)
    assert [entry.position for entry in followed.next()] == [4]
    followed.replay(ONLY_B, 1)
    assert number(followed.cursor) == 1
    assert rest(followed) == [2, 5, 7, 8], "in the order of the log, from where both are safe"


def test_a_second_replay_that_starts_later_does_not_put_the_cursor_ahead_of_the_first():
    house = House("abab")
    followed = house.follow(A_AND_B)
    rest(followed)
    followed.replay(ONLY_A, 0)
    followed.replay(ONLY_B, 3)
    assert number(followed.cursor) == 0
    assert rest(followed) == [1, 3, 4]


def test_what_joins_a_replay_comes_from_where_that_is():
    house = House("abab")
    followed = house.follow(A_AND_B)
    followed.join_replay(ONLY_B)
    assert rest(followed) == [], "there was none to join"
    followed.replay(ONLY_A, 1)
    followed.join_replay(ONLY_B)
    assert rest(followed) == [2, 3, 4]


def test_what_a_replay_misses_while_it_waits_is_said_for_it_alone():
    house = House("abab")
    followed = house.follow(A_AND_B)
    rest(followed)
    followed.replay(ONLY_B, 0)
    house.drop(3)
    assert rest(followed) == [(0, 3, 1), 4]


def test_what_many_replays_miss_while_they_wait_is_one_gap_that_counts_for_each_from_where_it_was():
    house = House("abcabcabc")
    followed = house.follow(Selection(frozenset("abc")))
    rest(followed)
    followed.replay(ONLY_A, 1)
    followed.replay(ONLY_B, 4)
    followed.replay(Selection(frozenset("c")), 8)
    house.drop(7)
    assert rest(followed) == [(1, 7, 3), 8, 9], "4 and 7 of a, and 5 of b"


def test_what_was_dropped_and_not_for_any_replay_is_passed_without_a_gap():
    house = House("aab")
    followed = house.follow(A_AND_B)
    rest(followed)
    followed.replay(ONLY_B, 0)
    house.drop(2)
    assert followed.gap_of_replay() is None
    assert number(followed.cursor) == 2
    assert rest(followed) == [3]


def test_what_is_given_up_is_replayed_no_more():
    house = House("abab")
    followed = house.follow(A_AND_B)
    rest(followed)
    followed.replay(A_AND_B, 0)
    followed.drop_from_replays(ONLY_A)
    assert rest(followed) == [2, 4]


def test_a_replay_of_nothing_from_nowhere_is_a_gap_up_to_where_one_is():
    followed = House("ab").follow(ONLY_A)
    rest(followed)
    replay, gap = followed.replay(NOTHING, None)
    assert not replay.recovered
    assert gap is not None
    assert (gap.from_, number(gap.to), gap.count) == (None, 2, None)


def test_a_replay_from_beyond_the_window_is_not_whole_and_says_how_many_are_gone():
    house = House("aba")
    house.drop(1)
    followed = house.follow(A_AND_B)
    rest(followed)
    replay, gap = followed.replay(ONLY_A, 0)
    assert (replay.recovered, replay.count) == (False, 1)
    assert gap is not None
    assert (number(gap.from_), number(gap.to), gap.count) == (0, 1, 1)


def test_who_is_closed_calls_nobody_any_more():
    house = House("a")
    followed, listener = house.follow(), house.listener
    followed.close()
    assert listener.send(b"frame") == 0
    listener.wake()
    assert house.woken == []


def test_a_replay_of_nothing_moves_no_cursor():
    house = House("aaa")
    followed = house.follow(ONLY_A)
    rest(followed)
    replay, gap = followed.replay(NOTHING, 1)
    assert (replay.recovered, replay.count, gap) == (True, 0, None)
    assert number(followed.cursor) == 3


def test_a_replay_is_of_the_past_even_if_its_cursor_is_ahead():
    house = House("aa")
    house.publish("a", delivered=False)
    followed = house.follow(ONLY_A)
    replay, _ = followed.replay(ONLY_A, 3)
    assert replay.count == 0
    assert number(followed.cursor) == 2


# --- changes and news


def test_a_change_keeps_a_live_one_live():
    house = House("a")
    followed = house.follow(ONLY_A)
    rest(followed)
    followed.change(A_AND_B, TypeFilter(["x"]))
    assert followed.live
    assert (followed.selection, followed.event_filter) == (A_AND_B, TypeFilter(["x"]))


def test_a_change_in_mid_batch_falls_behind_rather_than_miss_the_batch():
    house = House("a")
    followed = house.follow(ONLY_A)
    rest(followed)
    house.publish("a", delivered=False)
    house.subscriptions.advance(house.buffer.batch(max_events=9, max_bytes=9_999)[-1:])
    followed.change(A_AND_B, None)
    assert not followed.live
    assert rest(followed) == [2]


def test_a_quiet_one_is_told_its_cursor_once_each_time_that_it_moved():
    house = House("a")
    followed = house.follow(ONLY_B)
    assert followed.news() is None, "it is not live"
    rest(followed)
    assert followed.news() is None, "it knows that"
    house.publish("aa")
    assert number(followed.news()) == 3
    assert followed.news() is None


def test_one_whose_events_ended_before_the_batch_did_is_told_the_batchs_end():
    house = House()
    followed = house.follow(ONLY_A)
    rest(followed)
    house.publish("abb", delivered=False)
    batch = house.buffer.batch(max_events=9, max_bytes=9_999)
    list(house.subscriptions.write(house.subscriptions.advance(batch)))
    house.subscriptions.settle()
    assert number(followed.news()) == 3
    assert followed.news() is None


def test_a_gap_tells_the_cursor_too():
    house = House("aab")
    house.drop(2)
    followed = house.follow(ONLY_A, at=0)
    assert rest(followed) == [(0, 2, 2)]
    assert number(followed.news()) == 3
    house.drop(1)
    followed = house.follow(Selection(frozenset("ab")), at=0)
    assert rest(followed) == [(0, 3, 3)]
    assert followed.news() is None, "the gap has said it"


def test_who_started_in_the_past_and_had_nothing_to_get_is_told_where_it_is():
    followed = House("bb").follow(ONLY_A)
    followed.start(0)
    rest(followed)
    assert number(followed.news()) == 2


def test_in_mid_batch_a_quiet_one_is_told_only_what_it_was_served():
    house = House("a")
    followed = house.follow(ONLY_A)
    rest(followed)
    house.publish("b")
    house.publish("a", delivered=False)
    house.subscriptions.advance(house.buffer.batch(max_events=9, max_bytes=9_999)[-1:])
    assert number(followed.news()) == 2
    assert followed.news() is None


def test_after_a_replay_of_the_past_a_quiet_one_is_told_where_it_is_again():
    house = House("abaa")
    followed = house.follow(A_AND_B)
    rest(followed)
    followed.replay(ONLY_B, 0)
    assert rest(followed) == [2]
    assert number(followed.news()) == 4


def test_the_accounts_own_events_are_one_more_inbox():
    house = House("a a")
    assert rest(house.follow(Selection(frozenset({ACCOUNT_EVENTS})), at=0)) == [2]
