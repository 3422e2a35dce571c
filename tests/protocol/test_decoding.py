"""decoding.py: whatever a client says becomes a command and its parameters, or an error that names the field."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct
from texts import NASTY, WRAPPED, outcome, refusal

from broker.errors import BadCommandError, BadFrameError, RequestError
from broker.protocol.decoding import (
    AS_WRITTEN,
    MAX_PARAMS,
    MAX_VALUES,
    decode_command,
    decode_params,
    decode_struct,
)
from broker.protocol.messages import SubscribeParams, UnsubscribeParams

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


# --- what is decoded is bounded ----------------------------------------------


@pytest.mark.parametrize("value", ["1", '{"a":1,"b":2,"c":3,"d":4}'], ids=["short", "long"])
def test_a_command_has_a_thousand_parameters_and_no_more(value):
    def params(number):
        return ",".join(f'"p{n}":{value}' for n in range(number))

    assert len(decode_command(f'{{"action":"a",{params(MAX_PARAMS - 1)}}}').params) == MAX_PARAMS - 1
    assert len(decode_command(f'{{"action":"a","params":{{{params(MAX_PARAMS)}}}}}').params) == MAX_PARAMS
    for text in (f'{{"action":"a",{params(MAX_PARAMS)}}}', f'{{"action":"a","params":{{{params(MAX_PARAMS + 1)}}}}}'):
        error = refusal(decode_command, text)
        assert error.code == "too_large"
        assert "1,000 parameters" in error.message


@pytest.mark.parametrize("number", [MAX_PARAMS + 1, 5_000])
@pytest.mark.parametrize("form", ['{"action":"a","request_id":"r",%s}', '{%s,"request_id":"r","action":"a"}'])
def test_a_command_with_too_many_parameters_is_refused_by_its_request_id(number, form):
    text = form % ",".join(f'"p{n}":1' for n in range(number))
    with pytest.raises(BadCommandError) as caught:
        decode_command(text)
    assert (caught.value.action, caught.value.request_id, caught.value.error.code) == ("a", "r", "too_large")


@pytest.mark.parametrize(
    "params", [r'"x":"\ud800"', r'"params":{"x":["\udfff"]}', r'"x":"\\\ud800\\"', r'"x":"\ud800","y":"zzzzzzzz"']
)
def test_a_command_with_half_a_character_is_refused_by_its_request_id(params):
    with pytest.raises(BadCommandError) as caught:
        decode_command(f'{{"action":"a","request_id":"r",{params}}}')
    assert (caught.value.action, caught.value.request_id, caught.value.error.code) == ("a", "r", "invalid_json")


@pytest.mark.parametrize("request_id", [r'"\ud800"', r'"a\\\ud800b"', "7", '"a b"', '""'])
def test_a_request_id_that_is_none_is_not_made_one_of(request_id):
    with pytest.raises(BadCommandError) as caught:
        decode_command(f'{{"action":"a","request_id":{request_id},"x":"\\ud800"}}')
    assert caught.value.request_id is None


@pytest.mark.parametrize(
    "text", [r'{"action":"\ud800"}', r'{"action":7,"x":"\ud800"}', r'{"x":"\ud800"}', r'["\ud800"]']
)
def test_half_a_character_in_what_is_no_command_is_a_bad_frame(text):
    with pytest.raises(BadFrameError):
        decode_command(text)


def test_of_a_command_with_too_many_parameters_no_more_is_looked_at():
    many = ",".join(f'"p{n}":1' for n in range(5_000))
    assert refusal(decode_command, f'{{"action":"a",{many},nonsense').code == "too_large"


def test_a_command_with_many_parameters_is_as_one_with_few():
    few = decode_command('{"action":"a","n":{"b":[1.0]},"params":{"m":2}}')
    many = decode_command('{"action":"a","n":{"b":[1.0]},"params":{"m":2},"times":"%b"}'.replace("%b", "::" * 4_000))
    assert {name: bytes(many.params[name]) for name in few.params} == {n: bytes(raw) for n, raw in few.params.items()}
    assert {type(name) for name in many.params} == {str}
    assert many.paths == {**few.paths, "times": "$.times"}


def test_of_what_is_decoded_here_there_may_be_so_many_values_and_no_more():
    def command(number):
        return decode_command(f'{{"action":"a","params":{{"n":[{",".join(["0"] * number)}]}}}}')

    assert decode_params(command(MAX_VALUES - 1), dict) == {"n": [0] * (MAX_VALUES - 1)}
    error = refusal(decode_params, command(MAX_VALUES), dict)
    assert error.code == "too_large"
    assert "20,000 values" in error.message
    assert "`$.params.n`" in error.message
    assert decode_params(command(MAX_VALUES + 1), AS_WRITTEN)["n"]
    both = decode_command(f'{{"action":"a","few":[1],"many":[{",".join(["0"] * MAX_VALUES)}],"small":2}}')
    assert "`$.many`" in refusal(decode_params, both, dict).message
    assert refusal(decode_struct, b"[%b]" % b",".join([b"1"] * 30_000), SubscribeParams).code == "too_large"


@pytest.mark.parametrize("kind", [SubscribeParams, UnsubscribeParams])
@pytest.mark.parametrize("number", [3, 3_000], ids=["few", "many"])
def test_many_names_are_decoded_as_few_are_and_a_bad_one_is_named(kind, number):
    names = [f"in_{n}" for n in range(number)]

    def command(*more):
        return decode_command(json.dumps({"action": "a", "inbox_ids": [*names, *more]}))

    params = decode_params(command("*"), kind)
    assert isinstance(params, kind)
    assert params.inbox_ids == [*names, "*"]
    for bad in ("a b", "", "x" * 255, "a\nb", 1):
        error = refusal(decode_params, command("fine", bad), kind)
        assert f"`$.inbox_ids[{number + 1}]`" in error.message or "`$.inbox_ids[...]`" in error.message
