"""What is left for the garbage collector: what refers to each other, and nobody else to it."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

OURS = ("broker.", "trio", "wsproto", "http", "h11")


def _kinds() -> Counter[type]:
    """What lives of the broker's and of what it stands on, by its kind; threads of trio's end when they are idle."""
    kinds = Counter(map(type, gc.get_objects()))
    ours = (kind for kind in kinds if str(kind.__module__).startswith(OURS))
    return Counter({kind: kinds[kind] for kind in ours if kind.__name__ != "WorkerThread"})


@contextmanager
def garbage() -> Iterator[Counter[type]]:
    """Count what the block leaves, by its kind; it is told when the block has ended."""
    left: Counter[type] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield left
        before = _kinds()
        gc.collect()
        left.update(before - _kinds())
    finally:
        gc.enable()
