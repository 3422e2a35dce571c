"""proving.py: how deep JSON is, which numbers are in it, how much: proved without decoding it."""

import json
import math
import random

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from texts import refusal, steps_of, strict_json

from broker.protocol.documents import STEP_BYTES, at_once
from broker.protocol.proving import MAX_DEPTH, check_document, has_more_values

PADDING = b" " * (STEP_BYTES + 1)


def prove(text: bytes, path: str = "$.x") -> None:
    at_once(check_document(text, path))


# --- numbers: as they are written, and in the range of a double ----------------


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
BOUNDARY = st.builds(
    lambda digits, dot, exponent: f"{digits[:dot]}.{digits[dot:]}e{exponent}",
    st.integers(10**20, 10**21 - 1).map(str) | st.just("179769313486231570814"),
    st.integers(1, 20),
    st.integers(285, 312),
)


@given(NUMBERS | BOUNDARY, st.sampled_from(["%s", " %s", "[%s]", '{"a":%s}', '[1,"%%s",%s,2]', '{"e999":[%s]}']))
@example("1" + "0" * 308, "[%s]")
@example("1" + "0" * 309, "[%s]")
@example("-1" + "0" * 309, "%s")
@example("9" * 309, "%s")
@example("1" + "0" * 400 + "e-200", "[%s]")
@example("0." + "0" * 400 + "1e500", "[%s]")
@example("1" * 211 + "e99", "[%s]")
@example("1e0000000308", "[%s]")
@example("1E+309", "[%s]")
@example("17976931348623158e292", "%s")
@example("17976931348623159e292", "%s")
def test_a_number_is_taken_exactly_if_a_double_holds_it(number, where):
    text = (where % number).encode()
    if math.isfinite(float(number)):
        prove(text)
    else:
        error = refusal(prove, text)
        assert error.code == "invalid_params"
        assert error.message.startswith(f"The number {number.lstrip('-')[:20]}")
        assert "at `$.x" in error.message


@given(NUMBERS | BOUNDARY)
def test_what_is_taken_here_any_subscriber_can_decode(number):
    if math.isfinite(float(number)):
        prove(number.encode())
        assert math.isfinite(float(msgspec.json.decode(number)))
        assert math.isfinite(float(strict_json(number)))


@pytest.mark.parametrize("text", [b'"1e999"', b'{"1e999":"9%b"}' % (b"9" * 400), b'["\\"1e999","\\\\",1,"1e999"]'])
def test_what_looks_like_a_number_in_a_string_is_none(text):
    prove(text)
    prove(text + PADDING)


@pytest.mark.parametrize("place", [*range(STEP_BYTES - 8, STEP_BYTES + 3), *range(65_526, 65_540)])
def test_a_number_is_seen_whole_wherever_a_step_ends(place):
    text = b"[" + b" " * place + b"%b]"
    prove(text.replace(b"%b", b"1e308,1e-999"))
    assert refusal(prove, text.replace(b"%b", b"1e309"))


@pytest.mark.parametrize("number", [b"0." + b"1" * 4_094, b"1" + b"0" * 300])
def test_a_number_of_very_many_digits_is_taken_and_one_of_more_than_that_is_not(number):
    prove(b"[%b]" % number)
    assert "0.1111" in refusal(prove, b"[0.%b]" % (b"1" * 4_095)).message
    assert refusal(prove, b"[0.%b]" % (b"1" * 100_000)).code == "invalid_params"


# --- depth -------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"[" * depth + b"1" + b"]" * depth


@pytest.mark.parametrize(
    "deep",
    [
        nested(MAX_DEPTH),
        b'{"[":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH,
        b'[{"{{":[0,' * 42 + b"[[]]" + b'],"}":""}]' * 42,
        b"[" * (MAX_DEPTH - 1) + b"{}" + b"]" * (MAX_DEPTH - 1),
    ],
    ids=["lists", "objects", "both", "empty"],
)
def test_a_document_may_be_so_deep_and_no_deeper(deep):
    prove(deep)
    error = refusal(prove, b"[%b]" % deep)
    assert error.code == "invalid_json"
    assert f"deeper than {MAX_DEPTH}" in error.message
    assert "`$.x`" in error.message


def test_brackets_in_strings_nest_nothing():
    prove(b'["%b"]' % (b"[" * 1_000))
    prove(b'["\\"%b\\\\",["\\\\\\"%b"]]' % (b"[" * 1_000, b"{" * 1_000))
    prove(b"[%b]" % b",".join([b'["]["]'] * 10_000))


@pytest.mark.parametrize("escape", [b'\\"', b"\\\\", b'\\\\\\"'])
@pytest.mark.parametrize("place", range(STEP_BYTES - 8, STEP_BYTES + 3))
def test_an_escape_is_seen_whole_wherever_a_step_ends(escape, place):
    text = b'["%b%b%%b"]' % (b"x" * place, escape)
    prove(text.replace(b"%b", b"[" * 200))
    assert refusal(prove, text.replace(b"%b", b'",%b,"' % nested(200)))


def test_many_brackets_side_by_side_are_not_deep():
    prove(b"[%b]" % b",".join([b"[]", b"{}"] * 10_000))
    prove(b"[%b]" % b",".join([nested(MAX_DEPTH - 1)] * 100))
    assert refusal(prove, b"[%b,%b]" % (b",".join([nested(MAX_DEPTH - 1)] * 100), nested(MAX_DEPTH)))


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_depth_is_that_of_a_decoder(seed, most):
    rng = random.Random(seed)

    def grow(depth):
        if depth == 0 or rng.random() < 0.2:
            return rng.choice(['"["', '"\\""', '"\\\\"', '"]\\\\\\""', "1", "[]", "{}"])
        inner = [grow(depth - 1) for _ in range(rng.choice([1, 1, 2, 3] if depth < 8 else [1]))]
        if rng.random() < 0.5:
            return f"[{','.join(inner)}]"
        return "{" + ",".join(f'"}}{number}":{item}' for number, item in enumerate(inner)) + "}"

    def depth_of(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return isinstance(value, dict | list) + max(map(depth_of, inner), default=0)

    text = f"[{'[],' * 150}{grow(most)}]"
    depth = depth_of(json.loads(text))
    at_once(check_document(text.encode(), "$", depth))
    assert refusal(at_once, check_document(text.encode(), "$", depth - 1))


# --- what proves nothing costs next to nothing ---------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"%b"}' % (b"hello, world (1) " * 15_000),
        b"[%b]" % b",".join([b"1"] * 130_000),
        b'{"a":%b}' % nested(100),
    ],
)
def test_a_document_without_large_numbers_or_many_brackets_is_proved_in_a_few_long_steps(text):
    assert steps_of(check_document(text, "$")) <= len(text) // 65_536


@pytest.mark.parametrize("item", [b"[]", b'["["]', b"1e307", b'"\\\\\\"",1e300', b'{"a":-1e300}'])
def test_a_long_proof_is_made_in_steps_of_bounded_work(item):
    text = b"[%b]" % b",".join([item] * (1_000_000 // len(item)))
    assert steps_of(check_document(text, "$")) >= len(text) // STEP_BYTES - 1


# --- how many values ---------------------------------------------------------


def test_values_are_counted_outside_of_strings():
    text = b'["%b",[1,2]]' % (b",[{" * 100)
    assert not has_more_values(text, 4)
    assert has_more_values(text, 3)


def test_counting_ends_with_the_first_value_too_many():
    counted = []

    class Text(bytes):
        def __getitem__(self, key):
            counted.append(key)
            return super().__getitem__(key)

    assert has_more_values(Text(b"[%b]" % b",".join([b"1"] * 1_000_000)), 1_000)
    assert len(counted) == 1


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"type":"a","payload":{"x":1e309}}', "$.payload"),
        ('{"type":"a","payload":{},"params":[1e309]}', "$.params"),
        ('{"a name of the client":1e309}', "$"),
        ("[1e309]", "$"),
        ('{"payload":["1e309"],"params":[1e309]}', "$.params"),
    ],
)
def test_a_number_that_is_out_of_range_is_told_by_its_member(text, place):
    error = refusal(lambda: at_once(check_document(text.encode(), "$")))
    assert (error.code, error.message) == ("invalid_params", f"The number 1e309 is out of range - at `{place}`")


def test_among_very_many_members_the_whole_is_named():
    text = json.dumps({f"a{n}": 0 for n in range(2_000)}).replace("0}", "1e309}")
    assert refusal(lambda: at_once(check_document(text.encode(), "$"))).message.endswith("- at `$`")
