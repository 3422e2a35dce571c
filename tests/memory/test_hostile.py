"""What a client makes the broker hold is bounded: by what each row of `benchmarks.hostile` says of itself."""

import gc
import tracemalloc

import pytest
from fairness.attacks import attack, attacked
from fairness.neighbour import Neighbour
from fairness.steps import counted_steps

from benchmarks.hostile.table import ROWS

MAX_LEFT_BYTES = 1_048_576
"""Of what a client sent that was refused, and of its connections: each sends that much."""

each_row_with_a_bound = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name) for row in ROWS.values() if row.has_bound]
)


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
