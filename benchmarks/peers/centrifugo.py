"""Centrifugo as a peer: WebSocket subscribers with its JSON protocol, events published by its HTTP API."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .adapter import Publication, Running, Subscription
from .cache import program
from .process import HOST, core_count, free_ports, started
from .wire import post, upgrade

MEMORY: Mapping[str, object] = {"type": "memory"}


class Centrifugo:
    """Centrifugo with its memory engine, and recovery on for every channel."""

    name = "centrifugo"
    does = "history of 300 s with recovery, as the broker"

    def version(self) -> str:
        """Return what the server says of itself."""
        said = subprocess.run([_server(), "version"], capture_output=True, text=True, check=True).stdout
        return said.split("v", 1)[-1].split()[0]

    def where(self) -> str:
        """Return where the server is."""
        return str(_server())

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start the server; channels come into being by themselves."""
        with self.serving(cores, core_count(cores), MEMORY) as running:
            yield running

    @contextmanager
    def serving(self, cores: set[int] | None, processors: int, engine: Mapping[str, object]) -> Iterator[Running]:
        """Start the server on so many cores, with an engine of these settings."""
        server = _server()
        [port] = free_ports(1)
        with TemporaryDirectory(prefix="bench-centrifugo-") as directory:
            settings = Path(directory) / "config.json"
            settings.write_text(json.dumps(_settings(port, engine)), encoding="utf-8")
            environment = {"GOMAXPROCS": str(processors)}
            with started([server, "-c", settings], [port], cores, environment) as process_id:
                publication = Publication(port, acknowledged=b"HTTP/1.1 200")
                notes = {
                    "history": f"300 s, 100,000 events a channel, {engine['type']} engine, force_recovery",
                    "server": f"GOMAXPROCS={processors}, log level warn, pings every 25 s",
                    "publish": "HTTP/1.1 POST /api/publish, keep-alive",
                    "acknowledged": "yes",
                }
                yield Running(HOST, port, [process_id], publication, notes)

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return a connect and a subscribe command; the answer to the second has its id."""
        head = upgrade(running.host, running.port, "/connection/websocket")
        subscribe = b'{"id":2,"subscribe":{"channel":"%d"}}' % channel
        return Subscription(head, [b'{"id":1,"connect":{}}', subscribe], ready=b'"id":2,"subscribe"')

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return a POST with the payload as it is inside of the body."""
        body = b'{"channel":"%d","data":%s}' % (channel, payload)
        return post(running.host, running.port, "/api/publish", body)

    def ping(self, message: bytes) -> bytes | None:
        """Return the answer to an empty object, which may be the last line of a frame."""
        return b"{}" if message == b"{}" or message.endswith(b"\n{}") else None


PEER = Centrifugo()


def _server() -> Path:
    return program("centrifugo", "bin/centrifugo")


def _settings(port: int, engine: Mapping[str, object]) -> dict[str, object]:
    """Return the settings: nobody needs a token, compression is off by default."""
    channel = {
        "history_size": 100_000,
        "history_ttl": "300s",
        "force_recovery": True,
        "allow_subscribe_for_client": True,
        "allow_subscribe_for_anonymous": True,
    }
    return {
        "http_server": {"address": HOST, "port": str(port)},
        "log": {"level": "warn"},
        "usage_stats": {"disabled": True},
        "engine": engine,
        "client": {"insecure": True},
        "http_api": {"insecure": True},
        "channel": {"without_namespace": channel},
    }
