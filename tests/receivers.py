"""A webhook receiver as a real server that answers, refuses, hangs, drips and lies as it is told."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio
from standardwebhooks.webhooks import Webhook

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Answer = bytes | Callable[[trio.abc.Stream], Awaitable[None]] | None
"""Bytes to answer with, what is to be done to the connection, or None for no answer at all."""


def answering(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", "Content-Length: 0", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Received:
    """One request."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    def verify(self, secret: str) -> None:
        Webhook(secret).verify(self.body, self.headers)


class Receiver:
    """Does to each request what it is told, and keeps it."""

    def __init__(self) -> None:
        self.answer: Answer = OK
        self.requests: list[Received] = []
        self.connections = 0
        self.names: list[str | None] = []
        """That TLS clients asked for."""
        self.url = ""
        self.under_way = 0
        self.most_under_way = 0
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def ids(self) -> list[str]:
        return [request.event_id for request in self.requests]

    async def received(self, number: int) -> None:
        """Wait until so many requests came."""
        while len(self.requests) < number:
            await self._changed.park()

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            buffer = bytearray()
            while True:
                while b"\r\n\r\n" not in buffer:
                    if not await _more(stream, buffer):
                        return
                head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
                request = Received(head, b"")
                buffer = bytearray(rest)
                while len(buffer) < int(request.headers["content-length"]):
                    if not await _more(stream, buffer):
                        return
                length = int(request.headers["content-length"])
                request.body, buffer = bytes(buffer[:length]), buffer[length:]
                await self._answer(stream, request)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.abc.Stream, request: Received) -> None:
        self.requests.append(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self._changed.unpark_all()
        try:
            if self.answer is None:
                await trio.sleep_forever()
            elif isinstance(self.answer, bytes):
                await stream.send_all(self.answer)
            else:
                await self.answer(stream)
        finally:
            self.under_way -= 1


async def _more(stream: trio.abc.Stream, buffer: bytearray) -> bool:
    data = await stream.receive_some(65_536)
    buffer += data
    return bool(data)


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with trio.open_nursery() as nursery:
        if tls is None:
            serve = partial(trio.serve_tcp, receiver.serve, 0, host="127.0.0.1")
        else:
            tls.sni_callback = lambda _, asked, __: receiver.names.append(asked)
            serve = partial(trio.serve_ssl_over_tcp, receiver.serve, 0, tls, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        transport = listener if tls is None else listener.transport_listener
        receiver.url = f"http{'' if tls is None else 's'}://{name}:{transport.socket.getsockname()[1]}/hooks"
        yield receiver
        nursery.cancel_scope.cancel()
