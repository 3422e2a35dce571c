"""Clients that wait for one event each, sixteen on a connection; what they are told is not looked at."""

from ..peers.adapter import Running, Subscription
from ..peers.broker import Broker
from .opening import open_all

OF_CONNECTION = 16
"""More the broker does not let one connection wait for."""


class Waiting:
    """All of one process.

    Args:
        broker: as whose account they wait.
        running: where it listens.
        waits: how many.
        inbox: that all of them wait for, each for a text that no event has; None: each for an inbox of its own.
        control: not used: nothing is received.
    """

    def __init__(self, broker: Broker, running: Running, waits: int, inbox: int | None, control: int) -> None:
        numbers = [range(start, min(start + OF_CONNECTION, waits)) for start in range(0, waits, OF_CONNECTION)]
        subscriptions: list[Subscription] = [broker.wait(running, of_one, inbox) for of_one in numbers]
        self._opened = list(open_all(running, subscriptions))
