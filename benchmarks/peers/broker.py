"""Our own broker: the whole product, started by its own command line; or one that runs already, by its URL.

Events go in over a WebSocket, as an agent's do, or by HTTP. All is as by default: five minutes of history.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from sys import executable
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import quote, urlsplit

from ..generator.frames import TEXT, masked_frame
from .adapter import PeerMissingError, Publication, Running, Subscription
from .process import HOST, free_ports, started
from .wire import upgrade

Way = Literal["socket", "http"]
ACCOUNTS = ("bench", "neighbour")
"""Each has one key."""
ENVELOPE_BYTES = 190
"""What the broker writes around a message, so that the floor's frames can be made as long."""
OVER_TLS = "broker-tls"
READY = b'"type":"connection.ready"'
_PUBLISHED = {"socket": b'"action":"publish","result"', "http": b'{"result":{"events"'}
_PONG = b'"action":"ping","result"'


def key_of(account: str) -> str:
    """Return the key that reaches an account of the benchmark."""
    return f"dm_live_{account}_0123456789abcdef"


def configuration(port: int, settings: str = "") -> str:
    """Return the TOML of a broker with the accounts of the benchmark, all else of the server by ``settings``."""
    sections = [f"[server]\nport = {port}\n{settings}"]
    for account in ACCOUNTS:
        digest = hashlib.sha256(key_of(account).encode()).hexdigest()
        sections.append(f'[[accounts]]\nid = "acct_{account}"\ntier = "enterprise"\n')
        sections.append(f'[[accounts.keys]]\nid = "key_{account}"\nsha256 = "{digest}"\n')
    return "\n".join(sections)


@contextmanager
def served(configuration: str, port: int, cores: set[int] | None) -> Iterator[int]:
    """Start `broker serve` with a configuration, in which it listens at ``port``; yield its process id."""
    with TemporaryDirectory(prefix="broker-bench-") as directory:
        settings = Path(directory) / "broker.toml"
        settings.write_text(configuration, encoding="utf-8")
        with started([executable, "-m", "broker", "serve", "--config", settings], [port], cores) as process_id:
            yield process_id


@dataclass(frozen=True)
class Broker:
    """Our broker, as one account sees it.

    Args:
        key: of the account.
        by: how events go in.
        batch: how many events one request publishes.
        storage: a directory in which each broker that is started has a new log on disk; "": none.
    """

    name: str = "broker"
    does: str = "history, replay, per-account isolation, acknowledged publishes"
    key: str = key_of("bench")
    by: Way = "socket"
    batch: int = 1
    storage: str = ""

    def version(self) -> str:
        """Return the version of the installed package."""
        return version("daimon-broker")

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start `broker serve` on a free port; any number of inboxes is there."""
        [port] = free_ports(1)
        with ExitStack() as stack:
            settings = ""
            if self.storage:
                directory = stack.enter_context(TemporaryDirectory(prefix="broker-bench-", dir=self.storage))
                settings = f"[storage]\npath = {json.dumps(str(Path(directory).resolve() / 'broker.db'))}\n"
            process_id = stack.enter_context(served(configuration(port, settings), port, cores))
            yield self.running(HOST, port, [process_id])

    def running(
        self, host: str, port: int, process_ids: Sequence[int], *, tls: bool = False, authority: str = ""
    ) -> Running:
        """Return a broker that runs at an address."""
        notes = {"history": "a day, on disk" if self.storage else "300 s, 100,000 events"}
        return self.seen(Running(host, port, process_ids, Publication(port), notes, tls, authority))

    def seen(self, running: Running) -> Running:
        """Return a broker that runs as this account publishes to it."""
        publication = Publication(running.port, acknowledged=_PUBLISHED[self.by])
        if self.by == "socket":
            opening = upgrade(running.host, running.port, "/v1/stream", self._headers())
            publication = replace(publication, opening=opening, opened=READY)
        return replace(running, publication=publication)

    def _headers(self) -> list[str]:
        return [f"Authorization: Bearer {self.key}"]

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Subscribe to the inbox of the channel, in the upgrade itself."""
        return self.resume(running, channel, "")

    def resume(self, running: Running, channel: int, cursor: str) -> Subscription:
        """Subscribe, and have what came after a cursor replayed; "": no replay."""
        since = f"&since={quote(cursor)}" if cursor else ""
        path = f"/v1/stream?inbox_ids=inbox_{channel}{since}"
        return Subscription(upgrade(running.host, running.port, path, self._headers()), ready=READY)

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Publish to the inbox of the channel; a batch is a list of the same event."""
        event = b'{"type":"message.received","inbox_id":"inbox_%d","payload":%s}' % (channel, payload)
        events = event if self.batch == 1 else b"[" + b",".join([event] * self.batch) + b"]"
        if self.by == "socket":
            return masked_frame(TEXT, b'{"action":"publish","events":' + events + b"}")
        head = [
            "POST /v1/events HTTP/1.1",
            f"Host: {running.host}:{running.port}",
            *self._headers(),
            "Content-Type: application/json",
            f"Content-Length: {len(events)}",
        ]
        return "\r\n".join([*head, "", ""]).encode() + events

    def pinging(self, running: Running) -> tuple[Running, bytes]:
        """Return what commands are sent to, and a command: the `ping` that the broker answers by itself."""
        publication = replace(running.publication, acknowledged=_PONG)
        return replace(running, publication=publication), masked_frame(TEXT, json.dumps({"action": "ping"}).encode())

    def wait(self, running: Running, numbers: Sequence[int], inbox: int | None) -> Subscription:
        """Wait on one connection for an event of each of these inboxes; or of one, each with a text that none has."""
        asked = [
            {"action": "wait_for", "inbox_ids": [f"waited_{number}"], "event_types": ["*"]}
            if inbox is None
            else {
                "action": "wait_for",
                "inbox_ids": [f"inbox_{inbox}"],
                "where": {"contains": f"text {number} that none has"},
            }
            for number in numbers
        ]
        messages = [json.dumps(command).encode() for command in [*asked, {"action": "ping"}]]
        opening = upgrade(running.host, running.port, "/v1/stream?inbox_ids=none", self._headers())
        return Subscription(opening, messages, ready=_PONG)

    def ping(self, message: bytes) -> bytes | None:
        """The broker pings by WebSocket frames."""
        return None


@dataclass(frozen=True)
class BrokerOverTls(Broker):
    """Our broker with a certificate that was made for it."""

    name: str = OVER_TLS

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Make the certificate, and start `broker serve` with it."""
        try:
            from trustme import CA
        except ImportError:
            raise PeerMissingError("pip install --group bench (trustme)") from None
        [port], made = free_ports(1), CA()
        with TemporaryDirectory(prefix="broker-bench-tls-") as directory:
            authority, certificate, key = (Path(directory) / name for name in ("ca.pem", "cert.pem", "key.pem"))
            signed = made.issue_cert(HOST)
            made.cert_pem.write_to_path(authority)
            signed.cert_chain_pems[0].write_to_path(certificate)
            signed.private_key_pem.write_to_path(key)
            settings = f'tls_certificate = "{certificate}"\ntls_key = "{key}"\n'
            with served(configuration(port, settings), port, cores) as process_id:
                yield self.running(HOST, port, [process_id], tls=True, authority=str(authority))


@dataclass(frozen=True)
class Deployment(Broker):
    """A broker that runs already.

    Args:
        url: http, https, ws or wss, with host and port.
        key: may subscribe and publish, for a whole account.
    """

    name: str = "deployment"
    url: str = "http://127.0.0.1:8765"

    def version(self) -> str:
        """Return where it is: what it is it does not tell."""
        return self.url

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Yield where it listens; its processes are not ours to see."""
        parts = urlsplit(self.url)
        tls = parts.scheme in ("https", "wss")
        yield self.running(parts.hostname or HOST, parts.port or (443 if tls else 80), [], tls=tls)


PEER = Broker()
