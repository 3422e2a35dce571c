"""The subscribers, in a process of their own: raw sockets on epoll, and a frame reader that does next to nothing.

The same program subscribes to the floor and to the broker, so that what it costs is in both figures. It says
``ready COUNT`` once every connection has its first frame, then ``round K NANOSECONDS BYTES`` when the last
connection has its K-th event of BYTES, by CLOCK_MONOTONIC, which all processes of a machine share. It ends when its
standard input does.
"""

import argparse
import base64
import contextlib
import gc
import os
import resource
import select
import socket
import time
from collections.abc import Iterator

from .children import answer, end_in_time

_BATCH = 100
"""So many connections open at a time: a listen queue holds them, and no server is flooded."""
_OPENING_SECONDS = 30.0
_TEXT, _CLOSE, _PING = 0x81, 0x88, 0x89
_EVENT = b'{"type":"message.'
_READY = b'{"type":"connection.ready"'
_GAP = b'{"type":"replay.gap"'
_HEAD = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\nAuthorization: Bearer {key}\r\n\r\n"
)


class Connection:
    """One subscriber: its socket, the bytes of a frame that is not whole yet, and how many events it had."""

    __slots__ = ("events", "pending", "receive_into", "socket")

    def __init__(self, opened: socket.socket, pending: bytes) -> None:
        self.socket = opened
        self.receive_into = opened.recv_into
        self.pending = bytearray(pending)
        self.events = 0

    def frames(self) -> Iterator[tuple[int, bytes, int]]:
        """Take the whole frames out of what is pending: first byte, payload, length of the frame."""
        data = self.pending
        while len(data) >= 2:
            length, start = data[1], 2
            if length == 126:
                length, start = int.from_bytes(data[2:4]), 4
            elif length == 127:
                length, start = int.from_bytes(data[2:10]), 10
            size = start + length
            if len(data) < size or len(data) < start:
                return
            first, payload = data[0], bytes(data[start:size])
            del data[:size]
            yield first, payload, size

    def pong(self, payload: bytes) -> None:
        """Answer a ping, masked with zeros."""
        self.socket.send(bytes((0x8A, 0x80 | len(payload), 0, 0, 0, 0)) + payload)


class Rounds:
    """How many connections still wait for the K-th event, for each K."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._waiting_for_ready = len(connections)
        self._waiting = [0]

    def count(self, connection: Connection, size: int) -> None:
        """An event of ``size`` bytes came; tell the parent if that was the last of its round."""
        connection.events = number = connection.events + 1
        waiting = self._waiting
        if number == len(waiting):
            waiting.append(len(self._connections))
        waiting[number] = left = waiting[number] - 1
        if left == 0:
            answer(f"round {number} {time.monotonic_ns()} {size}")

    def take(self, connection: Connection) -> None:
        """Go through all that is pending: the slow way, for whatever is not exactly one event."""
        for first, payload, size in connection.frames():
            if first == _PING:
                connection.pong(payload)
            elif first == _CLOSE:
                raise SystemExit(f"subscribers: the server closed with {int.from_bytes(payload[:2])}")
            elif first != _TEXT:
                raise SystemExit(f"subscribers: a frame with the first byte {first:#x}")
            elif payload.startswith(_EVENT):
                self.count(connection, size)
            elif payload.startswith(_READY):
                self._waiting_for_ready -= 1
                if self._waiting_for_ready == 0:
                    answer(f"ready {len(self._connections)}")
            elif payload.startswith(_GAP):
                raise SystemExit(f"subscribers: {payload.decode()}: events were lost, the figures are void")

    def watch(self) -> None:
        """Receive until standard input ends."""
        by_descriptor: list[Connection | None] = [None] * (max(c.socket.fileno() for c in self._connections) + 1)
        poll = select.epoll()
        with contextlib.suppress(PermissionError):  # no pipe: started by hand
            poll.register(0, select.EPOLLIN)
        for connection in self._connections:
            by_descriptor[connection.socket.fileno()] = connection
            poll.register(connection.socket.fileno(), select.EPOLLIN)
            self.take(connection)
        buffer = bytearray(262_144)
        count, wait = self.count, poll.poll
        while True:
            for descriptor, _ in wait():
                connection = by_descriptor[descriptor]
                if connection is None:
                    return
                try:
                    got = connection.receive_into(buffer)
                except BlockingIOError:
                    continue
                if (
                    got == 4 + (buffer[2] << 8 | buffer[3])
                    and buffer[13] == 0x6D  # the m of {"type":"message.…
                    and buffer[0] == _TEXT
                    and buffer[1] == 126
                    and not connection.pending
                ):
                    count(connection, got)
                elif got == 0:
                    raise SystemExit("subscribers: the server ended a connection")
                else:
                    connection.pending += memoryview(buffer)[:got]
                    self.take(connection)


def open_connections(count: int, port: int, path: str, key: str) -> list[Connection]:
    """Open ``count`` connections in batches; each is upgraded, none has read its first frame yet."""
    opened: list[Connection] = []
    while len(opened) < count:
        batch = [
            socket.create_connection(("127.0.0.1", port), _OPENING_SECONDS)
            for _ in range(min(_BATCH, count - len(opened)))
        ]
        for connection in batch:
            nonce = base64.b64encode(os.urandom(16)).decode()
            connection.sendall(_HEAD.format(path=path, port=port, nonce=nonce, key=key).encode())
        opened += [Connection(connection, _upgraded(connection)) for connection in batch]
    return opened


def _upgraded(connection: socket.socket) -> bytes:
    """Read the answer to the upgrade; return what came after it."""
    answered = b""
    while b"\r\n\r\n" not in answered:
        data = connection.recv(4096)
        if not data:
            raise SystemExit(f"subscribers: the server hung up after {answered!r}")
        answered += data
    head, _, rest = answered.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        raise SystemExit(f"subscribers: {head.decode(errors='replace')}\n{rest.decode(errors='replace')}")
    connection.setblocking(False)
    return rest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subscribers", description=__doc__)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--key", required=True)
    options = parser.parse_args()
    end_in_time()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rounds = Rounds(open_connections(options.connections, options.port, options.path, options.key))
    gc.disable()  # nothing here makes cycles; a collection would be measured as the server's delay
    rounds.watch()


if __name__ == "__main__":
    main()
