"""events.py: whatever is published becomes safe events, one at a time, or an error that names the place."""

import json
import re
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw
from texts import JSON, LINE_BREAKS, NASTY, OBJECTS, WRAPPED, outcome, refusal, strict_json

from broker.errors import RequestError
from broker.protocol.events import prepare_event, prove_events, split_events
from broker.protocol.messages import PreparedEvent, decode_event, encode_event, format_time

NOW = datetime(2026, 11, 23, 10, 0, 0, 123_456, UTC)


def prepare(raw: bytes, path: str = "$", max_bytes: int = 1_000_000, traceparent: str | None = None) -> PreparedEvent:
    [(where, text)] = filter(None, prove_events([(path, raw)], max_bytes))
    return prepare_event(text, where, now=format_time(NOW), new_id=lambda: "evt_new", traceparent=traceparent)


def split(
    body: bytes, *, ndjson: bool = False, path: str = "$", max_events: int = 10_000, max_bytes: int = 1_000_000
) -> list[tuple[str, bytes]]:
    items = split_events(body, ndjson=ndjson, path=path, max_events=max_events, max_bytes=max_bytes)
    return [item for item in items if item is not None]


def event_json(**fields: Any) -> bytes:
    return json.dumps({"type": "a.b", "payload": {}} | fields).encode()


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
    parts = outcome(split, body, ndjson=ndjson)
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


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER_TRACE = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def test_an_event_that_names_its_trace_keeps_it_and_others_have_that_of_their_publish():
    assert prepare(event_json()).traceparent is None
    assert prepare(event_json(traceparent=TRACE)).traceparent == TRACE
    assert prepare(event_json(), traceparent=TRACE).traceparent == TRACE
    assert prepare(event_json(traceparent=OTHER_TRACE), traceparent=TRACE).traceparent == OTHER_TRACE


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        [TRACE],
        "",
        f"{TRACE}-00",
        f" {TRACE}",
        f"{TRACE}\n",
        TRACE.upper(),
        f"ff{TRACE[2:]}",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        TRACE.replace("4", "\u0664"),
        'x","admin":"yes',
    ],
)
def test_a_trace_that_is_none_is_as_good_as_left_out(value):
    assert prepare(event_json(traceparent=value)).traceparent is None
    assert prepare(event_json(traceparent=value), traceparent=TRACE).traceparent == TRACE


def test_an_inbox_may_be_an_address():
    event = prepare(event_json(inbox_id="o'hara+{tag}&50%@example.com"))
    assert decode_event(encode_event(event, "c1")).inbox_id == event.inbox_id == "o'hara+{tag}&50%@example.com"


def test_a_leap_second_is_the_second_after_it():
    assert prepare(event_json(created_at="2016-12-31T23:59:60Z")).created_at == "2017-01-01T00:00:00.000Z"


def test_unknown_fields_are_ignored():
    assert prepare(event_json(colour="red", nested={"a": [1]})) == prepare(event_json())


@pytest.mark.parametrize("field", ["inbox_id", "event_id", "account_id"])
@pytest.mark.parametrize("value", ["", "a b", "a,b", "a\n", "x" * 255, "*", 5, ["a"], "é"])
def test_a_bad_name_is_refused_with_its_path(field, value):
    error = refusal(prepare, event_json(**{field: value}), "$[3]")
    assert error.code == "invalid_params"
    assert f"`$[3].{field}`" in error.message


@pytest.mark.parametrize("name", ["inbox", "inboxes", "inboxId", "inboxIds", "inbox_ids"])
@pytest.mark.parametrize("value", ["inbox_a", ["inbox_a"], None])
def test_an_event_whose_inbox_is_misspelt_is_no_event_of_the_account(name, value):
    for more in ({}, {"inbox_id": None}):
        error = refusal(prepare, event_json(**more, **{name: value}), "$[3]")
        assert error.code == "invalid_params"
        assert "`inbox_id`" in error.message
        assert f"`$[3].{name}`" in error.message


@pytest.mark.parametrize("name", ["eventId", "idempotency_key"])
@pytest.mark.parametrize("value", ["evt_1", 7, None])
def test_an_event_whose_id_is_misspelt_is_not_published_without_one(name, value):
    error = refusal(prepare, event_json(**{name: value}), "$[3]")
    assert (error.code, error.message) == ("invalid_params", f"The name is `event_id` - at `$[3].{name}`")


@pytest.mark.parametrize("value", ["inbox_b", ["inbox_b"], {"name": "Sales"}, None])
def test_what_would_be_taken_for_a_misspelt_name_is_passed_over_beside_the_right_one(value):
    others = ("inbox", "inboxes", "inboxId", "inboxIds", "inbox_ids", "eventId", "idempotency_key")
    prepared = prepare(event_json(inbox_id="inbox_a", event_id="evt_1", **dict.fromkeys(others, value)))
    assert prepared == prepare(event_json(inbox_id="inbox_a", event_id="evt_1"))


def test_of_two_names_that_might_be_misspelt_the_one_whose_right_name_is_missing_is_refused():
    error = refusal(prepare, event_json(event_id="evt_1", idempotency_key="k", inbox="inbox_a"), "$[3]")
    assert error.message == "The name is `inbox_id` - at `$[3].inbox`"
    error = refusal(prepare, event_json(event_id=None, eventId="k", inbox_id="inbox_a", inbox="inbox_a"), "$[3]")
    assert error.message == "The name is `event_id` - at `$[3].eventId`"


def test_what_an_event_has_beside_its_fields_is_passed_over():
    assert prepare(event_json(source="x", ids=["evt_1"], id=7)).inbox_id is None


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
        "2026-11-23T10:00:60Z",
        "",
        1_700_000_000,
    ],
)
def test_a_time_out_of_range_or_without_offset_is_refused_with_its_path(moment):
    error = refusal(prepare, event_json(created_at=moment), "$[3]")
    assert error.code == "invalid_params"
    assert "`$[3].created_at`" in error.message


def test_a_payload_may_be_128_levels_deep():
    def payload(depth):
        return b'{"type":"a","payload":%b}' % (b'{"a":' * depth + b"1" + b"}" * depth)

    assert prepare(payload(128))
    assert refusal(prepare, payload(129)).code == "invalid_json"
    assert refusal(prepare, b'{"type":"a","payload":{"a":[%b1%b]}}' % (b"[" * 200, b"]" * 200)).code == "invalid_json"


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
    assert split(b' {"a":[1]} \r\n') == [("$", b'{"a":[1]}')]


def test_each_event_of_a_list_has_its_index():
    body = b' \r\n[{"a":[1,2]} , {"b":"]"},\n3] '
    assert split(body) == [("$[0]", b'{"a":[1,2]}'), ("$[1]", b'{"b":"]"}'), ("$[2]", b"3")]


def test_the_path_of_the_list_itself_comes_first():
    assert [path for path, _ in split(b"[{},{}]", path="$.events")] == ["$.events[0]", "$.events[1]"]


@pytest.mark.parametrize("body", [b"[]", b" [ ] "])
def test_an_empty_list_has_no_events(body):
    assert split(body) == []


def test_blank_lines_of_ndjson_are_skipped_but_counted():
    body = b'{"a":1}\r\n\n  \n{"b":2}\n\t{"c":3} \n'
    assert split(body, ndjson=True) == [("$[0]", b'{"a":1}'), ("$[3]", b'{"b":2}'), ("$[4]", b'{"c":3}')]


def test_a_line_of_ndjson_is_one_event_even_if_it_is_a_list():
    assert split(b"[{},{}]", ndjson=True) == [("$[0]", b"[{},{}]")]


@given(st.lists(OBJECTS, max_size=5))
def test_a_list_and_its_ndjson_split_into_the_same_events(objects):
    texts = [json.dumps(item).encode() for item in objects]
    assert split(b"[" + b", ".join(texts) + b"]") == split(b"\n".join(texts), ndjson=True)


@pytest.mark.parametrize("ndjson", [False, True])
def test_an_event_that_is_not_utf8_is_refused_with_its_path_and_the_byte_at_fault(ndjson):
    error = refusal(split, b'{"a":"\xff"}', ndjson=ndjson)
    assert error.code == "invalid_json"
    assert "byte 6" in error.message
    assert "`$" in error.message


BROKEN = [b"[", b"[{}", b"[{}]x", b"[{},]", b"[{} {}]", b"[,{}]", b"[01]", b"[" * 100_000, b"[nul]", b"[{}}]", b"[{}]]"]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:9]))
def test_a_broken_list_is_refused_with_its_path(body):
    error = refusal(split, body, path="$.events")
    assert error.code == "invalid_json"
    assert "`$.events" in error.message


@given(inner=NASTY | st.lists(NASTY | JSON.map(json.dumps).map(str.encode), max_size=5).map(b" ,\r\n".join))
@example(inner=b'"\\ud800"')
@example(inner=b"1e999")
@example(inner=b"1 ")
@example(inner=b" ")
@example(inner=b"1,")
@example(inner=b'{"a":"\xff"}')
@example(inner=b'"]","[\\"",{"]":"["}')
def test_a_list_is_split_as_a_decoder_of_the_whole_splits_it(inner):
    body = b"[%b]" % inner
    try:
        body.decode()
        whole = [bytes(item) for item in msgspec.json.decode(body, type=list[Raw])]
        for item in whole:
            msgspec.json.decode(item)  # it is proved, and not only skipped
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        assert refusal(split, body).code in {"invalid_json", "invalid_params"}
    else:
        assert split(body) == [(f"$[{index}]", item) for index, item in enumerate(whole)]


# --- splitting costs what is asked for ---------------------------------------


@pytest.mark.parametrize(
    ("body", "ndjson"),
    [
        (b"[1," + b"," * 1_000, False),
        (b"[1,\xff" + b"x" * 1_000, False),
        (b"[1" + b",1" * 20_000 + b"]", False),
        (b"1\n" + b"\xff" * 1_000, True),
        (b"1" + b"\n1" * 20_000, True),
    ],
)
def test_nothing_is_looked_at_before_it_is_asked_for(body, ndjson):
    items = split_events(body, ndjson=ndjson, max_events=10_000, max_bytes=1_000)
    assert next(items) == ("$[0]", b"1")


@pytest.mark.parametrize(
    ("body", "ndjson"), [(b"[" + b",".join([b"{}"] * 4) + b"]", False), (b"\n\n".join([b"{}"] * 4), True)]
)
def test_a_list_has_as_many_events_as_a_request_may_have_and_no_more(body, ndjson):
    assert len(split(body, ndjson=ndjson, max_events=4)) == 4
    items = split_events(body, ndjson=ndjson, max_events=3, max_bytes=1_000)
    assert [next(items)[0][:2] for _ in range(3)] == ["$["] * 3
    error = refusal(next, items)
    assert error.code == "too_large"
    assert "More than 3 events" in error.message
    assert "max_events_per_request" in error.message


@pytest.mark.parametrize("body", [b'{"a":"%b"}', b'[{},{"a":"%b"}]', b'[ {"a":"%b"} ]', b'[{"a":"%b"},{}]'])
def test_an_event_may_have_exactly_so_many_bytes_wherever_it_stands(body):
    most = len(b'{"a":"xxxx"}')
    assert split(body.replace(b"%b", b"xxxx"), max_bytes=most)
    error = refusal(split, body.replace(b"%b", b"xxxxx"), max_bytes=most)
    assert error.code == "too_large"
    assert "max_event_bytes" in error.message


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n{}"])
def test_a_line_may_have_exactly_so_many_bytes(end):
    assert split(b'{"a":1}' + end, ndjson=True, max_bytes=7)
    assert refusal(split, b'{"a":12}' + end, ndjson=True, max_bytes=7).code == "too_large"


@pytest.mark.parametrize("ndjson", [False, True])
@pytest.mark.parametrize("item", [b"1" * 100, b'"' + b"1" * 100, b"[" * 100, b'{"a":' * 20])
def test_of_an_event_that_is_too_large_no_more_is_looked_at(item, ndjson):
    body = (b"{}\n" if ndjson else b"[{},") + item + b"\xff" * 100
    assert refusal(split, body, ndjson=ndjson, max_bytes=20).code in {"too_large", "invalid_json"}
    assert refusal(split, body, ndjson=ndjson, max_bytes=len(item) // 2).message.count("`$[1]`") == 1


@pytest.mark.parametrize("broken", [b'{"a":tru}', b"nul ", b"{]", b'{"a" 1}', b"01"])
def test_an_event_that_is_broken_is_broken_however_much_follows(broken):
    error = refusal(split, b"[{},%b,%b]" % (broken, b"1" * 1_000), max_bytes=100)
    assert error.code == "invalid_json"
    assert "`$[1]`" in error.message


@pytest.mark.parametrize("ndjson", [False, True])
@pytest.mark.parametrize("space", [b" ", b"\n", b"\t", b"\r"])
def test_white_space_is_looked_at_as_far_as_an_event_may_be_long(space, ndjson):
    for body in (b"%b{}", b"[%b]", b"[{}%b,{}]", b"[{},%b{}]", b"[{}]%b", b"[%b{}]"):
        if ndjson and b"[" in body:
            continue
        assert split(body.replace(b"%b", space * 50), ndjson=ndjson, max_bytes=50) is not None
        error = refusal(split, body.replace(b"%b", space * 102), ndjson=ndjson, max_bytes=50)
        assert error.code == "too_large"
        assert "white space" in error.message


def test_a_long_event_is_proved_in_steps_with_others_in_between():
    deep = b'{"type":"a","payload":{"a":[%b]}}' % b",".join([b"[]"] * 80_000)
    long_text = b'{"type":"a","payload":{"a":"%b"}}' % (b"e123 " * 50_000)
    for event in (deep, long_text):
        items = list(split_events(b"[%b]" % event, ndjson=False, max_events=1, max_bytes=262_144))
        assert items[-1] == ("$[0]", event)
        assert items[:-1] == [None] * (len(items) - 1)
        assert len(items) > len(event) / 65_536
    assert len(items) < 30


def memory_of_refusing(body: bytes, ndjson: bool) -> int:
    """How many bytes it takes, at most, to find out that a body is to be refused."""

    def publish():
        for item in split_events(body, ndjson=ndjson, max_events=10_000, max_bytes=262_144):
            if item is not None:
                path, text = item
                prepare_event(text, path, now="", new_id=lambda: "evt_new")

    tracemalloc.start()
    try:
        assert refusal(publish).code in {"invalid_params", "too_large", "invalid_json"}
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "ndjson"),
    [
        (b"[" + b"1," * 4_000_000 + b"1]", False),
        (b"[" * 8_000_000, False),
        (b"\n" * 8_000_000, True),
        (b'[{"type":"a","payload":{}}' + b" " * 8_000_000 + b"]", False),
        (b'{"type":"a","payload":{"a":"' + b"x" * 8_000_000 + b'"}}', False),
        (b'[{"type":"a","payload":{"a":[' + b"[]," * 2_700_000 + b"[]]}}]", False),
    ],
    ids=["numbers", "brackets", "line breaks", "spaces", "a long event", "a wide event"],
)
def test_refusing_a_large_body_takes_little_memory_beside_it(body, ndjson):
    assert memory_of_refusing(body, ndjson) < 2 * len(body)


@pytest.mark.parametrize(
    ("body", "ndjson"), [(b"1" * 8_000_000, True), (b'["' + b"1" * 8_000_000, False), (b"[" + b" " * 8_000_000, False)]
)
def test_of_an_event_that_is_too_large_nothing_is_copied(body, ndjson):
    assert memory_of_refusing(body, ndjson) < 1_000_000
