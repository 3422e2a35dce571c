"""Where a Valkey or Redis is, as a URL says it.

Pure. `redis://` and `valkey://` are TCP, `rediss://` and `valkeys://` TLS, `unix://` a socket file. A user and a
password stand before the host, percent-encoded where they must be; the database's number is the path, or `?db=` of a
socket file.
"""

from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from msgspec import Struct

_PLAIN: Final = frozenset({"redis", "valkey"})
_TLS: Final = frozenset({"rediss", "valkeys"})
_PORT: Final = 6379


class Address(Struct, frozen=True):
    """One server, and a database of it. As text it has no password. ``path`` None: it is at ``host`` and ``port``."""

    host: str = "127.0.0.1"
    port: int = _PORT
    path: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False

    def __str__(self) -> str:
        where = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.path or f'{where}:{self.port}'}, database {self.database}"

    __repr__ = __str__


def parse_address(url: str) -> Address:
    """Return what a URL says. Raises ValueError, which never tells the URL: there may be a password in it."""
    try:
        split = urlsplit(url)
        port, host = split.port, split.hostname
    except ValueError:
        raise ValueError("Expected a host and a port of at most 65535") from None
    username = None if split.username is None else unquote(split.username) or None
    password = None if split.password is None else unquote(split.password)
    if split.scheme == "unix":
        if host is not None or not split.path.startswith("/"):
            raise ValueError("Expected the whole path of a socket file, `unix:///run/valkey.sock`")
        database = _database(parse_qs(split.query).get("db", ["0"])[0])
        return Address(path=unquote(split.path), database=database, username=username, password=password)
    if split.scheme not in _PLAIN | _TLS or not host:
        raise ValueError("Expected `redis://HOST:PORT/DATABASE`, `rediss://…` for TLS, or `unix:///PATH`")
    if split.query or split.fragment:
        raise ValueError("Expected nothing after the number of the database")
    return Address(
        host, port or _PORT, None, _database(split.path.strip("/") or "0"), username, password, split.scheme in _TLS
    )


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError("Expected the number of a database")
    return int(text)
