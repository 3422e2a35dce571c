"""documents.py: what is no JSON is refused in words and by its place; steps are done."""

import msgspec
import pytest
from texts import refusal

from broker.errors import RequestError
from broker.protocol.documents import at_once, decode_as


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


def test_at_once_raises_what_a_step_raises():
    def steps():
        yield
        raise RequestError("too_large", "so it is")

    with pytest.raises(RequestError, match="so it is"):
        at_once(steps())
