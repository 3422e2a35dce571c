"""Clients that mean no good, each by raw sockets: what they do, what they must be told, and what they may cost.

Each is one function that is given a broker that is served, and that fails if the broker answers otherwise than it
promises. What is asserted of all of them alike, that others are served and that nothing is left, is the tests'.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from clients import (
    ACCOUNT,
    ALICE,
    CLOSE,
    LISTENER,
    PING,
    TEXT,
    Closed,
    Served,
    WebSocket,
    ask,
    command,
    connected,
    event,
    masked,
    numbers,
    open_socket,
    reset,
    upgrade_head,
)
from proofs.proving import more

from broker.errors import CloseCode

MEBIBYTE = 2**20
AUTHORIZED = b"Host: x\r\nAuthorization: Bearer %b\r\n" % ALICE.encode()
PATIENCE = 1.0
"""Every deadline of the broker's is as short as this, in seconds."""
DRIP = 0.05
MANY = more(8, 20)
"""Clients that do the same at once."""
HALF_OPEN = more(100, 2_000)


@dataclass(frozen=True)
class Hostile:
    """One of them.

    Args:
        does: what it does.
        attack: does it once.
        most_bytes: what it may make the broker hold at most, its own memory and that of the client included.
        tls: whether the port has a certificate.
    """

    does: str
    attack: Callable[[Served], Awaitable[None]]
    most_bytes: int
    tls: bool


HOSTILE: list[Hostile] = []


def hostile(does: str, *, most_bytes: int = 4 * MEBIBYTE, tls: bool = False) -> Callable[[Any], Any]:
    """Put a function into the table."""

    def put(attack: Callable[[Served], Awaitable[None]]) -> Callable[[Served], Awaitable[None]]:
        HOSTILE.append(Hostile(does, attack, most_bytes, tls))
        return attack

    return put


async def at_once(many: int, one: Callable[[], Awaitable[None]]) -> None:
    """Do the same many times at once."""
    async with trio.open_nursery() as nursery:
        for _ in range(many):
            nursery.start_soon(one)


@contextlib.asynccontextmanager
async def raw(served: Served, **options: Any) -> AsyncIterator[trio.SocketStream]:
    """A connection, and a minute for all that is done with it."""
    with trio.fail_after(60):
        async with await open_socket(served.address, **options) as stream:
            yield stream


async def all_of(stream: trio.SocketStream) -> bytes:
    """All that still comes, whether it ends in order or not."""
    received = bytearray()
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(65_536):
            received += data
    return bytes(received)


async def drip(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send byte after byte until the other side ends; return what it said."""
    said = b""

    async def listen() -> None:
        nonlocal said
        said = await all_of(stream)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in data:
                await stream.send_all(bytes([byte]))
                await trio.sleep(DRIP)
    return said


async def talk(served: Served, data: bytes, *, ends: bool = False) -> bytes:
    """Send bytes, and no more if it ``ends``; return all that was answered."""
    async with raw(served) as stream:
        async with trio.open_nursery() as nursery:
            said = b""

            async def listen() -> None:
                nonlocal said
                said = await all_of(stream)
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                if ends:
                    await stream.send_eof()
        return said


def statuses(said: bytes) -> list[int]:
    """The statuses of all answers in what was said."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]


# --- heads and bodies ----------------------------------------------------------------------------------------------


@hostile("heads that come byte by byte, and never end")
async def slow_heads(served):
    async def one():
        async with raw(served) as stream:
            assert statuses(await drip(stream, b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 200)) == [408]

    await at_once(MANY, one)


@hostile("bodies that come byte by byte, and never end")
async def slow_bodies(served):
    async def one():
        async with raw(served) as stream:
            await stream.send_all(b"POST /v1/events HTTP/1.1\r\nContent-Length: 9000\r\n" + AUTHORIZED + b"\r\n")
            assert statuses(await drip(stream, b" " * 200)) == [408]

    await at_once(MANY, one)


@hostile("connections on which nothing is ever sent", most_bytes=HALF_OPEN * 40_000)
async def silence(served):
    async def one():
        async with raw(served) as stream:
            assert await all_of(stream) == b""

    await at_once(HALF_OPEN, one)


@hostile("a head without end")
async def endless_head(served):
    said = await talk(served, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"x" * MEBIBYTE)
    assert statuses(said) == [431]
    said = await talk(served, b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 100_000)
    assert statuses(said) == [431]
    said = await talk(served, b"GET /" + b"x" * MEBIBYTE)
    assert statuses(said)[0] in (414, 431)


@hostile("a handshake of TLS that comes byte by byte, one that is rubbish, one that says nothing", tls=True)
async def endless_handshake(served):
    hello = bytes.fromhex("1603010200010001fc0303") + b"\0" * 500

    async def one():
        async with raw(served) as stream:
            await drip(stream, hello)

    await at_once(MANY, one)
    await at_once(MANY, lambda: talk(served, b"GET / HTTP/1.1\r\n\r\n"))
    async with raw(served) as stream:
        assert await all_of(stream) == b""


@hostile("an upgrade whose answer is never read, and 64 KiB of rubbish behind it")
async def early_rubbish(served):
    async def one():
        async with raw(served, receive_buffer_bytes=2_304) as stream:
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(PATIENCE):
                await stream.send_all(upgrade_head() + b"\xff" * 65_536)

    await at_once(MANY, one)


@hostile("connections that are reset as soon as they are there, or in the middle of a head")
async def resets(served):
    for number in range(more(100, 2_000)):
        stream = await open_socket(served.address)
        if number % 3:
            await stream.send_all(upgrade_head()[: number % 150])
        if number % 2:
            await trio.lowlevel.checkpoint()
        reset(stream)


LYING = {
    "5000": [],
    "2": [400, 400],
    "-1": [400],
    "18446744073709551616": [400],
    "1000000000000": [413],
    "0x2D": [400],
    "+45": [400],
    "": [400],
}
"""What is said of a body that is an event, and the statuses that answer it."""


@hostile("a Content-Length that is a lie")
async def lying_lengths(served):
    for length, expected in LYING.items():
        line = f"Content-Length: {length}\r\n\r\n".encode()
        said = await talk(served, b"POST /v1/events HTTP/1.1\r\n" + AUTHORIZED + line + EVENT, ends=True)
        assert statuses(said) == expected, length
    assert stored(served) == 0


def stored(served: Served) -> int:
    """How many events there are of the account that is attacked from."""
    head: int = served.broker._hub.account(ACCOUNT).buffer.head
    return head


EVENT = b'{"type":"a.b","inbox_id":"in_1","payload":{}}'
HIDDEN = b"POST /v1/events HTTP/1.1\r\n" + AUTHORIZED + b"Content-Length: %d\r\n\r\n%b" % (len(EVENT), EVENT)
SMUGGLING = {
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(HIDDEN),
    "a length beside chunks": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(HIDDEN),
    "chunks beside a length": b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(HIDDEN),
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "a coding that is nearly chunked": b"Transfer-Encoding: xchunked\r\n",
    "a line that goes on": b"X: y\r\n Transfer-Encoding: chunked\r\n",
    "a bare line break": b"X: y\nTransfer-Encoding: chunked\r\n",
    "a bare carriage return": b"X: y\rTransfer-Encoding: chunked\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n",
    "a null in a header": b"X: \0\r\n",
    "two hosts": b"Host: y\r\n",
}


@hostile("two requests that one reader takes for one")
async def smuggling(served):
    for shape, lines in SMUGGLING.items():
        said = await talk(served, b"POST /v1/events HTTP/1.1\r\n" + AUTHORIZED + lines + b"\r\n" + HIDDEN, ends=True)
        assert statuses(said) == [400], shape
    for lines in (b"Content-Length: %d\r\n" % len(HIDDEN), b"Transfer-Encoding: chunked\r\n"):
        head = upgrade_head().replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n")
        assert statuses(await talk(served, head + HIDDEN, ends=True)) == [400]
    assert stored(served) == 0


# --- what stands in a target ---------------------------------------------------------------------------------------

BREAKS = ("%0d%0aX-Injected:%20yes", "%0aX-Injected:%20yes", "%E5%98%8A%E5%98%8DX-Injected:%20yes", "%00")


@hostile("line breaks in paths and queries, to be found in an answer's head")
async def header_injection(served):
    for text in BREAKS:
        for target in (
            f"/v1/stream?client_id={text}", f"/v1/stream?inbox_ids={text}", f"/v1/stream?since={text}",
            f"/v1/stream?key={text}", f"/v1/events?since={text}", f"/v1/events/stream?event_types={text}",
            f"/v1/events?{text}=1", f"/{text}", f"/v1/connections/{text}", f"/healthz?{text}",
        ):  # fmt: skip
            answer = await ask(served.address, "GET", target, ("Origin", f"https://a.b/{text}"), key=ALICE)
            assert 400 <= answer.status < 500, target
            assert not [name for name in answer.headers if "injected" in name]


CLIMBING = (
    "/../../../../etc/passwd", "/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd",
    "/..%5c..%5cwindows", "//etc/passwd", "/./metrics", "/v1/events/../../metrics", "/dashboard/../../pyproject.toml",
    "/dashboard/%2e%2e/%2e%2e/pyproject.toml", "/v1//events", "file:///etc/passwd", "/healthz/", "/healthz%00.json",
    "/v1/stream;x", "/V1/EVENTS", "/metrics%20",
)  # fmt: skip


@hostile("paths that climb out of where they begin")
async def path_traversal(served):
    for path in CLIMBING:
        answer = await ask(served.address, "GET", path, key=ALICE)
        assert answer.status in (400, 403, 404), path
        assert b"root:" not in answer.body
        assert b"[project]" not in answer.body


# --- frames --------------------------------------------------------------------------------------------------------


async def code_after(served: Served, data: bytes) -> int | None:
    """The code of the Close after this was sent, while all that comes is read."""
    async with connected(served.address, key=LISTENER) as client, trio.open_nursery() as nursery:
        nursery.start_soon(_send, client, data)
        code = await client.until_closed()
        nursery.cancel_scope.cancel()
    return code


async def _send(client: WebSocket, data: bytes, times: int = 1) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        for _ in range(times):
            await client.send(data)


@hostile("frames that are not masked, have reserved bits, or opcodes that there are not")
async def broken_framing(served):
    for frame in (
        masked(TEXT, b"{}", mask=False),
        *(masked(TEXT, b"{}", first_byte=0x80 | bit | TEXT) for bit in (0x10, 0x20, 0x40)),
        *(masked(opcode, b"{}") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        masked(PING, b"x" * 126),
        masked(0, b"{}"),
    ):
        assert await code_after(served, frame) == CloseCode.PROTOCOL_ERROR, frame[:2]


@hostile("half a frame, and then silence")
async def half_frames(served):
    async def one():
        assert await code_after(served, command(action="ping")[:8]) == CloseCode.HEARTBEAT_MISSED

    await at_once(MANY, one)


@hostile("pings after our Close, for as long as they are taken")
async def pings_after_close(served):
    async with connected(served.address, key=LISTENER) as client:
        await client.send(masked(TEXT, b"{") * 20)
        assert await client.until_closed() == CloseCode.TOO_MANY_BAD_FRAMES
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await client.send(masked(PING, b"x" * 125) * 100)


@hostile("a message in 10,000 fragments of a byte, and one in too many")
async def tiny_fragments(served):
    text = b'{"action":"ping","request_id":"tiny"' + b" " * 9_950 + b"}"
    fragments = [masked(TEXT, text[:1], first_byte=TEXT)]
    fragments += [masked(0, text[at : at + 1], first_byte=0) for at in range(1, len(text) - 1)]
    fragments.append(masked(0, text[-1:]))
    async with connected(served.address, key=LISTENER) as client:
        await client.send(b"".join(fragments))
        assert "result" in await client.answer("tiny")
    endless = masked(TEXT, b" ", first_byte=TEXT) + masked(0, b" ", first_byte=0) * 20_000
    assert await code_after(served, endless) == CloseCode.TOO_BIG


@hostile("a flood of pings and of commands, all of whose answers are read")
async def floods(served):
    for frame in (masked(PING, b"x" * 100), command(action="ping"), masked(0xA, b"")):
        async with connected(served.address, key=LISTENER) as client, trio.open_nursery() as nursery:
            nursery.start_soon(_flood, client, frame)
            assert await _close_of(client) == CloseCode.NORMAL


async def _close_of(client: WebSocket) -> int | None:
    """The code of the Close; of what comes before it nothing is kept."""
    try:
        while True:
            await client.frame()
    except Closed as closed:
        return closed.code


async def _flood(client: WebSocket, frame: bytes) -> None:
    await client.send(frame * more(500, 8_000))
    await client.say_close()


@hostile("a flood of pings and of commands, none of whose answers is read")
async def unread_floods(served):
    for frame in (masked(PING, b"x" * 100), command(action="ping")):
        async with connected(served.address, key=LISTENER, receive_buffer_bytes=2_304) as client:
            with trio.move_on_after(PATIENCE):
                await _send(client, frame * 1_000, 20)


@hostile("clients that never read while a megabyte of events are for them", most_bytes=8 * MEBIBYTE)
async def never_reading(served):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MANY):
            opened = connected(served.address, "inbox_ids=*", key=LISTENER, receive_buffer_bytes=2_304)
            await stack.enter_async_context(opened)
        reader = await stack.enter_async_context(connected(served.address, "inbox_ids=*"))
        for start in range(0, more(600, 1_500), 100):
            await served.broker.publish(ACCOUNT, [event(start + n, size=1_000) for n in range(100)])
            heard: list[int] = []
            while len(heard) < 100:
                heard += numbers([await reader.next()])
            assert heard == list(range(start, start + 100))


# --- payloads ------------------------------------------------------------------------------------------------------

NASTY = {
    "invalid UTF-8": (b'{"type":"a.b","inbox_id":"in_1","payload":{"x":"\xff\xfe"}}', 400),
    "half a surrogate": (b'{"type":"a.b","inbox_id":"in_1","payload":{"x":"\xed\xa0\x80"}}', 400),
    "an overlong slash": (b'{"type":"a.b","inbox_id":"in_1","payload":{"x":"\xc0\xaf"}}', 400),
    "a raw line break in a string": (b'{"type":"a.b","inbox_id":"in_1","payload":{"x":"a\nb"}}', 400),
    "raw line breaks between tokens": (b'{"type":"a.b","inbox_id":"in_1",\r\n"payload":{\r\n"x"\n:\r1}}', 200),
    "an escaped half of a surrogate": (b'{"type":"a.b","inbox_id":"in_1","payload":{"x":"\\ud800"}}', None),
    "a line of an event stream": (b'{"type":"a.b","inbox_id":"in_1","payload":{"x":"\\n\\ndata: {}\\n\\n"}}', 200),
}


@hostile("payloads that are no UTF-8, or have raw line breaks")
async def nasty_payloads(served):
    async with (
        connected(served.address, "inbox_ids=in_1", key=LISTENER) as subscriber,
        raw(served) as events,
    ):
        await events.send_all(b"GET /v1/events/stream?inbox_ids=in_1 HTTP/1.1\r\n" + AUTHORIZED + b"\r\n")
        stored = 0
        for name, (body, expected) in NASTY.items():
            answer = await ask(served.address, "POST", "/v1/events", key=ALICE, body=body)
            assert answer.status in ((200, 400) if expected is None else (expected,)), name
            stored += answer.status == 200
        heard = 0
        while heard < stored:
            opcode, frame = await subscriber.frame()
            assert b"\n" not in frame
            assert b"\r" not in frame
            frame.decode("utf-8", "strict").encode()
            heard += opcode == TEXT and "payload" in json.loads(frame)
        said, heard = b"", 0
        while heard < stored:
            said += await events.receive_some(65_536)
            whole = said[: said.rindex(b"\n\n")] if b"\n\n" in said else b""
            lines = [line for line in whole.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data:")]
            heard = sum("payload" in json.loads(line.removeprefix(b"data:")) for line in lines)
        assert heard == stored


@hostile("a Close whose reason is no UTF-8, is a byte long, or has a code that nobody may send")
async def broken_closes(served):
    for payload, code in (
        (b"\x03\xe8\xff", 1007),
        (b"\x03", CloseCode.PROTOCOL_ERROR),
        (b"\x03\xed", CloseCode.PROTOCOL_ERROR),
        (b"\0\0", CloseCode.PROTOCOL_ERROR),
    ):
        assert await code_after(served, masked(CLOSE, payload)) == code, payload
