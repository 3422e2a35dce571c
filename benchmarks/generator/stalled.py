"""Subscribers that stop reading: they open, and from then on take nothing that the kernel does not take for them."""

from collections.abc import Sequence

from ..peers.adapter import Peer, Running
from .opening import open_all

RECEIVE_BUFFER_BYTES = 4096
"""The kernel's least or so: the server notices soon."""


class Stalled:
    """All of one process.

    Args:
        peer: whose messages they do not read.
        running: where it listens.
        channels: what each connection subscribes to.
        control: not used: nothing is received.
    """

    def __init__(self, peer: Peer, running: Running, channels: Sequence[int], control: int) -> None:
        subscriptions = [peer.subscribe(running, channel) for channel in channels]
        self._opened = list(open_all(running, subscriptions, RECEIVE_BUFFER_BYTES))
