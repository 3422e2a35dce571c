"""A subscriber and a publisher on blocking sockets, to see whether a peer works. Nothing here measures."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from ..generator.frames import BINARY, PING, PONG, TEXT, masked_frame
from .adapter import DUE, Peer, Running, Subscription

TIMEOUT_SECONDS = 10.0
PAYLOAD = b'{"type":"message.received","due":"' + DUE + b'"}'

_MARKER = re.compile(rb"[0-9]{19}")


class ProbeError(Exception):
    """A peer did not say what was due."""


class _Connection:
    """A TCP connection whose input is read by what ends it or by its length."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), TIMEOUT_SECONDS)
        self._input = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        while len(self._input) < count:
            self._receive()
        taken, self._input = self._input[:count], self._input[count:]
        return taken

    def take_through(self, end: bytes) -> bytes:
        """Return what comes up to and with ``end``."""
        while end not in self._input:
            self._receive()
        return self.take(self._input.index(end) + len(end))

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._socket.close()
            raise

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65_536)
        except TimeoutError:
            raise ProbeError(f"nothing came for {TIMEOUT_SECONDS:g} s behind {self._input[-200:]!r}") from None
        if not data:
            raise ProbeError(f"the peer closed the connection behind {self._input[-200:]!r}")
        self._input += data


class Subscriber(_Connection):
    """A subscriber of one channel, whose subscription holds once it is made."""

    def __init__(self, peer: Peer, running: Running, channel: int) -> None:
        super().__init__(running.host, running.port)
        self._peer = peer
        subscription = peer.subscribe(running, channel)
        self._opcode = TEXT if subscription.text else BINARY
        with self._closed_on_error():
            self._subscribe(subscription)

    def _subscribe(self, subscription: Subscription) -> None:
        self.send(subscription.upgrade)
        head = self.take_through(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ProbeError(f"the upgrade was answered with {head!r}")
        for message in subscription.messages:
            self._say(self._opcode, message)
        heard = b""
        while subscription.ready not in heard:
            heard += self.message()

    def events(self, count: int) -> list[int]:
        """Return the markers of the next events, ``count`` of them or what more their last frame holds."""
        markers: list[int] = []
        while len(markers) < count:
            markers += map(int, _MARKER.findall(self.message()))
        return markers

    def message(self) -> bytes:
        """Return the payload of the next frame of data; answer the pings, the peer's own too."""
        while True:
            opcode, payload = self._frame()
            if opcode == PING:
                self._say(PONG, payload)
            elif opcode not in (TEXT, BINARY):
                raise ProbeError(f"a frame of opcode {opcode} came: {payload!r}")
            else:
                if (answer := self._peer.ping(payload)) is not None:
                    self._say(self._opcode, answer)
                return payload

    def _frame(self) -> tuple[int, bytes]:
        first, length = self.take(2)
        if first & 0xF0 != 0x80 or length > 127:
            raise ProbeError(f"a frame is in pieces, compressed or masked: {first:#x} {length:#x}")
        if length >= 126:
            length = int.from_bytes(self.take(2 if length == 126 else 8))
        return first & 0x0F, self.take(length)

    def _say(self, opcode: int, payload: bytes) -> None:
        self.send(masked_frame(opcode, payload))


class Publisher(_Connection):
    """A connection that publishes events of `PAYLOAD`, each with its own marker, and waits for the answers."""

    def __init__(self, peer: Peer, running: Running) -> None:
        self._peer, self._running = peer, running
        publication = running.publication
        super().__init__(running.host, publication.port)
        self._acknowledged = publication.acknowledged
        with self._closed_on_error():
            self.send(publication.opening)
            self.take_through(publication.opened)

    def publish(self, channel: int, marker: int) -> None:
        """Publish an event."""
        template = self._peer.publish(self._running, channel, PAYLOAD)
        self.send(template.replace(DUE, b"%019d" % marker))
        self.take_through(self._acknowledged)
