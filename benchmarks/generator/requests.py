"""Connections that send requests and count the answers: what both kinds of publisher stand on.

Answers are matched to what they answer by their order, which is kept on each connection.
"""

import gc
import math
import select
import socket
import ssl
import time
from collections import deque

from ..peers.adapter import Publication, Running
from .effort import Effort
from .opening import OPENING_SECONDS, OpeningError, connect

_RECEIVE_BYTES = 262_144
_ANSWER_SECONDS = 10.0


class RequestError(Exception):
    """The server left."""


class RequestConnection:
    """One connection: what the kernel has not taken yet, and since when each request waits for its answer."""

    def __init__(self, opened: socket.socket, publication: Publication) -> None:
        self.fileno = opened.fileno
        self.outgoing = bytearray()
        self.waiting: deque[int] = deque()
        self.latencies: list[int] = []
        self._socket = opened
        self._mark = publication.acknowledged
        self._tail = b""

    def ask(self, request: bytes, since: int) -> None:
        """Queue a request; its latency counts from ``since``."""
        self.outgoing += request
        if self._mark:
            self.waiting.append(since)

    def flush(self) -> None:
        """Send what the kernel takes."""
        if self.outgoing:
            try:
                sent = self._socket.send(self.outgoing)
            except (BlockingIOError, ssl.SSLWantWriteError):
                return
            del self.outgoing[:sent]

    def receive(self) -> int:
        """Take what came; return how many answers that were."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
            while isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
                data += self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return 0
        if not data:
            raise RequestError("the server ended a publisher's connection")
        if not self._mark:
            return 0
        data = self._tail + data
        answers, now = data.count(self._mark), time.monotonic_ns()
        # A mark that is cut here is whole with what comes next.
        behind = data.rfind(self._mark) + len(self._mark) if answers else 0
        self._tail = data[max(behind, len(data) - len(self._mark) + 1) :]
        for _ in range(min(answers, len(self.waiting))):
            self.latencies.append(now - self.waiting.popleft())
        return answers


class Requests:
    """All connections of a publisher, and how long it waited for the server.

    Args:
        running: what it publishes to.
        connections: how many.
    """

    def __init__(self, running: Running, connections: int) -> None:
        self.connections = [RequestConnection(_open(running), running.publication) for _ in range(connections)]
        self._waited = 0
        gc.disable()  # a collection would make events late
        self.begin()

    def begin(self) -> None:
        """Forget latencies and waiting: a measurement begins."""
        self._waited = 0
        self._begun, self._processor_begun = time.monotonic_ns(), time.process_time_ns()
        for connection in self.connections:
            connection.latencies.clear()

    def turn(self, until: int) -> int:
        """Send and receive what can be, waiting for that until ``until`` at most; return how many answers came."""
        for connection in self.connections:
            connection.flush()
        blocked = [connection for connection in self.connections if connection.outgoing]
        slept = time.monotonic_ns()
        readable, writable, _ = select.select(self.connections, blocked, [], max(0, until - slept) / 1e9)
        self._waited += time.monotonic_ns() - slept
        for connection in writable:
            connection.flush()
        return sum(connection.receive() for connection in readable)

    def settle(self) -> int:
        """Wait some seconds until all is sent and answered; return how many requests have no answer."""
        until = time.monotonic_ns() + int(_ANSWER_SECONDS * 1e9)
        while time.monotonic_ns() < until and any(c.outgoing or c.waiting for c in self.connections):
            self.turn(until)
        unanswered = sum(len(connection.waiting) for connection in self.connections)
        for connection in self.connections:
            connection.waiting.clear()
        return unanswered

    def latencies(self) -> list[int]:
        """Return the nanoseconds until each answer, since `begin`."""
        return [latency for connection in self.connections for latency in connection.latencies]

    def effort(self, *, pressing: bool) -> Effort:
        """Return how hard this process worked since `begin`; pressing, all lies ready at once."""
        wall = time.monotonic_ns() - self._begun
        processor = (time.process_time_ns() - self._processor_begun) / wall
        if pressing:
            return Effort("publisher", processor, wall / 1e9, 1 - self._waited / wall, math.inf, 1.0)
        return Effort("publisher", processor)


def _open(running: Running) -> socket.socket:
    """Return a connection that is ready for the first request."""
    publication = running.publication
    connection = connect(running, publication.port)
    connection.sendall(publication.opening)
    received = b""
    while publication.opened not in received:
        try:
            data = connection.recv(_RECEIVE_BYTES)
        except TimeoutError:
            raise OpeningError(f"no {publication.opened!r} in {OPENING_SECONDS:g} s, but {received!r}") from None
        if not data:
            raise OpeningError(f"the server hung up on the publisher after {received!r}")
        received += data
    connection.setblocking(False)
    return connection
