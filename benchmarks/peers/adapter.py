"""What the bench needs to know of a broker that it compares: how to start it, and the bytes to say to it.

An adapter knows no socket and no clock: it starts a process and gives templates of bytes, so that one generator
drives all peers alike and its cost is the same for each.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

DUE = b"0000000000000000000"
"""Where a publisher writes the nanosecond at which an event was due: 19 digits, once in every payload.

It stands in a JSON string: a peer that reads numbers as doubles would round it.
"""


class PeerMissingError(Exception):
    """The peer is not installed here; the message says what to do."""


@dataclass(frozen=True)
class Subscription:
    """What one subscriber says to get the events of a channel."""

    upgrade: bytes
    """The whole HTTP request of the WebSocket upgrade (RFC 6455 section 4.1)."""
    messages: Sequence[bytes] = ()
    """Then the payloads of the frames to send (the generator masks them), in order."""
    text: bool = True
    """Whether these go as text frames; else binary."""
    ready: bytes = b""
    """The subscription holds once these bytes were received behind the head of the upgrade's answer; b"": at once."""


@dataclass(frozen=True)
class Publication:
    """How events are published over one raw TCP connection, which is kept open."""

    port: int
    opening: bytes = b""
    """Sent once after connecting."""
    opened: bytes = b""
    """Wait for these bytes before the first event; b"": do not wait."""
    acknowledged: bytes = b""
    """What stands once in the answer to each event; b"": events are not answered."""


@dataclass
class Running:
    """A peer at work."""

    host: str
    port: int
    """Where subscribers connect."""
    process_ids: Sequence[int]
    """All that belongs to the server: for its processor time and its memory."""
    publication: Publication
    notes: dict[str, str] = field(default_factory=dict)
    """What was measured with: "history": "300 s", for the table."""
    tls: bool = False
    """Whether host and port speak TLS."""
    authority: str = ""
    """The PEM file of who signed its certificate; "": somebody whom the system trusts."""


class Peer(Protocol):
    """One peer. Implementations are plain modules' classes, without state of their own, each with one `PEER` of it."""

    @property
    def name(self) -> str:
        """As the table shows it."""
        ...

    @property
    def does(self) -> str:
        """What it does more or less than the broker, in a few words: "no history, no replay"."""
        ...

    def version(self) -> str:
        """Return the version that would run. Raises `PeerMissingError`."""
        ...

    def open(self, cores: set[int] | None, channels: int) -> AbstractContextManager[Running]:
        """Start it on these cores (None: any), with all settings fair and documented; stop it at the end."""
        ...

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return what a subscriber of a channel says."""
        ...

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return the bytes that publish ``payload`` to a channel: a JSON object on one line, with `DUE` in it.

        Subscribers get it byte for byte somewhere in a frame, perhaps with other events in the same one.
        """
        ...

    def ping(self, message: bytes) -> bytes | None:
        """Return the payload that answers a ping of the peer's own protocol (not a WebSocket's), or None."""
        ...
