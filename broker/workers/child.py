"""A process that the parent keeps: a worker, or the workers' private server. One that ends is started again.

| state | what it is in | it leaves it when |
|---|---|---|
| `waiting` | nothing runs; it is to be started when it is due | it is started: `starting` |
| `starting` | it runs, and has not said yet that it is ready | it says so: `ready`; it ends: `waiting` |
| `ready` | it does its work | it ends: `waiting` |
| `over` | it has ended, and is not to come back | never |
"""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final, Literal

FIRST_AGAIN_SECONDS: Final = 0.1
LAST_AGAIN_SECONDS: Final = 5.0
"""Between two starts of one that fails again and again."""
PROVEN_SECONDS: Final = 10.0
"""Who was ready for so long has not failed."""
_NOTICE_BYTES: Final = 4_096

State = Literal["waiting", "starting", "ready", "over"]


class Child:
    """One of the parent's processes: its ``name`` for the log, and what starts it."""

    def __init__(self, name: str, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self.state: State = "waiting"
        self.due = inf
        """When it is to be started, where it waits for that."""
        self._launch = launch
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._since = 0.0
        """When it was started or became ready."""

    @property
    def pid(self) -> int | None:
        """Its process, if one runs."""
        return None if self._process is None else self._process.pid

    def start(self, now: float) -> None:
        """Start it, at this moment. Raises `OSError` if there is no room for a process."""
        self._process = self._launch()
        self.state, self.due, self._since = "starting", inf, now

    def is_ready(self, now: float) -> None:
        """Have it said that it is ready."""
        if self.state == "starting":
            self.state, self._since = "ready", now

    def reap(self, now: float) -> int | None:
        """Return with what it has ended since it was looked at last (`Popen.returncode`); None: it has not.

        It is due to be started again when it has waited for long enough.
        """
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        proven = self.state == "ready" and now - self._since >= PROVEN_SECONDS
        self._failures = 0 if proven else self._failures + 1
        self._process, self.state = None, "waiting"
        self.due = now + min(FIRST_AGAIN_SECONDS * 2 ** max(self._failures - 1, 0), LAST_AGAIN_SECONDS)
        return code

    def leave(self) -> None:
        """Do not start it again."""
        if self._process is None:
            self.state, self.due = "over", inf

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def end(self, seconds: float) -> None:
        """End it, and wait for that; after so long it is killed."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process, self.state, self.due = None, "over", inf


class Worker(Child):
    """A worker: it says how it is at a socket file in ``directory``, as sd_notify(3) has it."""

    def __init__(self, number: int, directory: str, launch: Callable[["Worker"], subprocess.Popen[bytes]]) -> None:
        super().__init__(f"worker {number}", lambda: launch(self))
        self.number = number
        self.status = ""
        """What it said last of itself."""
        self.configured = 0.0
        """When it was last told to read the configuration, or was started."""
        self.answered = 0.0
        """When it last said that it takes clients by its configuration."""
        self.heard = 0.0
        """When it was last heard of."""
        self.address = os.path.join(directory, f"notices-{number}")
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.setblocking(False)
        self.notices.bind(self.address)

    def start(self, now: float) -> None:
        """Start it; what its predecessor said last is not its word."""
        while self.next_notice() is not None:
            pass
        super().start(now)
        self.configured = self.heard = now

    def next_notice(self) -> dict[str, str] | None:
        """Return what it said next, by names; None: nothing more."""
        try:
            lines = self.notices.recv(_NOTICE_BYTES).decode("utf-8", "replace").split("\n")
        except BlockingIOError:
            return None
        return {name: value for name, _, value in (line.partition("=") for line in lines)}


def how_it_ended(code: int) -> str:
    """Return in words with what a process ended."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
