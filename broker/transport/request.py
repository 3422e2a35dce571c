"""One HTTP request (RFC 9112): its head, by llhttp and a few rules of our own, and its body, in pieces.

Pure: bytes are taken off a buffer as they came, however they were cut. llhttp is never given more than up to the next
empty line, with which every head and every chunked body ends: so what a client sends after the request at hand stays
in the buffer, and is looked at when its turn comes. Nothing of a header or a query is ever logged: keys are there.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, TypeVar
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ..errors import RequestError

MAX_HEAD_LINES: Final = 100
"""Of a head, its request line among them: counted before they are parsed."""
MAX_QUERY_NAMES: Final = 100
MAX_BODY_BYTES: Final = 8_388_608
"""Of a body, where nothing else is said."""
STEP_BYTES: Final = 8_192
"""So much of a chunked body is decoded in one step: a thousand chunks of a byte, half a millisecond."""
_STEP_PARTS: Final = 64
_BLOCK_BYTES: Final = 65_536
MAX_LIST_MEMBERS: Final = 400
"""Of all lists in a head together: as the lines, counted before anything is made of them."""
_CHUNK_FRAMING_BYTES: Final = 16
"""What a chunk may cost beside its content: a size of ten digits, and the ends of two lines."""
_EMPTY_LINE: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"[^ ]+ [^ ]+ HTTP/([0-9]\.[0-9])")
_ABSOLUTE_FORM: Final = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?")
"""`uri-host [":" port]` (RFC 9110 section 7.2, RFC 3986 section 3.2.2), and not empty."""
_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"

T = TypeVar("T")


class Wire(Protocol):
    """The connection that a request came on, as far as its handler has to do with it."""

    async def read_piece(self) -> bytes:
        """Return the next piece of the body, b"" at its end."""

    async def unless_client_leaves(self, act: Callable[[], Awaitable[T]]) -> T:
        """Return what ``act`` returns; cancel it if the client leaves meanwhile."""


def _count_nothing(_: int) -> None:
    pass


@dataclass(slots=True, eq=False)
class Request:
    """One request: its head parsed, its body not yet read.

    ``path`` and ``query_string`` are as sent, not decoded; header names are lower-case.
    """

    method: str
    path: str
    query_string: str = field(default="", repr=False)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list, repr=False)
    http_version: str = "1.1"
    body_bytes: int | None = 0
    """The body's Content-Length; 0: there is none; None: it comes in chunks."""
    remote: str | None = None
    """The client's address, if it is known."""
    key: str | None = None
    """Whose credential it bears, in words, once that is known."""
    wire: Wire | None = field(default=None, repr=False)
    _lines: dict[bytes, list[bytes]] | None = field(default=None, init=False, repr=False)
    _query: dict[str, str] | None = field(default=None, init=False, repr=False)
    _content: list[bytearray] = field(default_factory=list, init=False, repr=False)
    _content_bytes: int = field(default=0, init=False, repr=False)
    _refusal: RequestError | None = field(default=None, init=False, repr=False)

    def header(self, name: bytes) -> bytes | None:
        """Return the only value of a header (``name`` in lower case), or None. Two of it raise `RequestError`."""
        values = self._values(name)
        if len(values) > 1:
            raise RequestError("bad_request", f"The header {name.decode('ascii')} stands twice")
        return values[0] if values else None

    def _values(self, name: bytes) -> Sequence[bytes]:
        if self._lines is None:
            self._lines = {}
            for key, value in self.headers:
                self._lines.setdefault(key, []).append(value)
        return self._lines.get(name, ())

    def items(self, name: bytes) -> list[bytes]:
        """Return the members of a list header, on however many lines it is (RFC 9110 section 5.6.1)."""
        items = [item.strip(b" \t") for value in self._values(name) for item in value.split(b",")]
        return [item for item in items if item]

    def tokens(self, name: bytes) -> list[bytes]:
        """Return the members of a list header whose case does not matter, in lower case."""
        return [item.lower() for item in self.items(name)]

    def asks_for(self, protocol: bytes) -> bool:
        """Whether the client wants to go on in another protocol (RFC 9110 section 7.8)."""
        return b"upgrade" in self.tokens(b"connection") and protocol in self.tokens(b"upgrade")

    def query(self) -> dict[str, str]:
        """Return the query, percent-decoded strictly as UTF-8; '+' stays '+'. Parsed once.

        Raises `RequestError` naming the field if one stands twice (PROTOCOL section 1) or is not UTF-8.
        """
        if self._query is None:
            self._query = _parse_query(self.query_string)
        return self._query

    async def body(self, max_bytes: int = MAX_BODY_BYTES, count: Callable[[int], None] = _count_nothing) -> bytes:
        """Read the whole body, asking for it with 100-continue if the client waits for that (RFC 9110 section 10.1.1).

        ``count`` is called with the size of each piece before it is kept, and may raise. Raises `RequestError`:
        ``too_large`` (before anything is read if Content-Length says so), ``unsupported_media_type``,
        ``timeout_reading``, ``bad_request`` if its framing is broken; `PeerGoneError` if the client leaves. It may be
        called again, also when it was cancelled.
        """
        try:
            if self._refusal is None:
                await self._read_body(max_bytes, count)
        except RequestError as error:
            self._refusal = error
        if self._refusal is not None:
            raise self._refusal
        return b"".join(self._content)

    async def _read_body(self, max_bytes: int, count: Callable[[int], None]) -> None:
        if self.body_bytes != 0 and not {b"identity"}.issuperset(self.tokens(b"content-encoding")):
            headers = (("Accept-Encoding", "identity"),)
            raise RequestError("unsupported_media_type", "Content-Encoding must be identity", headers=headers)
        if self.body_bytes is not None and self.body_bytes > max_bytes:
            raise _too_large(max_bytes)
        while self.wire and (piece := await self.wire.read_piece()):
            if self._content_bytes + len(piece) > max_bytes:
                raise _too_large(max_bytes)
            count(len(piece))
            self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        """Keep a piece of the body with others in a block: one that grew to megabytes would be copied as it grows."""
        if not self._content or len(self._content[-1]) + len(piece) > _BLOCK_BYTES:
            self._content.append(bytearray())
        self._content[-1] += piece
        self._content_bytes += len(piece)

    async def unless_client_leaves(self, act: Callable[[], Awaitable[T]]) -> T:
        """Return what ``act`` returns; cancel it and raise `PeerGoneError` if the client leaves meanwhile.

        Its body must have been read. A client that ends its side of the connection has left.
        """
        return await (self.wire.unless_client_leaves(act) if self.wire else act())


def _too_large(max_bytes: int) -> RequestError:
    return RequestError("too_large", f"The body may have {max_bytes} bytes")


def _parse_query(query_string: str) -> dict[str, str]:
    if query_string.count("&") >= MAX_QUERY_NAMES:
        raise RequestError("bad_request", f"A query may have {MAX_QUERY_NAMES} names")
    fields: dict[str, str] = {}
    for pair in filter(None, query_string.split("&")):
        encoded_name, _, encoded_value = pair.partition("=")
        name = unquote(encoded_name, errors="backslashreplace")
        try:
            unquote(encoded_name, errors="strict")
            value = unquote(encoded_value, errors="strict")
        except UnicodeDecodeError:
            raise RequestError("bad_request", f"The query's {name!r} is not UTF-8") from None
        if name in fields:
            raise RequestError("bad_request", f"The query's {name!r} stands twice")
        fields[name] = value
    return fields


# --- heads -------------------------------------------------------------------


def _take_part(waiting: bytearray, most: int) -> bytes:
    """Take at most ``most`` bytes (four or more) off a buffer, and nothing after an empty line.

    Up to three bytes that may be the start of an empty line are left until more has come.
    """
    size = waiting.find(_EMPTY_LINE, 0, most) + len(_EMPTY_LINE)
    if size < len(_EMPTY_LINE):
        size = min(len(waiting), most)
        size = max(len(waiting[:size].rstrip(b"\r\n")), size - 3, 0)
    part = bytes(waiting[:size])
    del waiting[:size]
    return part


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
        line = _REQUEST_LINE.fullmatch(self._seen.partition(b"\r\n")[0])
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
    if absolute := _ABSOLUTE_FORM.fullmatch(target):
        authority, target = absolute[1], absolute[2]
        if not _HOST.fullmatch(authority.encode()):
            raise _malformed("The target's host is no host name")
        target = target if target.startswith("/") else f"/{target}"
    elif not (target.startswith("/") or (target == "*" and method == "OPTIONS")):
        raise _malformed("The target must be a path")
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
        if not waiting:
            return None
        piece = bytes(waiting if len(waiting) <= self._left else waiting[: self._left])
        del waiting[: len(piece)]
        self._left -= len(piece)
        return piece


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
