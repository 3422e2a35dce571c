"""Durations by buckets, against the durations themselves."""

from hypothesis import given
from hypothesis import strategies as st

from broker.durations import BOUNDS, Durations


@given(st.lists(st.floats(0, 100) | st.sampled_from(BOUNDS)))
def test_each_duration_is_in_the_first_bucket_that_it_is_not_over(given_seconds):
    durations = Durations()
    for seconds in given_seconds:
        durations.add(seconds)
    statistics = durations.statistics()
    for number, bound in enumerate(BOUNDS):
        assert sum(statistics.counts[: number + 1]) == sum(seconds <= bound for seconds in given_seconds)
    assert sum(statistics.counts) == len(given_seconds)
    assert statistics.seconds == sum(given_seconds)
