"""``websockets`` as a peer: its ``broadcast()`` on asyncio, in a server of ours (websockets_server.py)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .adapter import PeerMissingError, Publication, Running, Subscription
from .process import HOST, free_ports, started
from .wire import line, upgrade


class Websockets:
    """What a Python programmer would write with the library: a set of connections for each channel, and broadcast()."""

    name = "websockets"
    does = "broadcast() on asyncio: no history, no replay"

    def version(self) -> str:
        """Return the library's version."""
        return _library().__version__

    def where(self) -> str:
        """Return where the library is."""
        return _library().__file__

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start the server; channels come into being by themselves."""
        self.version()
        subscribe, publish = free_ports(2)
        command = [sys.executable, "-m", f"{__package__}.websockets_server", str(subscribe), str(publish)]
        with started(command, [subscribe, publish], cores) as process_id:
            notes = {
                "history": "none",
                "server": "one asyncio process, compression=None, pings every 20 s, backlog 4096",
                "publish": "lines over TCP",
                "acknowledged": "no",
            }
            yield Running(HOST, subscribe, [process_id], Publication(publish), notes)

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return an upgrade whose path is the channel; the server says when it has it."""
        return Subscription(upgrade(running.host, running.port, f"/{channel}"), ready=b"subscribed")

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return a line."""
        return line(channel, payload)

    def ping(self, message: bytes) -> bytes | None:
        """Return None: its pings are the WebSocket's."""
        return None


PEER = Websockets()


def _library() -> ModuleType:
    """Import it. Raises `PeerMissingError`."""
    try:
        import websockets
    except ImportError:
        raise PeerMissingError("websockets is not installed: `pip install websockets` where the bench runs.") from None
    return websockets
