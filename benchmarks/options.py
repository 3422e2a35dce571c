"""What the command line chose, for all scenarios alike; what it left open is each scenario's own choice."""

from dataclasses import dataclass, replace
from pathlib import Path

from .bare import NAME as BARE
from .bare import Bare
from .peers import NAMES, PEERS
from .peers.adapter import Peer
from .peers.broker import OVER_TLS, Broker, BrokerOverTls, Deployment
from .sides import Placement, placement

OURS = "broker"
REFERENCES = (BARE, "floor", OVER_TLS)
"""What is measured beside the broker as a part of it: nobody would take it instead."""
OUT = Path(__file__).with_name("out")
"""Where results go unless told; not kept by git."""


@dataclass(frozen=True)
class Options:
    """The choices.

    Args:
        url: a broker that runs already; "": start one.
        key: of an account of that broker, for subscribing and publishing.
        storage: a directory in which the broker has its log on disk; "": in memory.
        peers: who is compared with the broker.
        seconds: how long each case is measured.
        subscribers: the sizes of a scenario: subscribers, inboxes, connections.
        cases: by name, the only ones to measure; none: all.
        rate: events, or requests, a second.
        payload_bytes: of each event, as JSON.
        runs: how often each case is measured; medians are shown.
        processes: how many hold the subscribers.
        pin: the server on the first core, the generator on the others.
        brief: small sizes and short times: all scenarios in minutes.
        profile: whether to save a profile of each server.
        out: where results, report and profiles go.
        punctual: whether publishers on schedule go before servers on the same core (a scenario's choice).
    """

    url: str = ""
    key: str = ""
    storage: str = ""
    peers: tuple[str, ...] = NAMES[1:]
    seconds: float | None = None
    subscribers: tuple[int, ...] = ()
    cases: tuple[str, ...] = ()
    rate: float | None = None
    payload_bytes: int = 200
    runs: int = 1
    processes: int = 1
    pin: bool = False
    brief: bool = False
    profile: bool = False
    out: Path = OUT
    punctual: bool = False

    @property
    def where(self) -> Placement:
        """Where servers and generator run."""
        return replace(placement(self.pin), punctual=self.punctual)

    def lasting(self, seconds: float, brief: float) -> float:
        """Return how long to measure: as chosen, else as the scenario has it."""
        return self.seconds or (brief if self.brief else seconds)

    def sizes(self, sizes: tuple[int, ...], brief: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes to measure: as chosen, else as the scenario has them."""
        return self.subscribers or (brief if self.brief else sizes)

    @property
    def compared(self) -> tuple[str, ...]:
        """The broker, and who is compared with it: nobody where it is a deployment."""
        return (OURS,) if self.url else (OURS, *self.peers)

    def peer(self, name: str) -> Peer:
        """Return a peer by name."""
        if name == OURS:
            return self.broker()
        if name == OVER_TLS:
            return BrokerOverTls()
        return Bare() if name == BARE else PEERS[name]

    def broker(self) -> Broker:
        """Return our broker: started here, or the deployment."""
        return Deployment(url=self.url, key=self.key) if self.url else Broker(storage=self.storage)
