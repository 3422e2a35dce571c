"""How many files this process may have open: each client is one."""

import fcntl
import os
import resource
from contextlib import suppress
from typing import Final

ROOM: Final = 65_536
"""For so many the kernel makes room at the start: half a megabyte."""


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files to the hard one, and have the kernel make room for as many, or for `ROOM`.

    The kernel doubles its table of a process's files when it is full. If the process has threads, whoever opened that
    file waits until all processors have left the old table: with him the loop, and all clients, for tens of
    milliseconds; of the first thousand clients that come at once three wait so. The table never gets shorter.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = ROOM if hard == resource.RLIM_INFINITY else min(hard, ROOM)
    with suppress(OSError), open(os.devnull, "rb") as nothing:  # it fails where that file is open: there is room
        os.close(fcntl.fcntl(nothing, fcntl.F_DUPFD_CLOEXEC, most - 1))
