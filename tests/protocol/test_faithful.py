"""What a program hands over is said in JSON as it is, or not at all."""

from dataclasses import dataclass
from enum import Enum
from math import inf, nan

import msgspec
import pytest
from msgspec import Raw, Struct

from broker.protocol.faithful import UnfaithfulError, encode_faithfully, require_json


class Score(Struct):
    value: float
    note: str | None = None


@dataclass
class Scored:
    score: Score


class Constant(Enum):
    LIMIT = inf


def nested(value, levels):
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (nan, "`$`"),
        ({"a": 1, "b": [1.0, inf]}, "`$.b[1]`"),
        ({"a": {"b": (-inf,)}}, "`$.a.b[0]`"),
        (Score(nan), "`$.value`"),
        ([Scored(Score(inf))], "`$[0].score.value`"),
        ({"a": Constant.LIMIT}, "`$.a`"),
        ({"raw": Raw(b"null"), "x": nan}, "`$.x`"),
        (nested(nan, 500), "[0][0]`"),
    ],
)
def test_a_number_that_json_does_not_have_is_refused_with_its_place(value, place):
    with pytest.raises(UnfaithfulError) as raised:
        encode_faithfully(value)
    assert str(raised.value).endswith(place)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": None, "b": [1.5, None, "NaN", "null"], "c": 2**70},
        Score(1e308),
        {"a": Raw(b'{"b": null}'), "b": None},
        nested(None, 500),
    ],
)
def test_all_else_is_what_msgspec_makes_of_it(value):
    assert encode_faithfully(value) == msgspec.json.encode(value)


@pytest.mark.parametrize("raw", [b"", b"nope", b'{"a":', b"NaN"])
def test_text_that_is_passed_off_as_json_is_found(raw):
    with pytest.raises(UnfaithfulError, match="Raw"):
        require_json(encode_faithfully({"a": Raw(raw)}))
    require_json(encode_faithfully({"a": Raw(b'{"b": [1]}')}))
