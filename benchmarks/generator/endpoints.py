"""Webhook endpoints that take their time: each post is answered 200, so long after it came."""

import asyncio
import re
import time
from threading import Thread

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_QUIET_SECONDS = 0.5
_LONGEST_SECONDS = 20.0


class Endpoints:
    """All of one process, each on a port of its own.

    Args:
        count: how many.
        answer_seconds: how long each lets a post wait for its answer.
        control: not used: they answer in a thread.
    """

    def __init__(self, count: int, answer_seconds: float, control: int) -> None:
        self._answer_seconds = answer_seconds
        self._taken = 0
        self._loop = asyncio.new_event_loop()
        self._servers = [
            self._loop.run_until_complete(self._loop.create_server(lambda: _Answering(self), "127.0.0.1", 0))
            for _ in range(count)
        ]
        Thread(target=self._loop.run_forever, daemon=True).start()

    def ports(self) -> tuple[int, ...]:
        """Return where they listen."""
        return tuple(server.sockets[0].getsockname()[1] for server in self._servers)

    def taken(self) -> int:
        """Return how many posts came since this was asked last."""
        taken, self._taken = self._taken, 0
        return taken

    def settle(self) -> None:
        """Wait until nothing is posted any more."""
        until = time.monotonic() + _LONGEST_SECONDS
        before = -1
        while before != self._taken and time.monotonic() < until:
            before = self._taken
            time.sleep(_QUIET_SECONDS)

    def post(self, transport: asyncio.Transport) -> None:
        """Take a post, and answer it later."""
        self._taken += 1
        self._loop.call_later(self._answer_seconds, _answer, transport)


def _answer(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.write(_OK)


class _Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            found = _LENGTH.search(head) if end else None
            if found is None or len(rest) < int(found[1]):
                return
            self._buffer = rest[int(found[1]) :]
            self._endpoints.post(self._transport)
