"""Socket.IO as a peer: connection state recovery on, WebSocket only, in a server of ours (socketio_server.js)."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .adapter import PeerMissingError, Publication, Running, Subscription
from .cache import place
from .process import HOST, free_ports, started
from .wire import line, upgrade

_PROGRAM = Path(__file__).with_name("socketio_server.js")


class Socketio:
    """What a Node programmer would write: a room for each channel, and an emit to it."""

    name = "socketio"
    does = "recovers what a lost connection missed in 300 s, no replay from a cursor"

    def version(self) -> str:
        """Return the package's version."""
        return json.loads((_package() / "package.json").read_text(encoding="utf-8"))["version"]

    def where(self) -> str:
        """Return where the package is."""
        return str(_package())

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start the server; rooms come into being by themselves."""
        node, package = _node(), _package()
        subscribe, publish = free_ports(2)
        command = [node, _PROGRAM, package, str(subscribe), str(publish)]
        with started(command, [subscribe, publish], cores, {"NODE_ENV": "production"}) as process_id:
            notes = {
                "history": "300 s, memory adapter, connectionStateRecovery",
                "server": "one Node process, perMessageDeflate false, pings every 25 s, backlog 4096",
                "publish": "lines over TCP",
                "acknowledged": "no",
            }
            yield Running(HOST, subscribe, [process_id], Publication(publish), notes)

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return an Engine.IO 4 upgrade and a connect packet; the server says when it is in the room."""
        path = f"/socket.io/?EIO=4&transport=websocket&channel={channel}"
        return Subscription(upgrade(running.host, running.port, path), [b"40"], ready=b'42["subscribed"')

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return a line."""
        return line(channel, payload)

    def ping(self, message: bytes) -> bytes | None:
        """Return the answer to Engine.IO's ping."""
        return b"3" if message == b"2" else None


PEER = Socketio()


def _package() -> Path:
    package = place("socketio") / "node_modules/socket.io"
    if not (package / "package.json").is_file():
        raise PeerMissingError("Socket.IO is not installed: run `make bench-peers`.")
    return package


def _node() -> str:
    if node := shutil.which("node"):
        return node
    raise PeerMissingError("Node.js is not installed: install node and npm, then run `make bench-peers`.")
