"""messages.py: what is written is what the protocol shows."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import RequestError
from broker.protocol.messages import (
    CursorUpdate,
    Draining,
    Event,
    Gap,
    Limits,
    NewEvent,
    PreparedEvent,
    Published,
    Ready,
    Replay,
    SubscribeParams,
    SubscriptionResult,
    UnsubscribeParams,
    decode_event,
    encode,
    encode_error,
    encode_event,
    encode_response,
    format_time,
    time_ordered_id,
)

LIMITS = Limits(max_message_bytes=1, max_event_bytes=2, max_inboxes=3, max_event_types=5, max_events_per_request=4)


def prepared(**changes) -> PreparedEvent:
    fields = {
        "type": "message.received",
        "inbox_id": "inbox_a",
        "event_id": "evt_1",
        "created_at": "2026-11-23T10:00:00.123Z",
        "payload": b'{"message":{}}',
        "account_id": "acct_secret",
    }
    return PreparedEvent(**(fields | changes))


def test_an_event_is_written_as_the_protocol_shows_it():
    assert encode_event(prepared(), "c1.5") == (
        b'{"type":"message.received","event_id":"evt_1","inbox_id":"inbox_a",'
        b'"created_at":"2026-11-23T10:00:00.123Z","cursor":"c1.5","payload":{"message":{}}}'
    )


def test_a_trace_stands_beside_the_time():
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    frame = encode_event(prepared(traceparent=trace), "c1.5")
    assert b'"created_at":"2026-11-23T10:00:00.123Z","traceparent":"%b","cursor":"c1.5",' % trace.encode() in frame
    assert decode_event(frame).traceparent == trace
    assert decode_event(encode_event(prepared(), "c1.5")).traceparent is None


def test_an_account_event_has_no_inbox_id_at_all():
    assert "inbox_id" not in json.loads(encode_event(prepared(inbox_id=None), "c1"))


def test_the_account_of_an_event_is_not_told_to_subscribers():
    assert b"acct_secret" not in encode_event(prepared(), "c1")


@pytest.mark.parametrize("inbox_id", [None, "inbox_a"])
def test_a_subscriber_reads_what_was_written(inbox_id):
    event = decode_event(encode_event(prepared(inbox_id=inbox_id, payload=b'{"a":[1,"\xc3\xa9"]}'), "c9"))
    created_at = datetime(2026, 11, 23, 10, 0, 0, 123_000, UTC)
    assert event == Event("message.received", "evt_1", created_at, "c9", {"a": [1, "é"]}, inbox_id)


def test_a_subscriber_ignores_fields_that_it_does_not_know():
    frame = encode_event(prepared(), "c9")
    assert decode_event(b'{"new_field":[1],' + frame[1:]) == decode_event(frame)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (Gap("c1", "c5", 3), {"type": "replay.gap", "from": "c1", "to": "c5", "count": 3}),
        (Gap(None, "c5", None), {"type": "replay.gap", "from": None, "to": "c5", "count": None}),
    ],
)
def test_a_gap_says_from_and_to_and_its_count_even_if_they_are_unknown(gap, expected):
    assert json.loads(encode(gap)) == expected
    assert msgspec.json.decode(encode(gap), type=Gap) == gap


def test_the_first_frame_is_as_the_protocol_shows_it():
    ready = Ready("conn_1", "acct_a", ["*"], "c1", 30, 300, LIMITS, Replay(recovered=True, count=12))
    assert json.loads(encode(ready)) == {
        "type": "connection.ready",
        "connection_id": "conn_1",
        "account_id": "acct_a",
        "inbox_ids": ["*"],
        "cursor": "c1",
        "heartbeat_seconds": 30,
        "replay_seconds": 300,
        "limits": {
            "max_message_bytes": 1,
            "max_event_bytes": 2,
            "max_inboxes": 3,
            "max_event_types": 5,
            "max_events_per_request": 4,
            "commands_per_second": None,
        },
        "replay": {"recovered": True, "count": 12},
    }


def test_a_replay_is_told_only_where_there_is_one():
    assert "replay" not in json.loads(encode(Ready("conn_1", "acct_a", [], "c1", 30, 300, LIMITS)))
    assert json.loads(encode(SubscriptionResult(["a"], "c1"))) == {"inbox_ids": ["a"], "cursor": "c1"}
    result = SubscriptionResult(["a"], "c1", Replay(recovered=False, count=0))
    assert json.loads(encode(result))["replay"] == {"recovered": False, "count": 0}


def test_a_quiet_clients_cursor_and_the_draining_notice_are_as_the_protocol_shows_them():
    assert encode(CursorUpdate("c7")) == b'{"type":"connection.cursor","cursor":"c7"}'
    assert encode(Draining(250)) == b'{"type":"server.draining","reconnect_after_ms":250}'


def test_a_duplicate_is_marked_and_a_first_is_not():
    assert encode(Published("evt_1", "c1")) == b'{"event_id":"evt_1","cursor":"c1"}'
    assert json.loads(encode(Published("evt_1", "c1", duplicate=True)))["duplicate"] is True


@pytest.mark.parametrize("outcome", [CursorUpdate("c1"), {"type": "connection.cursor", "cursor": "c1"}])
def test_an_answer_holds_a_result(outcome):
    assert json.loads(encode_response("r1", "do_it", outcome)) == {
        "type": "response",
        "request_id": "r1",
        "action": "do_it",
        "result": {"type": "connection.cursor", "cursor": "c1"},
    }


def test_an_answer_holds_an_error_and_then_no_result():
    error = RequestError("rate_limited", "slowly", retry_after_ms=5)
    assert json.loads(encode_response("r1", "do_it", error)) == {
        "type": "response",
        "request_id": "r1",
        "action": "do_it",
        "error": {"code": "rate_limited", "message": "slowly", "retry_after_ms": 5},
    }


def test_the_answer_to_a_frame_that_is_no_command_has_no_request_id():
    assert json.loads(encode_error(RequestError("invalid_json", "no"))) == {
        "type": "error",
        "error": {"code": "invalid_json", "message": "no"},
    }


@given(st.text())
def test_whatever_an_answer_says_it_is_one_line(text):
    for line in (encode_response("r1", "a", {"x": text}), encode_error(RequestError("internal", text))):
        assert b"\n" not in line
        assert b"\r" not in line
        assert text in (json.loads(line).get("result", {}).get("x"), json.loads(line).get("error", {}).get("message"))


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
    st.integers(-24 * 60 + 1, 24 * 60 - 1),
)
def test_a_time_is_written_in_utc_with_milliseconds(moment, minutes):
    text = format_time(moment.replace(tzinfo=timezone(timedelta(minutes=minutes))))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    exact = moment - timedelta(minutes=minutes)
    assert datetime.fromisoformat(text) == exact.replace(microsecond=exact.microsecond // 1000 * 1000, tzinfo=UTC)


@pytest.mark.parametrize(("moment", "hours"), [(datetime(1, 1, 1), 1), (datetime(9999, 12, 31, 23, 59, 59), -1)])
def test_a_time_that_leaves_the_calendar_in_utc_is_an_overflow(moment, hours):
    with pytest.raises(OverflowError):
        format_time(moment.replace(tzinfo=timezone(timedelta(hours=hours))))


@given(
    st.tuples(st.integers(0, 2**63), st.integers(0, 2**64 - 1)),
    st.tuples(st.integers(0, 2**63), st.integers(0, 2**64 - 1)),
)
def test_ids_sort_by_time_and_have_one_length(first, second):
    one, other = time_ordered_id("evt_", *first), time_ordered_id("evt_", *second)
    assert re.fullmatch("evt_[0-9a-f]{32}", one)
    assert (one < other) == (first < second)
    assert (one == other) == (first == second)


def test_in_the_library_an_events_payload_may_be_any_mapping():
    event = NewEvent("a.b", {"x": 1})
    assert (event.inbox_id, event.event_id, event.created_at, event.account_id) == (None,) * 4


def test_subscribe_takes_a_star_and_prefixes_and_leaves_out_all():
    assert msgspec.convert({}, SubscribeParams) == SubscribeParams()
    params = msgspec.convert({"inbox_ids": ["*"], "event_types": ["a.*"], "since": "5m"}, SubscribeParams)
    assert (params.inbox_ids, params.since, params.event_types) == (["*"], "5m", ["a.*"])


@pytest.mark.parametrize("bad", [{"event_types": []}, {"inbox_ids": ["a b"]}, {"inbox_ids": "a"}, {"since": 5}])
def test_subscribe_refuses_what_does_not_fit(bad):
    with pytest.raises(msgspec.ValidationError, match=next(iter(bad))):
        msgspec.convert(bad, SubscribeParams)


def test_unsubscribe_needs_its_inboxes():
    with pytest.raises(msgspec.ValidationError, match="inbox_ids"):
        msgspec.convert({}, UnsubscribeParams)
