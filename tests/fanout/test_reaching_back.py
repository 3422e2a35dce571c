"""follower.py where an archive keeps what memory drops: what comes, whatever happens while the archive is asked.

The model is a list of what was published, and for each inbox up to where all of it is accounted for: brought, refused
by the filter, or counted in a gap. What the archive answers is of the moment at which it is asked; it comes later.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from logs import EPOCH, ListArchive, append, entry_of, prepared, wall_at

from broker.fanout import follower
from broker.fanout.follower import Follower
from broker.fanout.listeners import Listener
from broker.fanout.subscriptions import Subscriptions
from broker.log.archive import Older, Page, Reach, Reached
from broker.log.replay import Mark, ReplayBuffer, Shared
from broker.protocol.messages import Gap
from broker.protocol.selection import NOTHING, Selection, TypeFilter

INBOXES = "abcd"
ONLY_A = Selection(frozenset("a"))
ONLY_B = Selection(frozenset("b"))
A_AND_B = Selection(frozenset("ab"))


class House:
    """A log, its archive, and one subscriber that is always fed from them. Events are named by inbox."""

    def __init__(self, inboxes: str = "", *, selection: Selection = NOTHING, remembers: bool = True) -> None:
        shared = Shared(EPOCH)
        shared.archive_seconds = 86_400.0
        self.buffer = ReplayBuffer("a", shared, Mark())
        self.archive = ListArchive()
        self.archive.remembers_gone = remembers
        self.subscriptions = Subscriptions(0)
        self.published: list[tuple[int, str, str]] = []
        self.answers = 0
        """How many pages were asked for."""
        self.follower = Follower(self.buffer, self.subscriptions, Listener(len, lambda: None), NOTHING, None)
        self.publish(inboxes)
        if selection != NOTHING:
            self.follow(selection)

    def follow(self, selection: Selection, types: TypeFilter | None = None) -> Follower:
        """Let a newcomer take the place of who was there."""
        self.follower.close()
        self.follower = Follower(self.buffer, self.subscriptions, Listener(len, lambda: None), selection, types)
        return self.follower

    def publish(self, inboxes: str, event_type: str = "x") -> None:
        """Store an event a second; the fan-out passes it. Positions are not dense."""
        for inbox in inboxes:
            self.follower.pause()
            position = self.buffer.head + 2
            event = prepared(f"e{position}", inbox, event_type=event_type)
            self.archive.add("a", [entry_of(event, position, float(position))])
            self.subscriptions.advance([append(self.buffer, event, position, float(position))])
            self.subscriptions.settle()
            self.published.append((position, inbox, event_type))

    def drop(self, number: int) -> None:
        """Let memory drop its oldest events."""
        for _ in range(min(number, len(self.buffer))):
            self.buffer.drop_first(0.0)

    def let_go(self, number: int) -> None:
        """Let the archive let go its oldest events, but none that memory holds."""
        self.archive.let_go_first("a", number, self.buffer.dropped_through)

    def answer(self, asked: Older) -> Page:
        self.answers += 1
        page = self.archive.read_now("a", asked, 3, 1_000)
        self.buffer.frame(page.entries)
        return page

    def subscribe(self, added: Selection, since: int | None):
        """Do what a `subscribe` with a cursor does; return what that says."""
        cursor = "cunknown.1" if since is None else self.buffer.cursor_at(since)
        reach = self.follower.reach(added, cursor, 0.0)
        reached = None if reach is None else self.reached(reach)
        self.follower.change(self.follower.selection.union(added), self.follower.event_filter)
        return self.follower.replay(added, since, reached)

    def start(self, since: int | None):
        """Do what an opening with a cursor does; return what that says."""
        cursor = "cunknown.1" if since is None else self.buffer.cursor_at(since)
        reach = self.follower.reach(self.follower.selection, cursor, 0.0)
        return self.follower.start(since, None if reach is None else self.reached(reach))

    def reached(self, reach: Reach) -> Reached:
        kept = self.archive.count_now("a", reach.selection, reach.position, reach.through)
        return Reached(reach, reach.position, kept, None if reach.before is None else self.answer(reach.before))

    def number(self, cursor: str | None) -> int | None:
        return None if cursor is None else int(cursor.rpartition(".")[2])

    def rest(self) -> list[int | tuple[int | None, int, int | None]]:
        """Take all that comes until nothing is left: positions of events, and (from, to, count) of gaps."""
        found = []
        for _ in range(1_000):
            item = self.follower.next()
            if item is None:
                return found
            if isinstance(item, Gap):
                found.append((self.number(item.from_), self.number(item.to), item.count))
            elif isinstance(item, Older):
                self.follower.take_in(item, self.answer(item))
            else:
                found += [entry.position for entry in item]
        raise AssertionError("it never ends")


# --- the state machine -------------------------------------------------------


some_inboxes = st.sets(st.sampled_from(INBOXES), min_size=1)
types = st.sampled_from([None, TypeFilter(["x"]), TypeFilter(["y"])])


class Reaching(RuleBasedStateMachine):
    """A subscriber that changes what it follows, whose memory and archive let go of what they please."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House()
        self.follower = self.house.follower
        self.accounted: dict[str, int] = {}
        """Of each inbox that is held: up to where all is accounted for."""
        self.floor = 0
        """What comes, comes after this."""
        self.asked: Older | None = None
        self.page: tuple[Older, Page] | None = None
        self.wish: tuple[frozenset[str], int | None, Reached | None, int] | None = None
        """A `subscribe` that waits: its inboxes, its cursor, what the archive answered, what was gone by then."""

    @initialize(
        inboxes=st.text(INBOXES, min_size=6, max_size=20),
        dropped=st.integers(0, 20),
        first=some_inboxes,
        back=st.integers(0, 40),
    )
    def something_was_there(self, inboxes, dropped, first, back):
        self.publish(inboxes, "x")
        self.house.drop(dropped)
        self._wish(first, back)

    # --- what happens elsewhere

    @rule(inboxes=st.text(INBOXES, min_size=1, max_size=6), event_type=st.sampled_from("xy"))
    def publish(self, inboxes, event_type):
        self.house.publish(inboxes, event_type)

    @rule(number=st.integers(1, 8))
    def memory_drops(self, number):
        self.house.drop(number)

    @rule(number=st.integers(1, 4))
    @precondition(lambda self: self.house.archive.kept)
    def the_archive_lets_go(self, number):
        self.house.let_go(number)

    @rule()
    def the_archive_forgets_what_it_has_let_go(self):
        self.house.archive.remembers_gone = False

    # --- what the subscriber reads

    @rule(ahead=st.integers(0, 3))
    def read(self, ahead):
        for _ in range(ahead + 1):
            if self._next() is None:
                break

    def _next(self):
        following = self.follower.next()
        self._took(following)
        if isinstance(following, Older):
            self.asked = following
        return following

    def _owed(self, through: int) -> dict[int, str]:
        """Positions and types of what is held and not accounted for up to a position."""
        return {
            position: event_type
            for position, inbox, event_type in self.house.published
            if self.accounted.get(inbox, position) < position <= through
        }

    def _took(self, following) -> None:
        """Hold what came against what was to come, up to the cursor that would be told now."""
        through = self.house.number(self.follower.cursor)
        accepts = (self.follower.event_filter or TypeFilter("xy")).accepts
        newly = self._owed(through)
        if isinstance(following, Gap):
            assert self._is_gone(newly)
            assert self.house.number(following.to) <= through
            self._counted(following, newly)
        elif isinstance(following, list):
            brought = [entry.position for entry in following]
            assert brought == sorted(position for position, event_type in newly.items() if accepts(event_type))
            assert all(self.floor < position for position in brought)
        else:
            assert not newly
        for inbox, position in self.accounted.items():
            self.accounted[inbox] = max(position, through)
        self.floor = max(self.floor, through)

    def _is_gone(self, positions) -> bool:
        return max(positions, default=0) <= self.house.archive.gone_through("a", self.house.buffer.head)

    def _counted(self, gap: Gap, missed) -> None:
        assert gap.count == len(missed) or (gap.count is None and not self.house.archive.remembers_gone)

    @rule()
    @precondition(lambda self: self.asked)
    def the_archive_is_asked(self):
        self.page = self.asked, self.house.answer(self.asked)

    @rule()
    @precondition(lambda self: self.page)
    def the_archive_answers(self):
        self.follower.take_in(*self.page)
        self.asked = self.page = None

    @rule(
        what=st.sampled_from(["unsubscribe", "subscribe", "subscribe from the past", "filter", "gone"]),
        inboxes=some_inboxes,
        back=st.integers(0, 30),
        late=st.booleans(),
    )
    def something_happens_while_a_page_is_read(self, what, inboxes, back, late):
        """After the archive has been asked, or after it has answered (``late``)."""
        for _ in range(10):
            if isinstance(self._next(), Older):
                break
        else:
            return
        page = self.asked, self.house.answer(self.asked)
        if late:
            self.follower.take_in(*page)
        match what:
            case "unsubscribe":
                self._unsubscribe(inboxes)
            case "subscribe":
                self._join(inboxes)
            case "subscribe from the past":
                self._wish(inboxes, back)
            case "filter":
                self.follower.change(self.follower.selection, TypeFilter(["x"]))
            case "gone":
                self.house.let_go(4)
        if not late:
            self.follower.take_in(*page)
        self._next()

    # --- what the subscriber changes

    @rule(inboxes=some_inboxes)
    def unsubscribe(self, inboxes):
        self._unsubscribe(inboxes)

    def _unsubscribe(self, inboxes) -> None:
        held = self.follower.selection
        kept = Selection(held.inboxes - frozenset(inboxes))
        self.follower.drop_from_replays(held.minus(kept))
        self.follower.change(kept, self.follower.event_filter)
        for inbox in inboxes:
            self.accounted.pop(inbox, None)

    @rule(patterns=types)
    def change_the_filter(self, patterns):
        self.follower.change(self.follower.selection, patterns)

    @rule(inboxes=some_inboxes)
    def subscribe(self, inboxes):
        self._join(inboxes)

    def _join(self, inboxes) -> None:
        added = Selection(frozenset(inboxes) - self.follower.selection.inboxes)
        self.follower.change(self.follower.selection.union(added), self.follower.event_filter)
        self.follower.join_replay(added)
        for inbox in added.inboxes:
            self.accounted[inbox] = self.house.number(self.follower.cursor)

    @rule(inboxes=some_inboxes, back=st.integers(0, 30), known=st.sampled_from([True] * 5 + [False]))
    @precondition(lambda self: not self.wish)
    def wish_to_subscribe_from_the_past(self, inboxes, back, known):
        self.wish = frozenset(inboxes), max(0, self.house.buffer.head - back) if known else None, None, 0
        self._subscribe()

    def _wish(self, inboxes, back) -> None:
        self.wish = frozenset(inboxes), max(0, self.house.buffer.head - back), None, 0
        while self.wish:
            self._subscribe()

    @rule(
        first=some_inboxes,
        back=st.integers(0, 30),
        gone=st.integers(0, 8),
        second=some_inboxes,
        further=st.integers(0, 30),
    )
    def two_replays_meet_while_some_of_it_goes(self, first, back, gone, second, further):
        self._unsubscribe(first | second)
        self._wish(first, back)
        if gone:
            self.house.drop(gone)
            self.house.let_go(gone)
        self._wish(second, further)

    @rule()
    @precondition(lambda self: self.wish)
    def go_on_to_subscribe_from_the_past(self):
        self._subscribe()

    def _subscribe(self) -> None:
        """Do what a `subscribe` does: ask, be answered, ask again if that is too little; then do it."""
        house, follow = self.house, self.follower
        inboxes, since, reached, gone_through = self.wish
        added = Selection(inboxes - follow.selection.inboxes)
        if reached is not None and reached.page is not None:
            follow.take_in(reached.reach.before, reached.page)
        self._took(follow.gap_of_replay())
        cursor = "cunknown.1" if since is None else house.buffer.cursor_at(since)
        reach = follow.reach(added, cursor, 0.0, reached)
        if reach is not None:
            self.wish = inboxes, since, house.reached(reach), house.archive.gone_through("a", reach.through)
            return
        self.wish = None
        through = follow.position
        follow.change(follow.selection.union(added), follow.event_filter)
        replay, gap = follow.replay(added, since, reached)
        start = min(since, through) if gap is None else house.number(gap.to)
        assert replay.recovered == (gap is None)
        if gap is not None:
            assert house.number(gap.from_) == since
            assert not self._owed(start), "a cursor ahead of what is under way"
            if since is None:
                assert gap.count is None
            else:
                missed = [p for p, inbox, _ in house.published if since < p <= start and inbox in added]
                assert self._is_gone(missed)
                self._counted(gap, missed)
        coming = [p for p, inbox, _ in house.published if max(start, gone_through) < p <= through and inbox in added]
        assert replay.count == len(coming)
        assert house.number(follow.cursor) <= max(start, 0) or not added.inboxes
        for inbox in added.inboxes:
            self.accounted[inbox] = min(start, through)
        if added.inboxes:
            self.floor = min(self.floor, start)

    def teardown(self):
        if self.wish:
            self._subscribe()
        for _ in range(1_000):
            following = self._next()
            if following is None:
                break
            if isinstance(following, Older):
                self.follower.take_in(following, self.house.answer(following))
        else:
            raise AssertionError("it never ends")
        assert self.follower.live
        assert set(self.accounted.values()) <= {self.house.buffer.head}


@pytest.fixture
def small_reads(monkeypatch):
    monkeypatch.setattr(follower, "READ_EVENTS", 3)


def test_whatever_is_dropped_and_asked_meanwhile_all_that_is_kept_comes_once_and_what_is_gone_is_counted(small_reads):
    run_state_machine_as_test(Reaching, settings=settings(max_examples=150, stateful_step_count=40))


# --- single promises ---------------------------------------------------------


def test_what_memory_has_dropped_comes_from_the_archive_and_the_rest_from_memory():
    house = House("abababab")
    house.drop(5)
    house.follow(ONLY_A)
    replay, gap = house.start(0)
    assert (replay.recovered, replay.count, gap) == (True, 4, None)
    assert house.number(house.follower.cursor) == 0
    assert house.rest() == [2, 6, 10, 14]
    assert house.follower.live
    assert house.answers == 1, "what memory holds is read from memory"


def test_who_falls_out_of_memory_while_behind_misses_nothing():
    house = House(selection=A_AND_B)
    assert house.rest() == []
    house.publish("abababa")
    house.drop(6)
    assert house.rest() == [2, 4, 6, 8, 10, 12, 14]


def test_what_memory_holds_is_never_asked_for():
    house = House("ababab")
    house.drop(3)
    follower = house.follow(ONLY_A)
    cursor = house.buffer.cursor_at
    assert follower.reach(ONLY_A, cursor(6), 0.0) is None, "nothing after it was dropped"
    assert follower.reach(Selection(frozenset("c")), cursor(0), 0.0) is None, "nothing of it was dropped"
    assert follower.reach(ONLY_A, "1s", 7.5) is None, "a time that memory knows"
    assert follower.reach(ONLY_A, cursor(2), 0.0) is not None
    assert follower.reach(NOTHING, cursor(0), 0.0) is None


def test_without_an_archive_nothing_is_asked_and_what_is_dropped_is_gone():
    house = House("aaa", selection=ONLY_A)
    house.buffer._shared.archive_seconds = None
    house.drop(2)
    assert house.follower.reach(ONLY_A, house.buffer.cursor_at(0), 0.0) is None
    replay, gap = house.start(0)
    assert (replay.recovered, replay.count, gap.count) == (False, 1, 2)
    assert house.rest() == [6]


def test_what_the_archive_has_let_go_is_a_counted_gap_and_the_page_goes_on_behind_it():
    house = House("abababab", selection=ONLY_A)
    house.follower.start(0)
    house.drop(6)
    house.let_go(3)
    assert house.rest() == [(0, 6, 2), 10, 14]
    assert house.answers == 1
    assert house.follower.live


def test_what_the_archive_has_let_go_and_was_not_for_it_is_no_gap():
    house = House("bbaa", selection=ONLY_A)
    house.follower.start(0)
    house.drop(3)
    house.let_go(2)
    assert house.rest() == [6, 8]


def test_a_start_before_what_the_archive_keeps_says_the_gap_and_what_is_left():
    house = House("ababab")
    house.drop(4)
    house.let_go(3)
    house.follow(ONLY_A)
    replay, gap = house.start(0)
    assert (replay.recovered, replay.count) == (False, 1)
    assert (house.number(gap.from_), house.number(gap.to), gap.count) == (0, 6, 2)
    assert house.rest() == [10]


def test_an_unknown_start_brings_all_that_the_archive_keeps():
    house = House("ababab")
    house.drop(4)
    house.let_go(1)
    house.follow(A_AND_B)
    replay, gap = house.start(None)
    assert (replay.recovered, replay.count) == (False, 5)
    assert (gap.from_, house.number(gap.to), gap.count) == (None, 2, None)
    assert house.rest() == [4, 6, 8, 10, 12]


@pytest.mark.parametrize("since", ["4s", wall_at(2.5).isoformat()])
def test_a_time_that_memory_has_forgotten_is_asked_for(since):
    house = House("ababab")
    house.drop(6)
    while house.buffer._dropped._buckets:
        house.buffer._dropped.forget_through(house.buffer._dropped._buckets[0])
    house.follow(ONLY_A)
    reach = house.follower.reach(ONLY_A, since, 12.5)
    assert reach.position is None
    assert reach.moment is not None


def test_a_count_is_exact_though_memory_drops_more_while_the_archive_is_asked():
    house = House("aaaaaa")
    house.drop(2)
    follower = house.follow(ONLY_A)
    reached = house.reached(follower.reach(ONLY_A, house.buffer.cursor_at(0), 0.0))
    house.drop(3)
    house.publish("aa")
    assert follower.reach(ONLY_A, house.buffer.cursor_at(0), 0.0, reached) is None
    replay, _ = follower.start(0, reached)
    assert replay.count == 6, "up to where it entered"
    assert house.rest() == [2, 4, 6, 8, 10, 12, 14, 16]


def test_what_was_answered_for_something_else_is_asked_again():
    house = House("abababab")
    house.drop(6)
    follower = house.follow(ONLY_A)
    reached = house.reached(follower.reach(ONLY_A, house.buffer.cursor_at(0), 0.0))
    again = follower.reach(A_AND_B, house.buffer.cursor_at(0), 0.0, reached)
    assert again.selection == A_AND_B


def test_a_page_that_is_not_wanted_any_more_is_thrown_away():
    house = House("abababab", selection=ONLY_A)
    follower = house.follower
    follower.start(0)
    house.drop(8)
    asked = follower.next()
    page = house.answer(asked)
    follower.change(A_AND_B, None)
    follower.take_in(asked, page)
    assert house.rest() == [2, 4, 6, 8, 10, 12, 14, 16]


def test_of_a_page_that_goes_beyond_where_a_newer_replay_begins_nothing_is_taken():
    house = House("aabbab", selection=Selection(frozenset("c")))
    assert house.rest() == []
    house.drop(6)
    house.subscribe(ONLY_A, 0)
    asked = house.follower.next()
    page = house.answer(asked)
    house.subscribe(ONLY_B, 4)
    house.follower.take_in(asked, page)
    assert house.rest() == [2, 4, 6, 8, 10, 12]


def test_what_a_replay_under_way_has_missed_is_asked_for_and_said_before_a_newer_gap():
    house = House("abababab", selection=Selection(frozenset("c")))
    follower = house.follower
    assert house.rest() == []
    house.drop(8)
    house.subscribe(ONLY_A, 0)
    house.let_go(4)
    cursor = house.buffer.cursor_at(2)
    first = house.reached(follower.reach(ONLY_B, cursor, 0.0))
    reach = follower.reach(ONLY_B, cursor, 0.0, first)
    assert reach.before == Older(ONLY_A, 0, 16)
    second = house.reached(reach)
    follower.take_in(reach.before, second.page)
    gap = follower.gap_of_replay()
    assert (house.number(gap.from_), house.number(gap.to), gap.count) == (0, 8, 2)
    assert follower.reach(ONLY_B, cursor, 0.0, second) is None


def test_a_subscriber_of_nothing_asks_for_nothing():
    house = House("aaa")
    house.drop(2)
    house.follow(NOTHING).start(0)
    assert house.rest() == []
    assert house.answers == 0


def test_what_is_closed_keeps_no_page():
    house = House("aaa", selection=ONLY_A)
    house.follower.start(0)
    house.drop(3)
    asked = house.follower.next()
    house.follower.take_in(asked, house.answer(asked))
    assert house.follower.held_bytes > 0
    house.follower.close()
    house.follower.take_in(asked, house.answer(asked))
    assert house.rest() == []
    assert house.follower.held_bytes == 0
