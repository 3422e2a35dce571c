"""Connections that come and go: so many at a time are opened, and closed once their subscription holds.

Each closes as RFC 6455 has it, with a Close frame, and makes room for the next when the server has closed too.
"""

import select
import socket
import ssl
import time
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

from ..cost import processor_ns
from ..histograms import of_nanoseconds
from ..peers.adapter import Peer, Running
from .effort import Effort
from .frames import BINARY, CLOSE, TEXT, masked_frame
from .opening import connect

_RECEIVE_BYTES = 65_536
_GOING_AWAY = (1001).to_bytes(2)


@dataclass(frozen=True)
class Churned:
    """What came of it.

    Args:
        opened: connections that were opened and closed in the measured time.
        failed: connections that the server ended before their subscription held, in all the time.
        seconds: the measured time.
        latency: from the call of connect() until the subscription held.
        server_ns: the processor time that the server used.
        effort: of this process.
    """

    opened: int
    failed: int
    seconds: float
    latency: HdrHistogram
    server_ns: int
    effort: Effort


class _Visit:
    """One connection."""

    __slots__ = ("begun", "leaving", "received", "shaken", "socket", "upgraded")

    def __init__(self, opened: socket.socket, begun: int) -> None:
        self.socket = opened
        self.shaken = not isinstance(opened, ssl.SSLSocket)
        self.begun = begun
        self.received = b""
        self.upgraded = self.leaving = False


class Churner:
    """Opens and closes connections to channel 0.

    Args:
        peer: whose subscription is said.
        running: where it listens.
        at_once: how many connections are there at a time.
        control: not used: nothing is received between calls.
    """

    def __init__(self, peer: Peer, running: Running, at_once: int, control: int) -> None:
        self._running = running
        self._at_once = at_once
        self._subscription = peer.subscribe(running, 0)
        self._poll = select.epoll()
        self._visits: dict[int, _Visit] = {}
        self._latencies: list[int] = []
        self._opened = self._failed = self._waited = 0

    def churn(self, seconds: float, warm_up: float = 0.5) -> Churned:
        """Open and close connections for so long."""
        self._go_on(warm_up)
        self._latencies.clear()
        self._opened = self._waited = 0
        begun, used, processor = time.monotonic_ns(), processor_ns(self._running.process_ids), time.process_time_ns()
        self._go_on(seconds)
        wall = time.monotonic_ns() - begun
        busy, processor = 1 - self._waited / wall, time.process_time_ns() - processor
        return Churned(
            opened=self._opened,
            failed=self._failed,
            seconds=wall / 1e9,
            latency=of_nanoseconds(self._latencies),
            server_ns=processor_ns(self._running.process_ids) - used,
            effort=Effort("visitors", processor / wall, wall / 1e9, busy, self._at_once * 2, 1.0),
        )

    def _go_on(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            while len(self._visits) < self._at_once:
                self._come()
            slept = time.monotonic_ns()
            ready = self._poll.poll(max(0.0, until - time.monotonic()))
            self._waited += time.monotonic_ns() - slept
            for descriptor, _ in ready:
                self._receive(self._visits[descriptor])

    def _come(self) -> None:
        begun = time.monotonic_ns()
        connection = connect(self._running, self._running.port, at_leisure=True)
        connection.setblocking(False)
        visit = self._visits[connection.fileno()] = _Visit(connection, begun)
        self._poll.register(connection.fileno(), select.EPOLLIN)
        if visit.shaken:
            connection.send(self._subscription.upgrade)
        else:
            self._shake_hands(visit)

    def _shake_hands(self, visit: _Visit) -> None:
        """Go on with the handshake of TLS, as far as the server has; others have their turn meanwhile."""
        assert isinstance(visit.socket, ssl.SSLSocket)
        try:
            visit.socket.do_handshake()
        except ssl.SSLWantReadError:
            return
        except OSError:
            self._gone(visit)
            return
        visit.shaken = True
        visit.socket.send(self._subscription.upgrade)

    def _receive(self, visit: _Visit) -> None:
        if not visit.shaken:
            self._shake_hands(visit)
            return
        try:
            data = visit.socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._gone(visit)
            return
        visit.received += data
        if not visit.upgraded and b"\r\n\r\n" in visit.received:
            visit.upgraded = True
            visit.received = visit.received.partition(b"\r\n\r\n")[2]
            opcode = TEXT if self._subscription.text else BINARY
            messages = b"".join(masked_frame(opcode, message) for message in self._subscription.messages)
            if messages:
                visit.socket.send(messages)
        if visit.upgraded and not visit.leaving and self._subscription.ready in visit.received:
            self._latencies.append(time.monotonic_ns() - visit.begun)
            visit.leaving = True
            visit.socket.send(masked_frame(CLOSE, _GOING_AWAY))
            if not self._running.tls:
                visit.socket.shutdown(socket.SHUT_WR)  # some servers never answer a Close

    def _gone(self, visit: _Visit) -> None:
        if visit.leaving:
            self._opened += 1
        else:
            self._failed += 1
        del self._visits[visit.socket.fileno()]
        visit.socket.close()

    def close(self) -> None:
        """Close all connections at once, without a word, and the poll."""
        for visit in self._visits.values():
            visit.socket.close()
        self._visits.clear()
        self._poll.close()
