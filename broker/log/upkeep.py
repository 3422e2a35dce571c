"""What an operator does to the file of a log on disk: look into it, check it, copy it, make it smaller. For threads.

All but making it smaller may be done while a broker has the file: they read the state of one moment, and hold up nobody
for longer than a commit.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from ..errors import StorageError
from .database import connect, free_bytes, mark_as_copy, opened_for_upkeep, refusal, require_known, require_ours
from .lock import in_words, owner_of

_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'meta' ORDER BY name"


class FileReport(Struct, frozen=True):
    """What a file holds."""

    path: str
    bytes: int
    wal_bytes: int
    unused_bytes: int
    """Of the file: freed, and taken again before it grows."""
    disk_free_bytes: int
    used_by_pid: int | None
    clean: bool
    """Whether the process that had it last has closed it; False while one has it."""
    rows: Mapping[str, int]
    """By the name of the table."""
    oldest_at: float | None
    """When the oldest event was stored, in seconds since 1970; None: there is none."""
    newest_at: float | None


@contextmanager
def _looking_into(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that reads a file of ours. Raises `StorageError`, which names it."""
    try:
        require_ours(path)
        connection = connect(path, read_only=True)
        try:
            require_known(path, connection)
            yield connection
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise refusal(path, error) from None


def report(path: str) -> FileReport:
    """Return what a file holds. Raises `StorageError`."""
    with _looking_into(path) as connection:
        connection.execute("BEGIN")
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'meta' ORDER BY name"
        )
        names = [name for (name,) in tables if not name.startswith("sqlite_")]
        rows = {name: int(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in names}
        first, last = connection.execute(
            "SELECT (SELECT stored_at FROM events ORDER BY position LIMIT 1),"
            " (SELECT stored_at FROM events ORDER BY position DESC LIMIT 1)"
        ).fetchone()
        (clean,) = connection.execute("SELECT value FROM meta WHERE name = 'clean'").fetchone()
        (unused,) = connection.execute(
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        ).fetchone()
    wal = f"{path}-wal"
    return FileReport(
        path,
        os.path.getsize(path),
        os.path.getsize(wal) if os.path.exists(wal) else 0,
        unused,
        free_bytes(path),
        owner_of(path),
        bool(clean),
        rows,
        first,
        last,
    )


def check(path: str) -> list[str]:
    """Look at every page and index of a file; return what is wrong with it, nothing if all is well."""
    with _looking_into(path) as connection:
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
    return [] if found == ["ok"] else found


def backup(path: str, copy: str) -> int:
    """Copy the state of one moment; return the copy's size. It is there whole, or not at all. Raises `StorageError`.

    A broker that opens the copy knows that it is one: cursors that were given out since then are unknown to it.
    """
    if os.path.exists(copy):
        raise StorageError(f"{copy}: it is there already")
    unfinished = f"{copy}.part"
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise StorageError(f"{unfinished}: it is there already: another backup is under way, or has failed") from None
    except OSError as error:
        raise StorageError(f"{unfinished}: {in_words(error)}") from None
    try:
        with _looking_into(path) as connection:
            try:
                connection.execute("VACUUM INTO ?", (unfinished,))
            except sqlite3.Error as error:
                raise StorageError(f"{path}: it cannot be copied to {copy}: {in_words(error)}") from None
        mark_as_copy(unfinished)
        os.link(unfinished, copy)  # unlike a rename it replaces nothing
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{copy}: {in_words(error)}") from None
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return os.path.getsize(copy)


def compact(path: str) -> tuple[int, int]:
    """Give back to the disk what is unused in a file that no broker has. Return its size before and after."""
    require_ours(path)
    before = os.path.getsize(path)
    if free_bytes(path) < 2 * before:
        raise StorageError(f"{path}: {2 * before:,} bytes must be free beside it for that, {free_bytes(path):,} are")
    with opened_for_upkeep(path) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return before, os.path.getsize(path)
