"""The file of a log on disk: made once, opened again, refused by its name, and never silently begun anew."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from broker.errors import StorageError
from broker.log import database
from broker.log.database import Room, connect, file_bytes, open_database
from broker.log.lock import owner_of

THINGS = Room("things", (("CREATE TABLE things (name TEXT NOT NULL) STRICT",),))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "broker.db")


def opened(path, *rooms, synchronous="full"):
    return open_database(path, synchronous, rooms or (THINGS,))


def filled(path, rows=1):
    """A file that was closed with some rows in it."""
    made = opened(path)
    made.connection.execute("BEGIN")
    made.connection.executemany("INSERT INTO things VALUES (?)", [(f"{n:0200}",) for n in range(rows)])
    made.connection.execute("COMMIT")
    made.close(clean=True)


def things(path) -> int:
    again = opened(path)
    (count,) = again.connection.execute("SELECT count(*) FROM things").fetchone()
    again.close(clean=True)
    return count


def refusal(path, *rooms) -> str:
    before = Path(path).read_bytes() if os.path.exists(path) else None
    with pytest.raises(StorageError) as refused:
        opened(path, *rooms)
    assert (Path(path).read_bytes() if os.path.exists(path) else None) == before
    assert str(refused.value).startswith(path)
    return str(refused.value)


# --- a file that is ours -----------------------------------------------------


def test_a_file_is_made_for_its_owner_alone_and_opened_again_with_what_is_in_it_and_its_epoch(path):
    made = opened(path)
    epoch = made.epoch
    made.connection.execute("INSERT INTO things VALUES ('a')")
    made.close(clean=True)
    assert os.stat(path).st_mode & 0o777 == 0o600
    again = opened(path)
    assert (len(epoch), again.epoch) == (16, epoch)
    assert again.connection.execute("SELECT name FROM things").fetchall() == [("a",)]
    again.close(clean=True)


def test_every_file_has_an_epoch_of_its_own(tmp_path):
    files = [opened(str(tmp_path / name)) for name in ("a.db", "b.db")]
    assert files[0].epoch != files[1].epoch
    for file in files:
        file.close(clean=True)


def test_a_path_may_hold_what_a_uri_may_not(tmp_path):
    path = str(tmp_path / "a b?mode=memory#100%.db")
    filled(path)
    assert things(path) == 1


def test_a_file_whose_making_was_interrupted_is_made_anew(path):
    Path(f"{path}.new").write_bytes(b"half of it")
    filled(path)
    assert things(path) == 1


def test_each_room_comes_to_its_newest_version_step_by_step_and_keeps_what_it_has(path):
    filled(path)
    second = Room("things", (*THINGS.steps, ("ALTER TABLE things ADD COLUMN size INTEGER",)))
    other = Room("others", (("CREATE TABLE others (id INTEGER PRIMARY KEY) STRICT",),))
    again = opened(path, second, other)
    assert [size for (size,) in again.connection.execute("SELECT size FROM things")] == [None]
    assert again.connection.execute("SELECT count(*) FROM others").fetchone() == (0,)
    again.close(clean=True)


def test_a_step_that_fails_changes_nothing(path):
    filled(path)
    broken = Room("things", (*THINGS.steps, ("ALTER TABLE things RENAME TO elsewhere", "nonsense")))
    with pytest.raises(StorageError):
        opened(path, broken)
    assert things(path) == 1


# --- how the last run ended --------------------------------------------------


def test_a_new_file_and_one_that_was_closed_are_clean(path):
    for _ in range(2):
        made = opened(path)
        assert made.last_run.clean
        assert not made.last_run.may_have_lost
        made.close(clean=True)


@pytest.mark.parametrize(
    ("synchronous", "went_down", "may_have_lost"),
    [("full", False, False), ("full", True, False), ("normal", False, False), ("normal", True, True)],
)
def test_only_a_machine_that_went_down_loses_and_only_what_was_not_synced(
    path, monkeypatch, tmp_path, synchronous, went_down, may_have_lost
):
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("one")
    monkeypatch.setattr(database, "_BOOT_ID", boot_id)
    opened(path, synchronous=synchronous).close(clean=False)
    boot_id.write_text("two" if went_down else "one")
    again = opened(path)
    assert (again.last_run.clean, again.last_run.may_have_lost) == (False, may_have_lost)
    again.close(clean=True)


# --- files that are refused --------------------------------------------------


def test_two_processes_do_not_have_the_same_file(path):
    script = f"from broker.log.database import open_database; open_database({path!r}, 'full', ()); input()"
    made = opened(path)
    held = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert f"{path}: another broker (pid {os.getpid()}) has it" in held.stderr
    made.close(clean=True)
    assert things(path) == 0


def test_nor_do_two_that_call_it_otherwise(path, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    made = opened(path)
    with pytest.raises(StorageError, match="another broker"):
        opened(str(link))
    assert owner_of(str(link)) == os.getpid()
    made.close(clean=True)
    opened(str(link)).close(clean=True)
    link.unlink()
    os.link(path, link)
    with pytest.raises(StorageError, match="second name"):
        opened(str(link))


def test_a_sqlite_that_is_too_old_is_named(path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    assert "SQLite 3.37.0 or newer is needed" in refusal(path)
    assert not os.path.exists(path)


def test_what_is_no_log_is_refused_and_left_as_it_is(path):
    Path(path).write_bytes(b"From: ada@example.com\r\n" * 100)
    assert "not a broker's log" in refusal(path)


def test_an_empty_file_is_refused(path):
    Path(path).touch()
    assert "empty" in refusal(path)


def test_another_programs_file_is_refused(path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE meta (name, value)")
    other.commit()
    other.close()
    assert "another program's" in refusal(path)


def test_a_newer_brokers_file_is_refused(path):
    filled(path)
    newer = Room("things", (*THINGS.steps, ("ALTER TABLE things ADD COLUMN size INTEGER",)))
    opened(path, newer).close(clean=True)
    assert "a newer broker wrote it" in refusal(path)
    assert "a newer broker wrote it" in refusal(path, Room("others", ()))


@pytest.mark.parametrize("left", [100, 4096, 3 * 4096, -4096])
def test_a_file_that_was_cut_is_refused(path, left):
    filled(path, rows=1000)
    size = os.path.getsize(path)
    os.truncate(path, left if left > 0 else size + left)
    assert "damaged" in refusal(path)


def test_a_file_with_a_damaged_page_is_refused(path):
    filled(path, rows=1000)
    with open(path, "r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 4096)
    assert "damaged" in refusal(path)


def test_a_file_that_is_gone_while_its_wal_is_there_is_not_begun_anew(path):
    Path(f"{path}-wal").write_bytes(b"committed")
    assert f"{path}-wal" in refusal(path)
    assert not os.path.exists(path)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    assert "there is no directory" in refusal(str(tmp_path / "nowhere" / "broker.db"))


def test_a_file_that_was_refused_is_free(path):
    Path(path).touch()
    refusal(path)
    Path(path).unlink()
    assert things(path) == 0


# --- a WAL that was cut ------------------------------------------------------


def test_of_a_wal_that_was_cut_anywhere_a_whole_beginning_counts(path, tmp_path):
    made = opened(path)
    for n in range(20):
        made.connection.execute("INSERT INTO things VALUES (?)", (f"{n:0500}",))
    whole, log = Path(path).read_bytes(), Path(f"{path}-wal").read_bytes()
    made.close(clean=True)
    found = []
    for number, size in enumerate(range(0, len(log), 1 + len(log) // 40)):
        copy = tmp_path / f"copy{number}.db"
        copy.write_bytes(whole)
        (tmp_path / f"copy{number}.db-wal").write_bytes(log[:size])
        again = opened(str(copy))
        rows = [int(name) for (name,) in again.connection.execute("SELECT name FROM things ORDER BY rowid")]
        again.close(clean=True)
        assert rows == list(range(len(rows)))
        found.append(len(rows))
    assert found == sorted(found)
    assert found[-1] > found[0]


# --- reading beside ----------------------------------------------------------


def test_a_reader_sees_what_is_committed_and_changes_nothing(path):
    made = opened(path)
    reader = connect(path, read_only=True)
    made.connection.execute("INSERT INTO things VALUES ('a')")
    assert reader.execute("SELECT count(*) FROM things").fetchone() == (1,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM things")
    reader.close()
    assert file_bytes(path) > os.path.getsize(path)
    made.close(clean=True)


def test_a_closed_file_is_free_though_a_process_that_is_being_started_has_copies_of_all_descriptors(path):
    first = opened(path)
    before_exec = os.dup(first._lock)  # what a child has until it is another program
    first.close(clean=True)
    opened(path).close(clean=True)
    os.close(before_exec)


@pytest.mark.parametrize("name", [":memory:", "file:x?mode=memory", "ü ?#%.db"])
def test_a_name_that_means_something_else_to_sqlite_is_a_file_like_others(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        opened(name).close(clean=True)
    assert file_bytes(name) > 0
