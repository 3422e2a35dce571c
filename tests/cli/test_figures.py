"""Rates and percentiles between two snapshots, and numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshots import snapshot

from broker.cli.figures import bars, bytes_text, duration_text, number_text, quantile, rates_between, seconds_text
from broker.observe.live import Buckets


def test_rates_are_of_what_happened_in_between():
    before = snapshot(uptime=10, published=100, delivered=1_000, gaps=1, gap_events=4, refused={"forbidden": 2})
    now = snapshot(
        uptime=12, published=120, delivered=1_500, gaps=3, gap_events=9, refused={"forbidden": 2, "not_found": 1}
    )
    rates = rates_between(before, now)
    assert (rates.published_per_second, rates.delivered_per_second) == (10, 250)
    assert (rates.gaps, rates.gap_events, rates.refused) == (2, 5, {"not_found": 1})


def test_of_another_run_and_of_no_time_nothing_is_said():
    assert rates_between(snapshot(uptime=10), snapshot(uptime=3)) is None
    assert rates_between(snapshot(uptime=10), snapshot(uptime=10)) is None
    assert rates_between(snapshot(uptime=1, published=9), snapshot(uptime=2, published=1)) is None


BUCKETS = (0.001, 0.01, 0.1)


def quantile_of(*counts, share=0.5, before=(0, 0, 0, 0)):
    return quantile(Buckets(BUCKETS, before), Buckets(BUCKETS, counts), share)


def test_a_quantile_lies_within_the_bucket_that_holds_it():
    assert quantile_of(2, 0, 0, 0) == pytest.approx(0.0005)
    assert quantile_of(0, 4, 0, 0, share=0.25) == pytest.approx(0.001 + 0.009 / 4)
    assert quantile_of(1, 0, 99, 0, share=0.99) == pytest.approx(0.099, abs=0.001)


def test_a_quantile_is_of_what_came_in_between():
    assert quantile_of(100, 0, 1, 0, before=(100, 0, 0, 0)) == pytest.approx(0.055)
    assert quantile_of(5, 5, 5, 5, before=(5, 5, 5, 5)) is None


def test_beyond_the_last_bound_a_quantile_is_that_bound():
    assert quantile_of(0, 0, 0, 7) == 0.1


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_larger_share_never_took_less(counts, one, other):
    low, high = (quantile_of(*counts, share=share) for share in sorted((one, other)))
    assert (low is None) == (sum(counts) == 0)
    if low is not None:
        assert low <= high <= 0.1


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (number_text, 0, "0"),
        (number_text, 3.25, "3.2"),
        (number_text, 12_345.6, "12,346"),
        (seconds_text, None, "-"),
        (seconds_text, 0.0, "0 ms"),
        (seconds_text, 0.00042, "0.4 ms"),
        (seconds_text, 0.2, "200 ms"),
        (seconds_text, 59.94, "59.9 s"),
        (seconds_text, 61, "1 m 1 s"),
        (duration_text, 0.4, "0 s"),
        (duration_text, 3_600, "1 h 0 m"),
        (duration_text, 90_000, "1 d 1 h"),
        (bytes_text, 0, "0 B"),
        (bytes_text, 1_536, "1.5 KB"),
        (bytes_text, 1_073_741_824, "1.0 GB"),
        (bytes_text, 5e15, "4547 TB"),
    ],
)
def test_numbers_are_told_as_people_read_them(function, value, text):
    assert function(value) == text


def test_bars_are_the_last_values_the_highest_one_full():
    assert bars([9, 0, 1, 2], 3) == "▁▅█"
    assert bars([0, 0], 5) == "▁▁"
    assert bars([], 5) == ""
