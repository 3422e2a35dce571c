"""JSON as text: decoded, split, proved and compared in bounded steps, without making objects of it.

Pure. msgspec skips a value at a few nanoseconds a byte, and proves grammar, escapes and surrogates on its way. What
it leaves open is proved here: how deep a document is, and that each of its numbers fits a double. What may take long
is a generator that yields after each step, of about half a millisecond.
"""

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from heapq import merge
from itertools import accumulate, count
from math import inf, isfinite
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct, field

from ..errors import RequestError
from .wording import located, size

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in bounded steps: others may have their turn after each. Its value is what it returns."""

MAX_DEPTH: Final = 128
"""What one decoder takes must not be too deep for the next, a subscriber's or an API's."""
STEP_BYTES: Final = 16_384
"""So much JSON, whatever it is, is worked on in one step."""

SPACE: Final = b" \t\r\n"
"""White space, as JSON has it."""
_SPACE_OR_END: Final = frozenset({b" ", b"\t", b"\r", b"\n", b""})
_SPACES: Final = re.compile(rb"[ \t\r\n]*+")
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)")
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
    if ("truncated" in str(error) or "surrogate" in str(error)) and (half := _half_of_a_pair(text)):
        return RequestError("invalid_json", f"`{half}` is half of a surrogate pair, and no character - at `{path}`")
    return RequestError("invalid_json", located(str(error), path))


_HALF: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def _half_of_a_pair(text: Any) -> str | None:
    """Return the first escape that stands for half of a surrogate pair, if there is one."""
    plain = text if isinstance(text, str) else bytes(text).decode(errors="replace")
    found = _HALF.search(plain.replace("\\\\", "--"))
    return None if found is None else found[0]


def skip_space(text: bytes, position: int, path: str, most: int) -> int:
    """Return where the white space at ``position`` ends. Raises `RequestError` if it is longer than ``most`` bytes."""
    if text[position : position + 1] not in _SPACE_OR_END:
        return position
    found = _SPACES.match(text, position, position + most + 1)
    end = position if found is None else found.end()
    if end - position > most:
        raise RequestError("too_large", f"More than {size(most)} of white space - at `{path}`")
    return end


# --- splitting ---------------------------------------------------------------


def length_of_value(text: bytes | memoryview) -> int:
    """Return how many bytes the JSON value that ``text`` begins with takes, and white space after it.

    It costs no more than that value. Raises `msgspec.DecodeError`: only its message says where a value ends.
    """
    try:
        _skip(text)
    except msgspec.DecodeError as error:
        trailing = _TRAILING.search(str(error))
        if trailing is None:
            raise
        return int(trailing[1]) - 1
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
        raise RequestError("invalid_json", f"JSON is malformed: expected ',' or ']' (byte {position}) - at `{path}`")
    position = skip_space(text, position + 1, path, most)
    if position < len(text):
        raise RequestError("invalid_json", f"JSON is malformed: trailing characters (byte {position}) - at `{path}`")


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


# --- proving -----------------------------------------------------------------

_LOOK_BYTES: Final = 65_536
_LONGEST_SIGN: Final = 256
_DIGITS_ALIKE: Final = bytes.maketrans(b"E123456789", b"e000000000")
_BIG_EXPONENT: Final = b"e000"
_MANY_DIGITS: Final = b"0" * 200
_MAX_DIGITS: Final = 4_096
_NUMERIC: Final = b"0123456789+-.eE"
_NUMBER: Final = re.compile(rb"[0-9][0-9.eE+-]{4,}+")
"""A number, or the most of it, that is long enough to be out of range."""
_UP_AND_DOWN: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def check_document(text: bytes, path: str, most_deep: int = MAX_DEPTH) -> Steps[None]:
    """Prove that JSON is at most ``most_deep`` deep, and that each of its numbers fits a double.

    Nearly every document is proved by what it does not have. Raises `RequestError` that names ``path``. Whether it is
    JSON at all is msgspec's to prove.
    """
    if not (yield from _is_plain(text, most_deep)):
        yield from _check_closely(text, path, most_deep)


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


# --- comparing ---------------------------------------------------------------

_SMALL_BYTES: Final = 4_096
_STEP_WORK: Final = 65_536
"""Bytes that are looked at or copied in one step; each piece of text counts for some more."""
_PIECE_WORK: Final = 128
_STEP_NAMES: Final = 512
_PIECE: Final = re.compile(
    rb'(?P<flat>(?:(?:"[^"\\]{0,64}+"|\{\}),){2,500}+)'
    rb'|(?P<open>\{)|(?P<close>\})|(?P<plain>[^{}"]{1,8192}+)|"[^"\\]{0,1024}+"|(?P<string>")'
)
_STRINGS: Final = (None, "string")
_COLON: Final = re.compile(rb"[ \t\r\n]*+:")
_decode_as_written = msgspec.json.Decoder(float_hook=lambda number: Raw(number.encode())).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def canonical(text: bytes) -> Steps[bytes]:
    """Return the one form of all valid JSON that says the same, numbers as they are written.

    So white space, the order of names and the ways to escape a character make no difference, `1.0` and `1` do. Of a
    name that stands twice the last counts.
    """
    if len(text) <= STEP_BYTES:
        small = _canonical_at_once(text)
        if small is not None:
            return small
    return (yield from _canonical_by_pieces(text))


def _canonical_at_once(text: bytes) -> bytes | None:
    """Return the form of a small document, None if that needs another look: objects do not tell `-0` from `0`."""
    if b"-0" in text:
        return None
    try:
        return _encode(_decode_as_written(text))
    except (msgspec.DecodeError, RecursionError):  # very many digits, or brackets
        return None


class _Frame(Struct):
    """An object that is being read: its members so far, and the text of the one at hand."""

    members: dict[str, bytes] = {}
    name: str = ""
    value: bytearray = field(default_factory=bytearray)

    def end_member(self) -> None:
        if self.value:
            self.members[self.name] = bytes(self.value).removesuffix(b",")
            self.value = bytearray()


def _canonical_by_pieces(text: bytes) -> Steps[bytes]:
    view = memoryview(text)
    outer: list[_Frame] = []
    frame = _Frame()
    position = work = 0
    while piece := _PIECE.match(text, position):
        start, position = piece.span()
        written = piece[0]
        match piece.lastgroup:
            case "open":
                written, position = _small_object(view, start)
                if not written:
                    outer.append(frame)
                    frame = _Frame()
            case "close":
                frame.end_member()
                written = yield from _object(frame.members)
                frame = outer.pop()
            case "plain":
                written = written.translate(None, SPACE)
            case "string":
                written, position = _string(view, start)
        if piece.lastgroup in _STRINGS and (colon := _COLON.match(text, position)):
            frame.end_member()
            frame.name, position = _decode_text(written), colon.end()
        else:
            frame.value += written
        work += _PIECE_WORK + len(written)
        if work >= _STEP_WORK:
            work = 0
            yield
    return bytes(frame.value)


def _string(view: memoryview, start: int) -> tuple[bytes, int]:
    """Return the form of the string that starts there, escapes and all, and where it ends."""
    string = bytes(view[start : start + length_of_value(view[start:])]).rstrip(SPACE)
    return _encode(_decode_text(string)), start + len(string)


def _small_object(view: memoryview, start: int) -> tuple[bytes, int]:
    """Return the form of the object that starts there, and where it ends; nothing of one that is not small."""
    try:
        end = start + length_of_value(view[start : start + _SMALL_BYTES])
    except (msgspec.DecodeError, RecursionError):
        return b"", start + 1
    small = _canonical_at_once(bytes(view[start:end]))
    return (b"", start + 1) if small is None else (small, end)


def _object(members: dict[str, bytes]) -> Steps[bytes]:
    """Return an object's form: its members by the order of their names."""
    written = []
    for number, name in enumerate((yield from _in_order(list(members))), start=1):
        written.append(b"%b:%b" % (_encode(name), members[name]))
        if number % _STEP_NAMES == 0:
            yield
    return b"{%b}" % b",".join(written)


def _in_order(names: list[str]) -> Steps[Iterable[str]]:
    """Sort names; very many are sorted a few at a time, and merged as they are asked for."""
    if len(names) <= _STEP_NAMES:
        return sorted(names)
    runs = []
    for start in range(0, len(names), _STEP_NAMES):
        runs.append(sorted(names[start : start + _STEP_NAMES]))
        yield
    return merge(*runs)
