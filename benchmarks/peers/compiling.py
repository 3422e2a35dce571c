"""Programs of ours in C: compiled when they are first used, and kept where installed peers are."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .adapter import PeerMissingError
from .cache import place


def compiled(source: Path, name: str, *, suffix: str = "", options: Sequence[str] = ()) -> Path:
    """Return what this very source makes, in the place ``name``.

    Raises:
        PeerMissingError: there is no compiler, or it does not take the source.
    """
    made = place(name) / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}{suffix}"
    if made.exists():
        return made
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise PeerMissingError("There is no C compiler: install cc (on Debian: apt-get install gcc libc6-dev).")
    made.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: somebody else may be compiling it too.
    unfinished = made.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O2", *options, "-o", unfinished, source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise PeerMissingError(f"{compiler} does not compile {source.name}: {result.stderr.strip()}")
    unfinished.rename(made)
    return made
