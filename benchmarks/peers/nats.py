"""NATS as a peer: nats-server with its WebSocket listener; subscribers speak the NATS protocol in binary frames."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .adapter import Publication, Running, Subscription
from .cache import program
from .process import HOST, core_count, free_ports, started
from .wire import upgrade

_CONNECT = b'CONNECT {"verbose":false,"pedantic":false}\r\n'


class Nats:
    """Core NATS: at most once, nothing kept. (JetStream, its other half, keeps events, and was not asked to.)"""

    name = "nats"
    does = "core NATS: no history, no replay, no answer to a publisher"

    def version(self) -> str:
        """Return what the server says of itself."""
        said = subprocess.run([_server(), "--version"], capture_output=True, text=True, check=True).stdout
        return said.split()[-1].removeprefix("v")

    def where(self) -> str:
        """Return where the server is."""
        return str(_server())

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start the server; a channel is a subject and comes into being by itself."""
        server = _server()
        websocket, plain = free_ports(2)
        with TemporaryDirectory(prefix="bench-nats-") as directory:
            settings = Path(directory) / "nats.conf"
            settings.write_text(json.dumps(_settings(websocket, plain)), encoding="utf-8")
            processors = {"GOMAXPROCS": str(core_count(cores))}
            with started([server, "-c", settings], [websocket, plain], cores, processors) as process_id:
                publication = Publication(plain, opening=_CONNECT + b"PING\r\n", opened=b"PONG\r\n")
                notes = {
                    "history": "none",
                    "server": f"GOMAXPROCS={processors['GOMAXPROCS']}, websocket compression false, pings every hour",
                    "publish": "PUB over TCP, verbose false",
                    "acknowledged": "no",
                }
                yield Running(HOST, websocket, [process_id], publication, notes)

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return a subscription that holds when the ping behind it is answered."""
        message = b"%sSUB channel.%d 1\r\nPING\r\n" % (_CONNECT, channel)
        return Subscription(upgrade(running.host, running.port, "/"), [message], text=False, ready=b"PONG\r\n")

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return a PUB."""
        return b"PUB channel.%d %d\r\n%s\r\n" % (channel, len(payload), payload)

    def ping(self, message: bytes) -> bytes | None:
        """Return the answer to a frame that ends with PING."""
        return b"PONG\r\n" if message == b"PING\r\n" or message.endswith(b"\r\nPING\r\n") else None


PEER = Nats()


def _server() -> Path:
    return program("nats", "bin/nats-server")


def _settings(websocket: int, plain: int) -> dict[str, object]:
    return {
        "host": HOST,
        "port": plain,
        # The connection that publishes does not read: it must not be closed for pings that it leaves unanswered.
        "ping_interval": "1h",
        "websocket": {"host": HOST, "port": websocket, "no_tls": True, "compression": False},
    }
