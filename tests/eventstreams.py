"""A client of event streams, after the HTML standard, that shows what is on the wire: comments, chunks, the end."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from clients import ALICE, Address, guard_seconds, open_socket, secured


class Reader:
    """A client of an event stream, after the HTML standard: its answer's head, and the events as they come."""

    def __init__(self, stream):
        self._stream = stream
        self._data = b""
        self._text = b""
        self.status = 0
        self.headers = {}
        self.last_event_id = None
        self.retry_ms = None
        self.comments = 0
        self.ended = False

    async def _more(self):
        data = await self._stream.receive_some(65_536)
        self._data += data
        return bool(data)

    async def open(self):
        while b"\r\n\r\n" not in self._data:
            assert await self._more(), "no answer"
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def _chunk(self):
        if self.headers.get("transfer-encoding") != "chunked":
            while not self._data:
                if not await self._more():
                    return False
            self._text, self._data = self._text + self._data, b""
            return True
        while b"\r\n" not in self._data:
            if not await self._more():
                return False
        size, _, rest = self._data.partition(b"\r\n")
        while len(rest) < int(size, 16) + 2:
            assert await self._more(), "the stream ended inside a chunk"
            rest = self._data.partition(b"\r\n")[2]
        self._text += rest[: int(size, 16)]
        self._data = rest[int(size, 16) + 2 :]
        return int(size, 16) > 0

    async def next(self):
        """The next event that has data, as (id or None, JSON). None at the end."""
        while True:
            while b"\n\n" not in self._text:
                if not await self._chunk():
                    self.ended = True
                    return None
            block, _, self._text = self._text.partition(b"\n\n")
            found = self._dispatch(block.decode())
            if found is not None:
                return found

    def _dispatch(self, block):
        identity = data = None
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not name:
                self.comments += 1
            elif name == "id":
                identity = self.last_event_id = value
            elif name == "retry":
                self.retry_ms = int(value)
            elif name == "data":
                assert data is None, "more than one line of data"
                data = json.loads(value)
        return None if data is None else (identity, data)


@asynccontextmanager
async def reading(
    address: Address,
    query: str = "inbox_ids=*",
    *headers: tuple[str, str],
    key: str | None = ALICE,
    version: str = "1.1",
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[Reader]:
    """A client that has its answer's head. ``options`` are of `open_socket`."""
    lines = [f"GET /v1/events/stream?{query} HTTP/{version}", "Host: broker.example"]
    lines += [f"{name}: {value}" for name, value in headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    with trio.fail_after(guard_seconds()):
        opened = await open_socket(address, **options)
        async with opened if tls is None else secured(opened, tls) as stream:
            await stream.send_all(("\r\n".join(lines) + "\r\n\r\n").encode())
            reader = Reader(stream)
            await reader.open()
            yield reader
