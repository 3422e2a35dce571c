"""Long lists on disk: whole or not at all, whoever has commits between their parts, and whatever goes wrong there."""

import sqlite3
import time
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from random import Random

import pytest
import trio
from log.test_sqlite import House
from logs import StorageInStep, at_once, prepared

from broker.config import ReplayConfig, StorageConfig
from broker.errors import RequestError
from broker.fanout.hub import Hub
from broker.log.engines.answers import ANSWERS
from broker.log.engines.lists import PART
from broker.log.engines.rows import EVENTS
from broker.log.engines.sqlite import SqliteEngine
from broker.log.retention import ReplayBuffers
from broker.log.storage import open_storage
from broker.log.writing import PARTS

LIST = 5 * PART
"""Events of a list here."""


class KilledError(BaseException):
    """The process ends."""


class StorageInParts(StorageInStep):
    """Between two parts of a long list it does what is next of ``between``; what that begins has a commit there."""

    def __init__(self, database, min_free_bytes):
        super().__init__(database, min_free_bytes)
        self.between = []
        self.in_parts = 0
        """Pieces of work that were begun to be written part by part."""
        self._beside = None

    def _begin(self, begun):
        if self._beside is not None:
            self._waiting += 1
            self._beside.append(begun)
        elif begun.is_in_parts:
            self._waiting += 1
            self.in_parts += 1
            group = []
            while begun not in group:
                group = []
                self._committed(group, *self._writer.write_parts(begun, group, self._choose))
        else:
            super()._begin(begun)

    def _choose(self):
        if not self.between:
            return []
        self._beside = []
        try:
            self.between.pop(0)()
            return self._beside
        finally:
            self._beside = None


class Lists(House):
    """A log on disk whose long lists are written part by part."""

    def __init__(self, path, **options):
        super().__init__(path, storage_type=StorageInParts, **options)

    def begin(self, names, account_id="a"):
        """Publish, and return what is told of it, when it is."""
        told = []
        self.engine.begin({account_id: [prepared(name) for name in names]}, told.append)
        return told

    @property
    def unfinished(self):
        return self.rows("SELECT account FROM unfinished")


def names_of(number, prefix="e"):
    return [f"{prefix}{n}" for n in range(number)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "broker.db"


async def test_others_have_their_commits_between_the_parts_of_a_list_which_comes_whole_at_its_end(path):
    house, seen = Lists(path), []

    def other():
        told = house.begin(["b1"], "b")
        seen.append((told, house.names(), house.unfinished))

    house.storage.between = [other, other]
    told = house.begin(names_of(LIST))
    house.hub.take_turns(float("inf"))
    assert [len(stored["a"]) for stored in told] == [LIST]
    assert not any(stored.duplicate for stored in told[0]["a"])
    assert [names for _, names, _ in seen] == [[], []]
    assert [[one.duplicate for one in stored["b"]] for [stored], _, _ in seen] == [[False], [True]]
    assert seen[1][2] == [("a",)]
    assert house.names() == names_of(LIST)
    assert house.unfinished == []
    house.close()
    after = Lists(path)
    assert after.names() == names_of(LIST)
    assert after.names(account_id="b") == ["b1"]
    after.close()


async def test_while_nobody_else_waits_a_list_is_one_commit(path):
    house = Lists(path)
    before = house.storage.statistics()
    house.begin(names_of(LIST))
    after = house.storage.statistics()
    assert (after.works - before.works, sum(after.groups) - sum(before.groups)) == (1, 1)
    house.close()


async def test_a_commit_has_eight_parts_of_a_list_at_most_for_who_comes_meanwhile_waits_for_its_sync(path):
    house = Lists(path)
    before = house.storage.statistics()
    house.begin(names_of(2 * PARTS * PART + 1))
    after = house.storage.statistics()
    assert (after.works - before.works, sum(after.groups) - sum(before.groups)) == (1, 3)
    assert house.unfinished == []
    house.close()


async def test_of_a_list_in_which_the_process_ended_nothing_is_left_and_it_can_be_sent_again(path):
    before = Lists(path)

    def end():
        raise KilledError

    before.begin(["first"])
    before.storage.between = [partial(before.begin, ["b1"], "b"), end]
    with pytest.raises(KilledError):
        before.begin(names_of(LIST))
    before.close(clean=False)
    after = Lists(path)
    assert after.names() == ["first"]
    assert after.names(account_id="b") == ["b1"]
    assert after.rows("SELECT count(*) FROM events") == [(2,)]
    assert after.unfinished == []
    assert not any(stored.duplicate for stored in after.publish(*names_of(LIST)))
    assert after.names() == ["first", *names_of(LIST)]
    after.close()


def fill(house):
    """Let the disk be full: there is room for what takes no more than there is."""
    [(pages,)] = house.rows("PRAGMA page_count")
    house.rows(f"PRAGMA max_page_count = {pages}")


def free(house):
    """Let there be room again."""
    house.rows("PRAGMA max_page_count = 1000000")


def is_full(*_):
    """Take nothing."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


async def test_a_list_that_the_disk_does_not_take_whole_is_refused_when_its_parts_are_taken_back(path):
    house = Lists(path)
    house.begin(["first"])

    def other():
        house.begin(["b1"], "b")

    house.storage.between = [other, lambda: fill(house)]
    [refusal] = house.begin(names_of(20 * PART))
    assert refusal.code == "unavailable"
    assert house.unfinished == []
    assert house.rows("SELECT count(*) FROM events") == [(2,)]
    free(house)
    assert not any(stored.duplicate for stored in house.publish(*names_of(LIST)))
    assert house.names() == ["first", *names_of(LIST)]
    house.close()


async def test_others_have_their_commits_between_what_is_taken_back_and_nobody_has_any_of_it(path):
    house, seen = Lists(path), []
    house.begin(["first"])

    def other():
        told = house.begin([f"b{len(seen)}"], "b")
        seen.append((told, house.rows("SELECT count(*) FROM events WHERE account = 'a'")[0][0], house.unfinished))

    house.storage.between = [lambda: house.begin(["b"], "b")] * 7 + [lambda: fill(house)] + [other] * 20
    [refusal] = house.begin(names_of(20 * PART))
    assert refusal.code == "unavailable"
    assert [count for _, count, _ in seen] == [1 + part * PART for part in (*range(7)[::-1],)]
    assert [unfinished for _, _, unfinished in seen[:-1]] == [[("a",)]] * 6
    assert all(not stored.duplicate for told, _, _ in seen for outcome in told for stored in outcome["b"])
    assert house.names() == ["first"]
    house.close()


@pytest.mark.parametrize("parts", range(6))
async def test_whenever_the_process_ends_while_a_list_is_taken_back_the_next_one_takes_back_the_rest(parts, path):
    before = Lists(path)

    def end():
        raise KilledError

    before.begin(["first"])
    others = [partial(before.begin, [f"b{n}"], "b") for n in range(6 + parts)]
    before.storage.between = [*others[:6], lambda: fill(before), *others[6:], end]
    with pytest.raises(KilledError):
        before.begin(names_of(20 * PART))
    before.close(clean=False)
    after = Lists(path)
    assert (after.names(), after.unfinished) == (["first"], [])
    assert after.rows("SELECT count(*) FROM events WHERE account = 'a'") == [(1,)]
    assert not any(stored.duplicate for stored in after.publish(*names_of(LIST)))
    assert after.names() == ["first", *names_of(LIST)]
    after.close()


def leave(house, monkeypatch):
    """Have a list of account `a` fail in the middle, and the disk take nothing back."""
    with monkeypatch.context() as denied:
        denied.setattr(house.engine._lists, "take_back", is_full)
        house.storage.between = [partial(house.begin, ["b1"], "b"), lambda: fill(house)]
        [refusal] = house.begin(names_of(20 * PART))
    assert (refusal.code, house.unfinished) == ("unavailable", [("a",)])
    free(house)


async def test_what_the_disk_did_not_let_go_is_taken_back_by_the_next_publish_of_the_account_and_by_no_other(
    path, monkeypatch
):
    house = Lists(path)
    house.begin(["first"])
    leave(house, monkeypatch)
    house.publish("b2", account_id="b")
    assert (house.names(), house.names(account_id="b")) == (["first"], ["b1", "b2"])
    house.storage.between = [partial(house.begin, ["b3"], "b")]
    assert not house.publish("e1")[0].duplicate
    assert house.unfinished == []
    assert (house.names(), house.names(account_id="b")) == (["first", "e1"], ["b1", "b2", "b3"])
    in_parts = house.storage.in_parts
    house.publish("e2")
    assert house.storage.in_parts == in_parts
    house.close()
    after = Lists(path)
    assert (after.names(), after.names(account_id="b")) == (["first", "e1", "e2"], ["b1", "b2", "b3"])
    after.close()


async def test_what_the_disk_did_not_let_go_is_taken_back_from_time_to_time(path, monkeypatch, mock_clock):
    house = Lists(path)
    leave(house, monkeypatch)
    mock_clock.jump(400)
    house.trim()
    assert house.unfinished == []
    assert house.rows("SELECT count(*) FROM events WHERE account = 'a'") == [(0,)]
    house.close()


async def test_while_the_disk_lets_nothing_go_the_account_is_refused_and_nothing_of_it_is_stored(path, monkeypatch):
    house = Lists(path)
    leave(house, monkeypatch)
    monkeypatch.setattr(house.engine._lists, "take_back", is_full)
    for _ in range(2):
        [refusal] = house.begin(["e1"])
        assert refusal.code == "unavailable"
    monkeypatch.undo()
    house.publish("e2")
    assert house.names() == ["e2"]
    house.close()
    after = Lists(path)
    assert after.names() == ["e2"]
    after.close()


async def test_a_list_that_fails_in_the_middle_takes_nothing_of_others_with_it(path, monkeypatch):
    house, told = Lists(path), []

    def other():
        told.append(house.begin(["b1"], "b"))

    def fail(*_):
        raise ValueError("at fault")

    def other_then_fail():
        told.append(house.begin(["b2"], "b"))
        monkeypatch.setattr(house.engine._lists, "finish", fail)

    house.storage.between = [other, other_then_fail]
    [refusal] = house.begin(names_of(LIST))
    monkeypatch.undo()
    assert refusal.code == "internal"
    assert all(not isinstance(outcome, RequestError) for outcomes in told for outcome in outcomes)
    assert house.unfinished == []
    house.hub.take_turns(float("inf"))
    assert (house.names(), house.names(account_id="b")) == ([], ["b1", "b2"])
    house.close()


async def test_what_is_read_and_trimmed_meanwhile_knows_nothing_of_it(path, mock_clock):
    house = Lists(path, storage=StorageConfig(keep_seconds=600.0, max_bytes=1))
    mock_clock.jump(400)
    found = []

    def look():
        house.begin(["b1"], "b")

    def look_and_trim():
        archive = house.engine.archive
        moment = house.engine._wall_clock() + 1
        found.append(at_once(archive.position_before("a", moment)))
        house.storage._beside = None
        house.database.connection.execute("SAVEPOINT trim")
        house.engine._trim_step(house.database.connection, 2**62)
        house.database.connection.execute("RELEASE trim")
        house.storage._beside = []
        house.begin(["b2"], "b")

    house.storage.between = [look, look_and_trim]
    told = house.begin(names_of(LIST))
    assert found == [0]
    assert len(told[0]["a"]) == LIST
    assert house.rows("SELECT count(*) FROM events WHERE account = 'a'") == [(LIST,)]
    house.close()


async def test_what_comes_twice_in_a_list_is_stored_once_wherever_its_parts_end(path):
    house = Lists(path)
    house.begin(["e5", "e1000"])
    house.storage.between = [partial(house.begin, [f"b{n}"], "b") for n in range(20)]
    [stored] = house.begin([*names_of(LIST), *names_of(LIST)])
    duplicates = [one.duplicate for one in stored["a"]]
    assert [n for n in range(LIST) if duplicates[n]] == [5, 1000]
    assert all(duplicates[LIST:])
    positions = {one.event_id: one.position for one in stored["a"][:LIST]}
    assert all(positions[one.event_id] == one.position for one in stored["a"][LIST:])
    house.close()


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_happens_between_what_was_told_is_there_and_nothing_else(seed, path):
    random, told = Random(seed), {"a": [], "b": [], "c": []}
    house, number = Lists(path), 0

    def publish(account_id, size):
        nonlocal number
        names = [f"e{number + n}" for n in range(size)]
        number += size

        def done(outcome):
            if not isinstance(outcome, RequestError):
                told[account_id].extend(names)

        house.engine.begin({account_id: [prepared(name) for name in names]}, done)

    def end():
        raise KilledError

    for _ in range(25):
        account_id = random.choice("ab")
        house.storage.between = [partial(publish, "c", random.choice([1, 5])) for _ in range(random.randrange(5))]
        event = random.randrange(6)
        if event == 0:
            house.storage.between.append(end)
        elif event == 1:
            house.storage.between.append(partial(fill, house))
            house.storage.between += [partial(publish, "c", 1) for _ in range(random.randrange(5))]
            house.storage.between += random.choice([[], [end]])
        is_killed = event == 0
        try:
            publish(account_id, random.choice([1, 3, LIST, 2 * LIST]))
        except KilledError:
            is_killed = True
        house.storage.between = []
        free(house)
        if is_killed or event == 2:
            house.close(clean=not is_killed)
            house = Lists(path, replay=ReplayConfig(max_events_per_account=1_000_000))
        house.hub.take_turns(float("inf"))
        for one, names in told.items():
            rows = house.rows(
                f"SELECT event_id FROM events WHERE account = '{one}' AND position <= "
                f"ifnull((SELECT head FROM accounts WHERE account = '{one}'), 0) ORDER BY position"
            )
            assert [name for (name,) in rows] == names
    house.close()
    after = Lists(path, replay=ReplayConfig(max_events_per_account=1_000_000))
    for one, names in told.items():
        assert after.names(account_id=one) == names
    assert after.rows("SELECT count(*) FROM events") == [(sum(map(len, told.values())),)]
    after.close()


@asynccontextmanager
async def real_log(path):
    """A log with its thread and its commits."""
    async with open_storage(str(path), rooms=(EVENTS, ANSWERS)) as storage:
        buffers = ReplayBuffers(ReplayConfig(), storage.epoch)
        engine = SqliteEngine(buffers, Hub(buffers), storage, StorageConfig(), 300, time.monotonic, time.time)
        async with trio.open_nursery() as nursery:
            await nursery.start(storage.run)
            await engine.recover()
            yield engine
            nursery.cancel_scope.cancel()


async def told_of(engine, **publishes):
    """Publish at once, each an account and names; return who was told in their order, with a code if it was refused."""
    told, all_told = [], trio.Event()

    def tell(name, outcome):
        told.append((name, outcome.code) if isinstance(outcome, RequestError) else name)
        if len(told) == len(publishes):
            all_told.set()

    for name, (account_id, names) in publishes.items():
        engine.begin({account_id: [prepared(each) for each in names]}, partial(tell, name))
    with trio.fail_after(60):
        await all_told.wait()
    return told


def failing_at(engine, monkeypatch, part):
    """Let the disk be full when this part of a list is written."""
    parts, write = count(1), engine._lists.write

    def write_or_fail(connection, publish):
        return is_full() if next(parts) == part else write(connection, publish)

    monkeypatch.setattr(engine._lists, "write", write_or_fail)


THREE = {"list": ("a", names_of(10_000)), "after": ("a", ["after"]), "other": ("b", ["e"])}


async def test_who_publishes_a_little_beside_a_list_is_told_before_it(path):
    async with real_log(path) as engine:
        assert await told_of(engine, **THREE) == ["other", "list", "after"]


async def test_who_publishes_to_the_account_of_a_list_that_is_taken_back_waits_for_that_and_nobody_else_does(
    path, monkeypatch
):
    async with real_log(path) as engine:
        failing_at(engine, monkeypatch, 30)
        assert await told_of(engine, **THREE) == ["other", ("list", "unavailable"), "after"]
        assert await told_of(engine, list=("a", names_of(1_000))) == ["list"]
    after = Lists(path)
    assert (after.unfinished, after.names()) == ([], ["after", *names_of(1_000)])
    after.close()


async def test_who_waits_for_what_the_disk_does_not_let_go_is_refused_and_nothing_of_it_is_stored(path, monkeypatch):
    async with real_log(path) as engine:
        failing_at(engine, monkeypatch, 30)
        with monkeypatch.context() as denied:
            denied.setattr(engine._lists, "take_back", is_full)
            told = await told_of(engine, **THREE)
        assert told == ["other", ("list", "unavailable"), ("after", "unavailable")]
        assert await told_of(engine, other=("b", ["e2"]), next=("a", ["next"])) == ["other", "next"]
    after = Lists(path)
    assert (after.unfinished, after.names(), after.names(account_id="b")) == ([], ["next"], ["e", "e2"])
    after.close()
