"""The kernel's floor as a peer: what an event costs a server that does nothing but ``send()`` in a loop.

Its program, floor.c, is compiled when it is first asked for.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .adapter import Publication, Running, Subscription
from .compiling import compiled
from .process import HOST, free_ports, started
from .wire import line, upgrade

_SOURCE = Path(__file__).with_name("floor.c")


class Floor:
    """A C loop over ``send()``: no history, no parsing, no answers; a subscriber that does not keep up is cut off."""

    name = "floor"
    does = "a C loop over send(): no history, no checks, cuts off who is slow"

    def version(self) -> str:
        """Return the kernel's version: it is the kernel that is measured."""
        _program()
        return f"{platform.system()} {platform.release()}"

    def where(self) -> str:
        """Return where its program is."""
        return str(_program())

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start it; it has 131,072 channels."""
        program = _program()
        subscribe, publish = free_ports(2)
        with started([program, str(subscribe), str(publish)], [subscribe, publish], cores) as process_id:
            notes = {
                "history": "none",
                "server": "one thread, SO_SNDBUF 128 KiB, TCP_NODELAY",
                "publish": "lines over TCP",
                "acknowledged": "no",
            }
            yield Running(HOST, subscribe, [process_id], Publication(publish), notes)

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return an upgrade whose path is the channel."""
        return Subscription(upgrade(running.host, running.port, f"/{channel}"))

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return a line."""
        return line(channel, payload)

    def ping(self, message: bytes) -> bytes | None:
        """Return None: it has no pings."""
        return None


PEER = Floor()


def _program() -> Path:
    """Return the compiled program. Raises `PeerMissingError`."""
    return compiled(_SOURCE, "floor")
