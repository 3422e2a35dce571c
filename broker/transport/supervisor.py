"""What a supervisor is told of this process, and the watchdog: sd_notify(3) and sd_watchdog_enabled(3) of systemd.

Each message is one datagram to the socket that `NOTIFY_SOCKET` names. Without that variable nothing is said, and
nothing here costs anything.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

import trio
from msgspec import Struct

logger = logging.getLogger(__name__)

SAY_SECONDS: Final = 5.0
"""How long one message may wait for a supervisor that reads slowly."""
AGAIN_SECONDS: Final = 1.0
"""After which it is told again that clients are taken, if it could not be told."""
STOP_GRACE_SECONDS: Final = 5.0
"""What the supervisor is asked to wait beyond the drain, before it kills."""


ALIVE: Final = ("WATCHDOG=1",)


def ready_with(status: str) -> tuple[str, ...]:
    """Return what says that clients are taken (again): at the start, and at the end of a reload."""
    return "READY=1", f"STATUS={_in_a_line(status)}"


def reloading_now() -> tuple[str, ...]:
    """Return what says that the configuration is read again; `ready_with` ends that."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}"


def stopping_within(status: str, seconds: float) -> tuple[str, ...]:
    """Return what says that the process ends; the supervisor's own limit is extended if it is less."""
    microseconds = int((seconds + STOP_GRACE_SECONDS) * 1_000_000)
    return "STOPPING=1", f"EXTEND_TIMEOUT_USEC={microseconds}", f"STATUS={_in_a_line(status)}"


class Asked(Struct, frozen=True):
    """What a supervisor asks for, by the environment."""

    address: str
    """Where it is to be told; empty: nowhere."""
    watchdog_seconds: float | None
    """After which silence it restarts this process; None: it does not."""


def take_asked(environment: MutableMapping[str, str]) -> Asked:
    """Return what this process is asked for. The variables are taken: a child shall tell nothing."""
    named = environment.pop("NOTIFY_SOCKET", "")
    address = f"\0{named[1:]}" if named.startswith("@") else named
    return Asked(address, _watchdog_seconds(environment) if named else None)


class Supervisor:
    """Who started this process and asked to be told how it is."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        asked = take_asked(environment)
        self._address, self._watchdog_seconds = asked.address, asked.watchdog_seconds
        self._unheard = False
        """Whether the last message could not be sent."""

    async def begun(self, status: str) -> None:
        """Say that clients are taken, again and again until it is heard: who is not told ends this process."""
        told = await self._say(ready_with(status))
        while not told:
            await trio.sleep(AGAIN_SECONDS)
            told = await self._say(ready_with(status))

    async def ready(self, status: str) -> None:
        """Say that clients are taken again: at the end of a reload."""
        await self._say(ready_with(status))

    async def reloading(self) -> None:
        """Say that the configuration is read again; `ready` ends that."""
        await self._say(reloading_now())

    async def stopping(self, status: str, seconds: float) -> None:
        """Say that the process ends, within so many seconds; the supervisor's own limit is extended if it is less."""
        await self._say(stopping_within(status, seconds))

    async def feed_watchdog(self) -> None:
        """Say, by being in it, that the event loop runs: twice in the time after which it is taken for hung."""
        while self._watchdog_seconds is not None:
            await self._say(ALIVE)
            await trio.sleep(self._watchdog_seconds / 2)

    async def _say(self, assignments: tuple[str, ...]) -> bool:
        """Send one message: in this very step, if the supervisor keeps up. Returns whether it was, or nobody listens.

        What cannot be sent is logged, once until one is sent again, and changes nothing else.
        """
        if not self._address:
            return True
        message = "\n".join(assignments).encode()
        try:
            with trio.fail_after(SAY_SECONDS), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.setblocking(False)
                sending.connect(self._address)
                await _send(sending, message)
        except (OSError, trio.TooSlowError) as error:
            if not self._unheard:
                logger.warning("the supervisor was not told %s: %s", assignments[0], error or "it does not read")
            self._unheard = True
        else:
            self._unheard = False
        return not self._unheard


async def _send(sending: socket.socket, message: bytes) -> None:
    while True:
        try:
            sending.send(message)
            return
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sending)


def _watchdog_seconds(environment: MutableMapping[str, str]) -> float | None:
    """Return after which silence the supervisor restarts this process; None: it does not."""
    microseconds, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", str(os.getpid()))
    if process != str(os.getpid()) or not (microseconds.isdecimal() and int(microseconds)):
        return None
    return int(microseconds) / 1_000_000


def _in_a_line(text: str) -> str:
    return " ".join(text.split())
