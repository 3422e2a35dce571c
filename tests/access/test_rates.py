"""Token buckets: never too much, and the truth about when to come back."""

import math

import pytest
import trio
from clients import alices, config_of, event, post_events, serving
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from broker.access.rates import Rates, TokenBucket, take_from_all
from broker.config import RateConfig, RatesConfig, ReplayConfig, TierRatesConfig
from broker.errors import RequestError

rates = st.one_of(st.integers(1, 10_000), st.floats(0.001, 10_000))
bursts = st.one_of(st.integers(1, 5), st.integers(1, 1_000))
starts = st.floats(0, 1e6)
pauses = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 100))


def taken_or_refused(buckets, now):
    try:
        take_from_all(buckets, 1, now, "commands")
    except RequestError as error:
        return error
    return None


def nearly(value):
    return pytest.approx(value, rel=1e-6, abs=1e-6)


@given(rates, bursts, starts, st.lists(st.tuples(pauses, st.integers(1, 20)), max_size=60))
def test_never_more_than_the_burst_and_what_came_in_is_taken_in_any_stretch_of_time(rate, burst, start, tries):
    bucket = TokenBucket.full(rate, burst, start)
    now, taken = start, []
    for pause, amount in tries:
        now += pause
        amount = min(amount, burst)
        if bucket.wait_seconds(amount, now) == 0:
            bucket.take(amount)
            taken.append((now, amount))
    for index, (since, _) in enumerate(taken):
        total = 0
        for moment, amount in taken[index:]:
            total += amount
            assert total <= (burst + rate * (moment - since)) * (1 + 1e-9) + 1e-3


@given(rates, bursts, starts, st.floats(0, 100), st.integers(1, 40))
def test_the_wait_is_exact(rate, burst, start, later, amount):
    bucket = TokenBucket.full(rate, burst, start)
    bucket.take(burst)
    now = start + later / rate
    wait = bucket.wait_seconds(amount, now)
    missing = min(amount, burst) - min(later, burst)
    assert wait * rate == pytest.approx(max(0, missing), rel=1e-4, abs=1e-3)
    assert bucket.wait_seconds(amount, now) == wait, "asking changes nothing"
    if wait > 1e-3:
        assert bucket.wait_seconds(amount, now + wait * 0.99) == nearly(wait * 0.01)
    assert bucket.wait_seconds(amount, now + wait) == 0


@given(rates, st.integers(1, 3), starts, st.lists(pauses, min_size=5, max_size=20))
def test_who_comes_back_when_told_is_let_in(rate, burst, start, pauses):
    """A client that waits `retry_after_ms`, not a moment longer, is not told to wait again."""
    buckets = [TokenBucket.full(rate, burst, start)]
    now = start
    for pause in pauses:
        now += pause / rate
        refusal = taken_or_refused(buckets, now)
        if refusal is not None:
            assert refusal.code == "rate_limited"
            assert refusal.retry_after_ms >= 1
            now += refusal.retry_after_ms / 1000
            take_from_all(buckets, 1, now, "commands")


@given(st.lists(st.tuples(rates, bursts), min_size=1, max_size=4), starts, st.lists(pauses, max_size=40))
def test_all_buckets_are_taken_from_or_none(settings, start, tries):
    buckets = [TokenBucket.full(rate, burst, start) for rate, burst in settings]
    now = start
    for pause in tries:
        now += pause
        waits = [bucket.wait_seconds(1, now) for bucket in buckets]
        before = [bucket.tokens for bucket in buckets]
        refusal = taken_or_refused(buckets, now)
        if refusal is not None:
            assert max(waits) > 0
            assert refusal.retry_after_ms == math.ceil(max(waits) * 1000)
            assert [bucket.tokens for bucket in buckets] == before
        else:
            assert max(waits) == 0
            assert [bucket.tokens for bucket in buckets] == [tokens - 1 for tokens in before]


def test_no_bucket_refuses_nothing():
    take_from_all([], 1_000_000, 0.0, "events")


def test_a_bucket_holds_no_more_than_its_burst_however_long_nothing_was_taken():
    bucket = TokenBucket.full(10, 5, 0.0)
    bucket.wait_seconds(1, 1e6)
    assert bucket.tokens == 5


def test_what_is_more_than_the_burst_is_taken_from_a_full_bucket_which_then_owes_the_rest():
    bucket = TokenBucket.full(10, 5, 0.0)
    take_from_all([bucket], 25, 0.0, "events")
    assert bucket.wait_seconds(1, 0.0) == nearly(2.1)
    assert bucket.wait_seconds(25, 0.0) == nearly(2.5)


@pytest.mark.parametrize(
    ("rate", "at_once"),
    [(RateConfig(5), 5), (RateConfig(0.5), 1), (RateConfig(5, burst=2), 2), (RateConfig(0.1, burst=7), 7)],
)
def test_the_burst_is_what_comes_in_within_a_second_and_at_least_one_unless_it_is_set(rate, at_once):
    rates = Rates()
    rates.change(rate, None, 0.0)
    (bucket,) = rates.commands
    for _ in range(at_once):
        take_from_all([bucket], 1, 0.0, "commands")
    with pytest.raises(RequestError):
        take_from_all([bucket], 1, 0.0, "commands")


def test_a_rate_that_is_not_set_has_no_bucket():
    rates = Rates()
    rates.change(None, None, 0.0)
    assert rates.commands == rates.events == []
    for tier in ("free", "developer", "growth", "enterprise"):
        assert RatesConfig().of(tier) == TierRatesConfig()


def test_what_is_in_a_bucket_stays_there_when_the_rate_changes_as_far_as_there_is_room():
    rates = Rates()
    rates.change(RateConfig(10, burst=10), None, 0.0)
    take_from_all(rates.commands, 8, 0.0, "commands")
    rates.change(RateConfig(1, burst=20), None, 0.1)
    assert rates.commands[0].wait_seconds(3, 0.1) == 0
    assert rates.commands[0].wait_seconds(4, 0.1) == nearly(1)
    rates.change(RateConfig(1, burst=1), None, 0.1)
    assert rates.commands[0].wait_seconds(1, 0.1) == 0
    rates.commands[0].take(1)
    assert rates.commands[0].wait_seconds(1, 0.1) == nearly(1)
    rates.change(None, None, 0.1)
    assert rates.commands == []


def test_a_debt_stays_when_the_rate_changes():
    rates = Rates()
    rates.change(None, RateConfig(10, burst=5), 0.0)
    take_from_all(rates.events, 25, 0.0, "events")
    rates.change(None, RateConfig(1, burst=5), 0.0)
    assert rates.events[0].wait_seconds(1, 0.0) == nearly(21)


@pytest.mark.parametrize(
    ("connection", "account", "said"), [(None, None, None), (5, None, 5), (None, 7, 7), (5, 7, 5), (9, 7, 7)]
)
def test_a_client_is_told_the_lower_rate_of_its_connection_and_its_account(connection, account, said):
    tier = TierRatesConfig(
        commands_per_connection=connection and RateConfig(connection),
        commands_per_account=account and RateConfig(account),
    )
    assert tier.commands_per_second == said


@pytest.fixture
def clock():
    """It stands almost still: no deadline passes because the machine has much to do."""
    return MockClock(rate=0.01, autojump_threshold=0.002)


async def test_who_owes_its_rate_is_not_forgotten_so_that_leaving_gains_nothing(clock):
    """Nothing else is kept of the account: no connection, no event, no answer."""
    slow = TierRatesConfig(events_per_account=RateConfig(per_second=0.1, burst=5))
    config = config_of(alices(tier="free"), rates=RatesConfig(free=slow), replay=ReplayConfig(seconds=10))
    async with serving(config) as served:
        assert (await post_events(served.address, [event(number) for number in range(25)])).status == 200
        await trio.sleep(150)
        answer = await post_events(served.address, [event()])
        assert answer.code == "rate_limited"
        assert 59_000 < answer.json["error"]["retry_after_ms"] <= 60_000
        assert served.broker.statistics().commands.accounts == 1
        await trio.sleep(150)
        assert served.broker.statistics().commands.accounts == 0
        assert (await post_events(served.address, [event(number) for number in range(5)])).status == 200
