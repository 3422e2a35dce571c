"""A TCP proxy between a client and the broker that does to a connection what networks do.

What becomes of the next openings is planned (`then`), what becomes of each frame to the client is for a rule.
"""

import contextlib
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import trio

from .expecting import Changes
from .wire import CLOSE, PONG, Frames, WireFrame

READ_BYTES: Final = 65_536
_LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@dataclass(frozen=True)
class Through:
    """The opening goes to the broker, as soon as ``when`` is set."""

    when: trio.Event | None = None


@dataclass(frozen=True)
class Reset:
    """The connection is reset as soon as it is made."""


@dataclass(frozen=True)
class Answered:
    """The opening is answered by the proxy itself, as a broker refuses."""

    status: int
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)


Plan = Through | Reset | Answered


@dataclass(frozen=True)
class Cut:
    """The connection is reset after these bytes."""

    before: bytes = b""


class Link:
    """One connection of the client, through the proxy, and what went over it."""

    def __init__(self, number: int, stream: trio.SocketStream) -> None:
        self.number = number
        """1 for the first."""
        self.began_at = trio.current_time()
        self.ended_at: float | None = None
        self.target = ""
        self.headers: dict[str, str] = {}
        self.from_client: list[dict[str, Any]] = []
        self.to_client: list[dict[str, Any]] = []
        """What was handed on to the client, whole."""
        self.told_at = 0.0
        """When it was begun to send the client something last: it may act on it before the sending has returned."""
        self.goodbye: int | None = None
        """The code of the client's Close; 1005 for none in it."""
        self.pongs = 0
        self.swallows = False
        self._stream = stream
        self._upstream: trio.SocketStream | None = None

    @property
    def query(self) -> dict[str, str]:
        """The query of the opening."""
        return dict(parse_qsl(urlsplit(self.target).query))

    def told(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the frames with these fields that the client was sent."""
        return [frame for frame in self.to_client if fields.items() <= frame.items()]

    def heard(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the frames with these fields that the client has sent."""
        return [frame for frame in self.from_client if fields.items() <= frame.items()]

    def swallow(self) -> None:
        """Let nothing through any more, in neither direction; the connection stays."""
        self.swallows = True

    def cut(self) -> None:
        """Reset the connection on both sides."""
        for stream in (self._stream, self._upstream):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()


Rule = Callable[[Link, WireFrame], bytes | Cut]
"""What becomes of a frame to the client: the bytes that it gets instead, or the end of its connection."""


def as_it_is(link: Link, frame: WireFrame) -> bytes:
    """Hand on a frame."""
    return frame.wire


class Proxy:
    """The proxy of one scene. Made by `open_proxy`."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.upstream: tuple[str, int] = ("127.0.0.1", 1)
        self.port = 0
        self.links: list[Link] = []
        self.rule: Rule = as_it_is
        self.otherwise: Plan = Through()
        """What becomes of openings for which nothing is planned."""
        self._plans: deque[Plan] = deque()

    def then(self, *plans: Plan) -> None:
        """Plan what becomes of the next openings, one each."""
        self._plans.extend(plans)

    async def link(self, number: int, seconds: float | None = None) -> Link:
        """Wait for the client's n-th connection; its request is read. Raises `MismatchError`."""
        limits = {} if seconds is None else {"seconds": seconds}
        return await self.changes.until(
            f"connection {number} of the client",
            lambda: self.links[number - 1] if len(self.links) >= number and self.links[number - 1].target else None,
            **limits,
        )

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client."""
        link = Link(len(self.links) + 1, stream)
        self.links.append(link)
        plan = self._plans.popleft() if self._plans else self.otherwise
        self.changes.happened()
        try:
            if isinstance(plan, Reset):
                return
            head, rest = await self._read_head(stream)
            line, *lines = head.decode("latin-1").split("\r\n")
            link.target = line.split(" ")[1]
            link.headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
            self.changes.happened()
            if isinstance(plan, Answered):
                await self._answer(link, stream, plan)
                return
            if plan.when is not None:
                await plan.when.wait()
            link._upstream = await trio.open_tcp_stream(*self.upstream)
            await link._upstream.send_all(head + b"\r\n\r\n" + rest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._from_client, link, nursery.cancel_scope)
                nursery.start_soon(self._to_client, link, nursery.cancel_scope)
        except* _LOST:
            pass
        finally:
            link.cut()
            link.ended_at = trio.current_time()
            self.changes.happened()

    async def _read_head(self, stream: trio.SocketStream) -> tuple[bytes, bytes]:
        data = bytearray()
        while b"\r\n\r\n" not in data:
            part = await stream.receive_some(READ_BYTES)
            if not part:
                raise trio.BrokenResourceError
            data += part
        head, _, rest = bytes(data).partition(b"\r\n\r\n")
        return head, rest

    async def _answer(self, link: Link, stream: trio.SocketStream, plan: Answered) -> None:
        body = json.dumps({"error": {"code": plan.code, "message": "said the proxy"}}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"HTTP/1.1 {plan.status} Refused", *(f"{n}: {v}" for n, v in (headers | dict(plan.headers)).items())]
        link.told_at = trio.current_time()
        await stream.send_all("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await stream.send_eof()
        with trio.move_on_after(1):
            while await stream.receive_some(READ_BYTES):
                pass

    async def _from_client(self, link: Link, scope: trio.CancelScope) -> None:
        assert link._upstream is not None
        frames = Frames()
        while data := bytes(await link._stream.receive_some(READ_BYTES)):
            for frame in frames.feed(data):
                link.pongs += frame.opcode == PONG
                if frame.opcode == CLOSE:
                    link.goodbye = int.from_bytes(frame.payload[:2]) or 1005
                if frame.said:
                    link.from_client.append(frame.said)
            self.changes.happened()
            if not link.swallows:
                await link._upstream.send_all(data)
        scope.cancel()

    async def _to_client(self, link: Link, scope: trio.CancelScope) -> None:
        assert link._upstream is not None
        head, rest = await self._read_head(link._upstream)
        await link._stream.send_all(head + b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            while rest:
                await link._stream.send_all(rest)
                rest = bytes(await link._upstream.receive_some(READ_BYTES))
        frames = Frames()
        data = rest or bytes(await link._upstream.receive_some(READ_BYTES))
        while data:
            for frame in frames.feed(data):
                if link.swallows:
                    continue
                becomes = self.rule(link, frame)
                link.told_at = trio.current_time()
                await link._stream.send_all(becomes.before if isinstance(becomes, Cut) else becomes)
                if isinstance(becomes, Cut):
                    scope.cancel()
                    return
                if frame.said:
                    link.to_client.append(frame.said)
                self.changes.happened()
            data = bytes(await link._upstream.receive_some(READ_BYTES))
        if link.swallows:
            await trio.sleep_forever()
        await link._stream.send_eof()
        await trio.sleep(1)  # the client may have the last word
        scope.cancel()


@contextlib.asynccontextmanager
async def open_proxy(changes: Changes) -> AsyncIterator[Proxy]:
    """A proxy on a free port of this host, for as long as the block lasts."""
    proxy = Proxy(changes)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, proxy.serve, 0)
        proxy.port = listeners[0].socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()
