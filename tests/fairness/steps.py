"""Work between checkpoints: what one step of the broker cost, and one turn of its loop, in processor time."""

import gc
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio

FULL = 2
"""The generation of a full collection."""
_of_a_client: ContextVar[bool] = ContextVar("of_a_client", default=False)


class Steps(trio.abc.Instrument):
    """Counts the processor time of the broker's tasks, and of the loop: no other process's business makes it longer.

    A full run of the garbage collector is not counted: it looks at all that lives, whoever's step it falls into.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds of the longest step: from a checkpoint to the next."""
        self.longest_of = ""
        """The task that did it."""
        self.longest_turn = 0.0
        """Seconds of the longest turn: a look at what the network brought, and all steps until the next."""
        self.work = 0.0
        """Seconds of all turns."""
        self.slowest: Counter[str] = Counter()
        """The longest step of each kind of task, in microseconds."""
        self._began = time.thread_time()
        self._turn = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._count()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.context.get(_of_a_client):
            self._began = time.thread_time()
            return
        spent = self._count()
        self.slowest[task.name] = max(self.slowest[task.name], round(spent * 1e6))
        if spent > self.longest:
            self.longest, self.longest_of = spent, task.name

    def _count(self) -> float:
        """Count what was done since the last time, and return it: a step, or what the loop did between two."""
        now = time.thread_time()
        spent, self._began = now - self._began, now
        self.work += spent
        self._turn += spent
        return spent

    def collecting(self, phase: str, info: dict[str, int]) -> None:
        """Be told by the garbage collector that it begins, or has ended."""
        if info["generation"] == FULL:
            self._began += time.thread_time() if phase == "stop" else -time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self._count()
        self.longest_turn = max(self.longest_turn, self._turn)
        self._turn = 0.0


@contextmanager
def counted_steps() -> Iterator[Steps]:
    """Count the steps of the tasks that are there already, and of those that they start; not the caller's.

    What lives already is not looked at by the garbage collector meanwhile: it is the tests'.
    """
    steps = Steps()
    token = _of_a_client.set(True)
    gc.collect()
    gc.freeze()
    trio.lowlevel.add_instrument(steps)
    gc.callbacks.append(steps.collecting)
    try:
        yield steps
    finally:
        gc.callbacks.remove(steps.collecting)
        trio.lowlevel.remove_instrument(steps)
        gc.unfreeze()
        _of_a_client.reset(token)
