"""The machinery of `make soak`: in short it finds nothing, and what is wrong it finds."""

import sys
from dataclasses import replace

import pytest
from proofs.accounting import Sample, Subscriber, not_flat
from proofs.soaking import Plan, soak

SHORT = Plan(seconds=5, connections=30, events_per_second=20)
PUBLISHED = {"in_1": 3, "in_2": 2}
NUMBERS = ((1, "in_1", 1), (2, "in_2", 1), (3, "in_1", 2), (4, "in_1", 3), (5, "in_2", 2))

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def told(*numbers, account="acct_1"):
    """The frames of these events, by their numbers in the account."""
    return [
        {"type": "soak.event", "inbox_id": inbox, "cursor": f"c.{number}",
         "payload": {"account": account, "number": number, "in_inbox": in_inbox}}
        for at in numbers for number, inbox, in_inbox in NUMBERS if number == at
    ]  # fmt: skip


def gap(to, count):
    return {"type": "replay.gap", "from": "c.0", "to": f"c.{to}", "count": count}


def after(*frames, inboxes=("in_1", "in_2")):
    subscriber = Subscriber("acct_1", frozenset(inboxes), False, "c.0")
    for frame in frames:
        subscriber.take(frame)
    return subscriber


@needs_proc
async def test_a_short_soak_has_every_event_accounted_for():
    done = await soak(SHORT)
    assert done.broke == []
    assert done.visits > 2 * len(done.subscribers)
    assert done.published > 30
    assert sum(subscriber.events for subscriber in done.subscribers) > done.published / 8


@needs_proc
async def test_one_event_that_is_lost_on_its_way_is_found_out():
    done = await soak(replace(SHORT, seconds=3, lose=1, patience_seconds=2))
    assert [text for text in done.broke if "missing" in text or "neither came" in text]


class TestASubscriber:
    def test_has_all_in_order_over_its_connections(self):
        subscriber = after(*told(1, 2, 3, 4, 5))
        assert (subscriber.wrong, subscriber.owed(PUBLISHED), subscriber.cursor) == ([], 0, "c.5")

    def test_takes_a_gap_that_counts_right(self):
        subscriber = after(*told(1), gap(3, 2), *told(4, 5))
        assert (subscriber.wrong, subscriber.owed(PUBLISHED)) == ([], 0)

    def test_takes_a_gap_at_the_end(self):
        subscriber = after(*told(1, 2), gap(5, 3))
        assert (subscriber.wrong, subscriber.owed(PUBLISHED), subscriber.cursor) == ([], 0, "c.5")

    def test_counts_only_its_inboxes(self):
        assert after(*told(2, 5), inboxes=["in_2"]).owed(PUBLISHED) == 0

    @pytest.mark.parametrize(
        ("frames", "says"),
        [
            (told(1, 2, 4), "missing"),
            (told(1, 2, 2), "twice"),
            (told(1, 3, 2), "out of order"),
            (told(1, account="acct_2"), "acct_2"),
            ([*told(1), gap(3, 1), *told(4, 5)], "missing"),
            ([*told(1), gap(3, None), *told(4, 5)], "does not say"),
        ],
    )
    def test_finds_what_is_wrong_at_once(self, frames, says):
        assert says in after(*frames).wrong[0]

    def test_finds_an_event_of_an_inbox_that_it_does_not_hold(self):
        assert "in_1" in after(*told(1), inboxes=["in_2"]).wrong[0]

    def test_finds_what_never_came(self):
        assert after(*told(1, 2, 3)).owed(PUBLISHED) == 2

    def test_finds_a_gap_that_counts_too_many(self):
        assert after(*told(1), gap(3, 3), *told(4, 5)).owed(PUBLISHED) == -1


class TestWhatMustStayFlat:
    def samples(self, **growth):
        """Thirty samples, in which some figures grow by so much in each."""
        usual = {"dropped": 0, "resident_bytes": 100_000_000, "descriptors": 1000, "tasks": 1000}
        return [
            Sample(number, **{name: value + number * growth.get(name, 0) for name, value in usual.items()})
            for number in range(30)
        ]

    def test_is_flat(self):
        assert not_flat(self.samples()) == []

    def test_must_have_been_looked_at(self):
        assert "only 2 times" in not_flat(self.samples()[:2])[0]

    @pytest.mark.parametrize("name", ["resident_bytes", "descriptors", "tasks"])
    def test_that_grows_is_said(self, name):
        grown = self.samples(**{name: 10 if name != "resident_bytes" else 1_000_000})
        assert not_flat(grown)[0].startswith(name.replace("_", " "))

    def test_may_grow_by_the_positions_of_what_left_the_window(self):
        assert not_flat(self.samples(resident_bytes=1_000_000, dropped=20_000)) == []
