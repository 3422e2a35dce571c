"""WebSocket frames as a client needs them, RFC 6455 section 5.2 and no more.

A client's frames are masked with zeros, which is a mask, and leaves a template of bytes patchable.
"""

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL = 0x80
_NO_MASK = b"\0\0\0\0"


def masked_frame(opcode: int, payload: bytes) -> bytes:
    """Return one whole frame of a client."""
    size = len(payload)
    if size < 126:
        head = bytes((_FINAL | opcode, 0x80 | size))
    elif size < 65_536:
        head = bytes((_FINAL | opcode, 0xFE)) + size.to_bytes(2)
    else:
        head = bytes((_FINAL | opcode, 0xFF)) + size.to_bytes(8)
    return head + _NO_MASK + payload


class FrameReader:
    """Takes a server's bytes as they come, joined or split anywhere, and gives its whole frames."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = bytearray()
        """The bytes of a frame that is not whole yet."""

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, bytes]]:
        """Return opcode and payload of each frame that is whole with ``data``."""
        pending = self.pending
        pending += data
        frames = []
        start, have = 0, len(pending)
        while have - start >= 2:
            opcode, size = pending[start] & 0x0F, pending[start + 1]
            body = start + 2
            if size == 126:
                size, body = (pending[start + 2] << 8 | pending[start + 3] if have >= start + 4 else have), start + 4
            elif size == 127:
                size, body = (
                    (int.from_bytes(pending[start + 2 : start + 10]) if have >= start + 10 else have),
                    start + 10,
                )
            if have < body + size:
                break
            start = body + size
            frames.append((opcode, bytes(pending[body:start])))
        del pending[:start]
        return frames


def is_one_frame(buffer: bytearray, size: int) -> bool:
    """Tell whether the first ``size`` bytes of ``buffer`` are exactly one frame of data: the usual case, told fast."""
    if size < 2 or buffer[0] & 0x0F > BINARY:
        return False
    length = buffer[1]
    if length < 126:
        return size == 2 + length
    return length == 126 and size == 4 + (buffer[2] << 8 | buffer[3])
