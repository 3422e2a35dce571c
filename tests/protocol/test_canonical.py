"""canonical.py: two documents are the same exactly if they say the same, numbers as they are written."""

import json
import random

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from texts import steps_of

from broker.protocol.canonical import canonical
from broker.protocol.documents import STEP_BYTES, at_once

SPACE = " \t\r\n"
PADDING = b" " * (STEP_BYTES + 1)
"""What makes a document too long for one step."""


def same(one: bytes, other: bytes) -> bool:
    return at_once(canonical(one)) == at_once(canonical(other))


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
