"""The hot loop of subscribers: epoll, recv, and a note of which event came to whom and when.

It is in C, compiled when it is first used, where there is a compiler (receiving.c); else in Python, which costs about
twice as much a delivery. Both give back what is not whole frames with a due mark in each: `Subscribers` looks at it.
"""

import ctypes
import os
import resource
import select
import socket
import ssl
import struct
import time
from array import array
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from ..payload import DIGITS, MARK
from ..peers import compiling
from ..peers.adapter import PeerMissingError
from .frames import is_one_frame

CHUNK_BYTES = 262_144
_SOURCE = Path(__file__).with_name("receiving.c")
_MARK_BYTES = len(MARK)
_MOST_DESCRIPTORS = 1 << 20
_MOST_READY = 4096
_RECORD = struct.Struct("ii")


class Turn(NamedTuple):
    """What a turn of the loop leaves to do."""

    spilled: list[tuple[int, bytes]]
    """Descriptor and bytes, to be looked at in order; no bytes: the connection has ended."""
    called: bool
    """Whether the control descriptor can be read."""


class Loop(Protocol):
    """What both loops offer."""

    arrivals: "array[int]"
    """Of each delivery: the number of its connection, when the event was due, when it came."""

    @property
    def waited_in_bursts(self) -> int:
        """Nanoseconds of waiting while an event had come to some but not to all."""
        ...

    @property
    def ready(self) -> int:
        """The sum of how many descriptors lay ready at once while that was so."""
        ...

    @property
    def ready_squared(self) -> int:
        """The sum of the squares of these."""
        ...

    def add(self, connection: socket.socket, number: int) -> None:
        """Receive from a connection that does not block."""
        ...

    def remove(self, connection: socket.socket) -> None:
        """Receive from it no more; before it is closed."""
        ...

    def hold(self, descriptor: int, held: bool) -> None:
        """Give back all bytes of a connection as they are, or no more."""
        ...

    def turn(self, seconds: float | None, wanted: int | None) -> Turn:
        """Receive until there is something to do, at most for ``seconds``, or until there are so many deliveries."""
        ...

    def reset(self) -> None:
        """Forget arrivals and sums."""
        ...


def open_loop(control: int, each_event: int, *, tls: bool) -> Loop:
    """Return the fastest loop there is for these connections.

    Args:
        control: a descriptor; that it can be read ends a turn.
        each_event: how many of the connections one event goes to.
        tls: whether the bytes are encrypted.
    """
    library = None if tls else compiled()
    return PythonLoop(control, each_event) if library is None else CLoop(library, control, each_event)


@cache
def compiled() -> Path | None:
    """Return the loop in C as a shared library, None where there is no compiler."""
    try:
        return compiling.compiled(_SOURCE, "generator", suffix=".so", options=["-shared", "-fPIC"])
    except PeerMissingError:
        return None


class PythonLoop:
    """The loop in Python."""

    def __init__(self, control: int, each_event: int) -> None:
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._connections: dict[int, tuple[socket.socket, int]] = {}
        self._held: set[int] = set()
        self._each_event = each_event
        self._buffer = bytearray(CHUNK_BYTES)
        self.reset()

    def reset(self) -> None:
        self.arrivals = array("q")
        self.waited_in_bursts = self.ready = self.ready_squared = 0

    def add(self, connection: socket.socket, number: int) -> None:
        self._connections[connection.fileno()] = connection, number
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def remove(self, connection: socket.socket) -> None:
        self._poll.unregister(connection.fileno())
        del self._connections[connection.fileno()]
        self._held.discard(connection.fileno())

    def hold(self, descriptor: int, held: bool) -> None:
        (self._held.add if held else self._held.discard)(descriptor)

    def turn(self, seconds: float | None, wanted: int | None) -> Turn:
        slept = time.monotonic_ns()
        ready = self._poll.poll(seconds, _MOST_READY)
        if ready and len(self.arrivals) // 3 % self._each_event:
            self.waited_in_bursts += time.monotonic_ns() - slept
            self.ready += len(ready)
            self.ready_squared += len(ready) ** 2
        spilled: list[tuple[int, bytes]] = []
        called = False
        for descriptor, _ in ready:
            found = self._connections.get(descriptor)
            if found is None:
                called = True
            else:
                self._receive(descriptor, *found, spilled)
        return Turn(spilled, called)

    def _receive(
        self, descriptor: int, connection: socket.socket, number: int, spilled: list[tuple[int, bytes]]
    ) -> None:
        buffer = self._buffer
        try:
            got = connection.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ConnectionResetError:
            got = 0
        if descriptor not in self._held and is_one_frame(buffer, got):
            at = buffer.find(MARK, 0, got) + _MARK_BYTES
            if at >= _MARK_BYTES and buffer.find(MARK, at, got) < 0:
                self.arrivals.extend((number, int(buffer[at : at + DIGITS]), time.monotonic_ns()))
                return
        # Until this was looked at, later bytes must not come before it.
        self._held.add(descriptor)
        spilled.append((descriptor, bytes(buffer[:got])))
        if isinstance(connection, ssl.SSLSocket):
            while connection.pending():
                spilled.append((descriptor, connection.recv(CHUNK_BYTES)))


class _Struct(ctypes.Structure):
    """`struct loop` of receiving.c."""

    _fields_ = (
        ("poller", ctypes.c_int32),
        ("control", ctypes.c_int32),
        ("called", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("numbers", ctypes.c_void_p),
        ("held", ctypes.c_void_p),
        ("arrivals", ctypes.c_void_p),
        ("arrivals_size", ctypes.c_int64),
        ("arrivals_count", ctypes.c_int64),
        ("spilled", ctypes.c_void_p),
        ("spilled_size", ctypes.c_int64),
        ("spilled_count", ctypes.c_int64),
        ("each_event", ctypes.c_int64),
        ("total", ctypes.c_int64),
        ("waited_in_bursts", ctypes.c_int64),
        ("ready", ctypes.c_int64),
        ("ready_squared", ctypes.c_int64),
    )


class CLoop:
    """The loop in C."""

    _ARRIVALS = 3 * 65_536
    _SPILLED = 4 * CHUNK_BYTES

    def __init__(self, library: Path, control: int, each_event: int) -> None:
        self._turn = ctypes.CDLL(str(library), use_errno=True).turn
        self._turn.argtypes = (ctypes.POINTER(_Struct), ctypes.c_int, ctypes.c_int64)
        descriptors = min(_MOST_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        if descriptors == resource.RLIM_INFINITY:
            descriptors = _MOST_DESCRIPTORS
        self._numbers = (ctypes.c_int32 * descriptors)()
        self._held = (ctypes.c_uint8 * descriptors)()
        self._noted = (ctypes.c_int64 * self._ARRIVALS)()
        self._spilled = (ctypes.c_uint8 * self._SPILLED)()
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._struct = _Struct(
            poller=self._poll.fileno(),
            control=control,
            numbers=ctypes.addressof(self._numbers),
            held=ctypes.addressof(self._held),
            arrivals=ctypes.addressof(self._noted),
            arrivals_size=self._ARRIVALS,
            spilled=ctypes.addressof(self._spilled),
            spilled_size=self._SPILLED,
            each_event=each_event,
        )
        self.reset()

    def reset(self) -> None:
        self.arrivals = array("q")
        self._struct.total = 0
        self._struct.waited_in_bursts = self._struct.ready = self._struct.ready_squared = 0

    @property
    def waited_in_bursts(self) -> int:
        return int(self._struct.waited_in_bursts)

    @property
    def ready(self) -> int:
        return int(self._struct.ready)

    @property
    def ready_squared(self) -> int:
        return int(self._struct.ready_squared)

    def add(self, connection: socket.socket, number: int) -> None:
        self._numbers[connection.fileno()] = number
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def remove(self, connection: socket.socket) -> None:
        self._poll.unregister(connection.fileno())
        self._held[connection.fileno()] = 0

    def hold(self, descriptor: int, held: bool) -> None:
        self._held[descriptor] = held

    def turn(self, seconds: float | None, wanted: int | None) -> Turn:
        loop = self._struct
        # What Python noted of spilled bytes is in `arrivals` and counts too.
        loop.total = len(self.arrivals) // 3
        milliseconds = -1 if seconds is None else int(seconds * 1000)
        error = self._turn(ctypes.byref(loop), milliseconds, -1 if wanted is None else wanted)
        if error:
            raise OSError(error, os.strerror(error))
        self.arrivals.frombytes(memoryview(self._noted)[: loop.arrivals_count].tobytes())
        return Turn(_records(memoryview(self._spilled)[: loop.spilled_count]), bool(loop.called))


def _records(data: memoryview) -> list[tuple[int, bytes]]:
    records = []
    place = 0
    while place < len(data):
        descriptor, size = _RECORD.unpack_from(data, place)
        place += _RECORD.size
        records.append((descriptor, bytes(data[place : place + size])))
        place += size
    return records
