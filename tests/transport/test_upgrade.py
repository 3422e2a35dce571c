"""What a WebSocket upgrade must be, and the head that stands for it; that this is all wsproto sees, whatever comes."""

import pytest
import wsproto
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto.events import AcceptConnection
from wsproto.events import Request as WebSocketRequest

from broker.errors import RequestError
from broker.transport.parsing import HeadParser
from broker.transport.upgrade import check_upgrade

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = (
    (b"Host", b"broker.example:8765"),
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", KEY),
)


def upgrade(headers=HEADERS, line: bytes = b"GET /v1/stream HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *(name + b": " + value for name, value in headers)]) + b"\r\n\r\n"


def upgrade_with(*changes: tuple[bytes, bytes | None]) -> bytes:
    """An upgrade's head with headers replaced, added, or (None) left out."""
    changed = dict(HEADERS) | dict(changes)
    return upgrade([(name, value) for name, value in changed.items() if value is not None])


def checked(data: bytes) -> bytes:
    """What `check_upgrade` makes of a head."""
    request = HeadParser(16_384).take(bytearray(data))
    assert request is not None
    return check_upgrade(request)


def seen_by_wsproto(head: bytes) -> WebSocketRequest:
    """What wsproto takes a head for; it must answer it with 101."""
    websocket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    websocket.receive_data(head)
    (event,) = websocket.events()
    assert isinstance(event, WebSocketRequest)
    assert websocket.send(AcceptConnection()).startswith(b"HTTP/1.1 101 ")
    return event


@pytest.mark.parametrize(
    "head",
    [
        upgrade(),
        upgrade_with((b"Connection", b"keep-alive, UPGRADE"), (b"Upgrade", b"WebSocket")),
        upgrade((*HEADERS, (b"Connection", b"keep-alive"))),
        upgrade(((b"Connection", b"keep-alive"), *HEADERS)),
        upgrade_with((b"Upgrade", b"websocket, h2c")),
        upgrade_with((b"Upgrade", b"h2c, WebSocket")),
        upgrade((*HEADERS, (b"Upgrade", b"h2c"))),
        upgrade_with((b"Content-Length", b"0")),
        upgrade_with((b"Host", b"xn--strae-oqa.example")),
        upgrade_with((b"Host", b"xn--")),
        upgrade_with((b"Host", b"a" * 300)),
        upgrade_with((b"Origin", b"https://\xc3\xa4")),
        upgrade_with((b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits, \xff")),
        upgrade(line=b"GET http://broker.example/v1/stream HTTP/1.1"),
        upgrade_with((b"X-Y", b"y" * 16_000)),
    ],
)
def test_a_good_upgrade_is_taken_and_no_subprotocol_or_extension_is_chosen(head):
    request = seen_by_wsproto(checked(head))
    assert (request.subprotocols, request.extensions) == ([], [])


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([b"daimon.v1"], ["daimon.v1"]),
        ([b"daimon.v1, bearer.wst_abc.def"], ["daimon.v1"]),
        ([b"bearer.wst_abc.def", b"x, daimon.v1"], ["daimon.v1"]),
        ([b"graphql-ws", b"mqtt"], []),
        ([b"Daimon.V1"], []),
        ([b"daimon.v2"], []),
        ([b"\xff, daimon.v1"], ["daimon.v1"]),
        ([b","], []),
    ],
)
def test_our_subprotocol_is_chosen_if_it_is_offered_and_no_other(offered, chosen):
    lines = [(b"Sec-WebSocket-Protocol", line) for line in offered]
    assert seen_by_wsproto(checked(upgrade((*HEADERS, *lines)))).subprotocols == chosen


@pytest.mark.parametrize(
    "missing", [(b"Upgrade", None), (b"Connection", None), (b"Upgrade", b"h2c"), (b"Connection", b"close")]
)
def test_no_websocket_upgrade_is_426_and_says_what_to_send(missing):
    with pytest.raises(RequestError) as caught:
        checked(upgrade_with(missing))
    assert (caught.value.status, caught.value.code) == (426, "upgrade_required")
    assert caught.value.headers == (("Upgrade", "websocket"),)


@pytest.mark.parametrize("version", [b"8", b"013", b"13, 8", None])
def test_another_websocket_version_is_426_and_names_ours(version):
    with pytest.raises(RequestError) as caught:
        checked(upgrade_with((b"Sec-WebSocket-Version", version)))
    assert (caught.value.status, caught.value.code) == (426, "upgrade_required")
    assert ("Sec-WebSocket-Version", "13") in caught.value.headers


@pytest.mark.parametrize(
    "head",
    [
        upgrade_with((b"Sec-WebSocket-Key", None)),
        upgrade_with((b"Sec-WebSocket-Key", b"c2hvcnQ=")),
        upgrade_with((b"Sec-WebSocket-Key", b"?" * 22 + b"==")),
        upgrade_with((b"Sec-WebSocket-Key", KEY + b"A")),
        upgrade((*HEADERS, (b"Sec-WebSocket-Key", KEY))),
        upgrade((*HEADERS, (b"Sec-WebSocket-Version", b"13"))),
        upgrade((*HEADERS, (b"Host", b"b"))),
        upgrade(line=b"GET /v1/stream HTTP/1.0"),
        upgrade(line=b"POST /v1/stream HTTP/1.1"),
        upgrade(HEADERS[1:]),
        upgrade_with((b"Content-Length", b"1")),
        upgrade_with((b"Transfer-Encoding", b"chunked")),
        upgrade_with((b"Host", b"")),
        upgrade_with((b"Host", b"\xff\xfe")),
        upgrade_with((b"Host", b"a@b/c")),
    ],
)
def test_a_broken_upgrade_is_400(head):
    with pytest.raises(RequestError) as caught:
        checked(head)
    assert (caught.value.status, caught.value.code) == (400, "bad_request")


ODD_VALUES = {
    b"Host": [
        b"",
        b"xn--",
        b"xn--a",
        b"xn--bcher-kva.de",
        b"a" * 64 + b".de",
        b"..",
        b"\xff\xfe",
        b"[::1]:80",
        b"a" * 999,
    ],
    b"Connection": [
        b"upgrade",
        b"close",
        b"keep-alive, Upgrade",
        b"Upgrade\x1f",
        b"\xff, upgrade",
        b",",
        b"",
        b"Upgrade ,",
    ],
    b"Upgrade": [b"WebSocket", b"websocket, h2c", b"h2c", b"websocket/13", b"", b"\xff"],
    b"Sec-WebSocket-Version": [b"8", b"13, 8", b"013", b"", b"\xff", b"13"],
    b"Sec-WebSocket-Key": [b"", b"short", b"A" * 22 + b"==", b"A" * 24, b"\xff" * 24, KEY],
    b"Sec-WebSocket-Protocol": [b"a", b"a,,b", b"\xff", b",", b"", b"a b", b"graphql-ws, \xc3\xa4", b"daimon.v1"],
    b"Sec-WebSocket-Extensions": [b"permessage-deflate", b'x; y="a,b"', b"\xff", b";;"],
    b"Content-Length": [b"0", b"00", b"5", b"0, 0", b"-1", b"x"],
    b"Transfer-Encoding": [b"chunked", b"identity", b""],
    b"Origin": [b"null", b"https://a.example", b"\xff"],
    b"X-Odd": [b"\x01", b"\x80", b"a\r\n b", b"", b"z" * 20_000],
}
ODD_LINES = [b"POST / HTTP/1.1", b"GET / HTTP/1.0", b"GET * HTTP/1.1", b"GET http://a/ HTTP/1.1", b"GET /\xff HTTP/1.1",
             b"GET /?a=%FF#b HTTP/1.1", b"CONNECT a:1 HTTP/1.1"]  # fmt: skip


@st.composite
def odd_header(draw) -> tuple[bytes, bytes]:
    name = draw(st.sampled_from(sorted(ODD_VALUES)))
    return name, draw(st.sampled_from(ODD_VALUES[name]) | st.binary(max_size=30))


@st.composite
def odd_upgrades(draw) -> bytes:
    """A good upgrade with a few things changed, added, repeated, left out or put elsewhere."""
    headers = list(HEADERS)
    for change in draw(st.lists(odd_header(), max_size=3)):
        places = [place for place, (name, _) in enumerate(headers) if name == change[0]]
        if places and draw(st.integers(0, 3)):
            headers[places[0]] = change
        else:
            headers.append(change)
    if not draw(st.integers(0, 9)):
        del headers[draw(st.integers(0, len(headers) - 1))]
    if draw(st.booleans()):
        headers = draw(st.permutations(headers))
    return upgrade(headers, draw(st.sampled_from([*[b"GET /v1/stream?a=b HTTP/1.1"] * 20, *ODD_LINES])))


@given(odd_upgrades())
@example(upgrade())
@example(upgrade_with((b"Host", b"xn--bcher-kva.example")))
@settings(max_examples=400, deadline=None)
def test_whatever_passes_the_check_is_taken_by_wsproto_and_the_rest_is_refused(sent):
    waiting = bytearray(sent)
    try:
        request = HeadParser(16_384).take(waiting)
        head = None if request is None else check_upgrade(request)
    except RequestError as error:
        assert error.status in (400, 426, 431), error  # noqa: PT017 (which of both it is, is what is asked)
        return
    if head is None:  # a line break in a value made it a head that has not ended
        assert b"\r\n\r\n" not in sent.removeprefix(bytes(waiting))
        return
    assert (seen_by_wsproto(head).host, seen_by_wsproto(head).target) == ("broker", "/")
