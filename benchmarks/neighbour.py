"""The neighbour: what an account's latency is alone, and while another account broadcasts without a break.

Three measurements of the same account, one event to its one subscriber at a time, taken in turns in one run: alone;
while the *floor* broadcasts to a thousand subscribers beside an idle broker, which is what a busy machine costs
whatever the broker does; and while the broker itself broadcasts to as many for another account.

The thousand subscribers run in the background of the scheduler: in the world they are other machines, here
they would otherwise take the neighbour's one subscriber its processor for some milliseconds at a time.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from .children import ChildError
from .sides import Placement, Side, open_account, open_broker_child, open_floor

_UNDER_WAY = 2
"""Broadcasts under way at a time: the next one waits already when one ends, so that there is no break."""


@dataclass
class Latencies:
    """Nanoseconds until the one subscriber had the event."""

    from_call: list[int] = field(default_factory=list)
    """From immediately before the publish call: what the bar is about."""
    from_asking: list[int] = field(default_factory=list)
    """From before the broker's process was asked to publish: its queue for the processor is in it."""


@dataclass
class Load:
    """How many broadcasts ran beside a measurement, and how long."""

    broadcasts: int = 0
    seconds: float = 0.0


@contextmanager
def broadcasting(side: Side, frame_bytes: int, load: Load) -> Iterator[None]:
    """Broadcast on ``side`` without a break, inside."""
    stop = threading.Event()
    failures: list[ChildError] = []

    def broadcast() -> None:
        begun = time.monotonic()
        try:
            for _ in range(_UNDER_WAY):
                side.send(frame_bytes)
            while not stop.is_set():
                side.arrived()
                load.broadcasts += 1
                side.send(frame_bytes)
            for _ in range(_UNDER_WAY):
                side.arrived()
        except ChildError as error:
            failures.append(error)
        load.seconds += time.monotonic() - begun

    thread = threading.Thread(target=broadcast)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def sample(side: Side, count: int, into: Latencies, seed: int) -> None:
    """Publish ``count`` events one by one, 1 to 9 ms apart, out of step with whatever else goes on."""
    chance = random.Random(seed)
    for _ in range(count):
        time.sleep(chance.uniform(0.001, 0.009))
        asked = time.monotonic_ns()
        side.send()
        arrived, _ = side.arrived()
        into.from_call.append(arrived - side.started())
        into.from_asking.append(arrived - asked)


@dataclass
class Result:
    """The three measurements, and the loads beside the latter two."""

    alone: Latencies = field(default_factory=Latencies)
    beside_floor: Latencies = field(default_factory=Latencies)
    beside_broadcast: Latencies = field(default_factory=Latencies)
    floor_load: Load = field(default_factory=Load)
    broker_load: Load = field(default_factory=Load)


def measure(connections: int, samples: int, payload_bytes: int, where: Placement, turns: int = 10) -> Result:
    """Measure in ``turns``, so that what else the machine does hits all three alike."""
    result = Result()
    each = -(-samples // turns)
    crowd = replace(where, subscribers_in_background=True)
    with (
        open_broker_child(payload_bytes, where) as (server, port),
        open_account(server, port, "bench", connections, crowd) as loud,
        open_account(server, port, "neighbour", 1, where) as quiet,
        open_floor(connections, crowd) as (_, floor),
    ):
        frame_bytes = loud.deliver().frame_bytes
        sample(quiet, 100, Latencies(), seed=0)
        for turn in range(turns):
            sample(quiet, each, result.alone, turn)
            with broadcasting(floor, frame_bytes, result.floor_load):
                sample(quiet, each, result.beside_floor, turn)
            with broadcasting(loud, 0, result.broker_load):
                sample(quiet, each, result.beside_broadcast, turn)
    return result
