"""Where to, as whom, and what for: the request that opens a stream."""

import os
import ssl
import warnings
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

PLANNED_URL: Final = "wss://ws.daimon.email/v1/stream"
STREAM_PATH: Final = "/v1/stream"
MAX_QUERY_CHARACTERS: Final = 4_000
"""Of inboxes in the query of an opening; a head has 16 KiB at most. Others are subscribed to behind it."""
_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

TokenFunction = Callable[[], str | Awaitable[str]]
"""Gives a fresh connection token for each opening."""


def url_of(url: str | None) -> str:
    """Return the stream's URL: what is given, else DAIMON_WS_URL, else the planned one. Raises ValueError."""
    given = url or os.environ.get("DAIMON_WS_URL") or PLANNED_URL
    parts = urlsplit(given if "://" in given else f"ws://{given}")
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"url: {given!r} is no address of a broker, such as wss://broker.example/v1/stream")
    path = STREAM_PATH if parts.path in ("", "/") else parts.path
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def key_of(api_key: str | None, token: TokenFunction | None) -> str | None:
    """Return the key: what is given, else DAIMON_API_KEY; None where tokens are fetched. Raises ValueError."""
    if token is not None:
        return None
    key = api_key or os.environ.get("DAIMON_API_KEY")
    if not key:
        raise ValueError("api_key: there is none, and no DAIMON_API_KEY in the environment")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("api_key: it has characters that no key has, perhaps a line break at its end")
    return key


async def fresh_token(token: TokenFunction | None) -> str:
    """Return a token for one opening. Raises what the function raises, and ValueError if it gives none."""
    given = None if token is None else token()
    fresh = await given if isinstance(given, Awaitable) else given
    if not (isinstance(fresh, str) and fresh):
        raise ValueError(f"token: {fresh!r} is none")
    return fresh


def warn_of_clear_text(url: str) -> None:
    """Warn of a key that goes over the network for everybody to read."""
    parts = urlsplit(url)
    if parts.scheme == "ws" and not _is_this_host(parts.hostname or ""):
        warnings.warn(f"the key goes to {parts.hostname} in the clear: use wss://", stacklevel=3)


def _is_this_host(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Target:
    """The TCP address of a URL, and whether TLS is spoken there."""

    host: str
    port: int
    tls: bool


def target_of(url: str) -> Target:
    """Return where a stream's URL leads to."""
    parts = urlsplit(url)
    tls = parts.scheme == "wss"
    return Target(parts.hostname or "", parts.port or (443 if tls else 80), tls)


def stream_url(
    url: str,
    *,
    inbox_ids: Iterable[str] | None,
    event_types: Iterable[str] | None,
    since: str | None,
    client_id: str | None,
) -> tuple[str, list[str]]:
    """Return the URL to open with what is asked for in its query, and the inboxes that did not fit into it."""
    query: list[tuple[str, str]] = []
    rest: list[str] = []
    if inbox_ids is not None:
        named: list[str] = []
        size = 0
        for inbox_id in inbox_ids:
            size += len(quote(inbox_id, safe="")) + 3
            (named if size <= MAX_QUERY_CHARACTERS else rest).append(inbox_id)
        if named:
            query.append(("inbox_ids", ",".join(named)))
    if event_types is not None:
        query.append(("event_types", ",".join(event_types)))
    if since is not None:
        query.append(("since", since))
    if client_id is not None:
        query.append(("client_id", client_id))
    parts = urlsplit(url)
    joined = "&".join(filter(None, (parts.query, urlencode(query))))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, joined, "")), rest


def default_trust(target: Target) -> ssl.SSLContext | None:
    """Return what certificates are judged by, if there are any."""
    return ssl.create_default_context() if target.tls else None
