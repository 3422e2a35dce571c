"""Those who wait, found by what they ask: the same as looking at each of them."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.selection import EVERYTHING, TypeFilter
from broker.waiting.conditions import Mail, Where, condition
from broker.waiting.filed import Filed, Waiter, Work

ADDRESSES = ["ada@x.com", "Ada <ADA@X.com>", "bob@x.com", "bob@y.example", "a@localhost", "no address", ""]
SOUGHT = ["ada@x.com", "@x.com", "@X.COM", "@", "bob@", "a@localhost", "ada", "ADDRESS", "@nobody.example"]
TEXTS = ["Hello", "hello there", "Straße", "STRASSE", "x", ""]

wheres = st.builds(
    Where,
    from_=st.none() | st.sampled_from(SOUGHT),
    to=st.none() | st.sampled_from(SOUGHT),
    subject=st.none() | st.sampled_from(TEXTS[:-1]),
    contains=st.none() | st.sampled_from(TEXTS[:-1]),
    thread_id=st.none() | st.sampled_from(["t1", "t2"]),
    in_reply_to=st.none() | st.sampled_from(["m1", "m2"]),
)
mails = st.builds(
    Mail,
    from_=st.sampled_from(ADDRESSES),
    to=st.lists(st.sampled_from(ADDRESSES), max_size=3).map(tuple),
    subject=st.sampled_from(TEXTS),
    body=st.sampled_from(TEXTS),
    thread_id=st.sampled_from(["", "t1", "t2"]),
    in_reply_to=st.sampled_from(["", "m1", "m2"]),
)


def waiter(where):
    return Waiter(EVERYTHING, TypeFilter(["*"]), where, 0, lambda: None)


def found(filed, mail, work):
    return [one for ask in filed.fitting(lambda: mail, work) if ask is not None for one in ask.waiters]


@given(st.lists(st.none() | wheres, max_size=30), st.lists(mails, max_size=5), st.data())
def test_those_are_found_whom_a_look_at_each_would_find_whoever_came_and_left(asked, mails, data):
    waiters = [waiter(where) for where in asked]
    filed = Filed()
    for number, one in enumerate(waiters):
        filed.add(one)
        if mails and number == len(waiters) // 2:
            found(filed, mails[0], Work(1_000_000))
    left = data.draw(st.sets(st.sampled_from(range(len(waiters))))) if waiters else set()
    for number in left:
        filed.discard(waiters[number])
    for mail in mails:
        right = {
            id(one)
            for number, one in enumerate(waiters)
            if number not in left and ((fits := condition(one.where)) is None or fits(mail))
        }
        hits = found(filed, mail, Work(1_000_000))
        assert {id(one) for one in hits} == right
        assert len(hits) == len(right), "each once"
    for number, one in enumerate(waiters):
        if number not in left:
            filed.discard(one)
    assert found(filed, Mail(), Work(1)) == []


def test_what_is_looked_at_is_counted_and_more_than_was_given_brings_a_pause():
    filed, work = Filed(), Work(100)
    for number in range(1_000):
        filed.add(waiter(Where(contains=f"text {number}.")))
    pauses = 0
    for ask in filed.fitting(lambda: Mail(body="x" * 10_000), work):
        assert ask is None
        pauses += 1
        work.left = 100
    assert pauses >= 1_000 * 5 / 100 / 2


def test_who_leaves_in_a_pause_is_not_found_and_who_comes_does_no_harm():
    filed = Filed()
    first, second = (waiter(Where(subject=text)) for text in ("a", "b"))
    for one in (first, second):
        filed.add(one)
    for number in range(300):
        filed.add(waiter(Where(subject=f"nothing {number}")))
    steps, hits = filed.fitting(lambda: Mail(subject="a b"), Work(0)), []
    assert next(steps) is None
    filed.discard(second)
    filed.add(waiter(Where(subject="c")))
    for ask in steps:
        hits += [] if ask is None else ask.waiters
    assert hits == [first]


def test_conditions_without_any_are_none_at_all():
    filed = Filed()
    for where in (None, Where(), msgspec.convert({}, Where)):
        filed.add(waiter(where))

    def never():
        raise AssertionError("nobody looks at the mail")

    [ask] = filed.fitting(never, Work(100))
    assert ask is not None
    assert len(ask.waiters) == 3


def test_who_seeks_a_part_of_an_address_is_found():
    filed, one = Filed(), waiter(Where(from_="bob@"))
    filed.add(one)
    assert found(filed, Mail(from_="Bob <bob@x.com>"), Work(100)) == [one]
    assert found(filed, Mail(from_="ada@x.com"), Work(100)) == []


def test_what_stands_in_subject_and_body_is_found_once():
    filed, one = Filed(), waiter(Where(contains="hello"))
    filed.add(one)
    assert found(filed, Mail(subject="Hello", body="hello"), Work(100)) == [one]


def test_what_is_sought_anew_is_found_from_then_on():
    filed, one = Filed(), waiter(Where(subject="new"))
    filed.add(waiter(Where(subject="old")))
    assert found(filed, Mail(subject="new"), Work(100)) == []
    filed.add(one)
    assert found(filed, Mail(subject="new"), Work(100)) == [one]


def test_those_who_left_cost_nothing_any_more():
    filed, work = Filed(), Work(1_000)
    gone = [waiter(Where(subject=f"text {number}.")) for number in range(100)]
    for one in gone:
        filed.add(one)
    filed.add(waiter(Where(subject="stays")))
    assert found(filed, Mail(subject="x"), work) == []
    for one in gone:
        filed.discard(one)
    before = work.left
    assert found(filed, Mail(subject="x"), work) == []
    assert before - work.left <= 10


def test_where_all_who_had_conditions_have_left_no_mail_is_read():
    filed, one = Filed(), waiter(Where(subject="x"))
    filed.add(one)
    filed.discard(one)

    def never():
        raise AssertionError("nobody looks at the mail")

    assert list(filed.fitting(never, Work(100))) == []
