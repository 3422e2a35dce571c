"""Subscribers that lose their connections all at once, and come back with the cursor of the last event they had."""

import re
import socket
import struct
import time
from collections.abc import Sequence

from hdrh.histogram import HdrHistogram

from ..histograms import of_nanoseconds
from ..peers.adapter import Running
from ..peers.broker import Broker
from .deliveries import Expected, Received, account
from .effort import Effort
from .opening import OpeningError, connect
from .subscribers import Subscriber, Subscribers

_CURSOR = re.compile(rb'"cursor":"([^"]+)"')
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset: how a connection ends whose network is gone."""


class Returning(Subscribers):
    """Subscribers of the broker that know where they were.

    Args:
        broker: as the account sees it.
        running: where it listens.
        channels: what each connection subscribes to.
        control: a descriptor; what can be read there ends `receive`.
    """

    keeps_frames = True

    def __init__(self, broker: Broker, running: Running, channels: Sequence[int], control: int) -> None:
        super().__init__(broker, running, channels, control)
        self._broker = broker
        self._came_back, self._processor_then = 0, 0

    def cut(self) -> list[str]:
        """Reset all connections at once; return the cursor that each has seen last."""
        cursors = [_CURSOR.findall(subscriber.frame)[-1].decode() for subscriber in self._in_order()]
        for subscriber in self._in_order():
            subscriber.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()
        return cursors

    def come_back(self, cursors: Sequence[str]) -> None:
        """Let all connect and ask for what they missed; none waits for another's answer."""
        requests = [
            self._broker.resume(self._running, channel, cursor).upgrade
            for channel, cursor in zip(self.channels, cursors, strict=True)
        ]
        self._came_back, self._processor_then = time.monotonic_ns(), time.process_time_ns()
        for number, request in enumerate(requests):
            connection = connect(self._running, self._running.port)
            connection.sendall(request)
            connection.setblocking(False)
            self.add(_Returned(connection, number))

    def caught_up(self, last_missed: int, expected: Expected, deliveries: int, seconds: float) -> "CaughtUp":
        """Wait until so many deliveries are there; return how long each took to have the event due then."""
        self.receive(seconds, deliveries)
        processor = time.process_time_ns() - self._processor_then
        numbers = self.arrivals
        took = [
            numbers[place + 2] - self._came_back
            for place in range(0, len(numbers), 3)
            if numbers[place + 1] == last_missed and numbers[place + 2] >= self._came_back
        ]
        wall = time.monotonic_ns() - self._came_back
        return (
            account(self.arrivals, self.channels, expected),
            of_nanoseconds(took),
            Effort("subscribers", processor / wall),
        )

    def _in_order(self) -> list[Subscriber]:
        return sorted(self._by_descriptor.values(), key=lambda subscriber: subscriber.number)

    def _take(self, subscriber: Subscriber, data: bytes) -> None:
        if isinstance(subscriber, _Returned) and not subscriber.upgraded:
            data = subscriber.behind_the_head(data)
            if not data:
                return
        super()._take(subscriber, data)


CaughtUp = tuple[Received, HdrHistogram, Effort]


class _Returned(Subscriber):
    """One that is back, its upgrade perhaps not answered yet."""

    __slots__ = ("_head", "upgraded")

    def __init__(self, opened: socket.socket, number: int) -> None:
        super().__init__(opened, number)
        self.upgraded = False
        self._head = b""

    def behind_the_head(self, data: bytes) -> bytes:
        """Take the answer to the upgrade; return what came behind it, perhaps nothing."""
        if not data:
            raise OpeningError(f"the server hung up on one who came back, after {self._head!r}")
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return b""
        if not head.startswith(b"HTTP/1.1 101"):
            raise OpeningError(f"one who came back was refused: {self._head.decode(errors='replace')}")
        self.upgraded = True
        return rest
