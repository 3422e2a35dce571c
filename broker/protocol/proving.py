"""What msgspec leaves unproved of JSON: how deep it is, that a double holds each of its numbers, how much is in it.

Pure. Objects are made of nothing: the text itself is looked at, nearly always only for what it does not have.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from math import inf, isfinite
from typing import Final

import msgspec

from ..errors import RequestError
from .documents import STEP_BYTES, Steps

MAX_DEPTH: Final = 128
"""What one decoder takes must not be too deep for the next, a subscriber's or an API's."""
_LOOK_BYTES: Final = 65_536
_LONGEST_SIGN: Final = 256
_DIGITS_ALIKE: Final = bytes.maketrans(b"E123456789", b"e000000000")
_BIG_EXPONENT: Final = b"e000"
_MANY_DIGITS: Final = b"0" * 200
_MAX_DIGITS: Final = 4_096
_NUMERIC: Final = b"0123456789+-.eE"
_NUMBER: Final = re.compile(rb"[0-9][0-9.eE+-]{4,}+")
"""A number, or the most of it, that is long enough to be out of range."""
_FEW_COLONS: Final = 1_024
_NAMED: Final = ("payload", "params")
"""Members of events and commands that hold what their clients make up."""
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_UP_AND_DOWN: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def is_plain(text: bytes, most_deep: int = MAX_DEPTH) -> bool:
    """Whether one look at a short document proves it; where it does not, `check_document` looks closely."""
    return (
        len(text) <= _LOOK_BYTES and text.count(b"[") + text.count(b"{") <= most_deep and not _may_be_out_of_range(text)
    )


def check_document(text: bytes, path: str, most_deep: int = MAX_DEPTH) -> Steps[None]:
    """Prove that JSON is at most ``most_deep`` deep, and that each of its numbers fits a double.

    Nearly every document is proved by what it does not have. Raises `RequestError` that names ``path``. Whether it is
    JSON at all is msgspec's to prove.
    """
    if (yield from _is_plain(text, most_deep)):
        return
    try:
        yield from _check_closely(text, path, most_deep)
    except RequestError as error:
        if error.code == "invalid_params":
            yield from _check_members(text, path, most_deep)
        raise


def _check_members(text: bytes, path: str, most_deep: int) -> Steps[None]:
    """Raise `RequestError` with the member that has a number out of range, if it is one that this broker names itself.

    A name that a client has made up goes into no place: places are logged.
    """
    if text.count(b":") > _FEW_COLONS:
        return
    try:
        members = _decode_members(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return
    for name in _NAMED:
        if name in members:
            yield from _check_closely(bytes(members[name]), f"{path}.{name}", most_deep)


def _is_plain(text: bytes, most_deep: int) -> Steps[bool]:
    """Whether a document has nothing that might be too deep or out of range."""
    if text.count(b"[") + text.count(b"{") > most_deep:
        return False
    for start in range(0, len(text), _LOOK_BYTES):
        if start:
            yield
        part = text if len(text) <= _LOOK_BYTES else text[start : start + _LOOK_BYTES + _LONGEST_SIGN]
        if _may_be_out_of_range(part):
            return False
    return True


def _check_closely(text: bytes, path: str, most_deep: int) -> Steps[None]:
    depth, rest = 0, b""
    for outside in _outside_strings(text):
        depth = _check_depth(outside, depth, most_deep, path)
        numbers = rest + outside
        cut = len(numbers.rstrip(_NUMERIC))
        rest = numbers[cut:]
        _check_numbers(numbers[:cut], path)
        if len(rest) > _MAX_DIGITS:
            break
        yield
    _check_numbers(rest, path)


def has_more_values(text: bytes, most: int) -> bool:
    """Whether JSON has more than ``most`` values: what is to become objects costs by their number.

    No more is looked at than it takes to know.
    """
    if _separators(text) <= most:
        return False
    found = 0
    for outside in _outside_strings(text):
        found += _separators(outside)
        if found > most:
            return True
    return False


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _outside_strings(text: bytes) -> Iterator[bytes]:
    """Yield, a step at a time, what of valid JSON stands outside of its strings."""
    inside = False
    position = 0
    while position < len(text):
        part = text[position : position + STEP_BYTES]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:  # not between a backslash and what it escapes
            part = text[position : position + STEP_BYTES + 1]
        position += len(part)
        if b"\\" in part:
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        yield b"".join(pieces[inside::2])
        if len(pieces) % 2 == 0:
            inside = not inside


def _check_depth(outside: bytes, depth: int, most_deep: int, path: str) -> int:
    """Return how deep one is after a piece of text, ``depth`` before it."""
    brackets = memoryview(outside.translate(_UP_AND_DOWN, _NO_BRACKETS)).cast("b")
    if max(accumulate(brackets, initial=depth)) > most_deep:
        raise RequestError("invalid_json", f"The document is nested deeper than {most_deep} - at `{path}`")
    return depth + sum(brackets)


def _may_be_out_of_range(text: bytes) -> bool:
    """Whether a number might be out of a double's range: it has a large exponent, or very many digits."""
    alike = text.translate(_DIGITS_ALIKE, b"+")
    return _BIG_EXPONENT in alike or _MANY_DIGITS in alike


def _check_numbers(outside: bytes, path: str) -> None:
    if not _may_be_out_of_range(outside):
        return
    for number in _NUMBER.findall(outside):
        if len(number) > _MAX_DIGITS or not isfinite(_float_of(number)):
            shown = number.decode() if len(number) <= 24 else f"{number[:20].decode()}…"
            raise RequestError("invalid_params", f"The number {shown} is out of range - at `{path}`")


def _float_of(number: bytes) -> float:
    try:
        return float(number)
    except ValueError:
        return inf
