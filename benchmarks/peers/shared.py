"""Nodes that share a Valkey: ours behind one port, and Centrifugo with the same program, on as many cores.

Each one that is opened has a server of its own, started anew, so that none meets what another left there.
"""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from broker.errors import ConfigError
from broker.workers.private import find_server

from .adapter import PeerMissingError, Running
from .broker import Broker, configuration, served
from .centrifugo import Centrifugo
from .process import HOST, START_SECONDS, PeerFailedError, children_of, core_count, free_ports, started

ALONE = 0
"""So many nodes share nothing: one process with its log in memory."""
_LOOKS_A_NODE = 10
"""New connections in a row that must find a node ready: each node has had one by then, almost surely."""


@dataclass(frozen=True)
class Store:
    """A Valkey that runs, with an empty database."""

    port: int
    process_id: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://{HOST}:{self.port}"

    def ask(self, command: str) -> str:
        """Give it one command of plain words; return its text."""
        with socket.create_connection((HOST, self.port), timeout=START_SECONDS) as connection:
            connection.sendall(command.encode() + b"\r\n")
            with connection.makefile("rb") as answer:
                head = answer.readline().strip()
                return answer.read(int(head[1:])).decode() if head.startswith(b"$") else head[1:].decode()

    def memory_bytes(self) -> int:
        """Return what its data takes, as it counts that itself."""
        told = dict(line.split(":", 1) for line in self.ask("INFO memory").splitlines() if ":" in line)
        return int(told["used_memory"])


@contextmanager
def open_store(cores: set[int] | None) -> Iterator[Store]:
    """Start the Valkey that workers would start: from the PATH, or from its package. Raises `PeerMissingError`."""
    try:
        program = find_server()
    except ConfigError as error:
        raise PeerMissingError(str(error)) from None
    [port] = free_ports(1)
    with TemporaryDirectory(prefix="bench-valkey-") as directory:
        settings = {"port": port, "bind": HOST, "save": "", "appendonly": "no", "dir": directory}
        words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        with started([program, *words, "--maxmemory-policy", "noeviction"], [port], cores) as process_id:
            yield Store(port, process_id)


@dataclass(frozen=True)
class Nodes(Broker):
    """Our broker as so many processes behind one port that share a Valkey; `ALONE`: as one without."""

    nodes: int = 1

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start them, and wait until all take clients."""
        if self.nodes == ALONE:
            with super().open(cores, channels) as running:
                yield running
            return
        with open_store(cores) as store, self.beside(store, cores) as running:
            yield replace(running, process_ids=[*running.process_ids, store.process_id])

    @contextmanager
    def beside(self, store: Store, cores: set[int] | None) -> Iterator[Running]:
        """Start nodes at a server that runs; its process is none of theirs."""
        [port] = free_ports(1)
        settings = f'workers = {self.nodes}\n[engine]\nurl = "{store.url}"\n'
        with served(configuration(port, settings), port, cores) as parent:
            processes = [parent, *children_of(parent, self.nodes)] if self.nodes > 1 else [parent]
            _wait_until_ready(port, _LOOKS_A_NODE * self.nodes)
            yield self.running(HOST, port, processes)


class CentrifugoNodes(Centrifugo):
    """Centrifugo with its Redis engine, on as many cores as there would be nodes."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start it beside a Valkey."""
        self.where()  # what is missing is said before anything is started
        processors = min(self.nodes, core_count(cores))
        with open_store(cores) as store:
            engine = {"type": "redis", "redis": {"address": store.url}}
            with self.serving(cores, processors, engine) as running:
                yield replace(running, process_ids=[*running.process_ids, store.process_id])


def _wait_until_ready(port: int, looks: int) -> None:
    """Wait until so many new connections in a row are told that their node is ready."""
    until, found = time.monotonic() + START_SECONDS, 0
    asked = urllib.request.Request(f"http://{HOST}:{port}/readyz", headers={"Connection": "close"})
    while found < looks:
        if time.monotonic() > until:
            raise PeerFailedError("its nodes are not ready")
        ready = False
        with suppress(OSError), urllib.request.urlopen(asked, timeout=START_SECONDS) as answer:
            ready = answer.status == 200
        found = found + 1 if ready else 0
        if not ready:
            time.sleep(0.02)
