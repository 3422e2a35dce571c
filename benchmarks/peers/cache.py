"""Where installed peers are kept: one directory of the user, a subdirectory for each peer."""

import os
import shutil
from pathlib import Path

from .adapter import PeerMissingError


def place(name: str) -> Path:
    """Return the directory of one peer, which need not exist.

    ``BROKER_BENCH_PEERS`` names the directory of all; else it is ``broker-bench`` in the user's cache.
    """
    if chosen := os.environ.get("BROKER_BENCH_PEERS"):
        return Path(chosen).expanduser() / name
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "broker-bench" / name


def program(name: str, relative: str) -> Path:
    """Return the program of a peer: ``relative`` to its place, else the one of that file name on the PATH.

    Raises:
        PeerMissingError: it is at neither.
    """
    installed = place(name) / relative
    if installed.is_file():
        return installed
    if found := shutil.which(installed.name):
        return Path(found)
    raise PeerMissingError(f"{installed.name} is not installed: run `make bench-peers`.")
