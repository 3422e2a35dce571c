"""What a WebSocket upgrade must be (RFC 6455 section 4.2.1), and the head of our own that stands for it.

trio-websocket and wsproto never see what the client sent: they get a constant head, but for the client's key and
the subprotocol that was chosen.
"""

import re
from typing import Final

from ..errors import RequestError
from .request import Request

SUBPROTOCOL: Final = "daimon.v1"
_VERSION: Final = b"13"
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_UPGRADE_HEADERS: Final = (("Upgrade", "websocket"),)
_HEAD: Final = (
    b"GET / HTTP/1.1\r\nHost: broker\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n"
)


def check_upgrade(request: Request) -> bytes:
    """Return the head that asks trio-websocket for what the client asks for; raise `RequestError` if that is nothing.

    ``upgrade_required`` (426) if it asks for no WebSocket or another version, else ``bad_request`` (400). If the client
    offers our subprotocol, that is chosen, else none.
    """
    if not request.asks_for(b"websocket"):
        raise RequestError("upgrade_required", "This is a WebSocket endpoint", headers=_UPGRADE_HEADERS)
    if request.header(b"sec-websocket-version") != _VERSION:
        headers = (*_UPGRADE_HEADERS, ("Sec-WebSocket-Version", _VERSION.decode()))
        raise RequestError("upgrade_required", "Sec-WebSocket-Version must be 13", headers=headers)
    if request.method != "GET" or request.http_version != "1.1" or request.body_bytes != 0:
        raise RequestError("bad_request", "An upgrade must be a GET of HTTP/1.1 without a body")
    key = request.header(b"sec-websocket-key") or b""
    if not _KEY.fullmatch(key):
        raise RequestError("bad_request", "Sec-WebSocket-Key must be 16 bytes in base64")
    chosen = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n" if SUBPROTOCOL in offered_subprotocols(request) else ""
    return _HEAD % (key, chosen.encode())


def offered_subprotocols(request: Request) -> list[str]:
    """Return the subprotocols that a client offers, as they were sent (RFC 6455 section 11.3.4)."""
    return [item.decode("latin-1") for item in request.items(b"sec-websocket-protocol")]
