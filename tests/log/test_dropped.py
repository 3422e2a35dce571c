"""dropped.py: positions of dropped events, known for an hour and then no more."""

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log import dropped
from broker.log.dropped import DroppedPositions
from broker.protocol.selection import EVERYTHING, Selection

INBOXES = ("a", "b", "c", "")
BEFORE = float("-inf")
subsets = st.frozensets(st.sampled_from([*INBOXES, "unknown"]))
selections = st.one_of(subsets.map(Selection), subsets.map(lambda excluded: Selection(None, excluded)))
steps = st.lists(
    st.tuples(st.sampled_from(INBOXES), st.integers(1, 3), st.sampled_from([0.0, 0.0, 1.0, 250.0, 601.0, 1_900.0])),
    max_size=40,
)


def dropped_one_by_one(number: int, *, every_seconds: float = 0.0) -> DroppedPositions:
    positions = DroppedPositions(0, BEFORE)
    for position in range(1, number + 1):
        now = position * every_seconds
        positions.add(position, INBOXES[position % 2], now - 300, now)
    return positions


@settings(max_examples=200)
@given(
    drops=steps, selection=selections, after=st.integers(0, 80), length=st.integers(0, 120), aged=st.integers(0, 9_000)
)
def test_positions_are_counted_exactly_for_an_hour_and_never_wrongly(drops, selection, after, length, aged):
    positions, model = DroppedPositions(5, 100.0), []
    position, now = 5, 1_000.0
    for inbox, step, seconds in drops:
        now += seconds
        position += step
        positions.add(position, inbox, now - 300, now)
        model.append((position, inbox, now - 300, now))
        positions.forget(now)
    now += aged
    positions.forget(now)
    hour = [place for place, _, _, at in model if at >= now - 3_600]
    known_from = hour[0] - 1 if hour else position
    through = after + length
    count = positions.count_between(selection, after, through)
    if count is None:
        assert after < known_from
    else:
        assert count == sum(after < place <= through and inbox in selection for place, inbox, _, _ in model)
    for moment in (now, now - 300, now - 1_000, 100.0, 50.0):
        before = [place for place, _, stored_at, _ in model if stored_at < moment]
        found = positions.position_before(moment)
        if found is None:
            assert moment <= 100.0 or any(s >= moment and at < now - 3_600 for _, _, s, at in model)
        else:
            assert found == (before[-1] if before else 5)


def test_what_was_dropped_an_hour_ago_is_forgotten_a_bucket_at_once_and_never_early():
    positions = dropped_one_by_one(10, every_seconds=100.0)  # dropped at 100, 200, ... 1000
    positions.forget(700.0 + 3_600)
    assert positions.count_between(EVERYTHING, 0, 10) == 10
    positions.forget(700.1 + 3_600)
    assert positions.count_between(EVERYTHING, 0, 10) is None
    assert positions.forgotten_through == 7
    assert positions.count_between(EVERYTHING, 7, 10) == 3


def test_what_is_remembered_of_one_account_is_bounded(monkeypatch):
    monkeypatch.setattr(dropped, "_BUCKET_POSITIONS", 10)
    monkeypatch.setattr(dropped, "MAX_POSITIONS", 50)
    positions = DroppedPositions(0, BEFORE)
    for position in range(1, 1_001):
        positions.add(position, "a", 0.0, 0.0)
        assert positions.count <= 50
    assert positions.count_between(EVERYTHING, positions.forgotten_through, 1_000) == positions.count
    assert positions.forgotten_through >= 949


def test_an_empty_memory_knows_where_it_began():
    positions = DroppedPositions(7, 100.0)
    assert positions.count_between(EVERYTHING, 7, 7) == 0
    assert positions.count_between(EVERYTHING, 6, 7) is None
    assert positions.position_before(101.0) == 7
    assert positions.position_before(100.0) is None


def test_a_new_account_has_dropped_nothing_at_any_time():
    assert DroppedPositions(0, BEFORE).position_before(-1e12) == 0
