"""The kernel's floor: what one event to N connections costs a server that does nothing but ``send()``.

A C program, compiled when the benchmark starts. Where there is no compiler, a loop over ``socket.send`` in Python
stands in: it is slower, which flatters the broker, and so the output says which one it was.
"""

import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .children import LIFETIME_SECONDS, answer, end_in_time, python

_UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"
    b'\x81\x1b{"type":"connection.ready"}'
)


@contextmanager
def floor_command() -> Iterator[tuple[str, list[str]]]:
    """Yield what the floor is made of, ``C`` or ``Python``, and its command but for the number of connections."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    with TemporaryDirectory(prefix="broker-floor-") as directory:
        program = Path(directory) / "floor"
        source = Path(__file__).with_name("floor.c")
        if compiler is not None:
            made = subprocess.run([compiler, "-O2", "-o", program, source], timeout=60, check=False)
            if made.returncode == 0:
                yield "C", [str(program)]
                return
        yield "Python", python("floor")


def frame_of(size: int) -> bytes:
    """Return an event frame of ``size`` bytes in all."""
    payload = b'{"type":"message.received","payload":"'.ljust(size - 6, b"x") + b'"}'
    return b"\x81\x7e" + len(payload).to_bytes(2) + payload


def _accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131_072)
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(8192)
        if not data:
            raise SystemExit("floor: a subscriber left before its upgrade")
        head += data
    connection.sendall(_UPGRADED)
    connection.setblocking(False)
    return connection


def main() -> None:
    """Do in Python what floor.c does."""
    end_in_time()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    total = int(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        answer(f"port {listener.getsockname()[1]}")
        connections = [_accept(listener) for _ in range(total)]
    answer(f"open {total}")
    sends = [connection.send for connection in connections]
    start = 0
    for line in sys.stdin:
        match line.split():
            case ["go", size]:
                frame = frame_of(int(size))
                start = time.monotonic_ns()
                for send in sends:
                    if send(frame) != len(frame):
                        raise SystemExit("floor: a subscriber does not keep up")
            case ["when"]:
                answer(f"when {start}")


def floor_arguments(command: list[str], connections: int) -> list[str]:
    """Return the floor's whole command."""
    return [*command, str(connections), str(LIFETIME_SECONDS)]


if __name__ == "__main__":
    main()
