"""Nobody holds up anybody: whatever one client does, the others' answers and events come, and memory is bounded.

Each row of `benchmarks.hostile` is done to a broker that is really served. Asserted is work, not time on a clock: the
processor time of the broker's own tasks, which no other process makes longer. The bounds are generous; what they are
to find takes ten to a thousand times as long.
"""

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from tempfile import TemporaryDirectory

import pytest
import trio
import valkeys
from clients import serving, until
from fairness.neighbour import Neighbour
from fairness.resting import at_rest
from fairness.steps import counted_steps
from msgspec import structs

from benchmarks.generator.attacker import Attacked, Attacker
from benchmarks.generator.worker import Worker
from benchmarks.hostile.row import Row
from benchmarks.hostile.table import ROWS
from benchmarks.hostile.target import FOLDER, Target, configuration
from benchmarks.peers.process import free_ports
from broker.cli.garbage import WOKEN_PER_COLLECTION
from broker.config import EngineConfig, StorageConfig, parse_config
from broker.transport.files import raise_open_files_limit

LONGEST_STEP = 0.04
"""Seconds between two checkpoints of a task."""
LONGEST_TURN = 0.05
"""Seconds of a look at what the network brought and of all steps until the next."""
LONGEST_WAIT = 0.1
"""Seconds that the broker works while a neighbour waits for one answer."""
LONGEST_WAITS = {
    "answers-unread": 0.05,
    "chunked-answers": 0.05,
    "hard-mails": 0.05,
    "older-events": 0.25,
    "older-starts": 0.25,
}
"""The same of rows of many long things that go on one after the other; with the longer ones readers of the disk never
pause, and the neighbour's own publish is written to it: its commit is waited for, too."""
LONGEST_WAIT_BESIDE = 0.75
"""Seconds of the same where a publish is written to a disk or to a server: its commit is waited for, too."""
MAX_LEFT_BYTES = 1_048_576
"""Of what a client sent that was refused, and of its connections: each sends that much."""
ROUNDS = 3
"""So often, at least, a neighbour is served."""
GUARD_SECONDS = 100

each_row = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
each_row_with_a_bound = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name) for row in ROWS.values() if row.has_bound]
)
PUBLISHING = ("list-10000", "duplicates", "types", "inboxes", "payloads-deep", "answers-unread")
"""Rows whose events are stored: with a log on disk that is another way."""


@pytest.fixture(scope="module", autouse=True)
def open_files():
    """A thousand clients and their broker in one process are some thousand files."""
    raise_open_files_limit()


@pytest.fixture(scope="module")
def attacker():
    """A process of its own: what a client itself costs is not the broker's."""
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


Sections = Callable[[], AbstractContextManager[Mapping[str, StorageConfig | EngineConfig]]]
"""Return what holds sections of a configuration, new each time: an old log remembers what was done before."""
NOTHING: Sections = partial(nullcontext, {})


async def too_long(attacker: Worker, row: Row, longest_wait: float, beside: Sections) -> str:
    """Return what of the broker's work took too long while a client did what the row says; "" if nothing did."""
    with beside() as sections:
        async with attacked(row, **sections) as target:
            with counted_steps() as steps:
                neighbour = Neighbour(steps)
                await attack(attacker, row, target, neighbour)
    found = []
    if steps.longest >= LONGEST_STEP:
        found.append(f"a step of {steps.longest:.3f} s: {steps.longest_of}")
    if steps.longest_turn >= LONGEST_TURN:
        found.append(f"a turn of {steps.longest_turn:.3f} s: {steps.slowest.most_common(3)}")
    if neighbour.longest_wait >= longest_wait:
        found.append(f"a wait of {neighbour.longest_wait:.3f} s: {steps.slowest.most_common(3)}")
    return "; ".join(found)


async def require_fair(attacker: Worker, row: Row, longest_wait: float, beside: Sections = NOTHING) -> None:
    """Fail if something takes too long twice: what the machine does now and then does not come again."""
    first = await too_long(attacker, row, longest_wait, beside)
    second = first and await too_long(attacker, row, longest_wait, beside)
    assert not second, f"first {first}; then {second}"


@each_row
async def test_a_neighbour_is_served_while_another_client_does_its_worst(row, attacker):
    await require_fair(attacker, row, LONGEST_WAITS.get(row.name, LONGEST_WAIT))


@pytest.mark.parametrize("name", PUBLISHING)
async def test_a_neighbour_is_served_while_another_client_publishes_to_a_log_on_disk(name, attacker, tmp_path):
    @contextmanager
    def storage() -> Iterator[Mapping[str, StorageConfig]]:
        with TemporaryDirectory(dir=tmp_path) as folder:
            yield {"storage": StorageConfig(path=f"{folder}/broker.db")}

    await require_fair(attacker, ROWS[name], LONGEST_WAIT_BESIDE, storage)


@pytest.mark.parametrize("name", PUBLISHING)
async def test_a_neighbour_is_served_while_another_client_publishes_to_a_server_that_nodes_share(name, attacker):
    @contextmanager
    def engine() -> Iterator[Mapping[str, EngineConfig]]:
        with valkeys.server() as shared:
            yield {"engine": EngineConfig(url=shared.url)}

    await require_fair(attacker, ROWS[name], LONGEST_WAIT_BESIDE, engine)


@each_row_with_a_bound
async def test_what_a_client_makes_the_broker_hold_is_bounded(row, attacker):
    async with attacked(row) as target:
        with counted_steps() as steps:
            tracemalloc.start()
            try:
                await attack(attacker, row, target, Neighbour(steps))
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert peak < row.most_bytes


@pytest.mark.parametrize("name", ["publish-ones", "great-numbers", "empty-messages", "binary-fragments", "last-is-bad"])
async def test_what_a_client_has_sent_is_gone_when_it_was_refused(name, attacker, monkeypatch):
    """Whether the garbage collector comes or not: what waits for it may be frozen before, and then it never comes."""
    gc.disable()
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    try:
        async with attacked(ROWS[name]) as target:
            with counted_steps() as steps:
                tracemalloc.start()
                await attack(attacker, ROWS[name], target, Neighbour(steps), times=5)
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert left < MAX_LEFT_BYTES
