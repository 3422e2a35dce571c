"""Opening WebSocket connections: the upgrade, what a subscriber says, and the wait until its subscription holds."""

import resource
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ..peers.adapter import Running, Subscription
from .frames import BINARY, TEXT, masked_frame

BATCH = 100
"""So many connections open at a time: a listen queue holds them, and no server is flooded."""
OPENING_SECONDS = 30.0


class OpeningError(Exception):
    """A server did not let a subscriber in."""


@dataclass
class Opened:
    """A connection whose subscription holds, and what the server said behind the head of its answer."""

    socket: socket.socket
    received: bytes


def connect(
    running: Running, port: int, receive_buffer: int | None = None, *, at_leisure: bool = False
) -> socket.socket:
    """Return a connection that blocks; ``receive_buffer`` bytes of the kernel's are its own limit.

    ``at_leisure``: the caller shakes hands by itself, if it is one of TLS.
    """
    address = socket.getaddrinfo(running.host, port, type=socket.SOCK_STREAM)[0]
    connection = socket.socket(address[0], address[1])
    connection.settimeout(OPENING_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(address[4])
    if running.tls:
        shaking = not at_leisure
        return _trust(running.authority).wrap_socket(
            connection, server_hostname=running.host, do_handshake_on_connect=shaking
        )
    return connection


@cache
def _trust(authority: str) -> ssl.SSLContext:
    """Return what to shake hands with; to read all that the system trusts takes longer than a handshake."""
    return ssl.create_default_context(cafile=authority or None)


def open_all(
    running: Running, subscriptions: Sequence[Subscription], receive_buffer: int | None = None
) -> Iterator[Opened]:
    """Open a connection for each subscription, in batches, and yield them in order."""
    raise_open_files_limit()
    for start in range(0, len(subscriptions), BATCH):
        batch = subscriptions[start : start + BATCH]
        connections = []
        for subscription in batch:
            connection = connect(running, running.port, receive_buffer)
            connection.sendall(subscription.upgrade)
            connections.append(connection)
        for connection, subscription in zip(connections, batch, strict=True):
            yield Opened(connection, subscribe(connection, subscription))


def subscribe(connection: socket.socket, subscription: Subscription) -> bytes:
    """Wait for the upgrade, subscribe, and wait until that holds; return what came behind the answer's head."""
    head, received = _answer_head(connection)
    if not head.startswith(b"HTTP/1.1 101"):
        raise OpeningError(
            f"the upgrade was refused: {head.decode(errors='replace')}{received.decode(errors='replace')}"
        )
    opcode = TEXT if subscription.text else BINARY
    if subscription.messages:
        connection.sendall(b"".join(masked_frame(opcode, message) for message in subscription.messages))
    while subscription.ready not in received:
        received += _received(connection, received)
    connection.setblocking(False)
    return received


def _answer_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the head of the HTTP answer, and what came behind it."""
    answered = b""
    while b"\r\n\r\n" not in answered:
        answered += _received(connection, answered)
    head, _, rest = answered.partition(b"\r\n\r\n")
    return head, rest


def _received(connection: socket.socket, before: bytes) -> bytes:
    try:
        data = connection.recv(65_536)
    except TimeoutError:
        raise OpeningError(f"nothing came for {OPENING_SECONDS:g} s after {before[-300:]!r}") from None
    if not data:
        raise OpeningError(f"the server hung up after {before[-300:]!r}")
    return data


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files to the hard one: each connection is a file."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
