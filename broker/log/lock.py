"""One process has the file of a log: `PATH.lock` beside it says which, and how often it was opened. For threads."""

import fcntl
import os
from pathlib import Path

from ..errors import StorageError


def take_lock(path: str) -> tuple[int, int]:
    """Return the descriptor that keeps others from the file until `release_lock`; and the last run's number.

    Whoever names the file otherwise, by a link, finds it by the same. Raises `StorageError`.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and os.stat(path).st_nlink > 1:
        raise StorageError(f"{path}: it has a second name (a hard link), by which another process could change it")
    require_folder(path)
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{path}.lock: {in_words(error)}") from None
    said = os.pread(lock, 64, 0).decode("ascii", "replace").split()
    pid, run = said if len(said) == 2 and all(number.isdecimal() for number in said) else ("unknown", "0")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StorageError(f"{path}: another broker (pid {pid}) has it") from None
    say_owner(lock, int(run))
    return lock, int(run)


def require_folder(path: str) -> None:
    """Raise `StorageError` where no file can be made: there is no such directory."""
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise StorageError(f"{path}: there is no directory {str(folder)!r}")


def release_lock(lock: int) -> None:
    """Let others have the file, also while a process that is being started has a copy of the descriptor."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def say_owner(lock: int, run: int) -> None:
    """Write down, beside the file, who has it, and the number of its run: a copy of an older one is found by that."""
    said = f"{os.getpid()} {run}\n".encode()
    os.pwrite(lock, said, 0)
    os.ftruncate(lock, len(said))


def owner_of(path: str) -> int | None:
    """Return the process that has a file; None: nobody has."""
    try:
        lock = os.open(f"{os.path.realpath(path)}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(lock, 64, 0).split()[:1]
        return int(pid[0]) if pid and pid[0].isdigit() else 0
    finally:
        os.close(lock)
    return None


def in_words(error: Exception) -> str:
    """Return what is wrong, in words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"it is damaged: {error}"
    if name.startswith("SQLITE_READONLY"):
        return f"it is read-only, or the file system that it is on ({error})"
    return str(error)
