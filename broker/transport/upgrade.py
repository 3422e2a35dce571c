"""The whole check of a WebSocket upgrade (RFC 6455 section 4.2.1).

wsproto parses an accepted head a second time, and there a refusal hangs or raises: so everything that it would
stumble over is refused here, before the upgrade.
"""

import re

from msgspec import Struct

from ..access.keys import Key
from ..access.opening import Opening
from ..access.slots import Slot
from ..errors import RequestError
from .http11 import Request

_WSPROTO_HEAD_BYTES = 16_384
"""wsproto keeps h11's default limit, whatever ours is."""

_HOST_BYTES = 260
"""No DNS name with its port is longer; IDNA decoding takes quadratic time."""

_WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")

_UPGRADE_HEADERS = (("Upgrade", "websocket"), ("Connection", "Upgrade"))

_ONCE_IN_UPGRADE = (
    b"host",
    b"authorization",
    b"connection",
    b"upgrade",
    b"origin",
    b"sec-websocket-key",
    b"sec-websocket-version",
)

_ASCII_IN_UPGRADE = frozenset(
    {b"host", b"connection", b"origin", b"sec-websocket-protocol", b"sec-websocket-extensions"}
)


class Upgrade(Struct, frozen=True):
    """A WebSocket that may be opened: by whom, what it asks for, its slot, and the length of the head that asked."""

    key: Key
    opening: Opening
    slot: Slot
    head_bytes: int


def check_upgrade(request: Request) -> None:
    """Return if trio-websocket and wsproto will take this head; raise `RequestError` if not (RFC 6455 section 4.2.1).

    ``upgrade_required`` (426) if it asks for no WebSocket or another version, else ``bad_request`` (400).
    """
    for name in _ONCE_IN_UPGRADE:
        request.header(name)
    if not _asks_for_websocket(request):
        raise RequestError("upgrade_required", "This is a WebSocket endpoint", headers=_UPGRADE_HEADERS)
    if request.header(b"sec-websocket-version") != b"13":
        headers = (*_UPGRADE_HEADERS, ("Sec-WebSocket-Version", "13"))
        raise RequestError("upgrade_required", "Sec-WebSocket-Version must be 13", headers=headers)
    if request.method != "GET" or request.http_version < b"1.1":
        raise RequestError("bad_request", "An upgrade must be a GET of HTTP/1.1")
    if not _WEBSOCKET_KEY.fullmatch(request.header(b"sec-websocket-key") or b""):
        raise RequestError("bad_request", "Sec-WebSocket-Key must be 16 bytes in base64")
    if request.has_body():
        raise RequestError("bad_request", "An upgrade must have no body")
    if request.head_bytes > _WSPROTO_HEAD_BYTES:
        raise RequestError("head_too_large", f"An upgrade's head may have {_WSPROTO_HEAD_BYTES} bytes")
    for name, value in request.headers:
        if name in _ASCII_IN_UPGRADE and not value.isascii():
            raise RequestError("bad_request", f"The header {name.decode('ascii')} is not ASCII")
    _check_host(request.header(b"host"))


def _asks_for_websocket(request: Request) -> bool:
    # wsproto takes no list of protocols, so "websocket, h2c" asks for nothing that could be given
    tokens = (request.header(b"connection") or b"").lower().split(b",")
    wanted = (request.header(b"upgrade") or b"").lower()
    return wanted == b"websocket" and any(token.strip(b" \t") == b"upgrade" for token in tokens)


def _check_host(host: bytes | None) -> None:
    # wsproto decodes it so, and UnicodeError would end its reader; ASCII is no guard ("xn--...")
    try:
        if host is None or len(host) > _HOST_BYTES:
            raise ValueError
        host.decode("idna")
    except ValueError:
        raise RequestError("bad_request", "The header host is missing or no host name") from None
