"""How much of what a client sent is handed on at once, and when it is too much: by the headers of its frames.

Pure. trio-websocket handles all frames of what it is given in one step, and counts neither empty fragments nor bytes.
So a `FrameScanner` stands between it and the socket: it walks from header to header (RFC 6455 section 5.2), unmasks
nothing but a Close, and leaves all that is wrong with a frame to who parses it.
"""

import math
from typing import Final

from ..errors import CloseCode
from .ending import Ending, closed_by_broker

PIECE_FRAMES: Final = 32
"""Frames that are handed on in one step: a quarter of a millisecond, whatever they are."""
DISCARDED_FRAMES: Final = 1_024
"""The same of frames that nobody handles: half a millisecond. What is thrown away slowly is kept for long."""
MAX_EMPTY_FRAGMENTS: Final = 100
"""Of one message, beside its last."""
FRAGMENT_BYTES: Final = 64
"""A message in the most fragments has so many bytes in each, or it is too big: an empty one costs as much to keep."""
MIN_FRAGMENTS: Final = 1_000
"""However small `max_message_bytes` is, a message may have so many."""

_FIN: Final = 0x80
_MASKED: Final = 0x80
_CONTROL: Final = 0x08
_OPCODE: Final = 0x0F
_CLOSE: Final = 0x88
_MASKED_HEADER_BYTES: Final = 6
_SHORT: Final = 125
"""The longest payload whose length is in the second byte; and the longest of a control frame."""


class FrameScanner:
    """One client's frames as they come: `feed`, then `next_piece` until it is empty."""

    __slots__ = (
        "_at",
        "_bytes",
        "_data",
        "_empty",
        "_fragments",
        "_max_bytes",
        "_max_empty",
        "_max_fragments",
        "_now",
        "_payload_left",
        "_unfinished",
        "begun_at",
        "close",
        "too_much",
    )

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes: float = max_message_bytes
        self._max_fragments: float = max(MIN_FRAGMENTS, max_message_bytes // FRAGMENT_BYTES)
        self._max_empty: float = MAX_EMPTY_FRAGMENTS
        self._data = b""
        self._at = 0
        self._now = 0.0
        self._payload_left = 0
        """Of the data frame under way."""
        self._unfinished = False
        """Whether more fragments of the message are to come."""
        self._bytes = self._fragments = self._empty = 0
        """Of the message under way."""
        self.begun_at: float | None = None
        """When the message under way began; None: there is none."""
        self.close: bytes | None = None
        """The payload of the client's Close, once that is reached: nothing is handed on after it."""
        self.too_much: Ending | None = None
        """Why nothing more is handed on, if it became too much."""

    @property
    def holds(self) -> bool:
        """Whether anything of what was fed is not handed on yet."""
        return self._at < len(self._data)

    def feed(self, data: bytes, now: float) -> None:
        """Take what the client sent, and the time."""
        self._data = self._data[self._at :] + data if self.holds else data
        self._at = 0
        self._now = now

    def next_piece(self, most: int = PIECE_FRAMES) -> bytes:
        """Return what is to be handed on in one step: whole headers, and as much of payloads as is there.

        It is of ``most`` frames at most. Nothing: feed more, unless this is the end (`close`, `too_much`). A control
        frame comes whole.
        """
        data, start, frames = self._data, self._at, 0
        while self._at < len(data) and frames < most and self._pass_frame():
            frames += 1
        piece = data[start : self._at]
        if self._at == len(data):
            self._data, self._at = b"", 0
        return piece

    def pardon(self) -> None:
        """Find nothing too much any more: what comes is thrown away until the client's Close."""
        self.too_much = None
        self._max_bytes = self._max_fragments = self._max_empty = math.inf

    def _pass_frame(self) -> bool:
        """Move over one frame, or over what is there of its payload. False: nothing is there to be handed on."""
        data, at = self._data, self._at
        if self._payload_left:
            return self._pass_payload(at)
        there = len(data) - at
        if there < 2:
            return False
        first, second = data[at], data[at + 1]
        size, header_bytes = second & 0x7F, 6 if second & _MASKED else 2
        if first & _CONTROL:
            return self._pass_control(first, header_bytes, size)
        if size > _SHORT:
            length_bytes = 2 if size == 126 else 8
            header_bytes += length_bytes
            size = int.from_bytes(data[at + 2 : at + 2 + length_bytes])
        if there < header_bytes or not self._count(first, size):
            return False
        self._payload_left = size
        return self._pass_payload(at + header_bytes)

    def _pass_payload(self, at: int) -> bool:
        passed = min(self._payload_left, len(self._data) - at)
        self._at = at + passed
        self._payload_left -= passed
        if not (self._payload_left or self._unfinished):
            self.begun_at = None
        return True

    def _pass_control(self, first: int, header_bytes: int, size: int) -> bool:
        """Move over a control frame that is here whole; a Close is not handed on."""
        if size > _SHORT:
            self._at = len(self._data)  # broken: it is refused at its second byte
            return True
        payload_at = self._at + header_bytes
        if len(self._data) < payload_at + size:
            return False
        if first == _CLOSE and header_bytes == _MASKED_HEADER_BYTES:
            mask = self._data[payload_at - 4 : payload_at]
            payload = self._data[payload_at : payload_at + size]
            self.close = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
            return False
        self._at = payload_at + size
        return True

    def _count(self, first: int, size: int) -> bool:
        """Count a data frame toward its message. False: it is too much, which is this client's end."""
        finished = first & _FIN != 0
        if first & _OPCODE:
            self._bytes = self._fragments = self._empty = 0
            self.begun_at = self._now
        self._unfinished = not finished
        self._bytes += size
        self._fragments += 1
        self._empty += size == 0 and not finished
        if self._bytes > self._max_bytes:
            self.too_much = closed_by_broker(CloseCode.TOO_BIG, f"a message of more than {self._max_bytes} bytes")
        elif self._fragments > self._max_fragments:
            self.too_much = closed_by_broker(
                CloseCode.TOO_BIG, f"a message of more than {self._max_fragments} fragments"
            )
        elif self._empty > self._max_empty:
            self.too_much = closed_by_broker(CloseCode.TOO_MANY_BAD_FRAMES, "too many empty fragments")
        return self.too_much is None
