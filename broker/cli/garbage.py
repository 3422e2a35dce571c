"""The garbage collector of a process that serves: it looks at what is young, and seldom at all that lives.

A collection is one long step, and a full one looks at everything that can refer to anything: with a thousand
connections 100 ms, again each time that a quarter more has come. What serves clients makes hardly any garbage of its
kind (an ended connection leaves none, nor does what the operator's API or an endpoint was asked: tests hold that), so
what has lived through a full collection is frozen: the next one leaves it out. What is frozen is still freed when
nobody refers to it any more; only what refers to each other must wait for the thaw.
"""

import gc
from collections.abc import Callable
from time import perf_counter
from typing import Final

THRESHOLDS: Final = (700, 3, 2)
"""A full collection for some 8,000 objects more: 4 ms at most."""
FULL_COLLECTIONS_PER_THAW: Final = 2_000
"""After so many, one looks at all that lives: when 80,000 connections have come, not before."""
LONG_SECONDS: Final = 0.0005
"""What a collection of what is young looked at for so long is left out from then on: that is the state of many."""
WOKEN_PER_COLLECTION: Final = 64
COLLECTIONS_PER_OLDER: Final = 4
"""After so many of what is young, the next generation is looked at."""
_FULL: Final = 2


class _Freezing:
    """Told by the collector of each collection that begins or ends."""

    def __init__(self) -> None:
        self._full_collections = 0
        self._began = 0.0
        self._woken = 0
        self._asked = False
        """Whether a collection is one that was asked for here: it says nothing of how much has come."""

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = perf_counter()
        elif info["generation"] == _FULL:
            self._full_collections += not self._asked
            if self._full_collections % FULL_COLLECTIONS_PER_THAW == 0 and not self._asked:
                gc.unfreeze()  # the next one looks at it
            else:
                gc.freeze()
        elif perf_counter() - self._began > LONG_SECONDS:
            gc.freeze()

    def woken(self) -> None:
        """Count a task that is woken, and have what so many have made looked at.

        A task that is woken and waits again has made a dozen objects, which live until it is woken again, and freed as
        many. The collector counts what is new less what is freed: while thousands wake and wait again it does not come,
        and then it looks at what all of them have made in one step, for tens of milliseconds.
        """
        self._woken += 1
        collections, rest = divmod(self._woken, WOKEN_PER_COLLECTION)
        if not rest:
            older, young = divmod(collections, COLLECTIONS_PER_OLDER)
            self._asked = True
            gc.collect(0 if young else 1 if older % COLLECTIONS_PER_OLDER else _FULL)
            self._asked = False


def collect_what_is_young() -> Callable[[], None]:
    """Have the collector go by this from now on; all that there is already is left out.

    Returns what is to be called for each task that is woken.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    freezing = _Freezing()
    gc.callbacks.append(freezing)
    return freezing.woken
