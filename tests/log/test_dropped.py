"""dropped.py: positions of dropped events, known for an hour and then no more."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log import dropped
from broker.log.dropped import DroppedBuckets, DroppedPositions
from broker.protocol.selection import EVERYTHING, Selection

INBOXES = ("a", "b", "c", "")
BEFORE = float("-inf")
subsets = st.frozensets(st.sampled_from([*INBOXES, "unknown"]))
selections = st.one_of(subsets.map(Selection), subsets.map(lambda excluded: Selection(None, excluded)))
steps = st.lists(
    st.tuples(st.sampled_from(INBOXES), st.integers(1, 3), st.sampled_from([0.0, 0.0, 1.0, 250.0, 601.0, 1_900.0])),
    max_size=40,
)


WALL = 1_800_000_000.0
"""The time of day when the monotonic clock says 0."""


class Account:
    """One account's dropped positions, among those of all."""

    def __init__(self, buckets: DroppedBuckets | None = None, start: int = 0, stored_at: float = BEFORE) -> None:
        self.buckets = buckets or DroppedBuckets()
        self.positions = DroppedPositions(self.buckets, start, stored_at, stored_at + WALL)

    def add(self, position: int, inbox: str, now: float) -> None:
        """Drop an event that was stored five minutes ago."""
        self.positions.add(position, inbox, now - 300, now - 300 + WALL, now)

    def forget(self, now: float) -> None:
        while self.buckets.forget(now):
            pass

    def count(self, selection: Selection, after: int, through: int) -> int | None:
        return self.positions.count_between(selection, after, through)


def dropped_one_by_one(number: int, *, every_seconds: float = 0.0) -> Account:
    account = Account()
    for position in range(1, number + 1):
        account.add(position, INBOXES[position % 2], position * every_seconds)
    return account


@settings(max_examples=200)
@given(
    drops=steps, selection=selections, after=st.integers(0, 80), length=st.integers(0, 120), aged=st.integers(0, 9_000)
)
def test_positions_are_counted_exactly_for_an_hour_and_never_wrongly(drops, selection, after, length, aged):
    account, model = Account(start=5, stored_at=100.0), []
    position, now = 5, 1_000.0
    for inbox, step, seconds in drops:
        now += seconds
        position += step
        account.add(position, inbox, now)
        model.append((position, inbox, now - 300, now))
        account.forget(now)
    now += aged
    account.forget(now)
    hour = [place for place, _, _, at in model if at >= now - 3_600]
    known_from = hour[0] - 1 if hour else position
    through = after + length
    count = account.count(selection, after, through)
    if count is None:
        assert after < known_from
    else:
        assert count == sum(after < place <= through and inbox in selection for place, inbox, _, _ in model)
    for moment in (now, now - 300, now - 1_000, 100.0, 50.0):
        before = [place for place, _, stored_at, _ in model if stored_at < moment]
        found = account.positions.position_before(moment)
        assert account.positions.position_before(moment + WALL, by_wall=True) == found
        if found is None:
            assert moment <= 100.0 or any(s >= moment and at < now - 3_600 for _, _, s, at in model)
        else:
            assert found == (before[-1] if before else 5)


def test_what_was_dropped_an_hour_ago_is_forgotten_a_bucket_at_once_and_never_early():
    account = dropped_one_by_one(10, every_seconds=100.0)  # dropped at 100, 200, ... 1000
    account.forget(700.0 + 3_600)
    assert account.count(EVERYTHING, 0, 10) == 10
    account.forget(700.1 + 3_600)
    assert account.count(EVERYTHING, 0, 10) is None
    assert account.positions.forgotten_through == 7
    assert account.count(EVERYTHING, 7, 10) == 3


def test_one_step_forgets_no_more_than_a_bucket(monkeypatch):
    monkeypatch.setattr(dropped, "_BUCKET_BYTES", 10 * 32)
    account = dropped_one_by_one(100)
    steps = [account.positions.forgotten_through]
    while account.buckets.forget(1e6):
        steps.append(account.positions.forgotten_through)
    assert steps[-1] == 100
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 10
    assert account.buckets.bytes == account.positions.bytes == 0


def test_what_is_remembered_of_one_account_is_bounded_in_bytes_names_included(monkeypatch):
    monkeypatch.setattr(dropped, "_BUCKET_BYTES", 5_000)
    monkeypatch.setattr(dropped, "MAX_BYTES_OF_ACCOUNT", 50_000)
    few, many = Account(), Account()
    for position in range(1, 5_001):
        few.add(position, "a", 0.0)
        many.add(position, f"{position:0254}", 0.0)
        assert few.positions.bytes <= 50_000
        assert many.positions.bytes <= 50_000
    for account, number in ((few, 50_000 / 32), (many, 50_000 / (32 + 180 + 254))):
        known = 5_000 - account.positions.forgotten_through
        assert 0.8 * number <= known <= number
        assert account.count(EVERYTHING, 5_000 - known, 5_000) == known
        assert account.count(EVERYTHING, 4_999 - known, 5_000) is None


def test_what_an_account_forgot_by_itself_takes_nothing_younger_with_it_when_its_hour_is_over(monkeypatch):
    monkeypatch.setattr(dropped, "_BUCKET_BYTES", 1_000)
    monkeypatch.setattr(dropped, "MAX_BYTES_OF_ACCOUNT", 5_000)
    account = Account()
    for position in range(1, 1_001):
        account.add(position, "a", 0.0)
    for position in range(1_001, 1_101):
        account.add(position, "a", 3_000.0)
    account.forget(3_601.0)
    assert account.count(EVERYTHING, 1_000, 1_100) == 100
    account.forget(6_601.0)
    assert account.buckets.bytes == account.positions.bytes == 0


def test_what_is_remembered_of_all_accounts_is_bounded_and_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(dropped, "_BUCKET_BYTES", 1_000)
    monkeypatch.setattr(dropped, "MAX_BYTES", 10_000)
    buckets = DroppedBuckets()
    early, late = Account(buckets), Account(buckets)
    for position in range(1, 101):
        early.add(position, "a", 0.0)
    for position in range(1, 301):
        late.add(position, "a", 1.0)
        assert buckets.bytes <= 10_000
        assert buckets.bytes == early.positions.bytes + late.positions.bytes
    assert early.count(EVERYTHING, 99, 100) is None
    assert late.count(EVERYTHING, 250, 300) == 50


def test_what_positions_are_counted_as_is_what_they_take_in_memory():
    for name_bytes, number in ((1, 100_000), (254, 20_000)):
        names = [f"{position:0{name_bytes}}" if name_bytes > 1 else "a" for position in range(number)]
        tracemalloc.start()
        try:
            account = Account()
            for position, name in enumerate(names):
                account.add(position + 1, name[:1] + name[1:], 0.0)  # a name of its own, as from a frame
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert account.positions.bytes == pytest.approx(taken, rel=0.25)


def test_an_empty_memory_knows_where_it_began():
    account = Account(start=7, stored_at=100.0)
    assert account.count(EVERYTHING, 7, 7) == 0
    assert account.count(EVERYTHING, 6, 7) is None
    assert account.positions.position_before(101.0) == 7
    assert account.positions.position_before(100.0) is None


def test_a_new_account_has_dropped_nothing_at_any_time():
    assert Account().positions.position_before(-1e12) == 0
    assert Account().positions.position_before(-1e12, by_wall=True) == 0
