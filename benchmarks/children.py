"""Child processes that are spoken to in lines, each pinned where it belongs and killed when it is left.

Every child also ends by itself: when its standard input ends, and after `LIFETIME_SECONDS` in any case.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
LIFETIME_SECONDS = 1800
"""No child lives longer: each one sets an alarm that ends it."""


class ChildError(Exception):
    """A child ended, or did not say in time what it had to say."""


class Child:
    """A child process: `say` writes a line to it, `hear` reads one.

    Args:
        name: what it is called in error messages.
        arguments: the command; `python` makes one of a module of this package.
        cores: the cores it may run on; None: all.
        background: whether it gives way at once to everything that is not in the background.
    """

    def __init__(
        self, name: str, arguments: list[str], cores: set[int] | None = None, *, background: bool = False
    ) -> None:
        self.name = name
        self._pending = bytearray()
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=ROOT)
        if cores is not None:
            os.sched_setaffinity(self._process.pid, cores)
        if background:
            os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            process.kill()

    def processor_ns(self) -> int:
        """Return the processor time that it has used; 0 where the kernel does not tell."""
        try:
            return int(Path(f"/proc/{self._process.pid}/schedstat").read_text(encoding="ascii").split()[0])
        except OSError:
            return 0

    def say(self, line: str) -> None:
        """Write one line. From any thread: a short line reaches a pipe whole."""
        try:
            os.write(self._process.stdin.fileno(), line.encode() + b"\n")
        except BrokenPipeError:
            raise ChildError(f"{self.name} has ended") from None

    def hear(self, timeout_seconds: float) -> list[str]:
        """Return the words of the next line."""
        deadline = time.monotonic() + timeout_seconds
        output = self._process.stdout.fileno()
        while (end := self._pending.find(b"\n")) < 0:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                raise ChildError(f"{self.name} said nothing for {timeout_seconds:g} s")
            data = os.read(output, 65_536)
            if not data:
                raise ChildError(f"{self.name} ended with exit code {self._process.wait(5)}")
            self._pending += data
        line = self._pending[:end].decode()
        del self._pending[: end + 1]
        return line.split()

    def expect(self, word: str, timeout_seconds: float) -> list[str]:
        """Return what follows ``word`` in the next line, which must begin with it."""
        first, *rest = self.hear(timeout_seconds)
        if first != word:
            raise ChildError(f"{self.name} said {first!r} {rest} where {word!r} was due")
        return rest


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def end_in_time() -> None:
    """End this process after `LIFETIME_SECONDS`: the first thing each child does."""
    signal.alarm(LIFETIME_SECONDS)


def answer(line: str) -> None:
    """Write a line to the parent at once."""
    os.write(1, line.encode() + b"\n")
