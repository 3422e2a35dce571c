"""documents.py: what is proved of JSON without decoding it, and what makes two documents the same."""

import json
import math
import random

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from texts import refusal, strict_json

from broker.errors import RequestError
from broker.protocol.documents import (
    MAX_DEPTH,
    STEP_BYTES,
    at_once,
    canonical,
    check_document,
    decode_as,
    has_more_values,
)

SPACE = " \t\r\n"
PADDING = b" " * (STEP_BYTES + 1)
"""What makes a document too long for one step."""


def prove(text: bytes, path: str = "$.x") -> None:
    at_once(check_document(text, path))


def same(one: bytes, other: bytes) -> bool:
    return at_once(canonical(one)) == at_once(canonical(other))


def steps_of(steps) -> int:
    return sum(1 for _ in steps)


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
        assert "`$.x`" in error.message


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


@pytest.mark.parametrize("place", range(STEP_BYTES - 8, STEP_BYTES + 3))
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


# --- the same document -------------------------------------------------------


class Number(tuple):
    """A number by how it is written."""


def meaning(text: bytes):
    """What a document says, numbers as they are written; by another parser."""
    return json.loads(text, parse_int=lambda n: Number([n]), parse_float=lambda n: Number([n]))


NUMBER_TEXTS = st.sampled_from(
    ["0", "-0", "1", "1.0", "1.00", "1e0", "1E0", "1e+0", "10", "1e1", "0.0", "-0.0", "1e-400", "12345678901234567.12",
     "12345678901234567.34", "123456789012345678901234567890", "123456789012345678901234567891", "9" * 4_400]
)  # fmt: skip
CHARACTERS = st.sampled_from('aAbé\u007f\u0080\u2028😀"\\/\b\n\t\x00{}[]:,0-! #') | st.characters(codec="utf-8")
TEXTS = st.text(CHARACTERS, max_size=5)
ESCAPES = {"\b": "\\b", "\n": "\\n", "\t": "\\t", "/": "\\/", '"': '\\"', "\\": "\\\\"}


def written(value, rng: random.Random) -> str:
    """A value as JSON, in any of the ways that it may be written; names of an object in any order."""

    def space():
        return "".join(rng.choices(SPACE, k=rng.choice([0, 0, 0, 1, 2])))

    def character(char):
        code = char.encode("utf-16-be").hex()
        unicode = "".join(f"\\u{code[i : i + 4]}" for i in range(0, len(code), 4))
        if char in '"\\' or char < " ":
            return rng.choice([unicode, unicode.upper().replace("\\U", "\\u"), ESCAPES.get(char, unicode)])
        return rng.choice([char, char, unicode, ESCAPES.get(char, char)])

    def string(text):
        return f'"{"".join(map(character, text))}"'

    if isinstance(value, Number):
        body = value[0]
    elif isinstance(value, str):
        body = string(value)
    elif isinstance(value, list):
        body = f"[{','.join(written(item, rng) for item in value) or space()}]"
    elif isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        members = [f"{space()}{string(name)}{space()}:{written(item, rng)}" for name, item in items]
        if items and rng.random() < 0.3:  # of a name that stands twice the last counts
            members.insert(0, f"{string(rng.choice(items)[0])}:{written(rng.choice([[], {}, 'x']), rng)}")
        body = f"{{{','.join(members) or space()}}}"
    else:
        body = json.dumps(value)
    return f"{space()}{body}{space()}"


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | NUMBER_TEXTS.map(lambda text: Number([text])) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
LENGTHENED = [lambda text: text, lambda text: text + PADDING, lambda text: PADDING + text]
"""A short document is read as a whole, a long one by its pieces."""


@given(DOCUMENTS, st.integers(0, 2**32), st.sampled_from(LENGTHENED), st.sampled_from(LENGTHENED))
@example({"a": Number(["-0"])}, 0, LENGTHENED[0], LENGTHENED[1])
@example({"!": 1, "": 2, '"': 3, "a!": 4, "a": 5}, 0, LENGTHENED[0], LENGTHENED[1])
def test_a_document_is_the_same_however_it_is_written(value, seed, longer, longer_too):
    rng = random.Random(seed)
    one, other = (written(value, rng).encode() for _ in range(2))
    assert meaning(one) == meaning(other)
    assert same(longer(one), longer_too(other))


@given(st.lists(DOCUMENTS, min_size=2, max_size=2), st.integers(0, 2**32), st.sampled_from(LENGTHENED))
@example([Number(["0"]), Number(["-0"])], 0, LENGTHENED[0])
@example([Number(["1"]), "1"], 0, LENGTHENED[0])
@example([Number(["1.0"]), "1.0"], 0, LENGTHENED[0])
@example([[Number(["1"]), Number(["2"])], [Number(["12"])]], 0, LENGTHENED[1])
@example([{"a": [], "b": {}}, {"a": {}, "b": []}], 0, LENGTHENED[1])
@example([{"a": "b"}, ["a", "b"]], 0, LENGTHENED[1])
@example([True, Number(["1"])], 0, LENGTHENED[1])
@example([[], [[]]], 0, LENGTHENED[1])
@example([None, "null"], 0, LENGTHENED[1])
def test_two_documents_are_the_same_exactly_if_they_say_the_same(values, seed, longer):
    one, other = (written(value, random.Random(seed)).encode() for value in values)
    assert same(longer(one), longer(other)) == (meaning(one) == meaning(other))


@given(DOCUMENTS, st.integers(0, 2**32), st.data())
def test_another_number_name_or_text_anywhere_makes_another_document(value, seed, data):
    one = written(value, random.Random(seed)).encode()
    place = data.draw(st.integers(0, len(one) - 1))
    other = one[:place] + data.draw(st.sampled_from([b"0", b"1", b" ", b"a", b"-", b"e", b",", b""])) + one[place + 1 :]
    try:
        changed = meaning(other)
        msgspec.json.decode(other, type=msgspec.Raw)
        other.decode()
    except (ValueError, msgspec.DecodeError):
        return
    assert same(one, other) == (meaning(one) == changed)
    assert same(one + PADDING, other) == (meaning(one) == changed)


@pytest.mark.parametrize(
    "value",
    [
        {f"name {number}": number for number in range(3_000)},
        [{"a": number, "b": ["x\n", {"c": None}]} for number in range(3_000)],
        {"a": {"b": {"c": ["x" * 5_000, {"d": "y" * 5_000}], "d": "\n" * 5_000}}, "e": "z" * 20_000},
        [['[{\\"', {}], {"": ""}] * 2_000,
        {"list": ["a", "b", "", {}, {}] * 3_000, "\n": ["\n"] * 3_000},
    ],
)
def test_long_documents_too_are_the_same_however_they_are_written(value):
    one = json.dumps(value, separators=(",", ":")).encode()
    assert len(one) > STEP_BYTES
    other = json.dumps(dict(reversed(value.items())) if isinstance(value, dict) else value, indent=1, ensure_ascii=True)
    assert same(one, other.encode())
    assert same(one, msgspec.json.encode(value, order="deterministic"))
    assert not same(one, one[:-1] + one[-1:].replace(b"]", b",1]").replace(b"}", b',"more":1}'))


@pytest.mark.parametrize("item", ['{"":1}', "{}", '"\\n"', '"x"', '{"":-0}', "[[]]"])
def test_a_long_list_is_read_in_steps_of_bounded_work(item):
    text = f"[{', '.join([item] * (500_000 // len(item)))}]"
    assert steps_of(canonical(text.encode())) >= len(text) // 100_000


def test_a_long_object_is_read_and_its_names_are_sorted_in_steps_of_bounded_work():
    text = "{" + ",".join(f'"{number:x}":1' for number in range(50_000)) + "}"
    assert steps_of(canonical(text.encode())) >= 3 * 50_000 // 1_024


# --- what is refused is said -------------------------------------------------


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ('"\\ud800"', "\\ud800"),
        ('["\\udc00"]', "\\udc00"),
        ('["\\uD83D x"]', "\\uD83D"),
        ('["\\ud83d\\ude00", "\\ud83d\\ud83d\\ude00"]', "\\ud83d"),
        ('["\\\\\\ud800"]', "\\ud800"),
        ('{"\\udbff":1, "b":["......"]}', "\\udbff"),
    ],
)
def test_half_of_a_surrogate_pair_is_named(text, half):
    for given_as in (text, text.encode()):
        error = refusal(decode_as, msgspec.json.decode, given_as, "$.x")
        assert error.code == "invalid_json"
        assert f"`{half}`" in error.message
        assert "surrogate" in error.message
        assert "`$.x`" in error.message


@pytest.mark.parametrize("text", ['"\\\\ud800', '["\\ud83d\\ude00"', '{"a":"\\u00e9"', '"\\ud8'])
def test_what_is_only_cut_off_is_not_taken_for_half_of_a_pair(text):
    assert "surrogate" not in refusal(decode_as, msgspec.json.decode, text, "$").message


def test_at_once_gives_the_value_of_all_steps():
    def steps():
        yield
        yield
        return 7

    assert at_once(steps()) == 7
    with pytest.raises(RequestError):
        at_once(check_document(b"[1e999]", "$"))
