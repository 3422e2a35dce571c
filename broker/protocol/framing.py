"""WebSocket frames as bytes: what a server sends, unmasked and unfragmented (RFC 6455 section 5.2).

Pure. Only text, ping and close: the fan-out and the catch-up write these by themselves; everything
else on the wire (handshake, pongs, the closing handshake) is trio-websocket's.
"""

import struct
from collections.abc import Iterator

_FIN_TEXT = 0x81
_FIN_CLOSE = 0x88
_FIN_PING = 0x89

PING = bytes([_FIN_PING, 0])
"""An empty ping, whole."""


def text_header(length: int) -> bytes:
    """Return the header of a final text frame whose payload has ``length`` bytes (2, 4 or 10 bytes)."""
    if length < 126:
        return bytes((_FIN_TEXT, length))
    if length < 65536:
        return struct.pack("!BBH", _FIN_TEXT, 126, length)
    return struct.pack("!BBQ", _FIN_TEXT, 127, length)


def text_frame(payload: bytes) -> bytes:
    """Return a final text frame around ``payload``, which must be UTF-8."""
    return text_header(len(payload)) + payload


def frames_of(data: bytes) -> Iterator[tuple[bool, bytes]]:
    """Return for each of the whole frames in ``data``, which are our own, whether it is text, and its payload."""
    start = 0
    while start < len(data):
        short = data[start + 1]
        size = 2 if short < 126 else 4 if short == 126 else 10
        length = short if size == 2 else int.from_bytes(data[start + 2 : start + size])
        yield data[start] == _FIN_TEXT, data[start + size : start + size + length]
        start += size + length


def payload_of(frame: bytes) -> bytes:
    """Return the payload of a frame that `text_frame` made."""
    short = frame[1]
    return frame[2:] if short < 126 else frame[4:] if short == 126 else frame[10:]


def close_frame(payload: bytes) -> bytes:
    """Return a Close frame around ``payload``: nothing, or a code in 2 bytes and a reason, 125 bytes in all."""
    return bytes((_FIN_CLOSE, len(payload))) + payload


def is_close(data: bytes | bytearray | memoryview) -> bool:
    """Whether ``data``, which starts at a frame's first byte, starts with a Close frame."""
    return len(data) > 0 and data[0] == _FIN_CLOSE
