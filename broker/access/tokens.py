"""Connection tokens: what a key hands to a browser or an agent for a minute (PROTOCOL section 1).

Pure: the time of day comes in as an argument. A token is ``wst_CLAIMS.SIGNATURE``, both in base64url: any process with
the same secret can check it, and none keeps anything of it. The signature is over the text of the claims, and is
compared as text: so no other text is the same token.
"""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hmac import compare_digest, digest
from typing import Final

import msgspec
from msgspec import Struct

from ..errors import RequestError
from ..protocol.messages import Token, TokenRequest, format_time
from ..protocol.names import ALL_INBOXES
from .keys import TOKEN_PREFIX, Key, Narrowing, unauthorized

MAX_TOKEN_LENGTH: Final = 4_096
"""It must fit into a URL behind any proxy."""
MAX_NAMES: Final = MAX_TOKEN_LENGTH // 4
"""So many inboxes or scopes could not fit into a token, however short they are: none of them is looked at."""


class Claims(Struct, frozen=True, array_like=True):
    """What a token says: whose it is, until when, and what it leaves of the key."""

    key_sha256: str
    expires_at_ms: int
    """Of the time of day, since 1970."""
    narrowing: Narrowing


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Claims).decode


class Tokens:
    """Signs and reads tokens. ``ttl_seconds`` is the longest that one lives."""

    def __init__(self, secret: str, ttl_seconds: float) -> None:
        self._secret = secret.encode()
        self._ttl_seconds = ttl_seconds

    def issue(self, key: Key, request: TokenRequest, wall: datetime) -> Token:
        """Return a token of a key.

        Raises `RequestError`: ``forbidden`` if it is to reach more than the key, ``too_large`` if it names too much.
        """
        if key.is_operator:
            raise RequestError("forbidden", "An operator key gets no token")
        key.require_key()
        _check_size(request)
        narrowing = Narrowing(_inboxes_of(key, request), _scopes_of(key, request))
        ttl_seconds = self._ttl_seconds if request.ttl_seconds is None else request.ttl_seconds
        if ttl_seconds > self._ttl_seconds:
            raise RequestError("forbidden", f"A token lives {self._ttl_seconds} s at most - at `$.ttl_seconds`")
        expires_at = wall + timedelta(seconds=ttl_seconds)
        claims = _encode(Claims(key.sha256, int(expires_at.timestamp() * 1000), narrowing))
        text = TOKEN_PREFIX + urlsafe_b64encode(claims).rstrip(b"=").decode()
        token = f"{text}.{self._sign(text)}"
        if len(token) > MAX_TOKEN_LENGTH:
            raise _too_large("inbox_ids")
        return Token(token, format_time(expires_at))

    def read(self, token: str, wall: datetime) -> Claims:
        """Return what a token says. Raises `RequestError` (`unauthorized`) if it is not ours, or too old."""
        text, _, signature = token.rpartition(".")
        if len(token) > MAX_TOKEN_LENGTH or not compare_digest(_bytes_of(signature), self._sign(text).encode()):
            raise unauthorized("The token is not known")
        claims = _claims_of(text)
        if wall >= datetime.fromtimestamp(claims.expires_at_ms / 1000, UTC):
            raise unauthorized("The token has expired")
        return claims

    def _sign(self, text: str) -> str:
        return urlsafe_b64encode(digest(self._secret, _bytes_of(text), "sha256")).rstrip(b"=").decode()


def _check_size(request: TokenRequest) -> None:
    """Refuse what cannot fit into a token, at no more cost than its length."""
    for field, names in (("inbox_ids", request.inbox_ids), ("scopes", request.scopes)):
        if names is not None and (len(names) > MAX_NAMES or sum(map(len, names)) > MAX_TOKEN_LENGTH):
            raise _too_large(field)


def _too_large(field: str) -> RequestError:
    return RequestError("too_large", f"So many do not fit into a token - at `$.{field}`")


def _inboxes_of(key: Key, request: TokenRequest) -> frozenset[str] | None:
    asked = request.inbox_ids
    if asked is None or ALL_INBOXES in asked:
        return None
    for index, inbox_id in enumerate(asked):
        key.require_inbox(inbox_id, f"$.inbox_ids[{index}]")
    return frozenset(asked)


def _scopes_of(key: Key, request: TokenRequest) -> frozenset[str] | None:
    for index, scope in enumerate(request.scopes or ()):
        if scope not in key.scopes:
            raise RequestError("forbidden", f"The key does not carry the scope `{scope}` - at `$.scopes[{index}]`")
    return None if request.scopes is None else frozenset(request.scopes)


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _claims_of(text: str) -> Claims:
    """Decode claims whose signature was found good."""
    encoded = text.removeprefix(TOKEN_PREFIX)
    try:
        return _decode(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (msgspec.DecodeError, binascii.Error):
        raise unauthorized("The token is not known") from None
