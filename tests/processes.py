"""The broker as a process of its own, as its users start it."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import pytest

KEY = "dm_live_test_of_the_command_line"
GUARD_SECONDS = 180 if os.environ.get("BROKER_PROVE") else 60
"""After which a process is taken for one that hangs; what proves long has many of them side by side."""
LIFE_SECONDS = 600
"""After which any process is killed: all tests of a module may look at the same, on a machine that has much to do."""
COMMAND = [sys.executable, "-m", "broker"]


def _has_ipv6() -> bool:
    """Whether this machine has an address of IPv6: one whose kernel knows it need not."""
    with suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


has_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="there is no IPv6")


def free_port() -> int:
    """A free port that the kernel gives to no connection by itself: who starts there again finds it free."""
    for port in random.sample(_own_ports(), 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _own_ports() -> range:
    """The ports that belong to this one of the processes that run tests side by side."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
    return range(20_000 + 1_000 * number, 21_000 + 1_000 * number)


@contextmanager
def process(
    *arguments, command=COMMAND, stdin=None, guard_seconds=LIFE_SECONDS, **options
) -> Iterator[subprocess.Popen[str]]:
    """A process, killed with the block, or when its time is up, so that no read waits for ever."""
    with subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "BROKER_KEY": KEY, **options},
    ) as started:
        guard = threading.Timer(guard_seconds, started.kill)
        guard.start()
        try:
            yield started
        finally:
            guard.cancel()
            started.kill()


def line_with(stream: IO[str], *words: str) -> str:
    """The next line of a stream that has one of these words. Raises AssertionError if it ends before."""
    said = []
    for line in iter(stream.readline, ""):
        if any(word in line for word in words):
            return line
        said.append(line)
    raise AssertionError(f"nothing has {words}, but it said: {''.join(said)}")


@contextmanager
def serving(*arguments, **options) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `broker serve` on a free port, and its URL."""
    with process("serve", "--port", "0", *arguments, **options) as started:
        said = line = started.stderr.readline()
        while line and not re.search(r"listening on https?://", line):  # what it has to warn of comes before
            line = started.stderr.readline()
            said += line
        found = re.search(r"https?://127\.0\.0\.1:\d+", line)
        assert found, said
        yield started, found[0]


def shut_in(user: str, *writable: str) -> list[str]:
    """A command before a command: it is done by a user without rights, who can write nothing but what is named."""
    if shutil.which("bwrap") is None:
        pytest.skip("there is no bwrap (bubblewrap): nothing is done with a read-only root")
    shutting = ["bwrap", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    shutting += [word for path in writable for word in ("--bind", path, path)]
    shutting += ["--unshare-user", "--uid", user, "--gid", user]
    tried = subprocess.run([*shutting, "true"], capture_output=True, text=True, check=False, timeout=GUARD_SECONDS)
    if tried.returncode:
        pytest.skip(f"bwrap is not allowed to do its work: {tried.stderr.strip()}")
    return shutting
