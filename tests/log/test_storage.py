"""The log on disk at work: groups, order, savepoints, what is told when; outages that heal, damage that ends it."""

import sqlite3
import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.errors import RequestError, StorageError
from broker.log import writing
from broker.log.database import Room
from broker.log.shares import ALONE, SHARE
from broker.log.storage import open_storage
from broker.log.writing import Writer

THINGS = Room("things", (("CREATE TABLE things (name TEXT UNIQUE NOT NULL) STRICT",),))


@asynccontextmanager
async def storage_at(path, **settings):
    async with (
        open_storage(str(path / "broker.db"), rooms=(THINGS,), **settings) as storage,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(storage.run)
        with trio.fail_after(60):
            yield storage
        nursery.cancel_scope.cancel()


@pytest.fixture
async def storage(tmp_path):
    async with storage_at(tmp_path) as storage:
        yield storage


def add(name):
    return lambda connection: connection.execute("INSERT INTO things VALUES (?)", (name,)).lastrowid


def names(connection):
    return [name for (name,) in connection.execute("SELECT name FROM things ORDER BY rowid")]


class Gate:
    """A piece of work that keeps the writer until it is opened, so that what is begun meanwhile is one group."""

    def __init__(self, storage):
        self._open, self._entered = threading.Event(), threading.Event()
        storage.begin_write(self._wait, lambda _: None)
        assert self._entered.wait(60)

    def _wait(self, _):
        self._entered.set()
        self._open.wait(60)

    def open(self):
        self._open.set()


# --- writing -----------------------------------------------------------------


async def test_what_was_written_is_there_for_who_reads_as_soon_as_it_is_told(storage):
    assert await storage.write(add("a")) == 1
    assert await storage.read(names) == ["a"]


async def test_what_was_begun_is_written_and_told_in_its_order(storage):
    told = []
    ended = trio.Event()
    for n in range(50):
        storage.begin_write(add(f"{n}"), told.append)
    storage.begin_write(names, lambda _: ended.set())
    await ended.wait()
    assert told == list(range(1, 51))
    assert await storage.read(names) == [f"{n}" for n in range(50)]


async def test_what_gathers_while_one_group_is_written_is_one_commit(storage):
    gate = Gate(storage)
    before = storage.statistics()
    async with trio.open_nursery() as nursery:
        for n in range(100):
            nursery.start_soon(storage.write, add(f"{n}"))
        await wait_all_tasks_blocked()
        assert storage.statistics().waiting == 101
        gate.open()
    after = storage.statistics()
    assert (after.works - before.works, sum(after.groups) - sum(before.groups)) == (101, 2)
    assert after.waiting == 0


async def test_nothing_is_told_before_its_group_is_committed(storage):
    gate = Gate(storage)
    seen = []
    ended = trio.Event()

    def look(_):
        beside = sqlite3.connect(storage.path)
        seen.append(names(beside))
        beside.close()

    storage.begin_write(add("a"), look)
    storage.begin_write(add("b"), lambda _: ended.set())
    gate.open()
    await ended.wait()
    assert seen == [["a", "b"]]


async def test_items_of_one_kind_are_written_by_one_call_and_keep_their_place_among_others(storage):
    calls, told = [], []

    def write(connection, items):
        calls.append(list(items))
        connection.executemany("INSERT INTO things VALUES (?)", [(item,) for item in items])
        return [item.upper() for item in items]

    gate = Gate(storage)
    for name in "abc":
        storage.begin_together(write, name, told.append)
    storage.begin_write(add("d"), told.append)
    storage.begin_together(write, "e", told.append)
    gate.open()
    assert await storage.write(names) == list("abcde")
    assert calls == [["a", "b", "c"], ["e"]]
    assert told == ["A", "B", "C", 4, "E"]


async def test_who_leaves_loses_only_the_answer(storage):
    gate = Gate(storage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.write, add("a"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    gate.open()
    assert await storage.write(names) == ["a"]


async def test_what_was_begun_before_the_end_is_committed(tmp_path):
    async with storage_at(tmp_path) as storage:
        for n in range(5):
            storage.begin_write(add(f"{n}"), lambda _: None)
    async with storage_at(tmp_path) as storage:
        assert storage.last_run.clean
        assert await storage.read(names) == [f"{n}" for n in range(5)]


async def test_who_waits_at_the_end_is_told_what_became_of_it(tmp_path, nursery):
    told = []

    async def write(storage, name):
        told.append(await storage.write(add(name)))

    async with storage_at(tmp_path) as storage:
        gate = Gate(storage)
        for name in "ab":
            nursery.start_soon(write, storage, name)
        await wait_all_tasks_blocked()
        threading.Timer(0.05, gate.open).start()
    with trio.fail_after(60):
        while len(told) < 2:
            await trio.lowlevel.checkpoint()
    assert sorted(told) == [1, 2]


async def test_where_the_writer_fails_who_waits_is_told_that_nothing_is_stored(tmp_path, nursery, monkeypatch):
    told = []

    async def write(storage):
        with pytest.raises(RequestError) as refused:
            await storage.write(add("a"))
        told.append(refused.value.code)

    with pytest.RaisesGroup(ZeroDivisionError):
        async with storage_at(tmp_path) as storage:
            monkeypatch.setattr(Writer, "write", lambda *_: 1 / 0)
            for _ in range(3):
                nursery.start_soon(write, storage)
            await trio.sleep_forever()
    with trio.fail_after(60):
        while len(told) < 3:
            await trio.lowlevel.checkpoint()
    assert told == ["unavailable"] * 3


async def test_after_the_end_nothing_is_begun(tmp_path):
    async with storage_at(tmp_path) as storage:
        pass
    told = []
    storage.begin_write(add("a"), told.append)
    assert [error.code for error in told] == ["draining"]


# --- work that is at fault ---------------------------------------------------


async def test_work_that_fails_takes_nothing_with_it_and_leaves_nothing(storage, caplog):
    gate = Gate(storage)
    told = []

    def refuse(connection):
        add("of the refused")(connection)
        raise RequestError("conflict", "no")

    def break_(connection):
        add("of the broken")(connection)
        raise ZeroDivisionError

    for work in (add("a"), refuse, break_, add("a"), add("b")):
        storage.begin_write(work, told.append)
    gate.open()
    assert await storage.write(names) == ["a", "b"]
    assert [getattr(outcome, "code", outcome) for outcome in told] == [1, "conflict", "internal", "internal", 2]
    assert len(caplog.records) == 2


async def test_items_that_fail_together_are_told_the_same(storage):
    def write(connection, items):
        raise RequestError("conflict", "no")

    told = []
    for name in "ab":
        storage.begin_together(write, name, told.append)
    await storage.write(add("c"))
    assert [error.code for error in told] == ["conflict", "conflict"]


async def test_work_that_raises_is_raised_for_who_waits(storage):
    def refuse(_):
        raise RequestError("conflict", "no")

    with pytest.raises(RequestError, match="no"):
        await storage.write(refuse)


async def test_a_failure_in_who_is_told_ends_the_run(tmp_path):
    def fail(_):
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with open_storage(str(tmp_path / "broker.db")) as storage, trio.open_nursery() as nursery:
            await nursery.start(storage.run)
            storage.begin_write(lambda _: None, fail)
            with trio.fail_after(60):
                await trio.sleep_forever()


# --- the disk is full, or damaged --------------------------------------------


def limited(pages):
    """A piece of work after which the file has so many pages at most: then SQLite says that the disk is full."""
    return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()


async def test_a_full_disk_refuses_the_whole_group_and_heals_by_itself(storage, caplog):
    await storage.write(limited(1))
    gate = Gate(storage)
    told = []
    storage.begin_write(add("small"), told.append)
    storage.begin_write(add("x" * 100_000), told.append)
    gate.open()
    with pytest.raises(RequestError) as refused:
        await storage.write(add("y" * 100_000))
    assert (refused.value.code, refused.value.retry_after_ms) == ("unavailable", 1000)
    assert [outcome.code for outcome in told] == ["unavailable"] * 2
    assert [kind for kind, count in storage.statistics().errors.items() if count] == ["full"]
    assert await storage.read(names) == []
    await storage.write(limited(10_000))
    assert await storage.write(add("x" * 100_000)) == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_a_damaged_file_ends_the_run_and_is_not_called_clean(tmp_path):
    path = tmp_path / "broker.db"
    async with storage_at(tmp_path) as storage:
        for n in range(200):
            storage.begin_write(add(f"{n:0500}"), lambda _: None)
    with pytest.RaisesGroup(pytest.RaisesExc(StorageError, match="damaged")):
        async with open_storage(str(path), rooms=(THINGS,)) as storage, trio.open_nursery() as nursery:
            await nursery.start(storage.run)
            await storage.write(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall())
            with path.open("r+b") as file:
                file.seek(4 * 4096)
                file.write(b"\xff" * 4096 * 20)
            storage.begin_write(names, lambda _: None)
            with trio.fail_after(60):
                await trio.sleep_forever()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT value FROM meta WHERE name = 'clean'").fetchone() == (0,)
    connection.close()


async def test_a_file_that_was_deleted_under_a_broker_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LOOK_SECONDS", 0.0)
    with pytest.RaisesGroup(pytest.RaisesExc(StorageError, match="moved, deleted or replaced")):
        async with storage_at(tmp_path) as storage:
            await storage.write(add("a"))
            (tmp_path / "broker.db").unlink()
            storage.begin_write(add("b"), lambda _: None)
            await trio.sleep_forever()


async def test_a_disk_that_does_not_answer_is_found_out_and_forgiven(storage, monkeypatch):
    gate = Gate(storage)
    assert not storage.is_stuck
    monkeypatch.setattr(writing, "STUCK_SECONDS", 0.0)
    assert storage.is_stuck
    gate.open()
    await storage.write(names)
    with trio.fail_after(60):
        while storage.is_stuck:
            await trio.lowlevel.checkpoint()


async def test_a_read_that_fails_is_unavailable_and_another_one_is_not(storage):
    def interrupted(connection):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    with pytest.raises(RequestError) as refused:
        await storage.read(interrupted)
    assert refused.value.code == "unavailable"
    assert await storage.read(names) == []


async def test_who_waits_for_a_disk_that_hangs_can_leave_and_others_read_on(storage):
    entered, goes_on = trio.Event(), threading.Event()

    def hang(connection):
        trio.from_thread.run_sync(entered.set)
        goes_on.wait(60)
        return names(connection)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.read, hang)
            await entered.wait()
            assert await storage.read(names) == []
            scope.cancel()
    assert not goes_on.is_set()
    goes_on.set()
    assert await storage.read(names) == []


async def test_reads_are_of_one_moment_and_leave_nothing_open(storage):
    await storage.write(add("a"))
    begun, go_on = threading.Event(), threading.Event()

    def twice(connection):
        first = names(connection)
        begun.set()
        go_on.wait(60)
        return first, names(connection)

    found = []

    async def read():
        found.append(await storage.read(twice))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.to_thread.run_sync(begun.wait)
        await storage.write(add("b"))
        go_on.set()
    assert found == [(["a"], ["a"])]
    assert await storage.read(names) == ["a", "b"]


async def test_what_must_stay_free_is_looked_at(tmp_path):
    async with storage_at(tmp_path) as storage:
        assert not storage.short_of_room
        assert storage.statistics().bytes > 0
    async with storage_at(tmp_path, min_free_bytes=1 << 62) as storage:
        assert storage.short_of_room


# --- one account alone, and others beside it ----------------------------------


class Slow:
    """Writes names, and waits in its first call until it is opened: so others come while it is at it."""

    def __init__(self, fails_at=None):
        self.entered, self.open = threading.Event(), threading.Event()
        self.told = []
        self.all_told = trio.Event()
        self.calls = []
        self._begun = 0
        self._fails_at = fails_at

    def begin(self, storage, account_id, number, weight=100):
        self._begun += number
        for n in range(number):
            name = f"{account_id}{n}"
            storage.begin_together(self.write, name, partial(self.tell, name), weight, (account_id,))

    def tell(self, name, outcome):
        self.told.append((name, outcome.code if isinstance(outcome, RequestError) else outcome))
        if len(self.told) == self._begun:
            self.all_told.set()

    def write(self, connection, items):
        self.calls.append(len(items))
        if not self.entered.is_set():
            self.entered.set()
            assert self.open.wait(60)
        if self._fails_at in items:
            raise ValueError("at fault")
        connection.executemany("INSERT INTO things VALUES (?)", [(name,) for name in items])
        return ["done"] * len(items)


async def test_the_commit_of_one_account_goes_on_while_nobody_else_comes(storage):
    gate, slow = Gate(storage), Slow()
    slow.open.set()
    slow.begin(storage, "a", 40)
    before = sum(storage.statistics().groups)
    gate.open()
    await slow.all_told.wait()
    assert sum(storage.statistics().groups) - before == 1 + -(-40 * 100 // ALONE)
    assert slow.calls[0] == -(-SHARE // 100)
    assert [name for name, _ in slow.told] == [f"a{n}" for n in range(40)]


async def test_who_comes_while_another_account_has_a_commit_is_in_it_and_ends_it(storage):
    gate, slow = Gate(storage), Slow()
    slow.begin(storage, "a", 20)
    gate.open()
    await trio.to_thread.run_sync(slow.entered.wait)
    slow.begin(storage, "b", 1)
    slow.open.set()
    await slow.all_told.wait()
    at = [name for name, _ in slow.told].index("b0")
    assert at <= 2 * -(-SHARE // 100)
    assert {outcome for _, outcome in slow.told} == {"done"}


async def test_what_is_written_together_fails_together_and_what_comes_after_it_does_not(storage):
    gate, slow = Gate(storage), Slow(fails_at="a8")
    slow.open.set()
    slow.begin(storage, "a", 30)
    gate.open()
    await slow.all_told.wait()
    failed = [name for name, outcome in slow.told if outcome == "internal"]
    assert failed == [f"a{n}" for n in range(len(failed))]
    assert 9 <= len(failed) < 30
    assert await storage.read(names) == [f"a{n}" for n in range(len(failed), 30)]
