"""When two documents of JSON are the same: one form for all the ways to write a document.

Pure. A short one is read as a whole. A long one is read in steps and by its pieces: in a list a text is its own form,
white space aside; objects have their members put into one order.
"""

import re
from collections.abc import Iterable
from heapq import merge
from typing import Final

import msgspec
from msgspec import Raw, Struct, field

from .documents import SPACE, STEP_BYTES, Steps, length_of_value

_SMALL_BYTES: Final = 4_096
_STEP_WORK: Final = 65_536
"""Bytes that are looked at or copied in one step; each piece of text counts for some more."""
_PIECE_WORK: Final = 128
_STEP_NAMES: Final = 512
_PIECE: Final = re.compile(
    rb'(?P<flat>(?:(?:"[^"\\]{0,64}+"|\{\}),){2,500}+)'
    rb'|(?P<open>\{)|(?P<close>\})|(?P<plain>[^{}"]{1,8192}+)|"[^"\\]{0,1024}+"|(?P<string>")'
)
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
        if colon := _COLON.match(text, position):
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
    written = bytearray()
    for number, name in enumerate((yield from _in_order(list(members))), start=1):
        written += b"%b:%b," % (_encode(name), members.pop(name))
        if number % _STEP_NAMES == 0:
            yield
    return b"{%b}" % bytes(written).removesuffix(b",")


def _in_order(names: list[str]) -> Steps[Iterable[str]]:
    """Sort names; very many are sorted a few at a time, and merged as they are asked for."""
    if len(names) <= _STEP_NAMES:
        return sorted(names)
    runs = []
    for start in range(0, len(names), _STEP_NAMES):
        runs.append(sorted(names[start : start + _STEP_NAMES]))
        yield
    return merge(*runs)
