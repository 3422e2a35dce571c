"""The two sides that are compared, the floor and the broker: each a server, and subscribers of the same program.

Where they run: without pinning the kernel places them, as it would in production. With it each server has the
first core, each subscriber process the others. The rule is the same for both sides, and only one side works at a time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .accounts import key_of, path_of
from .children import Child, python
from .floor import floor_arguments, floor_command

OPENING_SECONDS = 120.0
ROUND_SECONDS = 30.0


@dataclass(frozen=True)
class Placement:
    """The cores of servers and of subscribers; None: the kernel decides."""

    servers: set[int] | None = None
    subscribers: set[int] | None = None
    subscribers_in_background: bool = False
    """Whether subscribers give way at once to every process that is not in the background."""


@dataclass(frozen=True)
class Delivery:
    """One event to all subscribers."""

    nanoseconds: int
    """From just before the call until the last one has it."""
    processor_ns: int
    """The server's processor time: what it costs where others take the processor away, and take time by that."""
    frame_bytes: int


class Side:
    """A server with its subscribers.

    Args:
        server: what obeys ``go`` and ``when``.
        subscribers: what says ``round``.
        name: the account that events go to; the floor has none.
    """

    def __init__(self, server: Child, subscribers: Child, name: str = "") -> None:
        self.server = server
        self.subscribers = subscribers
        self._name = name

    def send(self, frame_bytes: int = 0) -> None:
        """Have one event sent; only the floor needs to be told how long it is."""
        self.server.say(f"go {self._name or frame_bytes}")

    def arrived(self) -> tuple[int, int]:
        """Wait until the last subscriber has the next event; return when, and the length of its frame."""
        _, when, size = self.subscribers.expect("round", ROUND_SECONDS)
        return int(when), int(size)

    def deliver(self, frame_bytes: int = 0) -> Delivery:
        """Send one event and wait for it. The start is asked for afterwards, when nothing is being measured."""
        used = self.server.processor_ns()
        self.send(frame_bytes)
        when, size = self.arrived()
        return Delivery(when - self.started(), self.server.processor_ns() - used, size)

    def started(self) -> int:
        """Return when the last event's call began."""
        self.server.say(f"when {self._name}".rstrip())
        return int(self.server.expect("when", ROUND_SECONDS)[0])


def placement(pin: bool) -> Placement:
    """Return where servers and subscribers run."""
    cores = sorted(os.sched_getaffinity(0))
    if not pin or len(cores) < 2:
        return Placement()
    return Placement({cores[0]}, set(cores[1:]))


@contextmanager
def open_floor(connections: int, where: Placement) -> Iterator[tuple[str, Side]]:
    """Yield what the floor is made of, and the floor."""
    with (
        floor_command() as (language, command),
        Child("the floor", floor_arguments(command, connections), where.servers) as server,
    ):
        port = int(server.expect("port", OPENING_SECONDS)[0])
        with subscribers(connections, port, "/", "none", where) as clients:
            server.expect("open", OPENING_SECONDS)
            yield language, Side(server, clients)


@contextmanager
def open_broker_child(payload_bytes: int, where: Placement) -> Iterator[tuple[Child, int]]:
    """Yield the broker's process and its port."""
    command = python("broker_child", "--payload-bytes", str(payload_bytes))
    with Child("the broker", command, where.servers) as server:
        yield server, int(server.expect("port", OPENING_SECONDS)[0])


@contextmanager
def open_account(server: Child, port: int, name: str, connections: int, where: Placement) -> Iterator[Side]:
    """Yield one account of the broker, with its subscribers."""
    with subscribers(connections, port, path_of(name), key_of(name), where) as clients:
        yield Side(server, clients, name)


@contextmanager
def subscribers(connections: int, port: int, path: str, key: str, where: Placement) -> Iterator[Child]:
    """Yield a process of that many subscribers, all of them ready."""
    command = python(
        "subscribers", "--connections", str(connections), "--port", str(port), "--path", path, "--key", key
    )
    with Child("the subscribers", command, where.subscribers, background=where.subscribers_in_background) as clients:
        clients.expect("ready", OPENING_SECONDS)
        yield clients
