"""One HTTP request, as its handler has it: what its headers and its query say, and its body, read when it is wanted.

Pure: where the bytes come from is `Wire`'s. Nothing of a header or a query is ever logged: keys are there.
"""

from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar
from urllib.parse import unquote

from ..errors import RequestError, part_from_frames

MAX_QUERY_NAMES: Final = 100
MAX_BODY_BYTES: Final = 8_388_608
"""Of a body, where nothing else is said."""
MAX_AGENT_BYTES: Final = 120
"""Of what a client calls itself."""
_BLOCK_BYTES: Final = 65_536

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
    account_id: str | None = None
    """Of that credential, likewise."""
    is_by_tls: bool = False
    """Whether it is known that the client came by TLS."""
    shows_pages: bool = False
    """Whether the broker shows its own pages where this came."""
    wire: Wire | None = field(default=None, repr=False)
    _lines: dict[bytes, list[bytes]] | None = field(default=None, init=False, repr=False)
    _query: dict[str, str] | None = field(default=None, init=False, repr=False)
    _content: list[bytes | bytearray] = field(default_factory=list, init=False, repr=False)
    _content_bytes: int = field(default=0, init=False, repr=False)
    _refusal: RequestError | None = field(default=None, init=False, repr=False)
    _when_answered: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)

    def header(self, name: bytes) -> bytes | None:
        """Return the only value of a header (``name`` in lower case), or None. Two of it raise `RequestError`."""
        values = self._values(name)
        if len(values) > 1:
            raise RequestError("bad_request", f"The header {name.decode('ascii')} stands twice")
        return values[0] if values else None

    @property
    def agent(self) -> str | None:
        """What the client calls itself: its User-Agent, shortened, what is not printable replaced."""
        said = b" ".join(self._values(b"user-agent"))[:MAX_AGENT_BYTES].decode("latin-1")
        return "".join(character if character.isprintable() else "?" for character in said) or None

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

        A byte order mark before it is passed over, as RFC 8259 section 8.1 allows: some editors write one.
        ``count`` is called with the size of each piece before it is kept, and may raise. Raises `RequestError`:
        ``too_large`` (before anything is read if Content-Length says so), ``unsupported_media_type``,
        ``timeout_reading``, ``bad_request`` if its framing is broken; `PeerGoneError` if the client leaves. It may be
        called again, also when it was cancelled.
        """
        try:
            if self._refusal is None:
                await self._read_body(max_bytes, count)
        except RequestError as error:
            self._refusal = part_from_frames(error)
        if self._refusal is not None:
            raise self._refusal.again()
        content = b"".join(self._content)
        self._content = [content]
        return content.removeprefix(BOM_UTF8)

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
        block = self._content[-1] if self._content else b""
        if isinstance(block, bytearray) and len(block) + len(piece) <= _BLOCK_BYTES:
            block += piece
        else:
            self._content.append(bytearray(piece))
        self._content_bytes += len(piece)

    def when_answered(self, call: Callable[[], None]) -> None:
        """Let something be called when the client has taken the answer, or cannot any more."""
        self._when_answered.append(call)

    def close(self) -> None:
        """Call what was to be called then. For whoever sent the answer."""
        while self._when_answered:
            self._when_answered.pop()()

    def forget_body(self) -> None:
        """Keep nothing of the body any more. For whoever sends the answer."""
        self._content.clear()

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
