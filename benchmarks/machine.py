"""The machine: what it is, and how much of it others used meanwhile; where that is much, figures are a crowd's."""

import os
import platform
import resource
import time
from pathlib import Path
from typing import Self

from .generator.receiving import compiled

_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _WAITING_FOR_DISK = 3, 4


def description() -> dict[str, str]:
    """Return what names this machine, for a reader who compares figures."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "generator": f"generator's loop in {'C' if compiled() else 'Python'}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
