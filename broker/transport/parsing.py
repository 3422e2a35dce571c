"""Bytes as a client sends them → requests and their bodies, by llhttp and a few rules of our own (RFC 9112).

Pure: bytes are taken off a buffer as they came, however they were cut. llhttp is never given more than up to the next
empty line, with which every head and every chunked body ends: so what a client sends after the request at hand stays
in the buffer, and is looked at when its turn comes.
"""

import re
from typing import Final, TypeAlias

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ..errors import RequestError
from .request import Request

MAX_HEAD_LINES: Final = 100
"""Of a head, its request line among them: counted before they are parsed."""
MAX_LIST_MEMBERS: Final = 400
"""Of all lists in a head together: as the lines, counted before anything is made of them."""
STEP_BYTES: Final = 8_192
"""So much of a chunked body is decoded in one step: a thousand chunks of a byte, half a millisecond."""
_STEP_PARTS: Final = 64
_CHUNK_FRAMING_BYTES: Final = 16
"""What a chunk may cost beside its content: a size of ten digits, and the ends of two lines."""
_EMPTY_LINE: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"[^ \r\n]+ [^ \r\n]+ HTTP/([0-9]\.[0-9])\r\n")
_ABSOLUTE_FORM: Final = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?")
"""`uri-host [":" port]` (RFC 9110 section 7.2, RFC 3986 section 3.2.2), and not empty."""
_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def _take_part(waiting: bytearray, most: int) -> bytes:
    """Take at most ``most`` bytes (four or more) off a buffer, and nothing after an empty line.

    Up to three bytes that may be the start of an empty line are left until more has come.
    """
    size = waiting.find(_EMPTY_LINE, 0, most) + len(_EMPTY_LINE)
    if size < len(_EMPTY_LINE):
        size = min(len(waiting), most)
        size = max(len(waiting[:size].rstrip(b"\r\n")), size - 3, 0)
    return _take(waiting, size)


def _take(waiting: bytearray, most: int) -> bytes:
    taken = bytes(waiting) if len(waiting) <= most else bytes(waiting[:most])
    del waiting[: len(taken)]
    return taken


class _Told:
    """What llhttp tells. Apart from whoever holds the parser: no cycle is left to the garbage collector."""

    __slots__ = ("chunks", "content", "ended", "headers", "headers_ended", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.headers_ended = False
        self.content: list[bytes] = []
        self.chunks = 0
        self.ended = False

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.headers_ended = True

    def on_chunk_header(self) -> None:
        self.chunks += 1

    def on_body(self, part: bytes) -> None:
        self.content.append(part)

    def on_message_complete(self) -> None:
        self.ended = True

    def forget(self) -> None:
        """Forget what was told, but whether it has ended."""
        self.headers.clear()
        self.content.clear()
        self.chunks = 0


class HeadParser:
    """One head: bytes in, a `Request` out. It may have ``max_bytes``, and `MAX_HEAD_LINES`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._seen = bytearray()
        self._lines = 0
        self._told = _Told()
        self._llhttp = HttpRequestParser(self._told)

    @property
    def begun(self) -> bool:
        """Whether a byte of it has come; empty lines before it are none (RFC 9112 section 2.2)."""
        return bool(self._seen)

    def take(self, waiting: bytearray) -> Request | None:
        """Take what is there of the head off a buffer; return the request if that is all of it.

        Raises `RequestError`: ``head_too_large``, ``version_not_supported``, ``bad_request``.
        """
        if not self._seen and waiting.startswith((b"\r", b"\n")):
            del waiting[: len(waiting) - len(waiting.lstrip(b"\r\n"))]
        while part := _take_part(waiting, self._max_bytes - len(self._seen) + len(_EMPTY_LINE)):
            self._feed(part)
            if self._told.headers_ended:
                return self._request()
        return None

    def _feed(self, part: bytes) -> None:
        self._seen += part
        self._lines += part.count(b"\n")
        if len(self._seen) > self._max_bytes or self._lines > MAX_HEAD_LINES + 1:
            message = f"A head may have {self._max_bytes} bytes and {MAX_HEAD_LINES} lines"
            raise RequestError("head_too_large", message)
        try:
            self._llhttp.feed_data(part)
        except HttpParserUpgrade:
            pass
        except HttpParserError:
            self._check_request_line()
            raise _malformed("The request is not well-formed HTTP/1.1") from None

    def _check_request_line(self) -> str:
        """Return the version. llhttp takes two spaces, no version at all, and HTTP/2.0."""
        line = _REQUEST_LINE.match(self._seen)
        if line is None:
            raise _malformed("The request line must be `METHOD TARGET HTTP/1.1`")
        version = line[1].decode()
        if version not in ("1.0", "1.1"):
            raise RequestError("version_not_supported", "The version must be HTTP/1.1 or HTTP/1.0")
        return version

    def _request(self) -> Request:
        version = self._check_request_line()
        method = self._llhttp.get_method().decode()
        path, query_string = _split_target(method, self._told.target.decode())
        if self._seen.count(b",") - self._told.target.count(b",") > MAX_LIST_MEMBERS:
            raise RequestError("head_too_large", f"The lists of a head may have {MAX_LIST_MEMBERS} members")
        request = Request(method, path, query_string, self._told.headers, version)
        host = request.header(b"host")
        if not (_HOST.fullmatch(host) if host is not None else version == "1.0"):
            raise _malformed("The header host is missing or no host name")
        request.body_bytes = _body_bytes(request)
        return request


def _malformed(message: str) -> RequestError:
    return RequestError("bad_request", message)


def _split_target(method: str, target: str) -> tuple[str, str]:
    """Return path and query of a target in origin-form, absolute-form or, for OPTIONS, ``*`` (RFC 9112 section 3.2)."""
    if not target.startswith("/") and not (target == "*" and method == "OPTIONS"):
        absolute = _ABSOLUTE_FORM.fullmatch(target)
        if absolute is None or not _HOST.fullmatch(absolute[1].encode()):
            raise _malformed("The target must be a path, or a URL with a host")
        target = absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}"
    path, _, query_string = target.partition("?")
    return path, query_string


def _body_bytes(request: Request) -> int | None:
    """Return the length of a body, None if it comes in chunks (RFC 9112 section 6.3).

    A proxy before us might see another body's end than llhttp does, so nothing is left to be read in two ways.
    """
    length, coding = request.header(b"content-length"), request.header(b"transfer-encoding")
    if coding is None:
        if not (length or b"0").isdigit():
            raise _malformed("Content-Length must be a number")
        return int(length or 0)
    if length is not None or request.http_version != "1.1" or coding.lower() != b"chunked":
        raise _malformed("Transfer-Encoding must be chunked, of HTTP/1.1, and without Content-Length")
    return None


# --- bodies ------------------------------------------------------------------


class LengthBody:
    """A body of ``length`` bytes."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def ended(self) -> bool:
        """Whether all of it was taken."""
        return self._left == 0

    def take(self, waiting: bytearray) -> bytes | None:
        """Take what is there off a buffer; None: more must come."""
        piece = _take(waiting, self._left)
        self._left -= len(piece)
        return piece or None


class ChunkedBody:
    """A body in chunks, by llhttp. Its extensions and trailers, which nobody reads, may have ``max_extra_bytes``."""

    def __init__(self, max_extra_bytes: int) -> None:
        self._extra_bytes = max_extra_bytes
        self._told = _Told()
        self._llhttp = HttpRequestParser(self._told)
        self._llhttp.feed_data(_CHUNKED_HEAD)
        self._broken = False

    @property
    def ended(self) -> bool:
        """Whether all of it was taken."""
        return self._told.ended

    def take(self, waiting: bytearray) -> bytes | None:
        """Take a step of what is there off a buffer, which may hold no content; None: more must come.

        Raises `RequestError` if it is broken, then and for ever.
        """
        told, taken = self._told, 0
        for _ in range(_STEP_PARTS):
            part = b"" if told.ended else _take_part(waiting, STEP_BYTES - taken + len(_EMPTY_LINE))
            if not part or self._broken:
                break
            taken += len(part)
            try:
                self._llhttp.feed_data(part)
            except HttpParserError:
                self._broken = True
        content = b"".join(told.content)
        self._extra_bytes -= taken - len(content) - _CHUNK_FRAMING_BYTES * told.chunks
        told.forget()
        self._broken = self._broken or self._extra_bytes < 0
        if self._broken:
            raise _malformed("The body's chunks are broken")
        return content if taken else None


Body: TypeAlias = LengthBody | ChunkedBody


def body_of(request: Request, max_extra_bytes: int) -> Body:
    """Return what takes a request's body off a buffer."""
    return ChunkedBody(max_extra_bytes) if request.body_bytes is None else LengthBody(request.body_bytes)
