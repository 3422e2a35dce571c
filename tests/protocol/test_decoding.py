"""decoding.py: whatever comes from outside becomes a struct, or an error that names the field."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct

from broker.errors import BadCommandError, BadFrameError, RequestError
from broker.protocol.decoding import decode_command, decode_params, prepare_event, split_events
from broker.protocol.messages import (
    PreparedEvent,
    SubscribeParams,
    UnsubscribeParams,
    decode_event,
    encode_event,
    format_time,
)

NOW = datetime(2026, 11, 23, 10, 0, 0, 123_456, UTC)


def prepare(raw: bytes, path: str = "$", max_bytes: int = 1_000_000) -> PreparedEvent:
    return prepare_event(raw, path, max_bytes=max_bytes, now=format_time(NOW), new_id=lambda: "evt_new")


def event_json(**fields: Any) -> bytes:
    return json.dumps({"type": "a.b", "payload": {}} | fields).encode()


def outcome(call, *args, **kwargs) -> Any:
    """Return the result or the refusal; any other exception is a bug and passes through."""
    try:
        return call(*args, **kwargs)
    except RequestError as error:
        return error
    except (BadFrameError, BadCommandError) as error:
        return error.error


def refusal(call, *args, **kwargs) -> RequestError:
    error = outcome(call, *args, **kwargs)
    assert isinstance(error, RequestError), f"not refused: {error}"
    return error


def strict_json(text: str | bytes) -> Any:
    """Return what another parser reads, which takes no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=5)
LINE_BREAKS = st.sampled_from([b"\n", b"\r\n", b"\r"])

FRAGMENTS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b" ", b"\n", b"\r\n", b"\x00", b"\x0b", b"-", b"0", b"1e5", b"1e999",
    b"9" * 5000, b"NaN", b"Infinity", b"null", b"true", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf",
    b"\\", b"\\u", b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"a\nb"', "\u2028é😀".encode(), b"/*", b"//",
    b"{}", b"[]", b'{"a":', b'"a":1', b"[" * 3000, b"]" * 3000, b'{"a":' * 3000, b"}" * 3000, b'{"type":"a","payload":',
    b'"action":"a"', b'"params":', b'"request_id":', b'"inbox_id":', b'"created_at":"0001-01-01T00:00:00+23:59"',
]  # fmt: skip
NASTY = (
    st.binary(max_size=60)
    | st.text(max_size=40).map(str.encode)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=10).map(b"".join)
)
WRAPPED = st.one_of(
    NASTY,
    NASTY.map(lambda inner: b'{"type":"a","payload":%b}' % inner),
    NASTY.map(lambda inner: b'{"type":"a","payload":{"x":%b}}' % inner),
    NASTY.map(lambda inner: b'{"type":"a","payload":{},"created_at":%b}' % inner),
    NASTY.map(lambda inner: b"[%b]" % inner),
)


# --- events: any bytes at all ------------------------------------------------


@given(raw=WRAPPED)
@example(raw=b'{"type":"a","payload":' + b'{"a":' * 100_000)
@example(raw=b'{"type":"a","payload":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}")
@example(raw=b'{"type":"a","payload":{"a":"\xff"}}')
@example(raw=b'{"type":"\xff","payload":{}}')
@example(raw=b'{"type":"a","payload":{"a":"\\ud800"}}')
def test_any_bytes_at_all_become_a_safe_event_or_a_refusal(raw):
    event = outcome(prepare, raw)
    if isinstance(event, RequestError):
        assert event.code in {"invalid_json", "invalid_params"}
        assert "`$" in event.message
        return
    frame = encode_event(event, "c1")
    assert b"\n" not in frame
    assert b"\r" not in frame
    payload = strict_json(frame.decode())["payload"]
    assert isinstance(payload, dict)
    assert decode_event(frame).payload == payload
    json.dumps(payload, ensure_ascii=False).encode()  # holds no half of a surrogate pair


@given(body=WRAPPED, ndjson=st.booleans())
@example(body=b"[" * 100_000, ndjson=False)
@example(body=b'[{"a":' * 100_000, ndjson=False)
@example(body=b"[\xff]", ndjson=False)
@example(body=b"{}\n\xff", ndjson=True)
@example(body=b"", ndjson=False)
@example(body=b"", ndjson=True)
def test_any_body_at_all_is_split_or_refused(body, ndjson):
    parts = outcome(split_events, body, ndjson=ndjson)
    if isinstance(parts, RequestError):
        assert parts.code in {"invalid_json", "invalid_params"}
        return
    for path, raw in parts:
        assert path.startswith("$")
        raw.decode()
        assert raw in body


@given(payload=OBJECTS, ascii_only=st.booleans(), indent=st.sampled_from([None, 0, 2, "\t"]), line_break=LINE_BREAKS)
def test_any_object_reaches_the_subscriber_as_it_was_in_one_line(payload, ascii_only, indent, line_break):
    raw = json.dumps({"type": "a.b", "payload": payload}, ensure_ascii=ascii_only, indent=indent)
    frame = encode_event(prepare(raw.encode().replace(b"\n", line_break)), "c1.5")
    assert b"\n" not in frame
    assert b"\r" not in frame
    assert strict_json(frame.decode("utf-8", "strict"))["payload"] == payload
    assert decode_event(frame).payload == payload


def test_a_payload_without_line_breaks_stays_the_publishers_own_bytes():
    payload = b'{"n": 1.0e5,  "big": 123456789012345678901234567890, "e": "\\u00e9"}'
    assert prepare(b'{"type":"a","payload":%b}' % payload).payload == payload


def test_compacting_a_payload_changes_no_number_and_no_text():
    raw = b'{"type":"a","payload":{\r\n "n": 1.0e5,\n "big": 123456789012345678901234567890,\r"e": " \\n "}}'
    assert prepare(raw).payload == b'{"n":1.0e5,"big":123456789012345678901234567890,"e":" \\n "}'


@pytest.mark.parametrize("payload", [b"null", b"[]", b'"{}"', b"1", b"true", b" [{}]"])
def test_a_payload_that_is_no_object_is_refused(payload):
    error = refusal(prepare, b'{"type":"a","payload":%b}' % payload)
    assert error.code == "invalid_params"
    assert "`$.payload`" in error.message


@pytest.mark.parametrize(
    "inner",
    [
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":1,}',
        b'{"a":"\xff"}',
        b'{"\xff":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00"}',
        b'{"a":"\\ud800\\u0041"}',
        b'{"\\ud800":1}',
        b'{"a":"\n"}',
        b'{"a":"\x00"}',
        b'{"a":1}/**/',
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
    ids=lambda inner: repr(inner[:20]),
)
def test_a_payload_that_is_not_strict_json_is_refused(inner):
    error = refusal(prepare, b'{"type":"a","payload":%b}' % inner, "$[3]")
    assert error.code == "invalid_json"
    assert "`$[3]" in error.message


# --- events: fields ----------------------------------------------------------


def test_what_is_left_out_is_filled_in():
    event = prepare(event_json())
    assert event == PreparedEvent("a.b", None, "evt_new", "2026-11-23T10:00:00.123Z", b"{}", None)


def test_null_is_as_good_as_left_out():
    nothing = dict.fromkeys(["inbox_id", "event_id", "created_at", "account_id"])
    assert prepare(event_json(**nothing)) == prepare(event_json())


def test_what_is_given_is_kept():
    fields = {"inbox_id": "inbox_a", "event_id": "evt_mine", "account_id": "acct_a"}
    event = prepare(event_json(**fields, created_at="2026-01-02T03:04:05.678Z"))
    assert event == PreparedEvent("a.b", "inbox_a", "evt_mine", "2026-01-02T03:04:05.678Z", b"{}", "acct_a")


def test_unknown_fields_are_ignored():
    assert prepare(event_json(colour="red", nested={"a": [1]})) == prepare(event_json())


@pytest.mark.parametrize("field", ["inbox_id", "event_id", "account_id"])
@pytest.mark.parametrize("value", ["", "a b", "a\n", "x" * 129, "*", 5, ["a"], "é"])
def test_a_bad_name_is_refused_with_its_path(field, value):
    error = refusal(prepare, event_json(**{field: value}), "$[3]")
    assert error.code == "invalid_params"
    assert f"`$[3].{field}`" in error.message


@pytest.mark.parametrize("name", ["inbox", "inboxes", "inboxId", "inboxIds", "inbox_ids"])
@pytest.mark.parametrize("value", ["inbox_a", ["inbox_a"], None])
def test_an_event_whose_inbox_is_misspelt_is_no_event_of_the_account(name, value):
    for more in ({}, {"inbox_id": "inbox_a"}):
        error = refusal(prepare, event_json(**more, **{name: value}), "$[3]")
        assert error.code == "invalid_params"
        assert "`inbox_id`" in error.message
        assert f"`$[3].{name}`" in error.message


@pytest.mark.parametrize("value", ["", "A.b", "a..b", "a.b\n", "a.*", "x" * 129, 5, None])
def test_a_bad_type_is_refused_with_its_path(value):
    error = refusal(prepare, event_json(type=value), "$[3]")
    assert error.code == "invalid_params"
    assert "`$[3].type`" in error.message


@pytest.mark.parametrize("field", ["type", "payload"])
def test_an_event_without_type_or_payload_is_refused_by_name(field):
    raw = json.dumps({name: value for name, value in {"type": "a", "payload": {}}.items() if name != field})
    error = refusal(prepare, raw.encode(), "$[3]")
    assert error.code == "invalid_params"
    assert f"`{field}`" in error.message
    assert "`$[3]`" in error.message


@pytest.mark.parametrize(
    "name",
    [
        *("connection", "connection.ready", "replay", "replay.gap", "server", "server.x.y", "response", "error"),
        *("webhook", "webhook.disabled", "queue", "queue.dead.letter"),
    ],
)
def test_the_brokers_own_types_cannot_be_published(name):
    error = refusal(prepare, event_json(type=name), "$[3]")
    assert error.code == "invalid_params"
    assert "`$[3].type`" in error.message
    assert name in error.message


@pytest.mark.parametrize(
    "name",
    ["connections", "replayed.x", "a.server", "response.x", "error.x", "errors", "queued", "webhooks.x", "a.queue"],
)
def test_types_that_only_look_like_the_brokers_own_are_carried(name):
    assert prepare(event_json(type=name)).type == name


@given(moment=st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)), offset=st.integers(-1439, 1439))
def test_a_time_of_any_offset_is_normalised_to_utc_milliseconds(moment, offset):
    sign = "-" if offset < 0 else "+"
    given_time = f"{moment.isoformat()}{sign}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    exact = moment - timedelta(minutes=offset)
    written = prepare(event_json(created_at=given_time)).created_at
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written)
    whole = exact.replace(microsecond=exact.microsecond // 1000 * 1000, tzinfo=UTC)
    assert datetime.fromisoformat(written) == whole


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:59.9999999Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-11-23T10:00:00",
        "2026-11-23",
        "2026-11-23T10:00:00Z\n",
        "",
        1_700_000_000,
    ],
)
def test_a_time_out_of_range_or_without_offset_is_refused_with_its_path(moment):
    error = refusal(prepare, event_json(created_at=moment), "$[3]")
    assert error.code == "invalid_params"
    assert "`$[3].created_at`" in error.message


def test_an_event_of_exactly_the_allowed_bytes_passes_and_one_more_is_too_large():
    raw = event_json(payload={"text": "é"})
    assert prepare(raw, max_bytes=len(raw))
    error = refusal(prepare, raw, "$[3]", max_bytes=len(raw) - 1)
    assert error.code == "too_large"
    assert "`$[3]`" in error.message
    assert "max_event_bytes" in error.message


def test_bytes_are_counted_before_anything_is_decoded():
    assert refusal(prepare, b"[" * 100, max_bytes=99).code == "too_large"


# --- splitting ---------------------------------------------------------------


def test_one_object_is_one_event_at_the_path_itself():
    assert split_events(b' {"a":[1]} ', ndjson=False) == [("$", b' {"a":[1]} ')]


def test_each_event_of_a_list_has_its_index():
    body = b' \r\n[{"a":[1,2]} , {"b":"]"},\n3]'
    assert split_events(body, ndjson=False) == [
        ("$[0]", b'{"a":[1,2]}'),
        ("$[1]", b'{"b":"]"}'),
        ("$[2]", b"3"),
    ]


def test_the_path_of_the_list_itself_comes_first():
    assert [path for path, _ in split_events(b"[{},{}]", ndjson=False, path="$.events")] == [
        "$.events[0]",
        "$.events[1]",
    ]


def test_an_empty_list_has_no_events():
    assert split_events(b"[]", ndjson=False) == []


def test_blank_lines_of_ndjson_are_skipped_but_counted():
    body = b'{"a":1}\r\n\n  \n{"b":2}\n'
    assert split_events(body, ndjson=True) == [("$[0]", b'{"a":1}\r'), ("$[3]", b'{"b":2}')]


def test_a_line_of_ndjson_is_one_event_even_if_it_is_a_list():
    assert split_events(b"[{},{}]", ndjson=True) == [("$[0]", b"[{},{}]")]


@given(st.lists(OBJECTS, max_size=5))
def test_a_list_and_its_ndjson_split_into_the_same_events(objects):
    texts = [json.dumps(item).encode() for item in objects]
    assert split_events(b"[" + b", ".join(texts) + b"]", ndjson=False) == split_events(b"\n".join(texts), ndjson=True)


@pytest.mark.parametrize("ndjson", [False, True])
def test_a_body_that_is_not_utf8_is_refused_with_the_byte_at_fault(ndjson):
    error = refusal(split_events, b'{"a":"\xff"}', ndjson=ndjson)
    assert error.code == "invalid_json"
    assert "byte 6" in error.message


@pytest.mark.parametrize("body", [b"[", b"[{}", b"[{}]x", b"[{},]", b"[01]", b"[" * 100_000], ids=lambda b: repr(b[:9]))
def test_a_broken_list_is_refused_with_its_path(body):
    error = refusal(split_events, body, ndjson=False, path="$.events")
    assert error.code == "invalid_json"
    assert "`$.events`" in error.message


# --- commands ----------------------------------------------------------------


@given(message=WRAPPED.map(lambda raw: raw.decode("utf-8", "surrogateescape")) | st.text(alphabet=st.characters()))
@example(message="\ud800")
@example(message='{"action":"a\udcff"}')
@example(message='{"action":"a","x":' + "[" * 100_000 + "]" * 100_000 + "}")
@example(message='{"action":"a","params":' + '{"x":' * 100_000 + "}" * 100_000 + "}")
@example(message='{"action":"a","x":NaN}')
@example(message='{"action":' + "9" * 5000 + "}")
@example(message='{"action":"a","request_id":1e999}')
@example(message='{"action":"a","params":1e999}')
def test_any_text_at_all_is_a_command_or_a_refusal(message):
    command = outcome(decode_command, message)
    if isinstance(command, RequestError):
        assert command.code in {"invalid_json", "invalid_params"}
        assert "`$" in command.message
        return
    assert command.params.keys() == command.paths.keys()


@given(inner=NASTY)
def test_any_parameters_at_all_are_decoded_or_refused(inner):
    try:
        command = decode_command('{"action":"subscribe","inbox_ids":%s}' % inner.decode("utf-8", "replace"))  # noqa: UP031
        params = decode_params(command, SubscribeParams)
    except (RequestError, BadFrameError, BadCommandError):
        return
    assert isinstance(params, SubscribeParams)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("nonsense", "invalid_json"),
        ('{"action":"a"} x', "invalid_json"),
        ("[]", "invalid_params"),
        ("null", "invalid_params"),
        ('"subscribe"', "invalid_params"),
        ("{}", "invalid_params"),
        ('{"request_id":"r1"}', "invalid_params"),
        ('{"action":null}', "invalid_params"),
        ('{"action":5}', "invalid_params"),
        ('{"action":"a b"}', "invalid_params"),
        ('{"action":"a\\n"}', "invalid_params"),
        ('{"action":""}', "invalid_params"),
        ('{"action":"a","x":' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json"),
    ],
    ids=lambda value: value[:20],
)
def test_a_frame_that_is_no_command_is_a_bad_frame(message, code):
    with pytest.raises(BadFrameError) as caught:
        decode_command(message)
    assert caught.value.error.code == code


def test_a_frame_without_action_is_told_which_field_is_missing():
    assert "`action`" in refusal(decode_command, '{"request_id":"r1"}').message


def test_a_bad_action_is_refused_with_its_path():
    assert "`$.action`" in refusal(decode_command, '{"action":"a b"}').message


@pytest.mark.parametrize("request_id", ["5", '""', '"a b"', '"a\\n"', "[]", '"' + "x" * 129 + '"'])
def test_a_bad_request_id_is_refused_with_its_path_and_ties_to_nothing(request_id):
    with pytest.raises(BadCommandError) as caught:
        decode_command('{"action":"ping","request_id":%s}' % request_id)  # noqa: UP031
    assert (caught.value.action, caught.value.request_id) == ("ping", None)
    assert caught.value.error.code == "invalid_params"
    assert "`$.request_id`" in caught.value.error.message


@pytest.mark.parametrize("params", ["[]", "5", '"x"', "false"])
def test_params_that_are_no_object_are_refused_with_their_path(params):
    with pytest.raises(BadCommandError) as caught:
        decode_command('{"action":"ping","request_id":"r1","params":%s}' % params)  # noqa: UP031
    assert (caught.value.action, caught.value.request_id) == ("ping", "r1")
    assert caught.value.error.code == "invalid_params"
    assert "`$.params`" in caught.value.error.message


@pytest.mark.parametrize("message", ['{"action":"ping"}', '{"action":"ping","request_id":null,"params": null }'])
def test_a_command_may_have_no_request_id_and_no_params(message):
    command = decode_command(message)
    assert (command.action, command.request_id, command.params) == ("ping", None, {})


def test_parameters_at_the_top_level_and_in_params_are_merged_and_know_their_places():
    command = decode_command('{"action":"act","request_id":"r1","a":1,"params":{"b":[2],"action":"x"}}')
    assert (command.action, command.request_id) == ("act", "r1")
    assert {name: json.loads(bytes(raw)) for name, raw in command.params.items()} == {"a": 1, "b": [2], "action": "x"}
    assert command.paths == {"a": "$.a", "b": "$.params.b", "action": "$.params.action"}


def test_a_name_in_both_places_is_refused_by_name():
    with pytest.raises(BadCommandError) as caught:
        decode_command('{"action":"act","request_id":"r1","a":1,"params":{"a":1}}')
    assert (caught.value.action, caught.value.request_id) == ("act", "r1")
    assert caught.value.error.code == "invalid_params"
    assert "`$.params.a`" in caught.value.error.message


# --- parameters --------------------------------------------------------------


def test_parameters_become_the_struct_wherever_they_stand():
    expected = SubscribeParams(["a", "*"], "5m", ["x.*"])
    for message in (
        '{"action":"subscribe","inbox_ids":["a","*"],"since":"5m","event_types":["x.*"]}',
        '{"action":"subscribe","params":{"inbox_ids":["a","*"],"since":"5m","event_types":["x.*"]}}',
        '{"action":"subscribe","inbox_ids":["a","*"],"params":{"since":"5m","event_types":["x.*"],"more":1}}',
    ):
        assert decode_params(decode_command(message), SubscribeParams) == expected


def test_parameters_left_out_have_their_defaults():
    assert decode_params(decode_command('{"action":"subscribe"}'), SubscribeParams) == SubscribeParams()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ('"inbox_ids":["a","b c"]', "$.inbox_ids[1]"),
        ('"params":{"inbox_ids":["a b"]}', "$.params.inbox_ids[0]"),
        ('"params":{"inbox_ids":["a\\n"]}', "$.params.inbox_ids[0]"),
        ('"inbox_ids":"a"', "$.inbox_ids"),
        ('"inbox_ids":null', "$.inbox_ids"),
        ('"params":{"since":5}', "$.params.since"),
        ('"event_types":[]', "$.event_types"),
        ('"event_types":["*"]', "$.event_types[0]"),
        ('"inbox_ids":["a",1e999]', "$.inbox_ids[1]"),
    ],
)
def test_a_bad_parameter_is_refused_with_the_path_where_it_stood(fields, path):
    command = decode_command('{"action":"subscribe",%s}' % fields)  # noqa: UP031
    error = refusal(decode_params, command, SubscribeParams)
    assert error.code == "invalid_params"
    assert f"`{path}`" in error.message


def test_a_missing_parameter_is_named():
    error = refusal(decode_params, decode_command('{"action":"unsubscribe"}'), UnsubscribeParams)
    assert error.code == "invalid_params"
    assert "`inbox_ids`" in error.message


def test_each_struct_decodes_its_own_kind_of_the_same_name():
    class Number(Struct):
        value: int

    class Text(Struct):
        value: str

    command = decode_command('{"action":"a","value":"x"}')
    assert decode_params(command, Text) == Text("x")
    assert "`$.value`" in refusal(decode_params, command, Number).message
