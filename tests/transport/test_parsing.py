"""Requests as bytes, cut anywhere: what is taken, what is refused, and what is left for the next."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.errors import RequestError
from broker.transport.parsing import (
    MAX_HEAD_LINES,
    STEP_BYTES,
    Body,
    ChunkedBody,
    HeadParser,
    LengthBody,
    body_of,
)
from broker.transport.request import Request

MAX_BYTES = 16_384
HOST = b"Host: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def head(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes = b"x") -> bytes:
    return b"\r\n".join([line, b"Host: " + host, *fields]) + b"\r\n\r\n"


def parsed(data: bytes) -> Request:
    """The request of a whole head, of which nothing may be left."""
    waiting = bytearray(data)
    request = HeadParser(MAX_BYTES).take(waiting)
    assert request is not None
    assert not waiting
    return request


def refusal(data: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(data)
    return caught.value


class Reader:
    """Takes requests off what comes, piece by piece, until one is refused. Each is (method, path, headers, body)."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        self.requests: list[tuple[str, str, list[tuple[bytes, bytes]], bytes]] = []
        self.refused: str | None = None
        self._start()

    def _start(self) -> None:
        self._parser = HeadParser(MAX_BYTES)
        self._request: Request | None = None
        self._content = b""

    def feed(self, piece: bytes) -> None:
        self.waiting += piece
        try:
            while self.refused is None and self._step():
                pass
        except RequestError as error:
            self.refused = error.code

    def _step(self) -> bool:
        if self._request is None:
            self._request = self._parser.take(self.waiting)
            if self._request is None:
                return False
            self._body = body_of(self._request, MAX_BYTES)
        while not self._body.ended:
            content = self._body.take(self.waiting)
            if content is None:
                return False
            self._content += content
        request = self._request
        self.requests.append((request.method, f"{request.path}?{request.query_string}", request.headers, self._content))
        self._start()
        return True


# --- heads that are taken ----------------------------------------------------


def test_a_head_is_taken_as_it_was_sent():
    request = parsed(head(b"PUT /a%20b?c=%41&d HTTP/1.1", b"X-Y:  z \t", b"Empty:"))
    assert (request.method, request.path, request.query_string) == ("PUT", "/a%20b", "c=%41&d")
    assert request.headers == [(b"host", b"x"), (b"x-y", b"z"), (b"empty", b"")]
    assert (request.http_version, request.body_bytes) == ("1.1", 0)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://broker.example/v1/stream?a=b", "/v1/stream", "a=b"),
        (b"HTTPS://broker.example:8765/healthz", "/healthz", ""),
        (b"http://broker.example", "/", ""),
        (b"http://[::1]:8765?a=b", "/", "a=b"),
        (b"//broker.example/a", "//broker.example/a", ""),
        (b"/http://x/?http://y/", "/http://x/", "http://y/"),
    ],
)
def test_a_target_in_absolute_form_is_its_path(target, path, query):
    request = parsed(head(b"GET " + target + b" HTTP/1.1"))
    assert (request.path, request.query_string) == (path, query)


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n\r\n", b"\n", b"\r\n" * 1000])
def test_empty_lines_before_a_request_are_ignored(before):
    assert parsed(before + head()).path == "/"
    parser = HeadParser(MAX_BYTES)
    assert parser.take(bytearray(before)) is None
    assert not parser.begun


@pytest.mark.parametrize(
    "host",
    [b"x", b"broker.example:8765", b"xn--strae-oqa.example", b"xn--", b"[::1]", b"[2001:db8::1]:80", b"127.0.0.1:1",
     b"a_b", b"a%20b", b"x:", b"A" * 300],
)  # fmt: skip
def test_any_host_of_rfc_3986_is_one(host):
    assert parsed(head(host=host)).header(b"host") == host


def test_http_1_0_needs_no_host():
    assert parsed(b"GET / HTTP/1.0\r\n\r\n").http_version == "1.0"


def test_a_length_is_announced_and_chunks_are_not():
    assert parsed(head(b"POST / HTTP/1.1", b"Content-Length: 007")).body_bytes == 7
    assert parsed(CHUNKED).body_bytes is None
    assert parsed(head(b"POST / HTTP/1.1", b"Transfer-Encoding:  Chunked ")).body_bytes is None


def test_a_list_may_stand_on_several_lines():
    request = parsed(
        head(b"GET / HTTP/1.1", b"Connection: keep-alive, ,", b"Upgrade: WebSocket, h2c", b"Connection: UPGRADE")
    )
    assert request.tokens(b"connection") == [b"keep-alive", b"upgrade"]
    assert request.items(b"upgrade") == [b"WebSocket", b"h2c"]
    assert request.asks_for(b"websocket")
    assert request.asks_for(b"h2c")
    assert not request.asks_for(b"h2")
    assert not parsed(head(b"GET / HTTP/1.1", b"Upgrade: websocket")).asks_for(b"websocket")


# --- heads that are refused --------------------------------------------------

MALFORMED = {
    "no request": b"nonsense\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "another method": head(b"FOO / HTTP/1.1"),
    "a small method": head(b"get / HTTP/1.1"),
    "a line break that is bare": b"GET / HTTP/1.1\nHost: x\n\n",
    "a bare line break in a header": head(b"GET / HTTP/1.1", b"A: b\nTransfer-Encoding: chunked"),
    "a bare carriage return": head(b"GET / HTTP/1.1", b"A: b\rc"),
    "two spaces before the target": head(b"GET  / HTTP/1.1"),
    "two spaces before the version": head(b"GET /  HTTP/1.1"),
    "a space after the version": head(b"GET / HTTP/1.1 "),
    "a tab": head(b"GET\t/ HTTP/1.1"),
    "no version": head(b"GET /"),
    "another protocol": head(b"SOURCE / ICE/1.0"),
    "a target that is no path": head(b"GET healthz HTTP/1.1"),
    "a target of another scheme": head(b"GET ftp://x/ HTTP/1.1"),
    "a target with a user": head(b"GET http://a@x/ HTTP/1.1"),
    "a target without a host": head(b"GET http:///healthz HTTP/1.1"),
    "everything, by GET": head(b"GET * HTTP/1.1"),
    "a target beyond ASCII": head(b"GET /\xff HTTP/1.1"),
    "a tunnel": head(b"CONNECT x:443 HTTP/1.1"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": head(b"GET / HTTP/1.1", b"Host: x"),
    "an empty host": head(host=b""),
    "a host with a user": head(host=b"a@b"),
    "a host with a path": head(host=b"a@b/c"),
    "a host beyond ASCII": head(host=b"\xff\xfe"),
    "a host with a space": head(host=b"a b"),
    "a host with a wrong port": head(host=b"a:b"),
    "two hosts in one": head(host=b"a, b"),
    "a host of 1.0 that is none": b"GET / HTTP/1.0\r\nHost: a@b\r\n\r\n",
    "a header of two words": head(b"GET / HTTP/1.1", b"bad header: dm_live_secret"),
    "a space before a colon": head(b"GET / HTTP/1.1", b"Content-Length : 5"),
    "a header without a name": head(b"GET / HTTP/1.1", b": a"),
    "a header without a colon": head(b"GET / HTTP/1.1", b"a"),
    "a line that goes on": head(b"GET / HTTP/1.1", b"A: b", b" Transfer-Encoding: chunked"),
    "a space before the first header": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "a zero byte": head(b"GET / HTTP/1.1", b"A: \x00"),
    "two lengths": head(b"POST / HTTP/1.1", b"Content-Length: 1", b"Content-Length: 2"),
    "one length twice": head(b"POST / HTTP/1.1", b"Content-Length: 5", b"Content-Length: 5"),
    "a list of lengths": head(b"POST / HTTP/1.1", b"Content-Length: 5, 5"),
    "a length with a sign": head(b"POST / HTTP/1.1", b"Content-Length: +5"),
    "a negative length": head(b"POST / HTTP/1.1", b"Content-Length: -5"),
    "a length in hex": head(b"POST / HTTP/1.1", b"Content-Length: 0x5"),
    "an empty length": head(b"POST / HTTP/1.1", b"Content-Length:"),
    "a length beyond all": head(b"POST / HTTP/1.1", b"Content-Length: 99999999999999999999"),
    "a length beside chunks": head(b"POST / HTTP/1.1", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks beside a length": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "another coding": head(b"POST / HTTP/1.1", b"Transfer-Encoding: gzip"),
    "another coding and chunks": head(b"POST / HTTP/1.1", b"Transfer-Encoding: gzip, chunked"),
    "chunks twice": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked, chunked"),
    "chunks on two lines": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunks before another coding": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked, identity"),
    "no coding": head(b"POST / HTTP/1.1", b"Transfer-Encoding:"),
    "nearly chunks": head(b"POST / HTTP/1.1", b"Transfer-Encoding: xchunked"),
    "chunks of 1.0": head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"),
}  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_head_is_refused_in_one_piece_and_in_single_bytes(data):
    for pieces in ([data], [bytes([byte]) for byte in data + b"GET / "]):
        reader = Reader()
        for piece in pieces:
            reader.feed(piece)
        assert (reader.requests, reader.refused) == ([], "bad_request")
    assert "dm_live" not in refusal(data).message


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/3.0"])
def test_another_version_is_refused_as_one(version):
    assert refusal(head(b"GET / " + version)).status == 505
    assert refusal(b"PRI * " + version + b"\r\n\r\nSM\r\n\r\n").status == 505


def test_the_lines_of_a_head_are_counted_before_it_is_parsed():
    fields = [b"a:b"] * (MAX_HEAD_LINES - 2)
    assert len(parsed(head(b"GET / HTTP/1.1", *fields)).headers) == MAX_HEAD_LINES - 1
    error = refusal(head(b"GET / HTTP/1.1", *fields, b"a:b"))
    assert (error.status, error.code) == (431, "head_too_large")
    # of what is not even a head, too
    assert refusal(b"\r\n".join([b"\x00"] * 200)).status == 431


def test_the_members_of_lists_are_counted_before_anything_is_made_of_them():
    offered = b"Sec-WebSocket-Protocol: " + b",".join([b"abc"] * 3_000)
    error = refusal(head(b"GET / HTTP/1.1", offered))
    assert (error.status, error.code) == (431, "head_too_large")
    inboxes = b",".join(b"inbox_%d" % number for number in range(1_000))
    assert (
        parsed(head(b"GET /?inbox_ids=" + inboxes + b" HTTP/1.1", b"Accept: a, b")).query()["inbox_ids"]
        == inboxes.decode()
    )


def test_a_head_has_so_many_bytes_and_not_one_more():
    room = MAX_BYTES - len(head(b"GET / HTTP/1.1", b"A: "))
    assert parsed(head(b"GET / HTTP/1.1", b"A: " + b"b" * room)).path == "/"
    assert refusal(head(b"GET / HTTP/1.1", b"A: " + b"b" * (room + 1))).status == 431
    assert refusal(b"GET /" + b"a" * MAX_BYTES).status == 431


@pytest.mark.parametrize("last", [b"\r", b"\n", b"\r\n", b"b"])
def test_a_head_that_never_ends_is_refused_however_its_bytes_come(last):
    waiting, parser, taken = bytearray(b"GET / HTTP/1.1\r\nA: "), HeadParser(MAX_BYTES), 0
    with contextlib.suppress(RequestError):
        while taken < 2 * MAX_BYTES:
            taken += len(waiting)
            parser.take(waiting)
            waiting += last
    assert taken <= MAX_BYTES + 8


# --- cut anywhere ------------------------------------------------------------

NAMES = st.sampled_from([b"A", b"x-y", b"Accept", b"Expect", b"Connection", b"Upgrade"])
VALUES = st.sampled_from([b"", b"b", b" b c ", b"close", b"h2c", b"upgrade", b"\xc3\xa4", b'"a,b"'])
CONTENTS = st.binary(max_size=40) | st.sampled_from(
    [b"\r\n\r\n", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"\n\n\n", b"0\r\n\r\n"]
)


@st.composite
def chunked(draw, content: bytes) -> bytes:
    """Content in chunks of any sizes, with extensions and trailers."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(content) - 1)), max_size=5)) - {len(content)})
    parts = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b;c"']))
    trailer = draw(st.sampled_from([b"", b"T: v\r\n", b"A: b\r\nC: d\r\n"]))
    data = b"".join(b"%X%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part)
    return data + b"0" + extension + b"\r\n" + trailer + b"\r\n"


@st.composite
def exchanges(draw) -> tuple[bytes, tuple]:
    """A request's bytes, and what is to be taken of them."""
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    content = draw(CONTENTS)
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    method = b"GET" if kind == "none" else b"POST"
    path = draw(st.sampled_from([b"/", b"/v1/events?a=b", b"http://x/a?b"]))
    lines = [b"%b: %b" % field for field in fields]
    body = b""
    if kind == "length":
        lines.append(b"Content-Length: %d" % len(content))
        body = content
    elif kind == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        body = draw(chunked(content))
    before = draw(st.sampled_from([b"", b"", b"\r\n", b"\r\n\r\n"]))
    data = before + b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), b"Host: x", *lines]) + b"\r\n\r\n" + body
    headers = [
        (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in [b"Host: x", *lines])
    ]
    target = path.decode().removeprefix("http://x")
    return data, (
        method.decode(),
        target if "?" in target else f"{target}?",
        headers,
        b"" if kind == "none" else content,
    )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    cuts = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.lists(exchanges(), max_size=4), st.lists(st.integers(0, 10_000), max_size=30))
def test_requests_cut_anywhere_are_the_same_requests(sent, places):
    data = b"".join(data for data, _ in sent)
    expected = [request for _, request in sent]
    for pieces in ([data], cut(data, places), [bytes([byte]) for byte in data]):
        reader = Reader()
        for piece in pieces:
            reader.feed(piece)
        assert (reader.requests, reader.refused) == (expected, None)
        assert not reader.waiting


ANYTHING = st.sampled_from(sorted(MALFORMED.values())) | exchanges().map(lambda made: made[0]) | st.binary(max_size=60)


@given(st.lists(ANYTHING, max_size=4), st.lists(st.integers(0, 10_000), max_size=30))
def test_whatever_comes_is_taken_or_refused_alike_however_it_is_cut(sent, places):
    data = b"".join(sent)
    whole, in_pieces = Reader(), Reader()
    whole.feed(data)
    for piece in cut(data, places):
        in_pieces.feed(piece)
    # An end such as "\r\n" may be the start of an empty line, and is looked at with the next byte.
    assert (whole.requests, whole.refused) == (in_pieces.requests, in_pieces.refused)


@given(st.binary(max_size=200).map(lambda rubbish: head(b"GET / HTTP/1.1", b"A: " + rubbish)))
@example(head(b"GET / HTTP/1.1", b"A: b\r\n\r\nGET /smuggled HTTP/1.1"))
def test_nothing_in_a_value_becomes_a_header_or_a_request_unless_it_ends_its_line_as_http_does(data):
    reader = Reader()
    reader.feed(data)
    if reader.refused is None and b"\r\n" not in data[len(head()) : -4]:
        ((_, _, headers, _),) = reader.requests
        assert len(headers) == 2


# --- bodies ------------------------------------------------------------------


def take_all(body: Body, waiting: bytearray) -> bytes:
    content = b""
    while (piece := body.take(waiting)) is not None:
        content += piece
    return content


def test_a_body_leaves_what_comes_after_it():
    for body, data in ((LengthBody(3), b"abcrest"), (ChunkedBody(MAX_BYTES), b"3\r\nabc\r\n0\r\n\r\nrest")):
        waiting = bytearray(data)
        assert body.take(waiting) == b"abc"
        assert body.ended
        assert waiting == b"rest"
        assert body.take(waiting) is None or not waiting.startswith(b"x")


@pytest.mark.parametrize(
    "data",
    [b"zz\r\n", b"1\r\nabc\r\n", b"3\nabc\n0\n\n", b"-3\r\n", b"0x3\r\nabc\r\n", b"3 \r\nabc\r\n", b"3\r\nabc0\r\n\r\n",
     b"ffffffffffffffffff\r\n", b"3;a\nb\r\n", b"\r\n\r\n", b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nA : b\r\n\r\n"],
)  # fmt: skip
def test_broken_chunks_are_refused_then_and_for_ever(data):
    body, waiting = ChunkedBody(MAX_BYTES), bytearray(data)
    for _ in range(3):
        with pytest.raises(RequestError, match="chunks"):
            take_all(body, waiting)
        waiting += b"3\r\nabc\r\n"


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"e" * 20_000, b"1;" + b'a="b";' * 4_000, b"0\r\n" + b"T: v\r\n" * 4_000, b"0\r\nT: " + b"v" * 20_000,
     b"0" * 20_000, b"".join(b"1;%b\r\nx\r\n" % (b"e" * 40) for _ in range(1_000))],
    ids=["extension", "extensions", "trailers", "trailer", "size", "short extensions"],
)  # fmt: skip
def test_what_nobody_reads_of_chunks_is_bounded(endless):
    with pytest.raises(RequestError, match="chunks"):
        take_all(ChunkedBody(MAX_BYTES), bytearray(endless))


def test_chunks_of_a_byte_are_no_extra():
    waiting = bytearray(b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
    assert take_all(ChunkedBody(MAX_BYTES), waiting) == b"x" * 20_000


@pytest.mark.parametrize("content", [b"x" * 200_000, b"\r\n\r\n" * 50_000, b"\n" * 200_000, b"\r" * 200_000])
def test_a_step_takes_no_more_than_its_bytes(content):
    body, waiting, taken = ChunkedBody(MAX_BYTES), bytearray(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)), b""
    while not body.ended:
        before = len(waiting)
        taken += body.take(waiting) or b""
        assert 0 < before - len(waiting) <= STEP_BYTES + 4
    assert taken == content
