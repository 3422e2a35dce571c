"""An HTTP answer, and how it is written (RFC 9112).

Pure: the time of day comes in as an argument.
"""

from collections.abc import AsyncGenerator, Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from ..commands.remembered import Outcome
from ..errors import RequestError

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
RETRY_SECONDS: Final = 5
"""When to come back after a 503 that does not say it."""
PIECE_SECONDS: Final = 10.0
_WITHOUT_CONTENT: Final = frozenset({204, 304})
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


Headers = tuple[tuple[str, str], ...]


class Response(Struct, frozen=True):
    """An answer. Date, Content-Type, Cache-Control and what frames the body are added when it is written."""

    status: int
    body: bytes | AsyncGenerator[bytes, None] = b""
    """Whole, or in pieces, each sent as it comes, for as long as they come; it is closed if the client leaves."""
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"
    close: bool = False
    """Whether the connection is to end with it."""
    piece_seconds: float = PIECE_SECONDS
    """How long the client may take to let itself be sent the whole, or a piece."""

    @property
    def size(self) -> int:
        """The bytes of a body that is whole; 0 if it comes in pieces."""
        return len(self.body) if isinstance(self.body, bytes) else 0


def json_response(result: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return ``{"result": ...}`` (PROTOCOL, preface), encoded by msgspec."""
    return Response(status, msgspec.json.encode({"result": result}), headers)


def command_response(outcome: Outcome) -> Response:
    """Return the answer to a command (PROTOCOL section 4): its result or error, and whether it is that of another."""
    also = {"duplicate": True} if outcome.duplicate else {}
    if outcome.error is not None:
        return error_response(outcome.error, also)
    return Response(200, msgspec.json.encode({"result": Raw(outcome.result), **also}))


def error_response(
    error: RequestError, also: Mapping[str, Any] = MappingProxyType({}), *, close: bool = False
) -> Response:
    """Return ``{"error": ...}``, and what is to stand beside it, with the error's status and headers.

    Where it may be tried again, Retry-After says when, in whole seconds, rounded up (RFC 9110 section 10.2.3).
    """
    headers, retry_seconds = error.headers, None
    if error.retry_after_ms is not None:
        retry_seconds = -(-error.retry_after_ms // 1000)
    elif error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        retry_seconds = RETRY_SECONDS
    if retry_seconds is not None and not any(name.lower() == "retry-after" for name, _ in headers):
        headers = (*headers, ("Retry-After", str(retry_seconds)))
    return Response(error.status, msgspec.json.encode({"error": error.as_json(), **also}), headers, close=close)


def head_of(response: Response, wall_seconds: float, *, close: bool, chunked: bool) -> bytes:
    """Return the head of an answer; ``wall_seconds`` is the time since 1970, for Date (RFC 9110 section 6.6.1).

    ``close`` says that the connection ends after it, ``chunked`` that a body in pieces is sent in chunks.
    """
    headers = response.headers
    if has_content(response):
        whole = isinstance(response.body, bytes)
        headers = (*headers, *_framing_of(response.content_type, response.size if whole else None, chunked))
    return _head(response.status, headers, wall_seconds, close=close)


def head_of_lasting(content_type: str, headers: Headers, wall_seconds: float, *, chunked: bool) -> bytes:
    """Return the head of an answer that ends with its connection; its body is written by who takes that over."""
    return _head(200, (*headers, *_framing_of(content_type, None, chunked)), wall_seconds, close=True)


def _framing_of(content_type: str, size: int | None, chunked: bool) -> Headers:
    """Return what a body is, and how its end is known (RFC 9112 section 6.3); ``size`` None: it comes in pieces."""
    if size is not None:
        return (("Content-Type", content_type), ("Content-Length", str(size)))
    return (("Content-Type", content_type), *((("Transfer-Encoding", "chunked"),) if chunked else ()))


def _head(status: int, headers: Headers, wall_seconds: float, *, close: bool) -> bytes:
    names = {name.lower() for name, _ in headers}
    lines = [_STATUS_LINES[status], f"Date: {http_date(int(wall_seconds))}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    if "cache-control" not in names:
        lines.append("Cache-Control: no-store\r\n")
    options = ["Upgrade"] * ("upgrade" in names) + ["close"] * close
    lines.append(f"Connection: {', '.join(options)}\r\n\r\n" if options else "\r\n")
    return "".join(lines).encode("latin-1")


def has_content(response: Response) -> bool:
    """Whether an answer to anything but HEAD has a body, be it an empty one."""
    return response.status not in _WITHOUT_CONTENT


def chunk_of(piece: bytes) -> bytes:
    """Return a piece of a body as a chunk (RFC 9112 section 7.1); it must not be empty, or it would be the last."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


@lru_cache(maxsize=1)
def http_date(wall_seconds: int) -> str:
    """Return a time as HTTP writes it (RFC 9110 section 5.6.7)."""
    return formatdate(wall_seconds, usegmt=True)
