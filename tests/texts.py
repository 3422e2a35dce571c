"""Texts from outside, well formed and not, and what the tests of decoding say of them."""

import json
from typing import Any

from hypothesis import strategies as st

from broker.errors import BadCommandError, BadFrameError, RequestError


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


def steps_of(work) -> int:
    """Return in how many steps work is done, beside the last."""
    return sum(1 for _ in work)


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
