"""A client without manners, on trio: raw connections, requests and WebSockets that say what no library would."""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio

from ..generator.frames import CLOSE, TEXT, FrameReader, masked_frame
from ..peers.wire import upgrade
from .target import Target

PIECE_BYTES = 65_536
_ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)


class UnexpectedError(Exception):
    """The broker did not answer as it promises; the message says how."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: its status, and all of its bytes."""

    status: int
    body: bytes

    def require(self, *statuses: int) -> "Answer":
        """Return it. Raises `UnexpectedError` unless its status is one of these."""
        if self.status not in statuses:
            raise UnexpectedError(f"{self.status} is none of {statuses}: {self.body[:200]!r}")
        return self


@asynccontextmanager
async def connected(target: Target, source: str | None = None) -> AsyncIterator[trio.SocketStream]:
    """Open a TCP connection, from the address ``source`` if one is given; it ends with the block, by a reset."""
    raw = trio.socket.socket()
    if source is not None:
        await raw.bind((source, 0))
    try:
        await raw.connect((target.host, target.port))
        yield trio.SocketStream(raw)
    finally:
        raw.close()


def cut(streams: Iterable[trio.SocketStream]) -> None:
    """End connections all at once."""
    for stream in streams:
        stream.socket.close()


async def send(stream: trio.SocketStream, data: bytes, times: int = 1) -> bool:
    """Send bytes, so many times. Returns False if the broker ended the connection before it had them."""
    with suppress(*_ENDED):
        for _ in range(times):
            await stream.send_all(data)
        return True
    return False


async def read_to_end(stream: trio.SocketStream) -> bytes:
    """Return all that still comes."""
    received = bytearray()
    with suppress(*_ENDED):
        while data := await stream.receive_some(PIECE_BYTES):
            received += data
    return bytes(received)


async def talk(target: Target, data: bytes, times: int = 1) -> bytes:
    """Send bytes on a connection of their own, so many times; return all that was answered, until the broker ends it.

    The last of it should ask the broker to close.
    """
    received = b""

    async def listen(stream: trio.SocketStream) -> None:
        nonlocal received
        received = await read_to_end(stream)

    async with connected(target) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(listen, stream)
        await send(stream, data, times)
    return received


def head_of(target: Target, method: str, path: str, key: str | None, headers: Sequence[str] = ()) -> bytes:
    """Return the head of a request, the connection's last one."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.host}:{target.port}", "Connection: close", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def post(target: Target, path: str, key: str, body: bytes, content_type: str = "application/json") -> Answer:
    """POST a body. Returns the answer, which may come before the body was taken."""
    head = head_of(target, "POST", path, key, [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"])
    return answer_of(await talk(target, head + body))


def answer_of(received: bytes) -> Answer:
    """Return the last answer of a connection. Raises `UnexpectedError` if there is none."""
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        raise UnexpectedError(f"no answer, but {received[:100]!r}")
    return Answer(int(head[9:12]), body)


class WebSocket:
    """A client's end, opened. Nothing is answered by itself; what comes is read only where it says so."""

    def __init__(self, stream: trio.SocketStream, received: bytes) -> None:
        self.stream = stream
        self._reader = FrameReader()
        self._frames = self._reader.feed(received)

    async def say(self, **fields: Any) -> bool:
        """Send a command; return whether it could be sent."""
        return await send(self.stream, command(**fields))

    async def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame; a Close, empty, where the connection ended."""
        while not self._frames:
            data = b""
            with suppress(*_ENDED):
                data = await self.stream.receive_some(PIECE_BYTES)
            if not data:
                return CLOSE, b""
            self._frames = self._reader.feed(data)
        return self._frames.pop(0)

    async def text(self) -> dict[str, Any] | None:
        """Return what the next text frame says; None at the end."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                return None
            if opcode == TEXT:
                said: dict[str, Any] = json.loads(payload)
                return said

    async def answer(self, request_id: str) -> dict[str, Any]:
        """Return the answer to a command; what comes before it is skipped."""
        while (said := await self.text()) is not None:
            if said.get("request_id") == request_id:
                return said
        raise UnexpectedError(f"the connection ended before {request_id} was answered")

    async def ask(self, request_id: str, **fields: Any) -> dict[str, Any]:
        """Send a command, and return its answer."""
        await self.say(request_id=request_id, **fields)
        return await self.answer(request_id)

    async def until_closed(self) -> int:
        """Skip all that comes until the connection ends; return the code of the Close, 0 if there was none."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2])

    async def flood(self, data: bytes, times: int) -> int:
        """Send bytes so many times, then a Close, while all that comes is read; return the code of the Close."""
        code = 0

        async def listen() -> None:
            nonlocal code
            code = await self.until_closed()
            await trio.aclose_forcefully(self.stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            if await send(self.stream, data, times):
                await send(self.stream, masked_frame(CLOSE, b"\x03\xe8"))
        return code


def command(**fields: Any) -> bytes:
    """Return the frame of a command."""
    return masked_frame(TEXT, json.dumps(fields, separators=(",", ":")).encode())


def fragment(opcode: int, payload: bytes = b"", *, last: bool = False) -> bytes:
    """Return a part of a message: ``opcode`` is that of the message in the first part, 0 in all others."""
    frame = masked_frame(opcode, payload)
    return frame if last else bytes((frame[0] & 0x7F,)) + frame[1:]


@asynccontextmanager
async def opened(target: Target, key: str, query: str = "", source: str | None = None) -> AsyncIterator[WebSocket]:
    """Open a stream, and read its `connection.ready`. Raises `UnexpectedError` if it is refused."""
    head = upgrade(target.host, target.port, f"/v1/stream{query}", [f"Authorization: Bearer {key}"])
    async with connected(target, source) as stream:
        await send(stream, head)
        received = b""
        while b"\r\n\r\n" not in received:
            data = await stream.receive_some(PIECE_BYTES)
            if not data:
                raise UnexpectedError(f"the upgrade was refused: {received[:200]!r}")
            received += data
        if not received.startswith(b"HTTP/1.1 101 "):
            raise UnexpectedError(f"the upgrade was refused: {received[:200]!r}")
        websocket = WebSocket(stream, received.partition(b"\r\n\r\n")[2])
        await websocket.text()
        yield websocket
