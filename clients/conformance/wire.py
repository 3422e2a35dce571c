"""WebSocket frames as a proxy sees them, in either direction. Pure."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

TEXT: Final = 0x1
CLOSE: Final = 0x8
PONG: Final = 0xA


@dataclass(frozen=True)
class WireFrame:
    """One frame: what it carries, unmasked, and its bytes as they came."""

    opcode: int
    payload: bytes
    wire: bytes

    @cached_property
    def said(self) -> dict[str, Any]:
        """The JSON object of a text; of anything else an empty one."""
        if self.opcode != TEXT:
            return {}
        try:
            said = json.loads(self.payload)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}


class Frames:
    """Bytes in pieces of any size → whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[WireFrame]:
        """Take more bytes; yield the frames that are whole now."""
        self._buffer += data
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> WireFrame | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start])
        mask = b""
        if buffer[1] & 0x80:
            mask, start = bytes(buffer[start : start + 4]), start + 4
        if len(buffer) < start + size:
            return None
        wire = bytes(buffer[: start + size])
        del buffer[: start + size]
        payload = wire[start:]
        if mask and payload:
            key = (mask * (size // 4 + 1))[:size]
            payload = (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)
        return WireFrame(wire[0] & 0x0F, payload, wire)


def from_server(opcode: int, payload: bytes) -> bytes:
    """Return a frame as a server writes it."""
    size = len(payload)
    kind, longer = bytes([0x80 | opcode]), b"\x7e" + size.to_bytes(2) if size < 65_536 else b"\x7f" + size.to_bytes(8)
    return kind + (bytes([size]) if size < 126 else longer) + payload


def saying(said: dict[str, Any]) -> bytes:
    """Return a text of a server."""
    return from_server(TEXT, json.dumps(said, separators=(",", ":")).encode())
