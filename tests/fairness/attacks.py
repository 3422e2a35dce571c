"""A row of `benchmarks.hostile`, done to a broker that is really served while a neighbour lives beside it."""

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from clients import serving, until
from fairness.neighbour import Neighbour
from fairness.resting import at_rest
from msgspec import structs

from benchmarks.generator.attacker import Attacked, Attacker
from benchmarks.generator.worker import Worker
from benchmarks.hostile.row import Row
from benchmarks.hostile.target import FOLDER, Target, configuration
from benchmarks.peers.process import free_ports
from broker.cli.garbage import WOKEN_PER_COLLECTION
from broker.config import EngineConfig, StorageConfig, parse_config
from broker.transport.files import raise_open_files_limit

ROUNDS = 3
"""So often, at least, a neighbour is served."""
GUARD_SECONDS = 100


@pytest.fixture(scope="module")
def attacker() -> Iterator[Worker]:
    """A process of its own: what a client itself costs is not the broker's. It may have a thousand connections."""
    raise_open_files_limit()  # and so may the broker, in this one
    with Worker("hostile client", Attacker) as worker:
        worker.hear()
        yield worker


def collect_now_and_then() -> Callable[[], None]:
    """Return what has young objects looked at little by little, as `broker serve` does."""
    woken = 0

    def count() -> None:
        nonlocal woken
        woken += 1
        if woken % WOKEN_PER_COLLECTION == 0:
            gc.collect(0)

    return count


@asynccontextmanager
async def attacked(row: Row, **sections: StorageConfig | EngineConfig) -> AsyncIterator[Target]:
    """Serve a broker as the row has it, with other sections; afterwards nothing of its clients may be left."""
    [api_port] = free_ports(1)
    config = parse_config(configuration(0, api_port, row.settings, asks=row.asks), {})
    config = structs.replace(config, **sections)
    async with serving(config) as served:
        served.broker.turns.woken = collect_now_and_then()
        rest = await at_rest(served)
        yield Target(*served.address, api_port)
        await rest.again()


async def attack(attacker: Worker, row: Row, target: Target, neighbour: Neighbour, times: int = 1) -> None:
    """Do what the row says, so often, while the neighbour lives, and let it live on for a while.

    What would be there of the first time, in a log on disk, is no reason to answer the second time otherwise.
    """
    times = max(times, 2 if FOLDER in row.settings else 1)
    with trio.fail_after(GUARD_SECONDS + 10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(neighbour.live, target)
            attacker.tell("attack", row.name, target, GUARD_SECONDS, times)
            done = await trio.to_thread.run_sync(attacker.hear, abandon_on_cancel=True)
            lived = neighbour.rounds
            await until(lambda: neighbour.rounds >= max(ROUNDS, lived + 1))
            nursery.cancel_scope.cancel()
    assert done == Attacked(times, "")
