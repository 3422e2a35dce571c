"""Nobody holds up anybody: whatever one client does, the others' answers and events come.

Each row of `benchmarks.hostile` is done to a broker that is really served. Asserted is work, not time on a clock: the
processor time of the broker's own tasks, which no other process makes longer. The bounds are generous; what they are
to find takes ten to a thousand times as long.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from tempfile import TemporaryDirectory

import pytest
import valkeys
from fairness.attacks import attack, attacked
from fairness.neighbour import Neighbour
from fairness.steps import counted_steps

from benchmarks.generator.worker import Worker
from benchmarks.hostile.row import Row
from benchmarks.hostile.table import ROWS
from broker.config import EngineConfig, StorageConfig

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

each_row = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
PUBLISHING = ("list-10000", "duplicates", "types", "inboxes", "payloads-deep", "answers-unread")
"""Rows whose events are stored: with a log on disk that is another way."""


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
