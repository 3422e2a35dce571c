"""Subscribers: many sockets in one loop that does no more than note which event came when (`receiving`).

What that means (latencies, losses, bursts) is worked out afterwards, in `deliveries`.
"""

import gc
import socket
import time
from array import array
from collections.abc import Sequence

from ..payload import dues_in
from ..peers.adapter import Peer, Running, Subscription
from .deliveries import Expected, Received, account
from .effort import Effort
from .frames import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, masked_frame
from .opening import open_all
from .receiving import open_loop

_LOOK_SECONDS = 0.05
"""How long the loop turns at most while it has a time to end at."""


class SubscriberError(Exception):
    """A subscriber was thrown out."""


class Subscriber:
    """One connection."""

    __slots__ = ("frame", "number", "reader", "socket")

    def __init__(self, opened: socket.socket, number: int) -> None:
        self.socket = opened
        self.number = number
        self.reader = FrameReader()
        self.frame = b""
        """The payload of the last frame of data; surely only where `Subscribers.keeps_frames`."""


class Subscribers:
    """All connections of one process.

    Args:
        peer: whose messages they get.
        running: where it listens.
        channels: what each connection subscribes to.
        control: a descriptor; what can be read there ends `receive`.
    """

    keeps_frames = False

    def __init__(self, peer: Peer, running: Running, channels: Sequence[int], control: int) -> None:
        self.channels = channels
        self._peer = peer
        self._running = running
        self._each_event = max(1, len(channels) // max(1, len(set(channels))))
        self._loop = open_loop(control, self._each_event, tls=running.tls)
        self._by_descriptor: dict[int, Subscriber] = {}
        self.reset()
        self.open([peer.subscribe(running, channel) for channel in channels])
        gc.disable()  # nothing here makes cycles; a collection would be measured as the server's delay

    @property
    def arrivals(self) -> "array[int]":
        """Of each delivery: the number of its connection, when the event was due, when it came."""
        return self._loop.arrivals

    def open(self, subscriptions: Sequence[Subscription]) -> None:
        """Open the connections; nothing is received meanwhile but what comes before each subscription holds."""
        for number, opened in enumerate(open_all(self._running, subscriptions)):
            subscriber = Subscriber(opened.socket, number)
            self.add(subscriber)
            if opened.received:
                self._take(subscriber, opened.received)

    def add(self, subscriber: Subscriber) -> None:
        """Receive for one more."""
        descriptor = subscriber.socket.fileno()
        self._by_descriptor[descriptor] = subscriber
        self._loop.add(subscriber.socket, subscriber.number)
        self._loop.hold(descriptor, self.keeps_frames)

    def reset(self) -> None:
        """Forget what was received: a measurement begins."""
        self._loop.reset()
        self._begun, self._processor_begun = time.monotonic_ns(), time.process_time_ns()

    def receive(self, seconds: float | None = None, deliveries: int | None = None) -> None:
        """Receive until the control descriptor can be read; or for ``seconds``, or until so many deliveries."""
        until = None if seconds is None else time.monotonic() + seconds
        wait = None if seconds is None else min(seconds, _LOOK_SECONDS)
        while deliveries is None or len(self.arrivals) < 3 * deliveries:
            spilled, called = self._loop.turn(wait, deliveries)
            for descriptor, data in spilled:
                subscriber = self._by_descriptor[descriptor]
                self._take(subscriber, data)
                self._loop.hold(descriptor, self.keeps_frames or bool(subscriber.reader.pending))
            if called and until is None:
                return
            if until is not None and time.monotonic() > until:
                return

    def _take(self, subscriber: Subscriber, data: bytes) -> None:
        """Go through bytes that may be anything: parts of frames, several, pings, a close."""
        if not data:
            raise SubscriberError("the server ended a connection")
        now = time.monotonic_ns()
        for opcode, payload in subscriber.reader.feed(data):
            if opcode <= BINARY:
                subscriber.frame = payload
                dues = list(dues_in(payload))
                for due in dues:
                    self.arrivals.extend((subscriber.number, due, now))
                if not dues:
                    self._answer(subscriber, payload, opcode)
            elif opcode == PING:
                subscriber.socket.send(masked_frame(PONG, payload))
            elif opcode == CLOSE:
                raise SubscriberError(f"the server closed a connection with {int.from_bytes(payload[:2])}")

    def _answer(self, subscriber: Subscriber, message: bytes, opcode: int) -> None:
        answer = self._peer.ping(message)
        if answer is not None:
            subscriber.socket.send(masked_frame(opcode or TEXT, answer))

    def collect(self, expected: Expected, deliveries: int, seconds: float) -> tuple[Received, Effort]:
        """Wait until so many deliveries are there, at most ``seconds``; return what they mean, and the effort."""
        self.receive(seconds, deliveries)
        wall = time.monotonic_ns() - self._begun
        processor = time.process_time_ns() - self._processor_begun
        received = account(self.arrivals, self.channels, expected)
        burst_ns = received.burst_seconds * 1e9
        busy = max(0.0, 1 - self._loop.waited_in_bursts / burst_ns) if burst_ns else 0.0
        beside = self._loop.ready_squared / self._loop.ready if self._loop.ready else 0.0
        return received, Effort(
            "subscribers", processor / wall, received.burst_seconds, busy, beside, beside / self._each_event
        )

    def close(self) -> None:
        """Close all connections at once, without a word."""
        for subscriber in self._by_descriptor.values():
            self._loop.remove(subscriber.socket)
            subscriber.socket.close()
        self._by_descriptor.clear()
