"""Why a connection ends, and what its client is told by a Close frame (RFC 6455 section 7, PROTOCOL section 5).

Pure.
"""

from typing import Final

from msgspec import Struct

from ..errors import CloseCode

_MAX_CLOSE_BYTES: Final = 125
_VALID_CODES: Final = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})
"""What a client may close with: RFC 6455 section 7.4, and 1012 to 1014 of IANA's registry."""


class Ending(Struct, frozen=True):
    """Why a connection ends. ``close`` is the payload of our Close frame; None: none is sent."""

    said: str
    """Who ended it, and why: for the log."""
    close: bytes | None = None
    code: CloseCode | None = None
    """With what the broker closes it; None: it was not the broker."""

    @property
    def close_code(self) -> int | None:
        """The code of the Close, whoever sends it first; None: there is no Close, or it has no code."""
        return int.from_bytes(self.close[:2]) if self.close else None


CANCELLED: Final = Ending("the server was cancelled")
CLIENT_GONE: Final = Ending("the client left without a Close")


def closed_by_broker(code: CloseCode, why: str) -> Ending:
    """Return that the broker ends it with a code, and a reason that the client may read."""
    close = (code.to_bytes(2) + why.encode())[:_MAX_CLOSE_BYTES]
    return Ending(f"closed by the broker with {code}: {why}", close, code)


def closed_by_client(payload: bytes) -> Ending:
    """Return that the client sent a Close with this payload: it is echoed, or the broker closes because it is bad."""
    if not payload:
        return Ending("closed by the client without a code", b"")
    code = int.from_bytes(payload[:2])
    if len(payload) == 1 or code not in _VALID_CODES:
        return closed_by_broker(CloseCode.PROTOCOL_ERROR, "a Close with a code that may not be sent")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        return closed_by_broker(CloseCode.NOT_UTF8, "a Close with a reason that is not UTF-8")
    return Ending(f"closed by the client with {code}", payload)
