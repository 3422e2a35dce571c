"""What trio-websocket has of a client's stream: it reads when and what it may, and ends nothing but its own reading."""

from collections.abc import Callable

import trio

from .stream import ClientStream


class LentStream(trio.abc.Stream):
    """A client's stream as trio-websocket has it; the last words, and the wait until they are seen, are `Connection`'s.

    The first ``head_bytes`` are the head of the upgrade; what follows it is kept back until `open`: wsproto throws
    away what it gets between the head and its own answer. ``flush`` is called before its reader waits for the client
    or writes: answers to what came in one read go out in one write.
    """

    def __init__(self, stream: ClientStream, head_bytes: int, flush: Callable[[], None]) -> None:
        self._stream = stream
        self._head_bytes = head_bytes
        self._flush = flush
        self._opened: trio.Event | None = trio.Event()
        self._closed = False
        self.handing_out = False
        """Whether messages of the last read may still be on their way, and ``flush`` is to come."""

    def open(self) -> None:
        """Let frames be read: the upgrade is answered."""
        assert self._opened is not None
        self._opened.set()
        self._opened = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read the head, then frames."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._head_bytes:
            return await self._receive_head()
        if self._opened is not None:
            await self._opened.wait()
        self.handing_out = False
        self._flush()
        received = await self._stream.receive_some(max_bytes)
        self.handing_out = bool(received)
        return received

    async def _receive_head(self) -> bytes:
        head = await self._stream.receive_some(self._head_bytes)
        self._head_bytes -= len(head)
        return head

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write whole frames, after the answers that wait."""
        self._flush()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream does."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Read nothing any more."""
        self._closed = True
        await trio.lowlevel.checkpoint()
