"""A node that follows many accounts and has no client: what each of them costs it and the server that it shares."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from broker import Broker, Config, EngineConfig, open_broker

from ..cost import memory_bytes, processor_ns
from ..peers.shared import Store

_AT_ONCE = 500
"""Accounts that are asked for side by side, as those of clients are that come back all at once."""
_FIRST = 10
"""Accounts that are followed before the count, so that what is loaded with the first is not counted."""


@dataclass(frozen=True)
class Spent:
    """What something took.

    Args:
        seconds: by the clock.
        node_ns, store_ns: processor time of the node, and of the server.
        node_bytes, store_bytes: by how much their memory grew.
    """

    seconds: float
    node_ns: int
    store_ns: int
    node_bytes: int
    store_bytes: int


@dataclass(frozen=True)
class Followed:
    """What it took to follow accounts, to do nothing but that, and to find all again after the link was cut."""

    begun: Spent
    idle: Spent
    again: Spent


class Following:
    """A node in this process, as a library.

    Args:
        store: the server.
        control: not used: nothing is received between calls.
    """

    def __init__(self, store: Store, control: int) -> None:
        self._store = store

    def follow(self, accounts: int, idle_seconds: float) -> Followed:
        """Follow so many accounts, do nothing for a while, then have the link cut."""
        return trio.run(_follow, self._store, accounts, idle_seconds)


async def _follow(store: Store, accounts: int, idle_seconds: float) -> Followed:
    async with open_broker(Config(engine=EngineConfig(url=store.url))) as broker:
        await _hold_all(broker, [f"first_{number}" for number in range(_FIRST)])
        begun = _counting(store)
        await _hold_all(broker, [f"acct_{number}" for number in range(accounts)])
        spent = begun()
        resting = _counting(store)
        await trio.sleep(idle_seconds)
        rested = resting()
        lost = _counting(store)
        await trio.to_thread.run_sync(store.ask, "CLIENT KILL TYPE pubsub")
        await _back(broker)
        return Followed(spent, rested, lost())


async def _hold_all(broker: Broker, account_ids: list[str]) -> None:
    """Follow accounts, for as long as the broker lives."""

    async def hold(account_id: str) -> None:
        await broker.hold(account_id).__aenter__()

    for start in range(0, len(account_ids), _AT_ONCE):
        async with trio.open_nursery() as nursery:
            for account_id in account_ids[start : start + _AT_ONCE]:
                nursery.start_soon(hold, account_id)


async def _back(broker: Broker) -> None:
    """Wait until the link that is there was lost, and there is another, by which all accounts are known."""
    while True:
        engine = broker.statistics().engine
        if engine is not None and engine.losses and not engine.away:
            return
        await trio.sleep(0.005)


def _counting(store: Store) -> Callable[[], Spent]:
    """Return what tells how much was spent from now on."""
    own = [os.getpid()]

    def so_far() -> tuple[int, int, int, int, int]:
        used = processor_ns(own), processor_ns([store.process_id]), memory_bytes(own), store.memory_bytes()
        return time.monotonic_ns(), *used

    before = so_far()

    def spent() -> Spent:
        clock, *used = (now - then for now, then in zip(so_far(), before, strict=True))
        return Spent(clock / 1e9, *used)

    return spent
