"""What the tests talk to a broker with: a server on a free port, plain HTTP, and a WebSocket client without manners.

The WebSocket client writes and reads single frames, answers nothing by itself and never hides one, so that tests
can do what no library lets them: be silent, send rubbish, stop reading, go on after a Close.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import ssl
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any
from unittest.mock import patch

import pytest
import trio
from trio.testing import MockClock

import broker.transport.server
from broker import (
    AccessAnswer,
    AccountConfig,
    Broker,
    Config,
    KeyConfig,
    LimitsConfig,
    OperatorConfig,
    ReplayConfig,
    ServerConfig,
    open_broker,
    serve,
)
from broker.access.keys import Access, Key, digest_of
from broker.access.lookup import AskAccess
from broker.fanout.places import MAX_PLACES
from broker.protocol.names import Tier

ACCOUNT = "acct_alice"
ALICE = "dm_live_alice"
"""Reaches the whole of `ACCOUNT`."""
INBOXES = "dm_live_inboxes"
"""Reaches two inboxes of `ACCOUNT`: in_1 and in_2."""
LISTENER = "dm_live_listener"
"""Reaches `ACCOUNT`, but may only subscribe."""
PUBLISHER = "dm_live_publisher"
"""Reaches `ACCOUNT`, but may only publish."""
BOB = "dm_live_bob"
"""Of another account, acct_bob."""
OPERATOR = "dm_operator_main"

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

Address = tuple[str, int]


def configured_key(secret: str, **fields: Any) -> KeyConfig:
    """A key of a configuration, named after its secret."""
    return KeyConfig(id=secret.replace("dm_live_", "key_"), sha256=digest_of(secret), **fields)


def configured(
    *,
    server: ServerConfig | None = None,
    replay: ReplayConfig | None = None,
    limits: LimitsConfig | None = None,
    **sections: Any,
) -> Config:
    """The accounts and keys above, with other settings where they are given."""
    return Config(
        server=server or ServerConfig(),
        replay=replay or ReplayConfig(),
        limits=limits or LimitsConfig(),
        **sections,
        accounts=(
            AccountConfig(
                id=ACCOUNT,
                tier="enterprise",
                keys=(
                    configured_key(ALICE),
                    configured_key(INBOXES, inbox_ids=("in_1", "in_2")),
                    configured_key(LISTENER, scopes=("subscribe",)),
                    configured_key(PUBLISHER, scopes=("publish",)),
                ),
            ),
            AccountConfig(id="acct_bob", tier="enterprise", keys=(configured_key(BOB),)),
        ),
        operators=(OperatorConfig(id="op_main", sha256=sha256(OPERATOR.encode()).hexdigest()),),
    )


def config_of(*accounts: AccountConfig, **sections: Any) -> Config:
    """These accounts and the operator, with other settings where they are given."""
    return Config(accounts=accounts, operators=(OperatorConfig(id="op_main", sha256=digest_of(OPERATOR)),), **sections)


def alices(*keys: KeyConfig, tier: Tier = "developer") -> AccountConfig:
    """`ACCOUNT` with these keys; left out: `ALICE`."""
    return AccountConfig(id=ACCOUNT, tier=tier, keys=keys or (configured_key(ALICE),))


def said(**fields: Any) -> AccessAnswer:
    """What somebody outside says of a key: it reaches the whole of `ACCOUNT`, unless ``fields`` say otherwise."""
    usual = {"account_id": ACCOUNT, "tier": "enterprise", "key_id": "key_out", "inbox_ids": None, "ttl_seconds": 60}
    return AccessAnswer(**(usual | {"scopes": ["subscribe", "command", "publish"]} | fields))


class Outside:
    """Somebody who knows keys: says what it was told, raises it if it is an exception; None of all others."""

    def __init__(self, **answers: Any) -> None:
        self._answers = {digest_of(f"dm_live_{name}"): answer for name, answer in answers.items()}
        self._open = trio.Event()
        self._open.set()
        self._at_once = 0
        self.most_at_once = 0
        self.asked: list[tuple[str, str | None]] = []

    def knows(self, digest: str, answer: Any) -> None:
        """Say this of a key from now on."""
        self._answers[digest] = answer

    def hold(self) -> None:
        """Say nothing until `let_go`."""
        self._open = trio.Event()

    def let_go(self) -> None:
        self._open.set()

    async def __call__(self, digest: str, remote: str | None) -> Any:
        self.asked.append((digest, remote))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self._open.wait()
        finally:
            self._at_once -= 1
        answer = self._answers.get(digest)
        if isinstance(answer, Exception):
            raise answer
        return answer


def key_of(broker: Broker, secret: str) -> Key:
    """The key that a broker's configuration has for a secret."""
    access, digest = Access(broker.config), digest_of(secret)
    key = access.account_key(digest) or access.operator_key(digest)
    assert key is not None
    return key


def guard_seconds() -> float:
    """A client's time for all that it does: a minute, or, by a mocked clock, less than a heartbeat and its patience."""
    return 30 if isinstance(trio.lowlevel.current_clock(), MockClock) else 60


async def until(condition: Callable[[], object]) -> None:
    """Let the others run until something holds. The clock must run, or jump by itself."""
    with trio.fail_after(60):
        while True:
            if condition():
                return
            await trio.sleep(0.001)


class Served:
    """A broker that is being served."""

    def __init__(self, broker: Broker, address: Address, server: Any, ended: trio.Event) -> None:
        self.broker = broker
        self.address = address
        self.ended = ended
        """Set when `serve` has returned."""
        self.server = server

    def connection(self, websocket: "WebSocket") -> Any:
        """The broker's side of a client that has read its `connection.ready`."""
        return self.server.connections[websocket.ready["connection_id"]]

    def streams(self) -> Any:
        """The `ServerStatistics` of now."""
        return self.server.statistics()

    async def until_gone(self) -> None:
        """Wait until the server holds no connection."""
        while self.server.connections:
            await self.server._changed.park()


@contextlib.asynccontextmanager
async def serving(config: Config | None = None, *, access: AskAccess | None = None) -> AsyncIterator[Served]:
    """Serve a new broker on a free port of loopback, and end both with the block."""
    made = []

    class Watched(broker.transport.server._Server):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    async with open_broker(config or configured(), access=access) as opened, trio.open_nursery() as nursery:
        ended = trio.Event()

        async def serve_and_tell(*, task_status: trio.TaskStatus[list[Address]]) -> None:
            await serve(opened, host="127.0.0.1", port=0, task_status=task_status)
            ended.set()

        with patch.object(broker.transport.server, "_Server", Watched):
            addresses = await nursery.start(serve_and_tell)
        yield Served(opened, addresses[0], made[0], ended)
        nursery.cancel_scope.cancel()


def take_all_places(served: Served) -> list[Any]:
    """Make publishes wait as if the fan-out were behind; leaving the returned places lets them go on."""
    account = served.broker._hub.account(ACCOUNT)
    places = [account.places.take_nowait(1) for _ in range(MAX_PLACES)]
    assert None not in places
    assert account.places.take_nowait(1) is None
    return places


async def open_socket(
    address: Address, *, receive_buffer_bytes: int | None = None, local: str | None = None
) -> trio.SocketStream:
    """Connect, from a local address; a small receive buffer must be set before that to bound the window."""
    raw = trio.socket.socket()
    try:
        if local is not None:
            await raw.bind((local, 0))
        if receive_buffer_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await raw.connect(address)
    except BaseException:
        raw.close()
        raise
    return trio.SocketStream(raw)


def secured(stream: trio.SocketStream, tls: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    """The client's end of TLS over a stream; it shakes hands at its first byte."""
    return trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)


def reset(stream: trio.SocketStream) -> None:
    """Close with a TCP reset."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def unread_bytes(raw: Any) -> int:
    """What waits in a socket's receive queue (FIONREAD)."""
    return struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.FIONREAD, b"\0" * 4))[0]


def unsent_bytes(raw: Any) -> int:
    """What waits in a socket's send queue, unacknowledged (SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def broker_log(caplog: pytest.LogCaptureFixture) -> str:
    """All that the broker has logged, with tracebacks."""
    ours = [record for record in caplog.records if record.name.split(".")[0] == "broker"]
    return "\n".join(map(logging.Formatter("%(levelname)s %(name)s %(message)s").format, ours))


# --- HTTP --------------------------------------------------------------------


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def result(self) -> Any:
        return self.json["result"]

    @property
    def code(self) -> str:
        return self.json["error"]["code"]

    @property
    def message(self) -> str:
        return self.json["error"]["message"]


def parse_answer(data: bytes) -> Answer:
    """Parse the one answer that ``data`` is."""
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    return Answer(int(line.split(" ")[1]), headers, body)


def bearer(key: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {key}")


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def read_until(stream: trio.abc.ReceiveStream, what: bytes) -> bytes:
    """What is read up to the read that brings ``what``."""
    received = b""
    with trio.fail_after(60):
        while what not in received:
            part = await stream.receive_some(65_536)
            assert part, f"it ended: {received!r}"
            received += bytes(part)
    return received


async def send_raw(address: Address, data: bytes) -> Answer:
    """Send ``data`` as it is, and return the answer, which must end the connection."""
    with trio.fail_after(60):
        async with await open_socket(address) as stream:
            await stream.send_all(data)
            return parse_answer(await read_to_end(stream))


async def ask(
    address: Address,
    method: str,
    target: str,
    *headers: tuple[str, str],
    key: str | None = None,
    body: bytes | None = None,
) -> Answer:
    """One HTTP request on a connection of its own."""
    lines = [f"{method} {target} HTTP/1.1", "Host: broker.example", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if key is not None:
        lines.append(": ".join(bearer(key)))
    if body is not None and not any(name.lower() == "transfer-encoding" for name, _ in headers):
        lines.append(f"Content-Length: {len(body)}")
    return await send_raw(address, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b""))


async def post_events(address: Address, events: Any, *headers: tuple[str, str], key: str = ALICE) -> Answer:
    body = events if isinstance(events, bytes) else json.dumps(events).encode()
    return await ask(address, "POST", "/v1/events", *headers, key=key, body=body)


@contextlib.asynccontextmanager
async def half_sent(
    address: Address, path: str, body: bytes, key: str = ALICE
) -> AsyncIterator[Callable[[], Awaitable[Answer]]]:
    """A POST of which half the body was sent; sending the other half gives the answer."""
    async with await open_socket(address) as stream:
        lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", ": ".join(bearer(key))]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}"]) + "\r\n\r\n"
        await stream.send_all(head.encode() + body[: len(body) // 2])

        async def send_the_rest() -> Answer:
            await stream.send_all(body[len(body) // 2 :])
            with trio.fail_after(60):
                return parse_answer(await read_to_end(stream))

        yield send_the_rest


# --- WebSocket ---------------------------------------------------------------

WEBSOCKET_HEADERS = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


def upgrade_head(query: str = "", *headers: tuple[str, str], key: str | None = ALICE) -> bytes:
    """The request of a WebSocket; a header given replaces the usual one, with an empty value it is left out."""
    fields = dict((("Host", "broker.example"), *WEBSOCKET_HEADERS))
    if key is not None:
        fields["Authorization"] = f"Bearer {key}"
    fields.update(headers)
    lines = [f"GET /v1/stream{'?' + query if query else ''} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def opening(address: Address, query: str = "", *headers: tuple[str, str], key: str | None = ALICE) -> Answer:
    """The answer to the opening of a stream that must not be accepted."""
    return await send_raw(address, upgrade_head(query, ("Connection", "Upgrade, close"), *headers, key=key))


async def token_of(address: Address, key: str = ALICE, **narrowing: Any) -> str:
    """A connection token of a key."""
    answer = await ask(address, "POST", "/v1/websocket/token", key=key, body=json.dumps(narrowing).encode())
    token: str = answer.result["token"]
    return token


def masked(opcode: int, payload: bytes = b"", *, first_byte: int | None = None, mask: bool = True) -> bytes:
    """A client's frame; the mask is four zero bytes, so that tests can build many at once."""
    size, bit = len(payload), 0x80 if mask else 0
    if size < 126:
        length = struct.pack("!B", bit | size)
    elif size < 65_536:
        length = struct.pack("!BH", bit | 126, size)
    else:
        length = struct.pack("!BQ", bit | 127, size)
    return (
        bytes([0x80 | opcode if first_byte is None else first_byte]) + length + (b"\0" * 4 if mask else b"") + payload
    )


def command(**fields: Any) -> bytes:
    return masked(TEXT, json.dumps(fields).encode())


class Closed(Exception):  # noqa: N818
    """The server ended: ``code`` of its Close frame, None if there was none."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class FrameParser:
    """A server's bytes → its frames, each checked to be final, unmasked and whole."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def next(self) -> tuple[int, bytes] | None:
        buffer = self.buffer
        if len(buffer) < 2:
            return None
        assert buffer[0] & 0xF0 == 0x80, f"not the start of a frame: {bytes(buffer[:40])!r}"
        assert buffer[0] & 0x0F in (TEXT, CLOSE, PING, PONG), f"not the start of a frame: {bytes(buffer[:40])!r}"
        size, start = buffer[1], 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4]), 4
        elif size == 127:
            size, start = int.from_bytes(buffer[2:10]), 10
        if len(buffer) < start + size:
            return None
        opcode, payload = buffer[0] & 0x0F, bytes(buffer[start : start + size])
        del buffer[: start + size]
        return opcode, payload

    def feed(self, data: bytes) -> Iterable[tuple[int, bytes]]:
        self.buffer += data
        while (frame := self.next()) is not None:
            yield frame


class WebSocket:
    """A client's end. Its upgrade has been answered with 101."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], parser: FrameParser) -> None:
        self.stream = stream
        self._parser = parser
        self.ready: dict[str, Any] = {}

    @property
    def socket(self) -> Any:
        return (self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream).socket

    async def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        await self.stream.send_all(data)

    async def say(self, **fields: Any) -> None:
        """Send one command."""
        await self.send(command(**fields))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame, of whatever kind. Raises `Closed` at the end or a Close frame."""
        while (frame := self._parser.next()) is None:
            data = await self.stream.receive_some(65_536)
            if not data:
                assert not self._parser.buffer, "the connection ended inside a frame"
                raise Closed(None)
            self._parser.buffer += data
        opcode, payload = frame
        if opcode == CLOSE:
            raise Closed(int.from_bytes(payload[:2]), payload[2:].decode())
        return opcode, payload

    async def next(self) -> dict[str, Any]:
        """The next text frame's JSON; pings and pongs are skipped."""
        while True:
            opcode, payload = await self.frame()
            if opcode == TEXT:
                return json.loads(payload)

    async def next_event(self) -> dict[str, Any]:
        """The next event; what the broker says of itself is skipped."""
        while "event_id" not in (frame := await self.next()):
            pass
        return frame

    async def wait_for(self, opcode: int) -> bytes:
        """Skip frames up to one of this kind; return its payload."""
        while True:
            found, payload = await self.frame()
            if found == opcode:
                return payload

    async def answer(self, request_id: str) -> dict[str, Any]:
        """Skip frames up to the answer to a command."""
        while True:
            frame = await self.next()
            if frame.get("request_id") == request_id:
                return frame

    async def ping(self, payload: bytes = b"?") -> None:
        """Send a ping and wait for its pong, which says that everything sent before was read."""
        await self.send(masked(PING, payload))
        while await self.wait_for(PONG) != payload:
            pass

    async def rest(self) -> tuple[list[dict[str, Any]], Closed]:
        """All text frames that still come, and how it ended."""
        frames = []
        try:
            while True:
                frames.append(await self.next())
        except Closed as closed:
            return frames, closed

    async def until_closed(self) -> int | None:
        """The code of the server's Close; what comes before it is skipped."""
        return (await self.rest())[1].code

    async def say_close(self, code: int = 1000) -> None:
        await self.send(masked(CLOSE, code.to_bytes(2)))

    async def at_end(self) -> bool:
        """Whether the connection ends in order (no reset); what comes before it is skipped."""
        try:
            while await self.stream.receive_some(65_536):
                pass
        except trio.BrokenResourceError:
            return False
        return True


@contextlib.asynccontextmanager
async def connected(
    address: Address,
    query: str = "",
    *headers: tuple[str, str],
    key: str = ALICE,
    early: bytes = b"",
    receive_buffer_bytes: int | None = None,
    tls: ssl.SSLContext | None = None,
    seconds: float | None = None,
) -> AsyncIterator[WebSocket]:
    """A client that has read its `connection.ready`. ``early`` is sent in one piece with the upgrade."""
    with trio.fail_after(guard_seconds() if seconds is None else seconds):
        opened = await open_socket(address, receive_buffer_bytes=receive_buffer_bytes)
        async with opened if tls is None else secured(opened, tls) as stream:
            await stream.send_all(upgrade_head(query, *headers, key=key) + early)
            parser = FrameParser()
            while b"\r\n\r\n" not in parser.buffer:
                data = await stream.receive_some(65_536)
                assert data, f"no answer to the upgrade: {bytes(parser.buffer)!r}"
                parser.buffer += data
            head, _, rest = bytes(parser.buffer).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 "), head
            parser.buffer = bytearray(rest)
            websocket = WebSocket(stream, parser)
            websocket.ready = await websocket.next()
            assert websocket.ready["type"] == "connection.ready"
            yield websocket


def event(number: int = 0, *, inbox: str | None = "in_1", size: int = 0, **fields: Any) -> dict[str, Any]:
    """An event to publish, with ``number`` in its payload and about ``size`` bytes more."""
    made = {"type": "test.event", "payload": {"number": number, "filler": "x" * size}, **fields}
    return made if inbox is None else made | {"inbox_id": inbox}


def numbers(frames: Iterable[dict[str, Any]]) -> list[int]:
    """The numbers of those frames that are events made by `event`."""
    return [frame["payload"]["number"] for frame in frames if "payload" in frame]


start_serving = partial(serve, host="127.0.0.1", port=0)
