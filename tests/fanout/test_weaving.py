"""follower.py: many replays of one subscriber, woven together, against a list of who is to get what."""

from hypothesis import given, settings
from hypothesis import strategies as st
from logs import append, make_buffer, prepared

from broker.fanout.follower import Follower
from broker.fanout.listeners import Listener
from broker.fanout.subscriptions import Subscriptions
from broker.protocol.messages import Gap
from broker.protocol.selection import NOTHING, Selection

INBOXES = "abcdef"


class Agent:
    """A subscriber that adds inboxes, with a replay of each or without, while earlier replays are under way."""

    def __init__(self, log: str) -> None:
        self.buffer = make_buffer()
        self.subscriptions = Subscriptions(0)
        self.got: list[tuple[int, str]] = []
        self.follower = Follower(self.buffer, self.subscriptions, Listener(len, lambda: None), NOTHING, None)
        for inbox in log:
            self.publish(inbox)
        while self.read():
            pass
        self.wanted: dict[str, int] = {}
        """Of each inbox, the position after which everything is to come."""

    def publish(self, inbox: str) -> None:
        self.follower.pause()  # so that all of it is read, and nothing written by the fan-out
        position = self.buffer.head + 1
        entry = append(self.buffer, prepared(f"e{position}", inbox), position, float(position))
        self.subscriptions.advance([entry])
        self.subscriptions.settle()

    def add(self, inbox: str, since: int | None) -> None:
        """Do what a `subscribe` does; ``since`` None: from where the subscriber is, its replays included."""
        added = Selection(frozenset({inbox}))
        self.follower.change(self.follower.selection.union(added), None)
        if since is None:
            self.follower.join_replay(added)
            since = self.buffer.position_of(self.follower.cursor)
        else:
            replay, gap = self.follower.replay(added, since)
            assert (replay.recovered, gap) == (True, None)
            assert replay.count == len(self.of(inbox, since, self.follower.position))
        self.wanted[inbox] = min(since, self.follower.position)

    def of(self, inbox: str, after: int, through: int) -> list[int]:
        entries, _ = self.buffer.read(Selection(frozenset({inbox})), after, through, max_events=10_000, max_bytes=10**9)
        return [entry.position for entry in entries]

    def read(self) -> bool:
        following = self.follower.next()
        assert not isinstance(following, Gap)
        self.got += [(entry.position, entry.inbox) for entry in following or ()]
        return following is not None


sinces = st.one_of(st.none(), st.integers(0, 40))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(INBOXES), sinces),
        st.tuples(st.just("add"), st.sampled_from(INBOXES), sinces),
        st.tuples(st.just("publish"), st.sampled_from(INBOXES), st.none()),
        st.tuples(st.just("read"), st.just(""), st.none()),
    ),
    min_size=4,
    max_size=25,
)


@given(log=st.text(INBOXES, min_size=20, max_size=40), steps=steps)
@settings(max_examples=300)
def test_however_many_replays_are_woven_together_each_inbox_comes_whole_once_and_in_the_logs_order(log, steps):
    agent = Agent(log)
    for action, inbox, since in steps:
        if action == "add" and inbox not in agent.wanted:
            agent.add(inbox, None if since is None else min(since, agent.buffer.head))
        elif action == "publish":
            agent.publish(inbox)
        elif action == "read":
            agent.read()
    while agent.read():
        pass
    assert agent.follower.live
    for inbox, since in agent.wanted.items():
        assert [position for position, name in agent.got if name == inbox] == agent.of(inbox, since, agent.buffer.head)
    assert {name for _, name in agent.got} <= agent.wanted.keys()


def test_three_replays_come_in_one_order_and_what_is_newer_waits_for_all():
    agent = Agent("abcabcabc")
    for inbox, since in (("a", 3), ("b", 0), ("c", 6)):
        agent.add(inbox, since)
    agent.publish("a")
    while agent.read():
        pass
    assert [position for position, _ in agent.got] == [2, 4, 5, 7, 8, 9, 10]


def test_what_joins_replays_under_way_comes_from_where_they_are():
    agent = Agent("abcabcabc")
    agent.add("a", 0)
    agent.add("b", 3)
    assert agent.read()  # up to where the second begins
    assert [position for position, _ in agent.got] == [1]
    agent.add("c", None)
    while agent.read():
        pass
    assert [position for position, _ in agent.got] == [1, 4, 5, 6, 7, 8, 9]
