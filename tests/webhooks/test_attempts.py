"""When an event is posted again."""

from email.utils import formatdate
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.webhooks.attempts import (
    DELAYS_SECONDS,
    LIFETIME_SECONDS,
    MAX_ATTEMPTS,
    after_failure,
    retry_after_of,
)

HOUR = 3600
NOW = 1_800_000_000.0


def attempts_at(chances, lateness=0.0):
    """When the attempts are made, each after the one before has failed."""
    at, made = 0.0, [0.0]
    for chance in chances:
        verdict = after_failure(len(made), at, 0.0, chance)
        if verdict.due_at is None:
            break
        at = verdict.due_at + lateness
        made.append(at)
    return made


def test_there_are_thirteen_attempts_from_five_seconds_to_three_days():
    made = attempts_at([0.5] * 20)
    assert [round(b - a, 6) for a, b in pairwise(made)] == list(DELAYS_SECONDS)
    assert (len(made), MAX_ATTEMPTS) == (13, 13)
    assert made[1] == 5
    assert made[-1] / HOUR == pytest.approx(71.7, abs=0.05)


@given(st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_whatever_chance_does_the_last_attempt_is_made_when_the_three_days_are_over_at_the_latest(chances):
    made = attempts_at(chances)
    assert made[-1] <= LIFETIME_SECONDS
    assert len(made) == 13 or made[-1] == LIFETIME_SECONDS
    for (before, after), delay in zip(pairwise(made), DELAYS_SECONDS, strict=False):
        assert after == LIFETIME_SECONDS or delay * 0.8 - 1e-6 <= after - before <= delay * 1.2 + 1e-6


def test_chance_makes_a_delay_a_fifth_shorter_or_longer():
    assert [after_failure(1, NOW, NOW, chance).due_at for chance in (0.0, 0.5, 1.0)] == [NOW + 4, NOW + 5, NOW + 6]


@given(st.floats(0, 1), st.integers(1, 13), st.floats(0, 10 * HOUR))
def test_what_the_endpoint_asks_for_makes_a_delay_longer_and_never_shorter(chance, attempts, retry_after):
    alone = after_failure(attempts, NOW, NOW - 60, chance)
    asked = after_failure(attempts, NOW, NOW - 60, chance, retry_after)
    if alone.due_at is None:
        assert asked.due_at is None
    else:
        assert asked.due_at == max(alone.due_at, NOW + retry_after)


def test_what_an_endpoint_asks_for_holds_one_event_for_a_day_and_the_others_for_an_hour_at_most():
    verdict = after_failure(1, NOW, NOW, 0.5, 30 * HOUR)
    assert verdict.due_at == NOW + 24 * HOUR
    assert verdict.hold_seconds == HOUR
    assert after_failure(1, NOW, NOW, 0.5, 20).hold_seconds == 20
    assert after_failure(1, NOW, NOW, 0.5).hold_seconds == 0


def test_an_event_whose_time_is_over_has_no_further_attempt():
    assert after_failure(3, NOW, NOW - LIFETIME_SECONDS, 0.5).due_at is None
    assert after_failure(3, NOW, NOW - LIFETIME_SECONDS + 1, 0.5).due_at == NOW + 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("120", 120),
        (" 7 ", 7),
        ("0", 0),
        ("99999999999999999999", 24 * HOUR),
        ("9" * 5_000, 24 * HOUR),
        (formatdate(NOW + 90), 90),  # UTC by `-0000`: of no zone
        (formatdate(NOW + 90).removesuffix(" -0000"), 90),
        (formatdate(NOW + 90).replace("-0000", "+0100"), 0),
        (formatdate(NOW + 90).replace("-0000", "-0100"), HOUR + 90),
        (formatdate(NOW + 90, usegmt=True), 90),
        (formatdate(NOW - 90, usegmt=True), 0),
        (formatdate(NOW + 90 * HOUR, usegmt=True), 24 * HOUR),
        ("Wed, 21 Oct 9999 07:28:00 -2359", 24 * HOUR),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("٣", 0),
        ("", 0),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_and_else_nothing(value, seconds):
    assert retry_after_of(value, NOW) == seconds
