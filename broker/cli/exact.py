"""JSON as the command line reads it and writes it: a number keeps all the digits that it was written with.

A float would lose those beyond its sixteenth: the broker carries payloads as they are, and so do the verbs.
"""

import json
from decimal import Decimal
from typing import Any, Final, NoReturn

import msgspec

_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


def read_json(text: str | bytes) -> Any:
    """Return what a JSON text says; a number with a fraction or an exponent as a `Decimal`. Raises ValueError."""
    return json.loads(text, parse_float=Decimal, parse_constant=_refuse)


def json_of(value: Any) -> bytes:
    """Return a value as JSON, in one line. Raises ValueError for text that has half a character in it."""
    return _encode(value)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
