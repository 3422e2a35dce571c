"""names.py: alphabets, and what the short texts of a query mean."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.errors import RequestError
from broker.protocol.names import (
    Duration,
    EventType,
    Identifier,
    InboxId,
    InboxName,
    TypePattern,
    are_inbox_names,
    check_identifier,
    check_list,
    parse_since,
    parse_time,
)

CURSORS = st.from_regex(r"c[A-Za-z0-9._-]{0,63}", fullmatch=True)
IDENTIFIERS = st.from_regex(r"[A-Za-z0-9_.:@-]{1,128}", fullmatch=True)
ATEXT = "ABCxyz0189!#$%&'*+-/=?^_`{|}~"
EVENT_TYPES = st.from_regex(r"[a-z][a-z0-9_]{0,20}(\.[a-z][a-z0-9_]{0,20}){0,4}", fullmatch=True)


def fits(kind, value) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


# --- alphabets ---------------------------------------------------------------


@given(IDENTIFIERS)
def test_every_name_of_the_alphabet_is_an_identifier_and_an_inbox(name):
    assert fits(Identifier, name)
    assert fits(InboxId, name)
    check_identifier(name, "client_id")
    check_list([name], "inbox_ids")


@given(st.text(ATEXT + ".:@", min_size=1, max_size=254).filter(lambda name: name != "*"))
@example("ada+tag@example.com")
@example("o'brien&sons/50%=#1!@example.com")
@example("$^`{|}~?-_")
@example("**")
@example("a*")
@example("x" * 254)
def test_every_address_is_an_inbox_and_stands_in_a_frame_as_it_is(name):
    assert fits(InboxId, name)
    check_list([name], "inbox_ids")
    assert msgspec.json.encode(name) == f'"{name}"'.encode()


@pytest.mark.parametrize(
    "name",
    ["", "*", "a b", "a,b", "a\n", "\na", "*\n", "é@example.com", '"a b"@x', "(a)", "<a>", "a;b", "a\\b", "x" * 255],
)
def test_what_no_address_has_no_inbox_has(name):
    assert not fits(InboxId, name)
    with pytest.raises(RequestError, match=r"Expected an inbox: 1 to 254 .*`inbox_ids\[0\]`"):
        check_list([name + ("," if name == "*" else "")], "inbox_ids")


@pytest.mark.parametrize("name", ["a+b", "a/b", "a'b", "a!b", "a*"])
def test_what_only_an_address_has_no_other_name_has(name):
    assert fits(InboxId, name)
    assert not fits(Identifier, name)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a,b", "é", "a\n", "\na", "a\x00", "x" * 129, "*", "\ud800"])
def test_what_is_not_of_the_alphabet_is_no_identifier(name):
    assert not fits(Identifier, name)
    with pytest.raises(RequestError) as caught:
        check_identifier(name, "client_id")
    assert caught.value.code == "invalid_params"
    assert "`client_id`" in caught.value.message


def test_an_identifier_has_up_to_128_characters():
    assert fits(Identifier, "x" * 128)


@pytest.mark.parametrize("kind", [Identifier, InboxId, InboxName, EventType, TypePattern])
def test_a_name_with_a_trailing_line_break_is_refused(kind):
    assert fits(kind, "abc")
    assert not fits(kind, "abc\n")
    assert not fits(kind, "abc\r\n")


def test_a_star_with_a_trailing_line_break_is_no_star():
    assert fits(InboxName, "*")
    assert not fits(InboxName, "*\n")
    assert not fits(TypePattern, "a.*\n")


def test_a_star_stands_for_all_inboxes_only_alone_and_is_the_name_of_none():
    assert fits(InboxName, "*")
    assert not fits(InboxId, "*")


@given(EVENT_TYPES)
def test_every_event_type_is_a_filter_alone_and_as_a_prefix(name):
    assert fits(EventType, name)
    assert fits(TypePattern, name)
    assert fits(TypePattern, name + ".*")
    assert not fits(EventType, name + ".*")


@pytest.mark.parametrize("name", ["", "A", "1a", "_a", "a.", ".a", "a..b", "a.1", "a.B", "a-b", "a b", "é"])
def test_what_is_not_of_the_alphabet_is_neither_type_nor_filter(name):
    assert not fits(EventType, name)
    assert not fits(TypePattern, name)


@pytest.mark.parametrize("name", ["*", ".*", "a*", "a.*.b", "a.*.*", "*.a"])
def test_a_filter_is_a_prefix_of_whole_words_with_one_star_at_its_end(name):
    assert not fits(TypePattern, name)


def test_an_event_type_has_up_to_128_characters_and_its_prefix_filter_two_more():
    assert fits(EventType, "a" * 128)
    assert not fits(EventType, "a" * 129)
    assert fits(TypePattern, "a" * 128 + ".*")
    assert not fits(TypePattern, "a" * 129 + ".*")


# --- lists of a query --------------------------------------------------------


@pytest.mark.parametrize(("kind", "good"), [("inbox_ids", "inbox_a"), ("event_types", "message.*")])
def test_the_error_of_a_bad_list_names_the_place(kind, good):
    check_list([good, good], kind)
    with pytest.raises(RequestError) as caught:
        check_list([good, good, "no good"], kind)
    assert caught.value.code == "bad_request"
    assert f"`{kind}[2]`" in caught.value.message


@pytest.mark.parametrize("kind", ["inbox_ids", "event_types"])
def test_an_empty_list_in_a_query_is_refused_by_name(kind):
    with pytest.raises(RequestError) as caught:
        check_list([], kind)
    assert caught.value.code == "bad_request"
    assert f"`{kind}`" in caught.value.message


def test_a_star_is_an_inbox_and_no_event_type():
    check_list(["*"], "inbox_ids")
    with pytest.raises(RequestError):
        check_list(["*"], "event_types")


# --- since -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("1500ms", 1.5), ("0s", 0), ("007s", 7)]
)
def test_a_number_with_a_unit_is_a_duration(text, seconds):
    assert parse_since(text) == Duration(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-5s", "1.5s", "5 s", "5S", "5d", "5m\n", " 5m", "٣s", "5m5s", "9" * 13 + "s"]
)
def test_what_is_neither_duration_nor_time_is_taken_for_a_cursor(text):
    assert parse_since(text) == text


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)),
    st.integers(-23 * 60, 23 * 60),
)
def test_a_time_with_any_offset_is_that_moment(moment, offset):
    expected = moment.replace(tzinfo=UTC)
    sign = "-" if offset < 0 else "+"
    local = moment + timedelta(minutes=offset)
    text = f"{local.isoformat()}{sign}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    parsed = parse_since(text)
    assert isinstance(parsed, datetime)
    assert parsed == expected
    assert parsed.tzinfo is not None


def test_a_time_in_utc_may_end_in_z():
    assert parse_since("2026-11-23T10:00:00.123Z") == datetime(2026, 11, 23, 10, 0, 0, 123_000, UTC)


@pytest.mark.parametrize("text", ["2026-11-23T10:00:00", "2026-11-23", "2026-02-30T10:00:00Z", "2026", "1732356000"])
def test_a_time_without_an_offset_or_of_no_calendar_is_no_time(text):
    assert parse_since(text) == text


@pytest.mark.parametrize(
    ("leap", "next_second"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.25Z"),
        ("2015-06-30T19:59:60-04:00", "2015-07-01T00:00:00Z"),
        ("2017-01-01T05:29:60+05:30", "2017-01-01T00:00:00Z"),
        ("1998-12-31t23:59:60z", "1999-01-01T00:00:00Z"),
    ],
)
def test_a_leap_second_is_the_second_after_it(leap, next_second):
    assert parse_time(leap) == parse_since(leap) == datetime.fromisoformat(next_second)


@pytest.mark.parametrize(
    "text",
    [
        "2016-12-31T23:58:60Z",
        "2016-12-31T22:59:60Z",
        "2016-12-31T23:59:60+01:00",
        "2016-12-30T23:59:60Z",
        "2016-12-31T23:59:61Z",
        "2016-12-31T23:59:60",
        "2016-12-31T23:59:600Z",
        "9999-12-31T23:59:60Z",
        "",
        "60",
    ],
)
def test_a_second_that_no_leap_second_was_is_no_time(text):
    assert parse_since(text) == text
    with pytest.raises(ValueError, match=r"no (time|leap second)"):
        parse_time(text)


@given(CURSORS)
@example("c")
@example("c90s")
@example("c5m")
def test_a_c_and_more_of_the_alphabet_is_always_a_cursor(cursor):
    assert parse_since(cursor) == cursor


@given(st.text(alphabet=st.characters()))
@example("\ud800")
@example("5m\udcff")
def test_any_text_at_all_means_something_as_since(text):
    since = parse_since(text)
    assert isinstance(since, Duration | datetime) or since == text


# --- many at once --------------------------------------------------------------


@given(
    st.lists(st.one_of(st.text("ab@.* \n\r\u2028é\0", max_size=3), st.just("x" * 254), st.just("x" * 255)), max_size=5)
)
@example(["a\nb"])
@example(["a", "b\n"])
@example(["", "a"])
@example(["*"])
def test_names_of_inboxes_are_judged_all_at_once_as_they_are_one_by_one(names):
    assert are_inbox_names(names) is all(fits(InboxName, name) for name in names)
