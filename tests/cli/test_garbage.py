"""What the garbage collector of a process that serves looks at. In processes of their own: it is one for all."""

import subprocess
import sys
import textwrap

from broker.cli.garbage import COLLECTIONS_PER_OLDER

BEFORE = """
import gc
import weakref

import broker.cli.garbage
from broker.cli.garbage import (
    COLLECTIONS_PER_OLDER,
    FULL_COLLECTIONS_PER_THAW,
    THRESHOLDS,
    WOKEN_PER_COLLECTION,
    collect_what_is_young,
)

class Node:
    pass

def cycle():
    node = Node()
    node.itself = node
    return node

def full_collections(count):
    for _ in range(count):
        gc.collect()
"""


def run(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_however_much_lives_a_full_collection_looks_at_what_is_young():
    full, most = run("""
        collect_what_is_young()
        looked_at = []
        gc.callbacks.append(
            lambda phase, info: looked_at.append(len(gc.get_objects()))
            if (phase, info["generation"]) == ("start", 2)
            else None
        )
        kept = [[] for _ in range(300_000)]
        print(len(looked_at), max(looked_at))
    """)
    assert int(full) >= 10
    assert int(most) < 15_000


def test_what_a_collection_of_young_objects_looked_at_for_long_is_looked_at_no_more():
    few, many = run("""
        collect_what_is_young()
        gc.disable()
        kept = [[] for _ in range(100)]
        gc.collect(0)
        print(gc.get_count()[1])
        kept += [[] for _ in range(300_000)]
        gc.collect(0)
        print(len(gc.get_objects()))
    """)
    assert int(few) == 1, "what took no time is looked at again with what is older"
    assert int(many) < 10_000


def test_what_is_frozen_is_freed_when_nobody_refers_to_it_and_a_young_cycle_is_collected():
    assert run("""
        collect_what_is_young()
        node, young = Node(), weakref.ref(cycle())
        old = weakref.ref(node)
        gc.collect()
        print(young() is None)
        del node
        print(old() is None)
    """) == ["True", "True"]


def test_a_cycle_that_was_frozen_is_collected_after_the_thaw():
    assert run("""
        collect_what_is_young()
        node = cycle()
        old = weakref.ref(node)
        full_collections(1)
        del node
        full_collections(FULL_COLLECTIONS_PER_THAW - 2)
        print(old() is None)
        full_collections(2)
        print(old() is None)
    """) == ["False", "True"]


def test_what_many_who_are_woken_have_made_is_looked_at_little_by_little():
    young, older, oldest, thawed = run("""
        woken = collect_what_is_young()
        gc.disable()
        node = cycle()
        old = weakref.ref(node)
        gc.collect()
        del node
        looked_at = []
        gc.callbacks.append(lambda phase, info: phase == "start" and looked_at.append(info["generation"]))
        for _ in range(WOKEN_PER_COLLECTION * COLLECTIONS_PER_OLDER**2):
            woken()
        print(*map(looked_at.count, range(3)))
        gc.callbacks.pop()
        broker.cli.garbage.FULL_COLLECTIONS_PER_THAW = 2
        for _ in range(WOKEN_PER_COLLECTION * COLLECTIONS_PER_OLDER**2 * 5):
            woken()
        print(old() is None)
    """)
    assert int(young) == COLLECTIONS_PER_OLDER**2 - COLLECTIONS_PER_OLDER
    assert (int(older), int(oldest)) == (COLLECTIONS_PER_OLDER - 1, 1), "what is older is looked at now and then, too"
    assert thawed == "False", "how many are woken says nothing of how many have come"
