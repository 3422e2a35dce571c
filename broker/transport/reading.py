"""What trio-websocket reads of a client: in small pieces, in turn, and nothing after the end.

It handles all frames of one read in one step and counts too little, so what it is given is measured before (`pacing`).
Why a client is read from no more is `ending`: trio-websocket only sees the end of a stream.
"""

from collections.abc import Callable
from typing import Final

import trio

from .ending import CLIENT_GONE, Ending, closed_by_client
from .pacing import DISCARDED_FRAMES, FrameScanner
from .stream import ClientStream

READ_BYTES: Final = 65_536


def _nothing() -> None:
    pass


class LentStream(trio.abc.Stream):
    """A client's stream as trio-websocket has it; the Close, and the wait until it is seen, are `Connection`'s.

    It reads ``head`` first, which asks for the upgrade; what the client sends is kept back until `open`: wsproto throws
    away what it gets between a head and its own answer. ``flush`` is called before the client is waited for, and before
    trio-websocket writes: answers to what came in one read go out in one write.
    """

    def __init__(
        self,
        stream: ClientStream,
        head: bytes,
        max_message_bytes: int,
        flush: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._head = head
        self._scanner = FrameScanner(max_message_bytes)
        self._waited_seconds = 0.0
        """For the rest of messages that were begun: the scanner's clock, which stands while the client waits for us."""
        self._waits_since: float | None = None
        """Set while we wait for such a rest."""
        self._flush = flush
        self._answered: trio.Event | None = trio.Event()
        self._closed = False
        self.ending: Ending | None = None
        """Why nothing more is read, if it was the client's doing or too much of it."""
        self.handing_out = False
        """Whether messages of the last read may still be on their way, and ``flush`` is to come."""

    def open(self) -> None:
        """Let frames be read: the upgrade is answered."""
        assert self._answered is not None
        self._answered.set()
        self._answered = None

    @property
    def opened(self) -> bool:
        """Whether the upgrade is answered."""
        return self._answered is None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read the head, then frames; b"" at the end."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._head:
            head, self._head = self._head, b""
            await trio.lowlevel.checkpoint()
            return head
        if self._answered is not None:
            await self._answered.wait()
        return await self._receive_piece()

    async def _receive_piece(self) -> bytes:
        """Return what may be handled in one step; between two such pieces others have their turn."""
        scanner = self._scanner
        if scanner.holds:
            await self._stream.take_turn()
        else:
            await self._feed()
        while not (piece := scanner.next_piece()) and self.ending is None:
            if scanner.close is None and scanner.too_much is None:
                await self._feed()
            else:
                # A thousand clients may end at once: they do not in one step.
                await self._stream.take_turn()
                self.ending = scanner.too_much if scanner.close is None else closed_by_client(scanner.close)
        return piece

    async def _feed(self) -> None:
        """Wait for more of what the client sends; if nothing comes any more, that is its end."""
        scanner = self._scanner
        self.handing_out = False
        self._flush()
        self._waits_since = None if scanner.begun_at is None else trio.current_time()
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError:
            data = b""
        if self._waits_since is not None:
            self._waited_seconds += trio.current_time() - self._waits_since
            self._waits_since = None
        if data:
            scanner.feed(data, self._waited_seconds)
            self.handing_out = True
        else:
            self.ending = CLIENT_GONE

    def owed_seconds(self, now: float) -> float | None:
        """Return how long the client lets us wait for the rest of a message that it has begun; None: it owes none.

        The time that it waits for us is not counted.
        """
        if self._scanner.begun_at is None:
            return None
        waiting = 0.0 if self._waits_since is None else now - self._waits_since
        return self._waited_seconds + waiting - self._scanner.begun_at

    async def discard(self) -> None:
        """Throw away what still comes, until the client's Close or its end; nothing where its frames are broken."""
        scanner = self._scanner
        scanner.pardon()
        while not self._closed:
            if scanner.next_piece(DISCARDED_FRAMES):
                await self._stream.take_turn()
            elif scanner.close is None and (data := await self._stream.receive_some(READ_BYTES)):
                scanner.feed(data, self._waited_seconds)
            else:
                break

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write whole frames, after the answers that wait."""
        self._flush()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream does."""
        await self._stream.wait_send_all_might_not_block()

    def close(self) -> None:
        """Read nothing any more: trio-websocket has found a frame that is broken, or cannot write."""
        self._closed = True

    def let_go(self) -> None:
        """Call ``flush`` no more: nothing is written any more."""
        self._flush = _nothing

    async def aclose(self) -> None:
        """Do the same, as trio-websocket does it."""
        self.close()
        await trio.lowlevel.checkpoint()
