"""How much an endpoint is asked at once."""

from hypothesis import given
from hypothesis import strategies as st

from broker.webhooks.breaker import FAILURES_TO_OPEN, Breaker


def opened(now=0.0):
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)
    return breaker


def test_eight_posts_may_be_under_way():
    assert Breaker().room(0, 0.0) == 8
    assert Breaker().room(5, 0.0) == 3
    assert Breaker().room(9, 0.0) == 0


def test_five_failures_running_open_it_for_thirty_seconds():
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(4):
        breaker.failed(0.0)
    assert breaker.room(0, 0.0) == 8
    breaker.failed(0.0)
    assert breaker.room(0, 29.9) == 0
    assert breaker.opens_at() == 30.0


def test_then_one_probe_is_let_through_when_nothing_else_is_under_way():
    breaker = opened()
    assert breaker.room(2, 30.0) == 0
    assert breaker.room(0, 30.0) == 1
    breaker.begun()
    assert breaker.room(1, 31.0) == 0


def test_each_probe_that_fails_doubles_the_time_up_to_an_hour():
    breaker, now, opens = opened(), 0.0, []
    for _ in range(9):
        opens.append(breaker.opens_at() - now)
        now = breaker.opens_at()
        breaker.begun()
        breaker.failed(now)
    assert opens == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_a_probe_that_is_taken_lets_one_post_through_then_two_four_and_eight():
    breaker = opened()
    breaker.begun()
    room = []
    for _ in range(5):
        breaker.succeeded()
        room.append(breaker.room(0, 31.0))
    assert room == [1, 2, 4, 8, 8]


def test_an_endpoint_that_fails_again_while_it_comes_back_is_left_alone_for_longer():
    breaker = opened()
    breaker.begun()
    breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(31.0)
    assert breaker.opens_at() == 31.0 + 60


def test_one_that_came_back_for_good_begins_with_thirty_seconds_again():
    breaker = opened()
    breaker.begun()
    for _ in range(5):
        breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(100.0)
    assert breaker.opens_at() == 130.0


def test_failures_of_what_was_under_way_when_it_opened_do_not_make_it_longer():
    breaker = opened()
    breaker.failed(1.0)
    breaker.failed(2.0)
    assert breaker.opens_at() == 30.0


def test_a_probe_without_an_outcome_leaves_it_open_for_another():
    breaker = opened()
    breaker.begun()
    breaker.given_up(35.0)
    assert breaker.room(0, 35.0) == 1


def test_an_endpoint_that_asks_for_it_is_left_alone():
    breaker = Breaker()
    breaker.hold(10.0, 5.0)
    breaker.hold(2.0, 5.0)
    assert breaker.room(0, 14.9) == 0
    assert breaker.opens_at() == 15.0
    assert breaker.room(0, 15.0) == 8


def test_another_url_begins_anew():
    breaker = opened()
    breaker.hold(1000.0, 0.0)
    breaker.reset()
    assert breaker.room(0, 0.0) == 8


@given(st.lists(st.sampled_from(["begin", "ok", "bad", "gone", "later", "hold"]), max_size=200))
def test_whatever_happens_there_is_room_again_within_an_hour_and_never_for_more_than_eight(happenings):
    breaker, now, under_way = Breaker(), 0.0, 0
    for happening in happenings:
        room = breaker.room(under_way, now)
        assert room >= 0
        assert under_way + room <= max(8, under_way)
        if happening == "begin" and room:
            breaker.begun()
            under_way += 1
        elif happening in ("ok", "bad", "gone") and under_way:
            under_way -= 1
            if happening == "ok":
                breaker.succeeded()
            elif happening == "bad":
                breaker.failed(now)
            else:
                breaker.given_up(now)
        elif happening == "later":
            now += 7.0
        elif happening == "hold":
            breaker.hold(3600.0, now)
    for _ in range(under_way):
        breaker.given_up(now)
    assert breaker.room(0, now + 3600.0) >= 1
