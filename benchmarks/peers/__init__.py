"""The brokers that the bench compares, by name, in the order of the table.

`PEERS` is a mapping from a name to its adapter (`adapter.Peer`). An adapter's module is imported when it is asked for,
so importing this package costs nothing. Each module ``benchmarks.peers.NAME`` holds its adapter as ``PEER``.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module

from .adapter import Peer

NAMES = ("broker", "floor", "websockets", "nats", "nchan", "centrifugo", "socketio")
"""Ours first, then what no server can beat, then the others."""


class _Peers(Mapping[str, Peer]):
    """Adapters by name, each imported when it is asked for."""

    def __getitem__(self, name: str) -> Peer:
        if name not in NAMES:
            raise KeyError(name)
        return import_module(f".{name}", __name__).PEER

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


PEERS: Mapping[str, Peer] = _Peers()
