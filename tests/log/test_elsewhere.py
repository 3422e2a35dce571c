"""What the log of an account does for an engine that has it elsewhere: what listeners see of what is put in.

`TailingEngine` is such an engine in lists; two of them share one `Elsewhere`, as two nodes do.
"""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from logs import FAR, Elsewhere, TailingEngine, begin, prepared, wall_at

from broker.config import ReplayConfig
from broker.fanout.hub import Hub
from broker.fanout.listeners import Listener
from broker.fanout.subscriber import Subscriber
from broker.log import dropped, retention
from broker.log.archive import Older
from broker.log.dropped import Dropped, DroppedBuckets, DroppedPositions
from broker.log.past import Past
from broker.log.replay import Mark, ReplayBuffer, Shared
from broker.log.retention import ReplayBuffers
from broker.protocol.messages import Gap
from broker.protocol.selection import EVERYTHING, Selection

EPOCH = b"sixteen bytes..."
ONLY_I1 = Selection(frozenset({"i1"}))


class Node:
    """A hub that an engine fills from elsewhere, with account "a" attached."""

    def __init__(self, elsewhere: Elsewhere, replay: ReplayConfig | None = None) -> None:
        self.buffers = ReplayBuffers(replay or ReplayConfig(), EPOCH)
        self.hub = Hub(self.buffers)
        self.engine = TailingEngine(self.buffers, self.hub, elsewhere)
        self.engine.attach_now("a")

    @property
    def buffer(self) -> ReplayBuffer:
        return self.hub.account("a").buffer

    def publish(self, *numbers: int, inbox: str = "i1") -> list[str]:
        return [one.cursor for one in begin(self.engine, "a", [prepared(f"e{n}", inbox) for n in numbers])]

    async def subscriber(self, since: str | None = None, selection: Selection = EVERYTHING) -> Subscriber:
        past = Past(None, lambda: wall_at(trio.current_time()).timestamp(), self.engine.reach)
        subscriber = Subscriber(self.hub.account("a"), selection, None, past)
        if since is not None:
            await subscriber.start(since)
        return subscriber

    async def read(self, subscriber: Subscriber) -> list[str | int | None]:
        """The numbers of events that there are now, and the counts of gaps among them."""
        self.hub.take_turns(float("inf"))
        found: list[str | int | None] = []
        while (following := subscriber.next()) is not None:
            if isinstance(following, Older):
                await subscriber.read(following)
            else:
                found += [following.count] if isinstance(following, Gap) else [entry.event_id for entry in following]
        return found


# --- a node that others publish beside ---------------------------------------


async def test_what_one_node_stores_is_heard_on_the_other():
    elsewhere = Elsewhere()
    one, other = Node(elsewhere), Node(elsewhere)
    subscriber = await other.subscriber()
    one.publish(1, 2)
    assert await other.read(subscriber) == ["e1", "e2"]


@given(before=st.integers(0, 12), after=st.integers(0, 5), at=st.integers(0, 17))
async def test_a_cursor_of_one_node_resumes_on_another_that_has_just_begun(before, after, at):
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    cursors = [one.buffer.cursor_at(one.buffer.head), *one.publish(*range(before))]
    other = Node(elsewhere)
    cursors += one.publish(*range(before, before + after))
    at = min(at, before + after)
    subscriber = await other.subscriber(cursors[at])
    assert subscriber.replay.recovered
    assert await other.read(subscriber) == [f"e{n}" for n in range(at, before + after)]


async def test_what_was_read_back_is_not_read_again():
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    cursors = one.publish(*range(10))
    other = Node(elsewhere)
    for _ in range(3):
        assert len(await other.read(await other.subscriber(cursors[0]))) == 9
    assert other.engine.reads == 4  # pages of three


async def test_who_is_live_hears_nothing_of_what_is_read_back_for_others():
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    cursors = one.publish(1, 2, 3)
    other = Node(elsewhere)
    live = await other.subscriber()
    assert await other.read(live) == []
    late = await other.subscriber(cursors[0])
    one.publish(4)
    assert await other.read(late) == ["e2", "e3", "e4"]
    assert await other.read(live) == ["e4"]


@given(let_go=st.integers(1, 8), since=st.integers(0, 7), only_i1=st.booleans())
async def test_a_node_that_has_just_begun_counts_what_was_gone_before_it_came(let_go, since, only_i1):
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    inboxes = ["i1", "i2", "i1", "i1", "i2", "i2", "i1", "i2"]
    cursors = [cursor for n, inbox in enumerate(inboxes) for cursor in one.publish(n, inbox=inbox)]
    elsewhere.let_go("a", let_go)
    other = Node(elsewhere)
    subscriber = await other.subscriber(cursors[since], ONLY_I1 if only_i1 else EVERYTHING)
    wanted = [n for n in range(since + 1, 8) if not only_i1 or inboxes[n] == "i1"]
    missed = sum(n < let_go for n in wanted)
    assert await other.read(subscriber) == [missed] * (missed > 0) + [f"e{n}" for n in wanted if n >= let_go]


async def test_a_duration_is_whole_on_a_node_that_has_just_begun(mock_clock):
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    for n in range(4):
        one.publish(n)
        mock_clock.jump(10)
    elsewhere.let_go("a", 1)
    for seconds, recovered, found in ((25, True, ["e2", "e3"]), (35, True, ["e1", "e2", "e3"])):
        subscriber = await Node(elsewhere).subscriber(f"{seconds}s")
        assert (subscriber.replay.recovered, subscriber.replay.count) == (recovered, len(found))
    subscriber = await Node(elsewhere).subscriber("45s")
    assert not subscriber.replay.recovered


# --- what a node missed ------------------------------------------------------


async def test_who_is_live_is_told_how_many_events_its_node_was_too_late_for():
    elsewhere = Elsewhere()
    one, other = Node(elsewhere), Node(elsewhere)
    every, only = await other.subscriber(), await other.subscriber(selection=ONLY_I1)
    one.publish(1)
    assert [await other.read(every), await other.read(only)] == [["e1"], ["e1"]]
    other.engine.is_deaf = True
    one.publish(2, 3)
    one.publish(4, inbox="i2")
    elsewhere.let_go("a", 4)
    one.publish(5)
    other.engine.hear()
    assert await other.read(every) == [3, "e5"]
    assert await other.read(only) == [2, "e5"]


async def test_a_gap_that_nobody_can_count_any_more_is_said_without_a_count():
    node = Node(Elsewhere())
    subscriber = await node.subscriber()
    assert await node.read(subscriber) == []
    node.hub.skip("a", None, Mark(node.buffer.head + 7, 1.0, 1.0))
    assert await node.read(subscriber) == [None]


async def test_a_skip_needs_an_empty_window():
    node = Node(Elsewhere())
    node.publish(1)
    with pytest.raises(ValueError, match="holds events"):
        node.hub.skip("a", [], Mark(node.buffer.head + 7))


async def test_a_skip_in_the_middle_of_a_batch_tells_each_what_it_missed_itself():
    node = Node(Elsewhere())
    account = node.hub.account("a")
    woken, written = [], []
    slow = Listener(lambda data: 0, lambda: woken.append("slow"))
    quick = Listener(lambda data: written.append(data) or len(data), lambda: woken.append("quick"))
    for listener in (slow, quick):
        account.subscriptions.enter(listener, EVERYTHING, None)
        account.subscriptions.join(listener)
    node.publish(1)
    node.hub.take_turns(float("inf"))
    assert (woken, len(written)) == (["slow"], 1)
    head = node.buffer.head
    node.buffers.empty(node.buffer, 0.0, most=10)
    node.hub.skip("a", None, Mark(head + 5, 1.0, 1.0))
    assert woken == ["slow", "quick"]
    assert (slow.position, quick.position) == (head - 1, head)


# --- another history ---------------------------------------------------------


async def test_after_another_history_began_everybody_is_told_of_a_gap_without_a_count_and_goes_on():
    elsewhere = Elsewhere()
    one, other = Node(elsewhere), Node(elsewhere)
    live, behind = await other.subscriber(), await other.subscriber()
    one.publish(1)
    assert await other.read(live) == ["e1"]
    elsewhere.lose()
    for node in (one, other):
        node.engine.hear()
    one.publish(2)
    assert await other.read(live) == [None, "e2"]
    assert await other.read(behind) == [None, "e2"]


async def test_a_cursor_of_a_history_that_is_over_is_unknown():
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    [cursor] = one.publish(1)
    elsewhere.lose()
    one.engine.hear()
    one.publish(2)
    subscriber = await one.subscriber(cursor)
    assert not subscriber.replay.recovered
    gap = await anext(subscriber)
    assert (gap.from_, gap.count) == (None, None)
    assert await one.read(subscriber) == ["e2"]


async def test_a_replay_under_way_when_another_history_begins_ends_with_a_gap():
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    subscriber = await one.subscriber(selection=Selection(frozenset({"i2"})))
    cursor, *_ = one.publish(*range(5))
    assert await one.read(subscriber) == []
    subscriber.follower.change(EVERYTHING, None)
    subscriber.follower.replay(ONLY_I1, one.buffer.position_of(cursor))
    assert subscriber.follower.replays
    elsewhere.lose()
    one.engine.hear()
    one.publish(9)
    assert await one.read(subscriber) == [None, None, "e9"]  # of what was replayed, and of what is live


async def test_a_place_before_the_fan_out_is_free_when_its_account_is_not_kept_here():
    node = Node(Elsewhere())
    other = node.hub.account("b")
    place = other.places.take_nowait(10)
    place.hand_on(5)
    assert not other.places.in_use
    assert other.buffer.head == FAR


async def test_the_places_of_what_another_history_has_lost_are_free():
    elsewhere = Elsewhere()
    node = Node(elsewhere)
    places = node.hub.account("a").places
    places.take_nowait(10).hand_on(node.buffer.head + 5)
    assert places.in_use
    elsewhere.lose()
    node.engine.hear()
    assert not places.in_use


async def test_an_account_that_is_not_attached_any_more_is_forgotten_with_its_events():
    node = Node(Elsewhere())
    node.publish(1, 2)
    node.hub.take_turns(float("inf"))
    assert node.buffers.statistics().bytes > 0
    node.hub.forget(0.0, most=10)
    assert len(node.hub.accounts()) == 1
    node.engine.detach("a")
    node.hub.forget(0.0, most=10)
    assert node.hub.accounts() == []
    assert (node.buffers.statistics().bytes, node.buffers.statistics().events) == (0, 0)


# --- the window --------------------------------------------------------------


async def test_events_that_were_read_back_are_the_first_to_leave():
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    cursors = one.publish(*range(6))
    other = Node(elsewhere, ReplayConfig(max_events_per_account=4))
    one.publish(6, 7)
    subscriber = await other.subscriber(cursors[0])
    assert not subscriber.replay.recovered
    assert [entry.event_id for entry in other.buffer.read(EVERYTHING, 0, FAR, max_events=9, max_bytes=10**6)[0]] == [
        f"e{n}" for n in range(4, 8)
    ]


async def test_what_was_read_back_expires_by_its_own_age(mock_clock):
    elsewhere = Elsewhere()
    one = Node(elsewhere)
    first, *_ = one.publish(0, 1)
    mock_clock.jump(200)
    other = Node(elsewhere)
    one.publish(2)
    other.hub.take_turns(float("inf"))
    await other.subscriber(first)
    assert other.buffers.statistics().events == 3
    mock_clock.jump(101)
    while other.buffers.expire(trio.current_time(), most=2):
        pass
    assert other.buffers.statistics().events == 1
    mock_clock.jump(200)
    other.buffers.expire(trio.current_time(), most=2)
    assert other.buffers.statistics().events == 0


async def test_what_was_dropped_here_and_read_back_is_not_counted_as_dropped():
    elsewhere = Elsewhere()
    node = Node(elsewhere)
    start = node.buffer.cursor_at(node.buffer.head)
    node.publish(*range(5))
    node.hub.take_turns(float("inf"))
    node.buffers.empty(node.buffer, 0.0, most=4)
    subscriber = await node.subscriber(start)
    assert (subscriber.replay.recovered, subscriber.replay.count) == (True, 5)
    assert node.buffer.missed(EVERYTHING, elsewhere.birth["a"], FAR) == 0


async def test_events_that_do_not_end_where_the_window_begins_are_refused():
    node = Node(Elsewhere())
    entry = node.engine.elsewhere
    node.publish(1)
    late = entry.entries["a"][0]
    with pytest.raises(ValueError, match="they are not up to"):
        node.hub.prepend("a", [late], Mark(late.position - 1))


@given(
    known=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["i1", "i2"])), max_size=12),
    cut=st.integers(0, 40),
    pages=st.integers(1, 4),
)
def test_dropped_positions_count_the_same_however_they_came(known, cut, pages):
    """Added at the end, in pages before all others, or taken back: against a plain list."""
    position, all_known = 10, []
    for step, inbox in known:
        position += step
        all_known.append(Dropped(position, inbox, position / 10, 100 + position / 10))
    buckets = DroppedBuckets()
    positions = DroppedPositions(buckets, position, 99.0, 999.0)
    size = -(-len(all_known) // pages) or 1
    for start in range((len(all_known) - 1) // size * size, -1, -size) if all_known else ():
        page = all_known[start : start + size]
        positions.add_before(page, page[0].position - 1, 0.0, 0.0, 1.0)
    positions.add_before([], 10, 1.0, 101.0, 1.0)
    positions.add(position + 1, "i1", 60.0, 160.0, 2.0)
    all_known.append(Dropped(position + 1, "i1", 60.0, 160.0))
    positions.take_back(cut, 55.0, 155.0)
    left = [one for one in all_known if one.position <= cut]
    for selection in (EVERYTHING, ONLY_I1):
        for after in range(10, position + 2):
            expected = sum(after < one.position <= FAR and one.inbox in selection for one in left)
            assert positions.count_between(selection, after, FAR) == expected
    assert positions.count_between(EVERYTHING, min(cut, 10) - 1, FAR) is None
    positions.forget_all(position + 1, 0.0, 0.0)
    assert (positions.bytes, buckets.bytes) == (0, 0)


def test_a_bucket_that_is_forgotten_takes_older_ones_with_it(monkeypatch):
    monkeypatch.setattr(dropped, "REMEMBER_SECONDS", 10.0)
    buckets = DroppedBuckets()
    positions = DroppedPositions(buckets, 5, 0.0, 0.0)
    positions.add(6, "i1", 1.0, 1.0, 0.0)
    positions.add_before([Dropped(5, "i1", 0.5, 0.5)], 4, 0.0, 0.0, 3.0)
    assert positions.count_between(EVERYTHING, 4, 6) == 2
    assert buckets.forget(11.0)
    assert positions.forgotten_through == 6
    assert (positions.bytes, buckets.bytes) == (0, 0)
    assert not buckets.forget(11.0)


def test_marks_of_accounts_that_stand_elsewhere_are_beyond_all_positions(monkeypatch):
    monkeypatch.setattr(retention, "MAX_MARKS", 1)
    buffers = ReplayBuffers(ReplayConfig(), EPOCH)
    buffers.begin_elsewhere(FAR)
    for name in "abc":
        buffers.close(buffers.open(name))
    assert {buffers.open(name).head for name in "abcd"} == {FAR}
    assert ReplayBuffer("a", Shared(EPOCH), Mark()).head == 0
