"""`ClientStream`: one owner of the bytes that go to a client.

Three kinds of writers share a client's socket: trio-websocket (handshake, pongs, Close), the catch-up writer, and the
fan-out. One lock and one remainder keep their frames whole: whoever writes next writes first what the kernel did
not take before. The fan-out never waits: `write_nowait` takes nothing while anything is in its way.

The fan-out writes by the socket object's own ``send``, which asks for the descriptor at each call: that of a closed
socket is never used, though it is soon the next connection's.

Over TLS all is the same but for one step: bytes are sealed just before the kernel gets them. What is sealed cannot be
taken back, so what the kernel did not take of it goes before the remainder.
"""

import fcntl
import socket
import ssl
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple, Protocol

import trio
from msgspec import Struct

from ..observe.connections import Link
from ..protocol.framing import is_close
from ..turns import Turns, Who
from .link import link_of
from .poller import PolledSocket, Pollers
from .tls import SEALED_BYTES, BadTlsError, TlsSession

LINGER_SECONDS: Final = 2.0
"""How long a closing stream reads on after its own end, so that the peer sees our last words and no reset."""
SEND_BUFFER_BYTES: Final = 131_072
"""SO_SNDBUF of a client's socket: what a client that stops reading costs in the kernel (which doubles it)."""
_READ_BYTES: Final = 65_536
_TCP_INFO: Final = struct.Struct("=3xB20xI28xI")
"""Of Linux's `struct tcp_info`, what `_TcpInfo` names."""


class _TcpInfo(NamedTuple):
    """What the kernel knows of a TCP connection."""

    probes: int
    """Probes of a full window, or of an idle connection, that were not answered."""
    unacked: int
    """Packets under way that were not acknowledged."""
    last_ack_recv_ms: int


def _take_nothing(_: bytes) -> int:
    return 0


class Door(Protocol):
    """Where the fan-out writes: ``send`` may take a part or raise `OSError`, and then one of the others is called."""

    send: Callable[[bytes], int]
    sent_part: Callable[[bytes, int], None]
    send_failed: Callable[[OSError], None]


class StreamStatistics(Struct, frozen=True):
    """What a stream holds."""

    remainder_bytes: int
    """Bytes of a frame that the kernel did not take yet."""
    closing: bool
    """Whether a Close or the end was sent."""
    broken: bool
    """Whether a write failed."""


class ClientStream(trio.abc.HalfCloseableStream):
    """A client's stream over ``transport``; only over a `trio.SocketStream` does `write_nowait` take anything.

    It takes the socket out of such a stream, which is of no use any more from then on. Of clients whose streams share
    ``turns``, those that end at once are heard of one after the other, and what they send at once is handed on as turns
    have room for it. Who waits for its socket is woken by ``pollers``, if there are, else by trio.
    """

    __slots__ = (
        "_at_end",
        "_broken",
        "_closed",
        "_closing",
        "_door",
        "_ended",
        "_link",
        "_lock",
        "_polled",
        "_put_back",
        "_remainder",
        "_sealed",
        "_send",
        "_socket",
        "_tls",
        "_transport",
        "_turns",
        "_writers",
        "last_read",
        "who",
    )

    def __init__(
        self, transport: trio.abc.HalfCloseableStream, turns: Turns | None = None, pollers: Pollers | None = None
    ) -> None:
        self._turns = turns or Turns()
        self.who: Who = None
        """Whose client it is, as far as that is known: in that name turns are taken."""
        self._socket: socket.socket | None = None
        self._polled: PolledSocket | None = None
        if isinstance(transport, trio.SocketStream):
            given = transport.socket
            # With all that it would ask the kernel for: so it raises nothing, and the descriptor is never lost.
            self._socket = socket.socket(given.family, given.type, given.proto, fileno=given.detach())
            transport = trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))
            if pollers is not None:
                self._polled = PolledSocket(pollers, transport, self._socket)
        self._transport = transport
        self._lock = trio.Lock()
        self._writers = 0
        self._door: Door | None = None
        self._send: Callable[[bytes], int] = _take_nothing if self._socket is None else self._socket.send
        """The socket's own while nothing is in the way: the fan-out calls it without touching this object."""
        self._tls: TlsSession | None = None
        self._sealed = memoryview(b"")
        """What the kernel did not take of what was sealed."""
        self._remainder = memoryview(b"")
        self._put_back = b""
        self._closing = False
        self._ended = False
        self._broken = False
        self._at_end = False
        self._closed = False
        self._link = Link()
        self.last_read = trio.current_time()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands over a socket, before anything else is read or written; all that follows is sealed.

        Raises `BadTlsError` if the peer does not speak TLS, `trio.BrokenResourceError` if it leaves.
        """
        tls = TlsSession(context)
        try:
            while not tls.shake_hands():
                await self._transport.send_all(tls.take_outgoing())
                received = await self._receive(_READ_BYTES)
                if not received:
                    raise trio.BrokenResourceError("the peer left in the handshake")
                tls.feed(bytes(received))
        except BadTlsError:
            self.write_nowait(tls.take_outgoing())  # the alert, if the kernel takes it
            raise
        await self._transport.send_all(tls.take_outgoing())
        self._tls = tls
        self._set_free()

    # --- reading

    def put_back(self, data: bytes) -> None:
        """Let ``data``, which was read too early, be read before anything else."""
        self._put_back = data

    @property
    def has_waiting(self) -> bool:
        """Whether something was read that is still to be received: whoever was to have it waited for his turn."""
        return bool(self._put_back)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read as the transport does; what was put back comes first."""
        if self._put_back:
            size = len(self._put_back) if max_bytes is None else max_bytes
            data, self._put_back = self._put_back[:size], self._put_back[size:]
            await trio.lowlevel.checkpoint()
            return data
        try:
            if self._tls is None:
                received = bytes(await self._receive(max_bytes))
            else:
                received = await self._receive_opened(self._tls, max_bytes or _READ_BYTES)
        except trio.BrokenResourceError:
            await self.take_turn()
            raise
        self.last_read = trio.current_time()
        if not received:
            self._at_end = True
            await self.take_turn()
        elif self._turns.full:
            self._put_back = received  # who is cancelled meanwhile has lost nothing
            await self._turns.come_in(self.who)
            self._put_back = b""
        return received

    async def take_turn(self) -> None:
        """Let all others have their turn, then go on: of many clients one between two looks at the network."""
        await self._turns.take(self.who)

    async def come_in(self) -> None:
        """Go on at once if this turn of the loop has room for that, else in one that has."""
        await self._turns.come_in(self.who)

    def _receive(self, max_bytes: int | None) -> Awaitable[bytes | bytearray]:
        """Read what travels, sealed or not."""
        if self._polled is None:
            return self._transport.receive_some(max_bytes)
        return self._polled.receive_some(max_bytes or _READ_BYTES, self.who)

    async def _receive_opened(self, tls: TlsSession, max_bytes: int) -> bytes:
        """Read plain bytes. A peer that ends without saying so ends all the same: our protocols have their own ends."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            while (opened := tls.open(max_bytes)) is None:
                received = await self._receive(_READ_BYTES)
                if not received:
                    return b""
                tls.feed(bytes(received))
        except BadTlsError as error:
            raise trio.BrokenResourceError(str(error)) from None
        await trio.lowlevel.cancel_shielded_checkpoint()
        return opened

    # --- writing

    def lend(self, door: Door) -> None:
        """Let the fan-out write through ``door``, by the socket's own ``send`` while nothing is in the way."""
        self._door = door
        door.sent_part, door.send_failed = self._keep_rest, self._send_failed
        self._set_free()

    def write_nowait(self, data: bytes) -> int:
        """Write whole frames if nothing is in the way; return how many bytes the kernel took.

        Less than all: the rest is the remainder, which the next writer writes first; 0: nothing is kept. Never
        raises: an error marks the stream broken, and its reader or next writer finds out.
        """
        try:
            taken = self._send(data)
        except OSError as error:
            self._send_failed(error)
            return 0
        if 0 < taken < len(data):
            self._keep_rest(data, taken)
        return taken

    def _send_sealed(self, data: bytes) -> int:
        """Do what a socket's ``send`` does, over TLS. Of what was sealed something always counts as taken."""
        assert self._tls is not None
        assert self._socket is not None
        self._sealed = memoryview(self._tls.seal(data[:SEALED_BYTES]))
        with suppress(BlockingIOError):
            self._sealed = self._sealed[self._socket.send(self._sealed) :]
        return len(data) if not self._sealed and len(data) <= SEALED_BYTES else min(SEALED_BYTES, len(data) - 1)

    def _keep_rest(self, data: bytes, taken: int) -> None:
        self._remainder = memoryview(data)[taken if self._tls is None else SEALED_BYTES :]
        self._set_free()

    def _send_failed(self, error: OSError) -> None:
        if not isinstance(error, BlockingIOError):
            self._broken = True
            self._set_free()

    async def send_frames(self, frames: bytes) -> None:
        """Write the remainder, then whole frames. Raises `trio.ClosedResourceError` once a Close was sent."""
        async with self._alone():
            await self._write_frames(frames)

    async def send_last(self, frames: bytes, close: bytes) -> None:
        """Write the remainder, whole frames and a Close frame, in one go. Raises as `send_frames` does."""
        async with self._alone():
            self._require_no_close()
            self._closing = True
            await self._write_out(frames + close)

    async def write_from(self, take: Callable[[], bytes | None]) -> bool:
        """Write the remainder, then the frames that ``take`` gives when it is their turn. False: it gave None.

        What was taken is written, or is the remainder. Raises `trio.ClosedResourceError` once a Close was sent.
        """
        async with self._alone():
            await self._write_frames(b"")
            frames = take()
            if frames:
                await self._write_out(frames)
            return frames is not None

    async def settle(self) -> None:
        """Wait until nobody is inside a frame that only he can finish. Over a socket the next writer can."""
        if self._socket is None:
            async with self._lock:
                pass

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write the remainder, then ``data``: how trio-websocket writes, always whole frames."""
        async with self._alone():
            self._closing = self._closing or is_close(data)
            await self._write_out(data)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Write with nobody else; the fan-out is kept out for as long as anybody waits to."""
        self._writers += 1
        self._set_free()
        try:
            async with self._lock:
                yield
        finally:
            self._writers -= 1
            self._set_free()

    def _set_free(self) -> None:
        """Open or shut the way for `write_nowait` and the fan-out."""
        in_the_way = self._writers or self._closing or self._broken or len(self._remainder) or len(self._sealed)
        if in_the_way or self._socket is None:
            self._send = _take_nothing
        else:
            self._send = self._socket.send if self._tls is None else self._send_sealed
        if self._door is not None:
            self._door.send = self._send

    async def _write_frames(self, frames: bytes) -> None:
        self._require_no_close()
        await self._write_out(frames)

    def _require_no_close(self) -> None:
        if self._closing:
            raise trio.ClosedResourceError("a Close frame was sent")

    async def _write_out(self, data: bytes | bytearray | memoryview) -> None:
        """Write the remainder and ``data``. If cancelled, what is left is the remainder."""
        if self._ended:
            raise trio.ClosedResourceError("the end was sent")
        if self._broken:
            raise trio.BrokenResourceError("an earlier write failed")
        if data:
            self._remainder = memoryview(bytes(self._remainder) + data) if self._remainder else memoryview(data)
        try:
            if self._socket is not None:
                await self._send_remainder()
            elif self._remainder:
                await self._transport.send_all(self._remainder)
                self._remainder = memoryview(b"")
        except OSError as error:
            self._broken = True
            raise trio.BrokenResourceError(str(error)) from error
        except BaseException:
            self._broken = self._broken or self._socket is None
            raise

    async def _send_remainder(self) -> None:
        tls = self._tls
        while self._remainder and tls is None:
            sent = await self._send_some(self._remainder)
            self._remainder = self._remainder[sent:]
        while tls is not None and (self._sealed or self._remainder):
            if not self._sealed:
                piece, self._remainder = self._remainder[:SEALED_BYTES], self._remainder[SEALED_BYTES:]
                self._sealed = memoryview(tls.seal(piece))
            sent = await self._send_some(self._sealed)
            self._sealed = self._sealed[sent:]
        self._remainder = self._sealed = memoryview(b"")  # an empty part of what was written would keep all of it

    async def _send_some(self, data: memoryview) -> int:
        """Let the kernel take something; raises `OSError`.

        What it takes at once it gets though this is cancelled: time may be over because this process was late.
        """
        assert self._socket is not None
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            pass
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return sent
        if self._polled is not None:
            return await self._polled.send(data, self.who)
        assert isinstance(self._transport, trio.SocketStream)
        return await self._transport.socket.send(data)

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
                if self._tls is not None:
                    self._sealed = memoryview(self._tls.seal_end())
                    await self._write_out(b"")
                self._ended = True
                await self._transport.send_eof()

    async def aclose(self) -> None:
        """End our side, read on for a moment so that the peer sees it, and close.

        At once if cancelled, or if somebody else reads.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            with trio.move_on_after(LINGER_SECONDS):
                await self.send_eof()
                await self._read_to_end()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass
        finally:
            self._link = self.link()
            self._closed = self._closing = self._ended = True
            self._set_free()
            if self._polled is not None:
                self._polled.close()
            await trio.aclose_forcefully(self._transport)

    async def _read_to_end(self) -> None:
        """Read what nobody will look at, sealed or not."""
        while not self._at_end:
            self._at_end = not await self._receive(_READ_BYTES)
        await self.take_turn()

    # --- what the kernel knows

    @property
    def is_tcp(self) -> bool:
        """Whether the peer came over a network."""
        return self._socket is not None and self._socket.family in (socket.AF_INET, socket.AF_INET6)

    @property
    def is_by_socket_file(self) -> bool:
        """Whether the peer came by a socket file, on this machine."""
        return self._socket is not None and self._socket.family == socket.AF_UNIX

    @property
    def remote(self) -> str | None:
        """The peer's IP address, an IPv4 one without its IPv6 wrapping; None where there is none."""
        if self._socket is None or not self.is_tcp:
            return None
        try:
            return str(self._socket.getpeername()[0]).removeprefix("::ffff:")
        except OSError:
            return None

    @property
    def has_unread(self) -> bool:
        """Whether the peer has sent something that was not received yet."""
        if self._put_back:
            return True
        if self._closed or self._socket is None:
            return False
        unread = fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4))
        return int.from_bytes(unread, sys.byteorder) > 0

    def unacknowledged_seconds(self) -> float | None:
        """Return how long the peer's TCP has left unanswered what it was sent; 0.0: nothing is; None: not known.

        A peer whose window is full owes nothing but answers to probes, which come minutes apart.
        """
        info = self._tcp_info()
        if info is None:
            return None
        return info.last_ack_recv_ms / 1000 if info.unacked or info.probes > 1 else 0.0

    def _tcp_info(self) -> "_TcpInfo | None":
        if self._socket is None or not hasattr(socket, "TCP_INFO"):
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        except OSError:
            return None
        return _TcpInfo._make(_TCP_INFO.unpack(info)) if len(info) == _TCP_INFO.size else None

    def link(self) -> Link:
        """Return what the kernel knows of the way to the peer, or knew when this was closed."""
        return self._link if self._closed or self._socket is None else link_of(self._socket)

    def statistics(self) -> StreamStatistics:
        """Return what this stream holds."""
        return StreamStatistics(len(self._sealed) + len(self._remainder), self._closing, self._broken)
