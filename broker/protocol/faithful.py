"""What a program hands over, as JSON that says the same: what JSON has no form for is refused, not changed.

Pure. msgspec writes `null` for a number that is none, and whatever stands in a `Raw`.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

_encode: Final = msgspec.json.Encoder().encode
_skip: Final = msgspec.json.Decoder(Raw).decode


class UnfaithfulError(ValueError):
    """JSON has no form for it. ``place`` is where it stands: `.payload.score[2]`; empty: it is all of it."""

    def __init__(self, said: str, place: str = "") -> None:
        super().__init__(f"{said} - at `${place}`")
        self.said = said
        self.place = place


def encode_faithfully(value: Any) -> bytes:
    """Return the JSON of a value.

    Raises `UnfaithfulError`, and what msgspec raises for what it does not know: TypeError, ValueError, RecursionError.
    """
    text = _encode(value)
    if b"null" in text:
        _require_numbers(value)
    return text


def require_json(text: bytes) -> None:
    """Raise `UnfaithfulError` for what is no JSON: a `Raw` of something else was written into it."""
    try:
        _skip(text)
    except msgspec.DecodeError as error:
        raise UnfaithfulError(f"a `Raw` in it is no JSON ({error})") from None


def _require_numbers(value: Any) -> None:
    """Raise `UnfaithfulError` if one of the numbers in it is not finite."""
    plain = msgspec.to_builtins(value, enc_hook=lambda _: None)  # a `Raw` has its own numbers
    try:
        json.dumps(plain, allow_nan=False)
    except (ValueError, RecursionError):
        for place, number in _numbers(plain):
            if not math.isfinite(number):
                raise UnfaithfulError(f"{number!r} is no number in JSON", place) from None


def _numbers(plain: Any) -> Iterator[tuple[str, float]]:
    """Return the floats in it, and where each stands."""
    left = [("", plain)]
    while left:
        place, value = left.pop()
        if isinstance(value, float):
            yield place, value
        elif isinstance(value, dict):
            left += [(f"{place}.{name}", member) for name, member in reversed(value.items())]
        elif isinstance(value, (list, tuple)):
            left += [(f"{place}[{index}]", item) for index, item in reversed([*enumerate(value)])]
