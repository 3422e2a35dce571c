"""What people are told: msgspec's messages, patterns, sizes and numbers, in words.

Pure. Whatever of msgspec's reaches somebody outside goes through `located`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, get_args

from msgspec import Meta

_PATTERNS: dict[str, str] = {}
_VALUES: dict[str, str] = {}

_MEBIBYTE: Final = 1_048_576
_TYPES: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "datetime": "a time",
    "null": "null",
}
_UNITS: Final = {"str": "character", "array": "element", "object": "member", "bytes": "byte"}
_LEAST_OR_MOST: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_LONGEST_SHOWN: Final = 80
"""Characters of what a client gave that are said to it again."""
A_TIME: Final = "Expected a time with its offset, such as `2026-11-23T10:00:00Z`"


def spelled(pattern: str, words: str) -> Meta:
    """Return the constraint that a text is of a pattern, of which people are told in ``words``: "Expected …"."""
    _PATTERNS[pattern] = words
    return Meta(pattern=pattern)


def told(field: str, words: str) -> None:
    """Say what people are told of a field that holds none of the values of its Literal type: "Expected …"."""
    _VALUES[field] = words


def any_of(literal: object) -> str:
    """Return the values of a Literal type in words."""
    return listed([f"`{value}`" for value in get_args(literal)])


def located(message: str, path: str) -> str:
    """Return msgspec's ``message`` in words and with its place: ``path`` stands for the bare ``$`` in it."""
    said, found, place = message.rpartition(" - at `")
    if not found:
        said, place = message, "$`"
    place = f"`{place}".replace("`$", f"`{path}", 1)
    return f"{_in_words(said, place)} - at {place}"


def _in_words(said: str, place: str) -> str:
    for pattern, words in _PATTERNS.items():
        if said.endswith(f"matching regex {pattern!r}"):
            return f"Expected {words}"
    for form, words_of in _SAYINGS:
        if found := form.fullmatch(said):
            return words_of(*found.groups())
    if found := _NOT_A_VALUE.fullmatch(said):
        field = _LAST_FIELD.search(place)
        values = _VALUES.get(field[1].rpartition("__")[2].lower()) if field else None  # a variable names it, too
        given = found[1] if len(found[1]) <= _LONGEST_SHOWN else f"{found[1][:_LONGEST_SHOWN]}…"
        return f"Expected {values}, not {given}" if values else f"{given} is no value of this"
    return said


def _types(names: str) -> str:
    """Return msgspec's names of types, of which one is meant, in words."""
    return listed([_TYPES.get(name, name) for name in names.split(" | ")])


def _plain(number: str) -> str:
    return f"{float(number):,.10g}"


_LAST_FIELD: Final = re.compile(r"([A-Za-z_]+)(?:\[[^]]*\])*`$")
_NOT_A_VALUE: Final = re.compile(r"Invalid enum value (.*)", re.DOTALL)
_SAYINGS: Final[Sequence[tuple[re.Pattern[str], Callable[..., str]]]] = [
    (re.compile(form, re.DOTALL), words_of)
    for form, words_of in (
        ("Expected `([a-z |]+)`, got `([a-z |]+)`", lambda one, other: f"Expected {_types(one)}, not {_types(other)}"),
        ("Expected `([a-z |]+)`", lambda one: f"Expected {_types(one)}"),
        (
            "Expected `(str|array|object|bytes)` of length (>=|<=) ([0-9]+)",
            lambda kind, bound, n: f"Expected {_LEAST_OR_MOST[bound]} {counted(int(n), _UNITS[kind])}",
        ),
        (
            "Expected `(int|float)` (>=|<=|>|<) ([-+0-9.e]+)",
            lambda kind, bound, n: f"Expected {_TYPES[kind]} of {_LEAST_OR_MOST[bound]} {_plain(n)}",
        ),
        ("Object missing required field (`.*`)", lambda name: f"There is no {name}"),
        ("Object contains unknown field (`.*`)", lambda name: f"Nothing here is called {name}"),
        ("Invalid RFC3339 encoded datetime|Expected `datetime` with a timezone component", lambda: A_TIME),
        (
            "(?:Number|Integer value|Float value|Timestamp|Duration) (?:is )?out of range ?",
            lambda: "It is out of range",
        ),
        ("JSON is malformed: (.*)", lambda why: f"The JSON is malformed: {why}"),
        ("Input data was truncated", lambda: "The JSON ends too early"),
    )
]


def listed(words: Sequence[str], last: str = "or") -> str:
    """Return words as a list in a sentence: "a, b or c"."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def size(number: int) -> str:
    """Return a number of bytes: "8 MiB", "262,144 bytes", "1 byte"."""
    if number and number % _MEBIBYTE == 0:
        return f"{number // _MEBIBYTE:,} MiB"
    return counted(number, "byte")


def counted(number: int, thing: str) -> str:
    """Return how many there are of a thing: "10,000 events", "1 event"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
