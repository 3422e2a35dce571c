"""A peer's process: started on its cores, waited for until it listens, stopped at the end."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 5.0


class PeerFailedError(Exception):
    """The peer is installed, but did not start; the message ends with what it printed last."""


def free_ports(count: int) -> list[int]:
    """Return that many different ports of `HOST` at which nobody listens; the kernel gives them to no connection."""
    found: list[int] = []
    for port in random.sample(range(10_000, 20_000), 100 + count):
        with socket.socket() as tried, suppress(OSError):
            tried.bind((HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise PeerFailedError(f"{count} free ports were due, {len(found)} were found")


def core_count(cores: set[int] | None) -> int:
    """Return on how many cores a process runs that is started on ``cores`` (None: wherever this one may)."""
    return len(cores or os.sched_getaffinity(0))


@contextmanager
def started(
    arguments: Sequence[str | Path],
    ports: Sequence[int],
    cores: set[int] | None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Start a server, yield its process id once all its ports are open, stop it at the end.

    Args:
        arguments: the command.
        ports: what it listens at.
        cores: where it may run; None: wherever this process may.
        environment: variables to add to this process's own.

    Raises:
        PeerFailedError: it ended, or did not listen in time.
    """
    with TemporaryFile() as log:
        with _on(cores):
            process = subprocess.Popen(
                [*_ending_with_us(), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                # A group of its own: what it forks is killed with it.
                process_group=0,
            )
        try:
            _wait_until_open(process, ports, log)
            yield process.pid
        finally:
            _stop(process)


def children_of(process_id: int, count: int) -> list[int]:
    """Wait until a process has forked ``count`` others; return their ids."""
    path = Path(f"/proc/{process_id}/task/{process_id}/children")
    deadline = time.monotonic() + START_SECONDS
    while len(children := path.read_text(encoding="ascii").split()) < count:
        if time.monotonic() > deadline:
            raise PeerFailedError(f"{count} processes were due, {len(children)} are there")
        time.sleep(0.01)
    return [int(child) for child in children]


@contextmanager
def _on(cores: set[int] | None) -> Iterator[None]:
    """Run this thread on ``cores`` meanwhile: a child has them from its first instruction, and can count them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ending_with_us() -> list[str]:
    """Return what to put before a command so that it ends when this thread does, even by SIGKILL; perhaps nothing."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _wait_until_open(process: subprocess.Popen[bytes], ports: Sequence[int], log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for port in ports:
        while not _is_open(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerFailedError(f"it does not listen on port {port}: {_last_words(log)}")
            time.sleep(0.01)


def _is_open(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-3:]) or "it printed nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
