"""`ClientStream`: one owner of the bytes that go to a client.

Three kinds of writers share a client's socket: trio-websocket (handshake, pongs, Close), the catch-up writer, and the
fan-out. One lock and one remainder keep their frames whole: whoever writes next writes first what the kernel did
not take before. The fan-out never waits: `write_nowait` takes nothing while anything is in its way.

The descriptor is asked for at each write and never kept: a closed one is soon the next connection's.
"""

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from msgspec import Struct

from .framing import is_close

LINGER_SECONDS: Final = 2.0
"""How long a closing stream reads on after its own end, so that the peer sees our last words and no reset."""
SEND_BUFFER_BYTES: Final = 131_072
"""SO_SNDBUF of a client's socket: what a client that stops reading costs in the kernel (which doubles it)."""
_READER_POLL_SECONDS: Final = 0.02
_TCP_INFO_LAST_ACK_RECV: Final = 56


def _no_descriptor() -> int:
    return -1


class StreamStatistics(Struct, frozen=True):
    """What a stream holds."""

    remainder_bytes: int
    """Bytes of a frame that the kernel did not take yet."""
    closing: bool
    """Whether a Close or the end was sent."""
    broken: bool
    """Whether a write failed."""


class ClientStream(trio.abc.HalfCloseableStream):
    """A client's stream over ``transport``; only over a `trio.SocketStream` does `write_nowait` take anything."""

    __slots__ = (
        "_at_end",
        "_broken",
        "_closed",
        "_closing",
        "_ended",
        "_fileno",
        "_free",
        "_held_back",
        "_lock",
        "_put_back",
        "_released",
        "_remainder",
        "_socket",
        "_transport",
        "_writers",
        "last_read",
    )

    def __init__(self, transport: trio.abc.HalfCloseableStream) -> None:
        self._transport = transport
        self._socket = transport.socket if isinstance(transport, trio.SocketStream) else None
        self._fileno = transport.socket.fileno if isinstance(transport, trio.SocketStream) else _no_descriptor
        self._lock = trio.Lock()
        self._writers = 0
        self._free = self._socket is not None
        """Whether `write_nowait` may write: one flag, so that the fan-out touches little of each stream."""
        self._remainder = memoryview(b"")
        self._put_back = b""
        self._held_back = b""
        self._released = trio.Event()
        self._released.set()
        self._closing = False
        self._ended = False
        self._broken = False
        self._at_end = False
        self._closed = False
        self.last_read = trio.current_time()

    # --- reading

    def put_back(self, head: bytes, early: bytes) -> None:
        """Let ``head`` be read before anything else, and ``early``, what came with it, and the rest after `release`.

        wsproto throws away what it gets between the head and its own answer.
        """
        self._put_back, self._held_back = head, early
        self._released = trio.Event()

    def release(self) -> None:
        """Let what was held back be read."""
        self._put_back += self._held_back
        self._held_back = b""
        self._released.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read as the transport does; what was put back comes first."""
        if not self._put_back and not self._released.is_set():
            await self._released.wait()
        if self._put_back:
            size = len(self._put_back) if max_bytes is None else max_bytes
            data, self._put_back = self._put_back[:size], self._put_back[size:]
            await trio.lowlevel.checkpoint()
            return data
        received = bytes(await self._transport.receive_some(max_bytes))
        self.last_read = trio.current_time()
        self._at_end = self._at_end or not received
        return received

    # --- writing

    def write_nowait(self, data: bytes) -> int:
        """Write whole frames if nothing is in the way; return how many bytes the kernel took.

        Less than all: the rest is the remainder, which the next writer writes first; 0: nothing is kept. Never
        raises: an error marks the stream broken, and its reader or next writer finds out.
        """
        if not self._free:
            return 0
        try:
            taken = os.write(self._fileno(), data)
        except BlockingIOError:
            return 0
        except OSError:
            self._broken, self._free = True, False
            return 0
        if taken < len(data):
            self._remainder, self._free = memoryview(data)[taken:], False
        return taken

    async def send_frames(self, frames: bytes) -> None:
        """Write the remainder, then whole frames. Raises `trio.ClosedResourceError` once a Close was sent."""
        async with self._alone():
            if self._closing:
                raise trio.ClosedResourceError("a Close frame was sent")
            await self._write_out(frames)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write the remainder, then ``data``: how trio-websocket writes, always whole frames."""
        async with self._alone():
            self._closing = self._closing or is_close(data)
            await self._write_out(data)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Write with nobody else; the fan-out is kept out for as long as anybody waits to."""
        self._writers += 1
        self._free = False
        try:
            async with self._lock:
                yield
        finally:
            self._writers -= 1
            self._set_free()

    def _set_free(self) -> None:
        in_the_way = self._writers or self._closing or self._broken or len(self._remainder)
        self._free = self._socket is not None and not in_the_way

    async def _write_out(self, data: bytes | bytearray | memoryview) -> None:
        """Write the remainder and ``data``. If cancelled, what is left is the remainder."""
        if self._ended:
            raise trio.ClosedResourceError("the end was sent")
        if self._broken:
            raise trio.BrokenResourceError("an earlier write failed")
        self._remainder = memoryview(bytes(self._remainder) + data) if self._remainder else memoryview(data)
        try:
            if self._socket is None:
                await self._transport.send_all(self._remainder)
                self._remainder = memoryview(b"")
            while self._remainder:
                assert self._socket is not None
                sent = await self._socket.send(self._remainder)
                self._remainder = self._remainder[sent:]
        except OSError as error:
            self._broken = True
            raise trio.BrokenResourceError(str(error)) from error
        except BaseException:
            self._broken = self._broken or self._socket is None
            raise

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the transport does."""
        await self._transport.wait_send_all_might_not_block()

    # --- ending

    async def send_eof(self) -> None:
        """Say that nothing more will be written."""
        async with self._alone():
            self._closing = True
            if not (self._ended or self._broken):
                await self._write_out(b"")
                self._ended = True
                await self._transport.send_eof()

    async def aclose(self) -> None:
        """End our side, read on for a moment so that the peer sees it, and close. Cancelled: close at once."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            with trio.move_on_after(LINGER_SECONDS):
                await self.send_eof()
                await self._read_to_end()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._closed = self._closing = self._ended = True
            self._free = False
            await trio.aclose_forcefully(self._transport)

    async def _read_to_end(self) -> None:
        while not self._at_end:
            try:
                await self.receive_some(65_536)
            except trio.BusyResourceError:
                # trio-websocket's reader may be in its last read; its end is not announced.
                await trio.sleep(_READER_POLL_SECONDS)

    # --- what the kernel knows

    def unacknowledged_seconds(self) -> float | None:
        """Return how long ago the peer's TCP acknowledged anything; None where that is not known."""
        if self._socket is None or not hasattr(socket, "TCP_INFO"):
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LAST_ACK_RECV + 4)
        except OSError:
            return None
        return int.from_bytes(info[_TCP_INFO_LAST_ACK_RECV:], sys.byteorder) / 1000

    def statistics(self) -> StreamStatistics:
        """Return what this stream holds."""
        return StreamStatistics(len(self._remainder), self._closing, self._broken)
