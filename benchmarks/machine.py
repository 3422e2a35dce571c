"""How much of the machine others used meanwhile: where that is much, the figures are those of a crowd."""

import os
import resource
import time
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _WAITING_FOR_DISK = 3, 4


class Others:
    """Measures, as a context, the cores that other processes kept busy; our children must start and end inside."""

    def __init__(self) -> None:
        self.cores = 0.0
        """Known at the end: 0.5 is half of one core, all the time."""

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        self._busy = _machine_seconds() - _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        busy = _machine_seconds() - _own_seconds() - self._busy
        self.cores = max(0.0, busy / (time.monotonic() - self._begun))

    def __str__(self) -> str:
        return f"Meanwhile other processes kept {self.cores:.2f} of {os.cpu_count()} cores busy."


def _machine_seconds() -> float:
    """Return the processor time that was spent since the machine started, on all cores."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    return sum(int(word) for place, word in enumerate(words) if place not in (_IDLE, _WAITING_FOR_DISK)) / _TICKS


def _own_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
