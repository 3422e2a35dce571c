"""JSON as text: decoded or refused by its place, split into its parts, and what all work on it in steps shares.

Pure. msgspec skips a value at a few nanoseconds a byte, and proves grammar, escapes and surrogates on its way.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from ..errors import RequestError
from .wording import located, size

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in steps of about half a millisecond: others may have their turn after each. Its value is what it returns."""

STEP_BYTES: Final = 16_384
"""So much JSON, whatever it is, is worked on in one step."""
SPACE: Final = b" \t\r\n"
"""White space, as JSON has it."""
_SPACE_OR_END: Final = frozenset({b" ", b"\t", b"\r", b"\n", b""})
_SPACES: Final = re.compile(rb"[ \t\r\n]*+")
_TRAILING: Final = "JSON is malformed: trailing characters (byte "
_HALF: Final = re.compile(
    r"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|[c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
_SAID_OF_HALF: Final = ("truncated", "surrogate", "hex escape")
"""What msgspec says of half of a surrogate pair, by what follows it."""
_skip = msgspec.json.Decoder(Raw).decode


def at_once(steps: Steps[T]) -> T:
    """Do all steps in one; return their value. For what is known to be small."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            value: T = done.value
            return value


def decode_as(decoder: Callable[[Any], T], text: Any, path: str) -> T:
    """Decode, and turn all that may go wrong into a `RequestError` that names ``path``."""
    try:
        return decoder(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _refusal(error, text, path) from None


def _refusal(error: Exception, text: Any, path: str) -> RequestError:
    match error:
        case msgspec.ValidationError():
            return RequestError("invalid_params", located(str(error), path))
        case UnicodeDecodeError():
            return RequestError("invalid_json", f"The text is not UTF-8 (byte {error.start}) - at `{path}`")
        case UnicodeError():
            return RequestError("invalid_json", f"The text is not UTF-8 - at `{path}`")
        case RecursionError():
            return RequestError("invalid_json", f"The document is nested too deeply - at `{path}`")
    if any(word in str(error) for word in _SAID_OF_HALF) and (half := _half_of_a_pair(text)):
        return RequestError("invalid_json", f"`{half}` is half of a surrogate pair, and no character - at `{path}`")
    start = text[:1].encode() if isinstance(text, str) else bytes(text[:3])
    if start == BOM_UTF8:
        return RequestError("invalid_json", f"It begins with a byte order mark - at `{path}`")
    return RequestError("invalid_json", located(str(error), path))


def _half_of_a_pair(text: Any) -> str | None:
    """Return the first escape that stands for half of a surrogate pair, if there is one."""
    plain = text if isinstance(text, str) else bytes(text).decode(errors="replace")
    found = _HALF.search(plain.replace("\\\\", "--"))
    return None if found is None else found[0]


def with_whole_characters(text: str) -> str:
    """Return JSON with another character for each escape that is half of a surrogate pair, as long as before.

    An escaped backslash becomes two spaces: what has one is another text then.
    """
    return _HALF.sub(r"\\ufffd", text.replace("\\\\", "  "))


def skip_space(text: bytes, position: int, path: str, most: int) -> int:
    """Return where the white space at ``position`` ends. Raises `RequestError` if it is longer than ``most`` bytes."""
    if text[position : position + 1] not in _SPACE_OR_END:
        return position
    found = _SPACES.match(text, position, position + most + 1)
    end = position if found is None else found.end()
    if end - position > most:
        raise RequestError("too_large", f"More than {size(most)} of white space - at `{path}`")
    return end


def length_of_value(text: bytes | memoryview) -> int:
    """Return how many bytes the JSON value that ``text`` begins with takes, and white space after it.

    It costs no more than that value. Raises `msgspec.DecodeError`: only its message says where a value ends.
    """
    try:
        _skip(text)
    except msgspec.DecodeError as error:
        said = str(error)
        if not said.startswith(_TRAILING):
            raise
        return int(said[len(_TRAILING) : -1]) - 1
    return len(text)


def elements(text: bytes, start: int, path: str, most: int) -> Iterator[tuple[str, bytes]]:
    """Yield the elements of a list whose ``[`` stands before ``start``, each with its path, at the cost of each.

    Raises `RequestError` when it comes to what is no list, to an element of more than ``most`` bytes, or to white
    space as long.
    """
    position = skip_space(text, start, path, most)
    if text[position : position + 1] != b"]":
        for index in count():
            where = f"{path}[{index}]"
            element, position = _element(text, position, where, most)
            yield where, element
            position = skip_space(text, position, path, most)
            if text[position : position + 1] != b",":
                break
            position = skip_space(text, position + 1, path, most)
    if text[position : position + 1] != b"]":
        raise _malformed(f"expected ',' or ']' (byte {position})", path)
    position = skip_space(text, position + 1, path, most)
    if position < len(text):
        raise _malformed(f"trailing characters (byte {position})", path)


def _malformed(why: str, path: str) -> RequestError:
    return RequestError("invalid_json", f"The JSON is malformed: {why} - at `{path}`")


def _element(text: bytes, start: int, where: str, most: int) -> tuple[bytes, int]:
    """Return the element that starts there, and where what follows it starts."""
    window = memoryview(text)[start : start + most + 1]
    try:
        end = start + length_of_value(window)
    except (msgspec.DecodeError, RecursionError) as error:
        if "truncated" in str(error) and start + len(window) < len(text):
            raise too_large(most, where) from None
        raise _refusal(error, window, where) from None
    return text[start:end].rstrip(SPACE), end


def lines(text: bytes, path: str, most: int) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of NDJSON, but for blank ones, each with its path; blank ones count in there.

    Raises `RequestError` when it comes to a line of more than ``most`` bytes, or to white space as long.
    """
    position = index = 0
    while (start := skip_space(text, position, path, most)) < len(text):
        index += text.count(b"\n", position, start)
        position = text.find(b"\n", start, start + most + 2)
        if position < 0:
            if start + most + 2 < len(text):
                raise too_large(most, f"{path}[{index}]")
            position = len(text)
        yield f"{path}[{index}]", text[start:position].rstrip(SPACE)


def too_large(most: int, path: str) -> RequestError:
    """Return the refusal of an event that has more bytes than it may."""
    return RequestError("too_large", f"The event has more than {size(most)} (max_event_bytes) - at `{path}`")
