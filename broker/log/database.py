"""The file of a log on disk: how it is made and opened, and why it may be refused. Synchronous; for threads.

It is one SQLite file in WAL mode; beside it stands `PATH.lock`, which the one process holds that has it. Its tables
stand in *rooms*: each room makes its own, and changes them step by step. A file that is not whole, not ours or not
known is refused by its name and left as it is: nothing here ever begins anew where there was something.
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from msgspec import Struct

from ..errors import StorageError
from .lock import in_words, release_lock, say_owner, take_lock

Synchronous = Literal["full", "normal"]
WallClock = Callable[[], float]
"""Returns seconds since 1970, in any thread."""

LEAST_SQLITE: Final = (3, 37, 0)
"""The first with tables that are strict about their types."""
APPLICATION_ID: Final = 0x64616C67
"""What SQLite keeps in the file's head to tell whose it is."""
FORMAT: Final = 1
"""What stands in `meta`, and how rooms are counted."""
CHECKED_BYTES: Final = 1_073_741_824
"""Up to this size all pages are looked at when a file is opened: about a second. `check` looks at any."""
_BUSY_SECONDS: Final = 5.0
_WAL_BYTES: Final = 67_108_864
"""What is left of the WAL after a checkpoint at most."""
_CACHE_KIB: Final = 16_384
_STATEMENTS: Final = 256
"""Statements that stay prepared."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_META: Final = "CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID"
_SET: Final = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


class Room(Struct, frozen=True):
    """The tables of one subject. Each of ``steps`` is statements that lead from one version of the room to the next.

    A file has as many of them behind it as its version says. What was released is never changed: it gets another step.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]


class LastRun(Struct, frozen=True):
    """How the process ended that had the file before."""

    clean: bool
    """Whether it closed the file. True for a file that is new."""
    alive_at: float
    """When it was last seen, in seconds since 1970; 0: never."""
    may_have_lost: bool
    """Whether what was committed last may be lost: the machine went down, and no commit was synced by itself; or an
    older state of the file was put back.

    Then the epoch is another one: no cursor from before is good for what came after it.
    """


class Database:
    """A file that this process has, with its one connection that writes. `close` it."""

    def __init__(
        self,
        path: str,
        connection: sqlite3.Connection,
        lock: int,
        epoch: bytes,
        last_run: LastRun,
        wall_clock: WallClock,
    ) -> None:
        self.path = path
        self.connection = connection
        self.epoch = epoch
        """What cursors are bound to: it stays with the file."""
        self.last_run = last_run
        self._lock = lock
        self._wall_clock = wall_clock
        self._place = _place_of(path)

    def is_in_its_place(self) -> bool:
        """Whether the path still leads to the file that was opened; else what is written is lost."""
        return _place_of(self.path) == self._place

    def keep_alive(self) -> None:
        """Write down that the process lives."""
        self.connection.execute(_SET, ("alive_at", self._wall_clock()))

    def close(self, *, clean: bool) -> None:
        """Let the file go. ``clean``: sync all that was committed, and write down that nothing is missing."""
        try:
            if clean:
                self.connection.execute("PRAGMA synchronous = FULL")
                self.connection.executemany(_SET, [("alive_at", self._wall_clock()), ("clean", 1)])
        except sqlite3.Error:
            pass  # the next start finds that it was not closed, and goes by that
        finally:
            self.connection.close()
            release_lock(self._lock)


def open_database(
    path: str, synchronous: Synchronous, rooms: Sequence[Room], wall_clock: WallClock = time.time
) -> Database:
    """Open the file at ``path``, or make it, and bring its rooms up to date. Raises `StorageError`, which names it."""
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        least = ".".join(map(str, LEAST_SQLITE))
        raise StorageError(f"{path}: SQLite {least} or newer is needed, this Python has {sqlite3.sqlite_version}")
    path = os.path.realpath(path)  # beside which its WAL and its lock are, whatever leads there
    lock, seen_run = take_lock(path)
    connection = None
    try:
        if not os.path.exists(path):
            _make(path)
        require_ours(path)
        connection = connect(path)
        require_known(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        _require_whole(path, connection)
        _furnish(path, connection, rooms)
        epoch, last_run, run = _begin_run(connection, synchronous, wall_clock(), seen_run)
        say_owner(lock, run)
    except BaseException as error:
        if connection is not None:
            connection.close()
        release_lock(lock)
        if isinstance(error, sqlite3.Error | OSError):
            raise refusal(path, error) from None
        raise
    return Database(path, connection, lock, epoch, last_run, wall_clock)


def connect(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to a file that is there. One that only reads never moves pages from the WAL to the file."""
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"file:{quote(str(Path(path).absolute()))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS,
    )
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def free_bytes(path: str) -> int:
    """Return how much room there is where the file lies. Raises OSError."""
    room = os.statvfs(Path(path).parent)
    return room.f_bavail * room.f_frsize


def file_bytes(path: str) -> int:
    """Return what the file and its WAL take on disk."""
    return sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.exists(name))


@contextmanager
def opened_for_upkeep(path: str) -> Iterator[sqlite3.Connection]:
    """A connection to a file of ours that no broker has, and none gets meanwhile. Raises `StorageError`."""
    require_ours(path)
    lock, _ = take_lock(path)
    try:
        connection = connect(path)
        try:
            require_known(path, connection)
            yield connection
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise refusal(path, error) from None
    finally:
        release_lock(lock)


def mark_as_copy(path: str) -> None:
    """Let who opens a file know that it is a copy: of what was committed after it was made nobody knows."""
    connection = connect(path)
    try:
        connection.executemany(_SET, {"clean": 0, "boot_id": "", "synchronous": "normal"}.items())
    finally:
        connection.close()


def refusal(path: str, error: Exception) -> StorageError:
    """Return what is said of a file that cannot be opened, or was not good any more: its name, and why."""
    words, file = in_words(error), Path(path).absolute()
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_CANTOPEN") and not os.access(file.parent, os.W_OK):
        is_mount = bool(os.statvfs(file.parent).f_flag & os.ST_RDONLY)
        folder = "its file system is read-only" if is_mount else "its folder may not be written"
        words = (
            f"{folder}, and who reads it needs {file.name}-wal and {file.name}-shm beside it: "
            f"copy it, with {file.name}-wal if there is one, to a folder where they can be made"
        )
    return StorageError(f"{path}: {words}")


def require_ours(path: str) -> None:
    """Raise `StorageError`, which names the file, if what is there cannot be a log, or nothing is there."""
    if not os.path.exists(path):
        raise StorageError(f"{path}: there is no such file")
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except OSError as error:
        raise StorageError(f"{path}: {in_words(error)}") from None
    if not head:
        raise StorageError(f"{path}: it is empty, which a broker's log never is: move it away to begin anew")
    if not head.startswith(b"SQLite format 3\0") or len(head) < 100:
        raise StorageError(f"{path}: it is not a broker's log (nor any SQLite file)")


def _make(path: str) -> None:
    """Make a file with nothing in it but who it is; it is there whole or not at all."""
    if os.path.exists(f"{path}-wal"):
        raise StorageError(f"{path}: it is gone, but {path}-wal is there: bring it back, or move that away, too")
    unfinished = f"{path}.new"
    for leftover in (unfinished, f"{unfinished}-wal", f"{unfinished}-shm", f"{unfinished}-journal"):
        Path(leftover).unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection = connect(unfinished)
    try:
        connection.execute("BEGIN")
        connection.execute(_META)
        meta = {
            "epoch": secrets.token_bytes(16),
            "run": 0,
            "clean": 1,
            "alive_at": 0.0,
            "boot_id": "",
            "synchronous": "",
        }
        connection.executemany(_SET, meta.items())
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    os.replace(unfinished, path)
    directory = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def require_known(path: str, connection: sqlite3.Connection) -> None:
    """Raise `StorageError`, which names the file, if it is another program's or a newer broker's."""
    application_id = _value(connection, "PRAGMA application_id")
    if application_id != APPLICATION_ID:
        raise StorageError(f"{path}: it is another program's file (application_id {application_id}), not a broker's")
    found = _value(connection, "PRAGMA user_version")
    if found != FORMAT:
        raise StorageError(f"{path}: a newer broker wrote it (format {found}, this one knows {FORMAT})")


def _require_whole(path: str, connection: sqlite3.Connection) -> None:
    if file_bytes(path) <= CHECKED_BYTES:
        verdict = _value(connection, "PRAGMA quick_check(1)")
        if verdict != "ok":
            raise StorageError(f"{path}: it is damaged: {verdict}")


def _furnish(path: str, connection: sqlite3.Connection, rooms: Sequence[Room]) -> None:
    """Bring all rooms up to date, in one transaction. Raises `StorageError` if one of them is ahead of us."""
    known = {f"room.{room.name}": room for room in rooms}
    versions = dict(connection.execute("SELECT name, value FROM meta WHERE name GLOB 'room.*'"))
    for name, version in versions.items():
        if name not in known or version > len(known[name].steps):
            ours = len(known[name].steps) if name in known else "none"
            raise StorageError(f"{path}: a newer broker wrote it ({name} {version}, this one knows {ours})")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name, room in known.items():
            for step in room.steps[versions.get(name, 0) :]:
                for statement in step:
                    connection.execute(statement)
            connection.execute(_SET, (name, len(room.steps)))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _begin_run(
    connection: sqlite3.Connection, synchronous: Synchronous, now: float, seen_run: int
) -> tuple[bytes, LastRun, int]:
    """Write down that a run has begun. Returns the epoch, how the last run ended, and this one's number.

    ``seen_run`` is the number of the last one that the lock's file knows of: if ours is older, it was put back.
    """
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    boot_id = _boot_id()
    clean = bool(meta["clean"])
    same_boot = bool(boot_id) and boot_id == meta["boot_id"]
    was_put_back = int(meta["run"]) < seen_run
    may_have_lost = was_put_back or (not clean and meta["synchronous"] == "normal" and not same_boot)
    epoch = secrets.token_bytes(16) if may_have_lost else bytes(meta["epoch"])
    number = max(int(meta["run"]), seen_run) + 1
    run = {"epoch": epoch, "run": number, "clean": 0, "alive_at": now, "boot_id": boot_id, "synchronous": synchronous}
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_SET, run.items())
    connection.execute("COMMIT")
    return epoch, LastRun(clean, float(meta["alive_at"]), may_have_lost), number


def _boot_id() -> str:
    """Return what tells this run of the machine from others; "" where nothing does."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _place_of(path: str) -> tuple[int, int] | None:
    """Return what tells a file from others, whatever it is called; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _value(connection: sqlite3.Connection, statement: str) -> object:
    return connection.execute(statement).fetchone()[0]
