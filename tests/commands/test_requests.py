"""Commands checked against their key: what is lifted out of the parameters, and what stands for their content."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.access.keys import Key, Narrowing
from broker.commands.requests import check_command
from broker.errors import RequestError
from broker.protocol.decoding import decode_command, decode_params, prove_command, sound
from broker.protocol.documents import at_once

ACCOUNT_KEY = Key("key_1", "acct", frozenset({"command"}))
INBOX_KEY = Key("key_2", "acct", frozenset({"command"}), frozenset({"in_1"}))
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def check(command, key=ACCOUNT_KEY, trace=None):
    text = command if isinstance(command, str) else json.dumps(command)
    return check_command(key, decode_command(text), "made_1", trace)


def refusal(command, key=ACCOUNT_KEY):
    with pytest.raises(RequestError) as caught:
        check(command, key)
    return caught.value.code, caught.value.message


# --- the inbox ---------------------------------------------------------------


@pytest.mark.parametrize("command", [{"inbox_id": "in_1", "n": 1}, {"params": {"inbox_id": "in_1", "n": 1}}])
@pytest.mark.parametrize("key", [ACCOUNT_KEY, INBOX_KEY], ids=["account key", "inbox key"])
def test_the_inbox_is_lifted_out_from_where_it_stands(command, key):
    request = check({"action": "read", **command}, key)
    assert request.inbox_id == "in_1"
    assert decode_params(request.command, dict) == {"n": 1}


@pytest.mark.parametrize("command", [{}, {"inbox_id": None}, {"params": {"inbox_id": None}}])
@pytest.mark.parametrize("key", [ACCOUNT_KEY, INBOX_KEY], ids=["account key", "inbox key"])
def test_without_an_inbox_there_is_none(command, key):
    request = check({"action": "read", **command}, key)
    assert request.inbox_id is None
    assert request.command.params == {}


@pytest.mark.parametrize("value", [7, True, [], {}, "", "a b", "*", "x" * 255, ["in_1"]])
def test_an_inbox_that_is_no_name_is_refused_with_its_path(value):
    code, message = refusal({"action": "read", "inbox_id": value})
    assert code == "invalid_params"
    assert "`$.inbox_id`" in message
    code, message = refusal({"action": "read", "params": {"inbox_id": value}})
    assert code == "invalid_params"
    assert "`$.params.inbox_id`" in message


@pytest.mark.parametrize(
    ("command", "path"), [({"inbox_id": "in_9"}, "$.inbox_id"), ({"params": {"inbox_id": "in_9"}}, "$.params.inbox_id")]
)
def test_an_inbox_that_the_key_does_not_reach_is_forbidden(command, path):
    code, message = refusal({"action": "read", **command}, INBOX_KEY)
    assert code == "forbidden"
    assert f"`{path}`" in message
    assert check({"action": "read", **command}).inbox_id == "in_9"


def test_a_key_without_the_scope_is_refused_before_anything_else_is_looked_at():
    key = Key("key_3", "acct", frozenset({"subscribe", "publish"}))
    code, message = refusal({"action": "read", "inbox_id": 7}, key)
    assert code == "forbidden"
    assert "`command`" in message


# --- the trace ---------------------------------------------------------------


def test_a_trace_is_lifted_from_the_top_level():
    request = check({"action": "read", "traceparent": TRACE, "n": 1})
    assert request.traceparent == TRACE
    assert decode_params(request.command, dict) == {"n": 1}


def test_a_traceparent_in_params_is_a_parameter_like_others():
    request = check({"action": "read", "params": {"traceparent": TRACE}})
    assert request.traceparent is None
    assert decode_params(request.command, dict) == {"traceparent": TRACE}


@pytest.mark.parametrize(
    "trace",
    [
        None,
        7,
        [],
        {},
        "",
        "x",
        TRACE.upper(),
        TRACE + "\n",
        TRACE + "-x",
        " " + TRACE,
        TRACE[:-1],
        TRACE.replace("-", "_"),
        "ff" + TRACE[2:],
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)
def test_a_trace_that_is_not_well_formed_is_none_and_no_parameter_either(trace):
    request = check({"action": "read", "traceparent": trace})
    assert request.traceparent is None
    assert request.command.params == {}


@pytest.mark.parametrize("trace", ["[1e999]", '[["\\u0000"]]', "1e999"])
def test_of_a_trace_that_is_no_text_nothing_is_made(trace):
    request = check(f'{{"action":"read","traceparent":{trace}}}')
    assert request.traceparent is None
    assert request.command.params == {}


def test_a_trace_beside_the_command_is_taken_if_it_has_none_itself():
    other = TRACE.replace("4bf9", "5cf9")
    assert check({"action": "read"}, trace=TRACE).traceparent == TRACE
    assert check({"action": "read", "traceparent": other}, trace=TRACE).traceparent == other
    assert check({"action": "read"}, trace="nonsense").traceparent is None


# --- identity and content ----------------------------------------------------


def test_a_command_is_known_by_its_key_client_and_request_id_and_only_if_the_client_gave_one():
    assert check({"action": "read", "request_id": "made_1"}).identity == ("key_1", "", "made_1")
    assert check({"action": "read"}).identity is None


def test_tokens_that_are_narrowed_otherwise_than_their_key_are_others_and_the_same_narrowing_is_the_same():
    key = Key("key_1", "acct", frozenset({"command"}), sha256="aa")
    one, same, mute = (Narrowing(frozenset({"in_1"})), Narrowing(frozenset({"in_1"})), Narrowing(None, frozenset()))
    command = {"action": "read", "request_id": "r1"}
    identities = [check(command, narrowed).identity for narrowed in (key, key.narrowed(one), key.narrowed(same))]
    assert identities[0] != identities[1] == identities[2]
    assert key.narrowed(mute).identity not in {identity[0] for identity in identities}
    assert check(command, key.narrowed(Narrowing())).identity == identities[0]


def test_two_keys_of_one_name_are_two():
    command = {"action": "read", "request_id": "r1"}
    keys = [Key("key_1", "acct", frozenset({"command"}), sha256=digest) for digest in ("aa", "bb")]
    assert check(command, keys[0]).identity != check(command, keys[1]).identity


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.text(min_size=1).filter(
    lambda name: name not in {"action", "request_id", "params", "inbox_id", "traceparent"}
)


def mixed(value, random):
    """The same, with the names of all objects in another order."""
    if isinstance(value, list):
        return [mixed(item, random) for item in value]
    if isinstance(value, dict):
        items = list(value.items())
        random.shuffle(items)
        return {name: mixed(item, random) for name, item in items}
    return value


def digest(command):
    """What stands for a command's content, if it may be sent again."""
    decoded = decode_command(command if isinstance(command, str) else json.dumps(command))
    return check_command(ACCOUNT_KEY, msgspec.structs.replace(decoded, request_id="r1"), "r1").digest


@given(st.dictionaries(names, values, max_size=5), st.randoms(use_true_random=False))
def test_the_digest_ignores_the_order_of_names_spaces_and_where_parameters_stand(params, random):
    nested = {name: params[name] for name in params if random.random() < 0.5}
    top = {name: params[name] for name in params if name not in nested}
    one = digest({"action": "read", **params})
    other = json.dumps(mixed({"params": nested, "action": "read", **top}, random), indent=2, ensure_ascii=False)
    assert digest(other) == one


@given(st.dictionaries(names, values, min_size=1, max_size=5), names, values, st.data())
def test_the_digest_differs_for_other_parameters(params, name, value, data):
    one = digest({"action": "read", **params})
    less = dict(params)
    less.pop(data.draw(st.sampled_from(sorted(params))))
    more = {**params, name: value}
    assert digest({"action": "read", **less}) != one
    same = json.dumps(more, sort_keys=True) == json.dumps(params, sort_keys=True)
    assert (digest({"action": "read", **more}) == one) == same


@pytest.mark.parametrize(
    "other",
    [
        {"action": "mark", "inbox_id": "in_1", "n": 1},
        {"action": "read", "inbox_id": "in_2", "n": 1},
        {"action": "read", "n": 1},
        {"action": "read", "inbox_id": "in_1", "n": "1"},
        {"action": "read", "inbox_id": "in_1", "n": True},
        {"action": "read", "inbox_id": "in_1", "n": [1]},
        {"action": "read", "inbox_id": "in_1", "n": None},
        {"action": "read", "inbox_id": "in_1", "params": {"params": {"n": 1}}},
    ],
)
def test_the_digest_differs_for_another_action_inbox_or_value(other):
    assert digest({"action": "read", "inbox_id": "in_1", "n": 1}) != digest(other)


def test_the_digest_is_the_same_for_another_trace_and_request_id():
    one = digest({"action": "read", "n": 1, "request_id": "a", "traceparent": TRACE})
    assert digest({"action": "read", "n": 1, "request_id": "b"}) == one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12345678901234567.12", "12345678901234567.34"),
        ("1e-400", "0.0"),
        ("1.0", "1"),
        ("-0", "0"),
        ("[1,2]", "[12]"),
        ('"1"', "1"),
        ('{"a":1,"a":2}', '{"a":2,"a":1}'),
    ],
)
def test_the_digest_differs_for_numbers_that_are_written_otherwise(one, other):
    digests = {digest(f'{{"action":"read","n":{value}}}') for value in (one, other)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [(r'"\u0041\/"', '"A/"'), (r'{"\u00e9":1}', '{"é" : 1}'), ('{"a":1,"a":2}', '{"a":2}'), ("[ 1.50 ]", "[1.50]")],
)
def test_the_digest_is_the_same_for_texts_that_are_written_otherwise(one, other):
    assert digest(f'{{"action":"read","n":{one}}}') == digest(f'{{"action":"read","params":{{"n":{other}}}}}')


def test_a_traceparent_in_params_is_content():
    assert digest({"action": "read", "params": {"traceparent": TRACE}}) != digest({"action": "read"})


@pytest.mark.parametrize("said", [{"inbox_id": None}, {"params": {"inbox_id": None}}])
def test_an_inbox_that_is_null_is_none_to_the_digest_too(said):
    assert digest({"action": "read", **said}) == digest({"action": "read"})
    assert digest({"action": "read", "inbox_id": "in_1"}) != digest({"action": "read"})


def test_a_command_that_cannot_be_sent_again_needs_no_digest():
    assert check({"action": "read", "n": 1}).digest == b""


@pytest.mark.parametrize("value", ["1e400", '[{"m":1e400}]', "1" + "0" * 309, "[" * 129 + "]" * 129])
def test_parameters_that_are_not_fit_to_be_handed_on_are_refused_with_their_path(value):
    code, message = refusal(f'{{"action":"a","params":{{"m":1,"n":{value}}}}}')
    assert code in {"invalid_params", "invalid_json"}
    assert "`$.params.n`" in message


def test_a_command_is_proved_once():
    command = decode_command('{"action":"a","request_id":"r1","n":1}')
    proved = at_once(prove_command(command))
    assert sound(proved) is proved
    assert sound(command).proof == proved.proof
    assert check_command(ACCOUNT_KEY, proved, "r1").digest == proved.proof.digest
