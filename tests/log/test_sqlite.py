"""What the engine on disk promises beside what every engine does: restarts, ids, trims, rows beside."""

import shutil
from contextlib import contextmanager
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import StorageInStep, at_once, begin, prepared, wall_at
from msgspec.structs import replace

from broker.config import ReplayConfig, StorageConfig
from broker.errors import RequestError
from broker.fanout.hub import Hub
from broker.log.archive import Kept, Older
from broker.log.database import Room, open_database
from broker.log.engines import pages, rows
from broker.log.engines.answers import ANSWERS
from broker.log.engines.rows import EVENTS, FORGOTTEN_IDS, Ids, Publish, write_events, write_heads
from broker.log.engines.sqlite import Beside, SqliteEngine
from broker.log.retention import ReplayBuffers
from broker.protocol.framing import payload_of
from broker.protocol.messages import decode_event
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, Selection

NOTES = Room("notes", (("CREATE TABLE notes (position INTEGER PRIMARY KEY, account TEXT NOT NULL) STRICT",),))
REPLAY_SECONDS = 300


class House:
    """A log in memory over one on disk, from its opening to its end."""

    rooms = (EVENTS, ANSWERS, NOTES)

    def __init__(
        self, path, storage=None, replay=None, beside=None, synchronous="normal", wall_offset=0.0,
        storage_type=StorageInStep,
    ):  # fmt: skip
        clock = trio.lowlevel.current_clock().current_time

        def wall_clock():
            return wall_at(clock()).timestamp() + wall_offset

        self.database = open_database(str(path), synchronous, self.rooms, wall_clock)
        self.storage = storage_type(self.database, 0)
        self.buffers = ReplayBuffers(replay or ReplayConfig(), self.database.epoch)
        self.hub = Hub(self.buffers)
        config = storage or StorageConfig()
        self.engine = self.make_engine(config, clock, wall_clock)
        if beside is not None:
            self.engine.beside.append(beside)
        at_once(self.engine.recover())

    def make_engine(self, config, clock, wall_clock):
        return SqliteEngine(self.buffers, self.hub, self.storage, config, REPLAY_SECONDS, clock, wall_clock)

    def publish(self, *names, inbox="i1", account_id="a"):
        stored = begin(self.engine, account_id, [prepared(name, inbox) for name in names])
        self.hub.take_turns(float("inf"))
        return stored

    def buffer(self, account_id="a"):
        return self.hub.account(account_id).buffer

    def read(self, after=0, account_id="a", selection=EVERYTHING):
        buffer = self.buffer(account_id)
        entries = []
        while after < buffer.head:
            page, after = buffer.read(selection, after, buffer.head, max_events=10_000, max_bytes=10**9)
            entries += page
        return entries

    def names(self, after=0, account_id="a"):
        return [entry.event_id for entry in self.read(after, account_id)]

    def rows(self, query):
        return self.database.connection.execute(query).fetchall()

    def trim(self):
        at_once(self.engine._trim())

    def close(self, *, clean=True):
        if clean:
            self.storage.close()
        else:
            self.database.close(clean=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "broker.db"


@contextmanager
def house_at(path, **options):
    house = House(path, **options)
    yield house
    house.close()


# --- a restart ---------------------------------------------------------------


async def test_after_a_restart_the_log_is_what_it_was_to_the_byte_and_old_cursors_go_on(path):
    with house_at(path) as before:
        stored = before.publish("e1", "e2") + before.publish("e3", inbox="") + before.publish("e4", inbox="i2")
        frames = [entry.frame for entry in before.read()]
    with house_at(path) as after:
        assert [entry.frame for entry in after.read()] == frames
        assert [entry.inbox for entry in after.read()] == ["i1", "i1", ACCOUNT_EVENTS, "i2"]
        assert after.names(after.buffer().position_of(stored[1].cursor)) == ["e3", "e4"]
        assert after.buffer().delivered == after.buffer().head == stored[-1].position
        (fifth,) = after.publish("e5")
        assert fifth.position > stored[-1].position
        assert after.names(stored[-1].position) == ["e5"]


async def test_an_account_is_known_after_a_restart_before_anybody_asks_for_it(path):
    with house_at(path) as before:
        before.publish("e1")
        before.publish("e1", account_id="b")
    with house_at(path) as after:
        assert {account.buffer.account_id for account in after.hub.accounts()} == {"a", "b"}


async def test_the_trace_of_an_event_is_there_after_a_restart_too(path):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with house_at(path) as before:
        begin(before.engine, "a", [replace(prepared("e1"), traceparent=trace), prepared("e2")])
    with house_at(path) as after:
        after.buffer().take_in()
        first, second = (payload_of(entry.frame) for entry in after.read())
        assert (decode_event(first).traceparent, decode_event(second).traceparent) == (trace, None)


async def test_a_process_that_died_left_what_one_that_ended_does(path):
    before = House(path)
    before.publish("e1", "e2")
    before.close(clean=False)
    with house_at(path) as after:
        assert after.names() == ["e1", "e2"]


@given(
    runs=st.lists(
        st.lists(
            st.tuples(st.sampled_from("ab"), st.sampled_from(["i1", "i2", ""]), st.sampled_from("efgh")), max_size=8
        ),
        min_size=1,
        max_size=4,
    )
)
async def test_however_often_it_restarts_each_id_is_stored_once_and_in_its_order(tmp_path_factory, runs):
    path = tmp_path_factory.mktemp("log") / "broker.db"
    model: dict[str, list[tuple[str, str]]] = {"a": [], "b": []}
    positions: dict[tuple[str, str, str], int] = {}
    for run in runs:
        with house_at(path) as house:
            for account_id, inbox, name in run:
                (stored,) = house.publish(name, inbox=inbox, account_id=account_id)
                known = positions.setdefault((account_id, inbox, name), stored.position)
                assert (stored.position, stored.duplicate) == (known, (inbox, name) in model[account_id])
                if not stored.duplicate:
                    model[account_id].append((inbox, name))
            for account_id, events in model.items():
                found = house.read(account_id=account_id)
                assert [(entry.inbox, entry.event_id) for entry in found] == events
                assert [entry.position for entry in found] == [positions[account_id, *event] for event in events]
    shutil.rmtree(path.parent)


async def test_positions_begin_at_the_time_of_day_so_none_is_used_twice_after_a_backup_was_put_back(path, mock_clock):
    with house_at(path) as house:
        house.publish("e1")
    shutil.copy(path, f"{path}.backup")
    mock_clock.jump(10)
    with house_at(path) as house:
        (lost,) = house.publish("e2")
    shutil.copy(f"{path}.backup", path)
    mock_clock.jump(10)
    with house_at(path) as house:
        (third,) = house.publish("e3")
        assert third.position > lost.position


async def test_after_an_older_state_was_put_back_no_cursor_is_taken_for_good(path):
    with house_at(path) as house:
        house.publish("e1")
    shutil.copy(path, f"{path}.backup")
    with house_at(path) as house:
        (lost,) = house.publish("e2")
        assert house.buffer().position_of(lost.cursor) is not None
    shutil.copy(f"{path}.backup", path)
    with house_at(path) as house:
        house.publish("e3")
        assert house.buffer().position_of(lost.cursor) is None, "what came after it is not known"
        assert house.names() == ["e1", "e3"]
    with house_at(path) as house:
        assert house.names() == ["e1", "e3"]


async def test_a_clock_that_was_set_back_takes_neither_positions_nor_times_back(path, mock_clock):
    with house_at(path) as house:
        house.publish("e0")
        mock_clock.jump(60)
        (first,) = house.publish("e1")
    with house_at(path, wall_offset=-3_600.0) as house:
        (second,) = house.publish("e2")
        assert second.position > first.position
        assert all(entry.stored_at <= trio.current_time() for entry in house.read())
        walls = [entry.wall for entry in house.read()]
        assert walls == sorted(walls) == [at for (at,) in house.rows("SELECT stored_at FROM events ORDER BY position")]


async def test_what_was_taken_back_lives_as_long_as_a_window_from_the_start_on(path, mock_clock):
    with house_at(path) as house:
        house.publish("e1")
    mock_clock.jump(3_600)
    with house_at(path) as house:
        house.publish("e2")
        mock_clock.jump(REPLAY_SECONDS - 1)
        house.buffers.expire(trio.current_time(), most=100)
        assert house.names() == ["e1", "e2"]
        mock_clock.jump(2)
        house.buffers.expire(trio.current_time(), most=100)
        assert house.names() == []


async def test_memory_takes_back_what_was_in_the_window_when_the_process_ended(path, mock_clock):
    with house_at(path) as house:
        house.publish("old")
        mock_clock.jump(REPLAY_SECONDS + 1)
        (kept,) = house.publish("e1")
    mock_clock.jump(100_000)
    with house_at(path) as house:
        assert house.names() == ["e1"]
        assert 0 < house.buffer().dropped_through < kept.position


async def test_disk_keeps_for_a_window_from_the_start_on_what_became_too_old_while_nobody_ran(path, mock_clock):
    storage = StorageConfig(keep_seconds=3 * REPLAY_SECONDS)
    with house_at(path, storage=storage) as house:
        for name in ("older than memory", "last"):
            mock_clock.jump(2 * REPLAY_SECONDS)
            house.publish(name)
    mock_clock.jump(10 * REPLAY_SECONDS)
    with house_at(path, storage=storage) as house:
        kept = []
        for seconds in (1, REPLAY_SECONDS - 2, 2):
            house.publish(f"at {seconds}")
            mock_clock.jump(seconds)
            house.buffers.expire(trio.current_time(), most=100)
            house.trim()
            kept += house.rows("SELECT event_id FROM events ORDER BY position LIMIT 1")
        assert kept == [("older than memory",), ("older than memory",), ("last",)]


async def test_a_process_that_died_long_after_its_last_sign_of_life_left_the_window_before_its_last_event(
    path, mock_clock
):
    before = House(path)
    before.publish("e1")
    mock_clock.jump(1_000)
    before.publish("e2")
    before.close(clean=False)
    with house_at(path) as after:
        assert after.names() == ["e2"]


async def test_memory_takes_back_no_more_than_its_limits_and_knows_that_it_has_not_all(path):
    with house_at(path) as house:
        stored = house.publish(*[f"e{n}" for n in range(10)])
    with house_at(path, replay=ReplayConfig(max_events_per_account=3)) as house:
        assert house.names() == ["e7", "e8", "e9"]
        assert house.buffer().dropped_through == stored[6].position


async def test_the_cursor_of_an_account_that_is_quiet_stays_good(path, mock_clock):
    with house_at(path) as house:
        (stored,) = house.publish("e1")
    mock_clock.jump(3_000)
    for _ in range(2):
        with house_at(path) as house:
            mock_clock.jump(3_000)
            house.buffers.expire(trio.current_time(), most=100)
    with house_at(path) as house:
        position = house.buffer().position_of(stored.cursor)
        assert position == stored.position == house.buffer().dropped_through


async def test_times_of_events_mean_the_same_after_a_restart(path, mock_clock):
    with house_at(path) as house:
        house.publish("e1")
        mock_clock.jump(60)
        house.publish("e2")
        mock_clock.jump(60)
    with house_at(path) as house:
        before = house.buffer().position_before
        assert house.names(before(trio.current_time() - 90)) == ["e2"]
        assert house.names(before(wall_at(trio.current_time() - 30).timestamp(), by_wall=True)) == []
        assert house.names(before(trio.current_time() - 1_000)) == ["e1", "e2"]


async def test_when_the_last_event_before_the_window_was_stored_is_known_after_a_restart(path, mock_clock):
    def before(house, seconds, account_id):
        return house.buffer(account_id).position_before(wall_at(seconds).timestamp(), by_wall=True)

    with house_at(path) as house:
        (quiet,) = house.publish("e1", account_id="quiet")
        (old,) = house.publish("e1", account_id="busy")
        mock_clock.jump(3_000)
        house.publish("e2", account_id="busy")
    with house_at(path) as house:
        assert before(house, 1_000, "quiet") == quiet.position
        assert before(house, 2_900, "busy") == old.position
        assert before(house, 1_000, "busy") is None


async def test_where_the_machine_may_have_lost_the_end_no_cursor_is_taken_for_good(path, monkeypatch, tmp_path):
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("one")
    monkeypatch.setattr("broker.log.database._BOOT_ID", boot_id)
    house = House(path, synchronous="normal")
    (stored,) = house.publish("e1")
    house.close(clean=False)
    boot_id.write_text("two")
    with house_at(path) as house:
        assert house.buffer().position_of(stored.cursor) is None
        assert house.names() == ["e1"]


# --- ids ---------------------------------------------------------------------


async def test_an_id_is_known_for_a_day_though_its_event_left_memory_and_disk(path, mock_clock):
    with house_at(path, storage=StorageConfig(keep_seconds=REPLAY_SECONDS)) as house:
        (first,) = house.publish("e1")
        mock_clock.jump(REPLAY_SECONDS * 3)
        house.buffers.expire(trio.current_time(), most=100)
        house.trim()
        assert house.rows("SELECT count(*) FROM events") == [(0,)]
        mock_clock.jump(80_000)
        house.trim()
        (again,) = house.publish("e1")
        assert (again.duplicate, again.position) == (True, first.position)
        mock_clock.jump(10_000)
        house.trim()
        (anew,) = house.publish("e1")
        assert not anew.duplicate


async def test_two_events_whose_hashes_are_the_same_are_both_stored(path, monkeypatch):
    monkeypatch.setattr(rows, "key_of", lambda identity: 7)
    with house_at(path) as house:
        assert [stored.duplicate for stored in house.publish("e1", "e2", "e1")] == [False, False, True]
        assert [stored.duplicate for stored in house.publish("e2")] == [True]


@pytest.fixture
def stored_in(path):
    """Store events one by one, with ids of so many rows a generation; return of each whether it was one."""
    database = open_database(str(path), "normal", (EVENTS,))

    def store(*names, most, at=0.0):
        ids, said = Ids(database.connection, max_rows=most), []
        for name in names:
            (head,) = database.connection.execute("SELECT ifnull(max(head), 0) FROM accounts").fetchone()
            publish = Publish({"a": [prepared(name)]}, {"a": "c."})
            [written], heads, _ = write_events(database.connection, ids, [publish], head + 1, at, at)
            write_heads(database.connection, heads, at)
            said.append(written.stored["a"][0].duplicate)
        return said

    yield store
    database.close(clean=True)


def test_an_id_is_known_in_the_generation_after_its_own_and_not_in_the_one_after_that(stored_in):
    assert stored_in("e1", "e2", "e3", "e1", "e2", most=2) == [False, False, False, True, True]
    assert stored_in("e4", "e5", "e3", "e2", "e1", most=2) == [False, False, True, False, False]


def test_of_two_ids_of_one_hash_the_one_that_came_last_is_known(stored_in, monkeypatch):
    monkeypatch.setattr(rows, "key_of", lambda identity: 7)
    assert stored_in("e1", "e2", "e2", most=1) == [False, False, True]


def test_a_generation_of_ids_is_a_day_though_the_process_began_anew_meanwhile(stored_in):
    day = rows.ID_SECONDS
    assert stored_in("e1", most=9, at=day) == [False]
    assert stored_in("e2", most=9, at=2 * day - 1) == [False]
    assert stored_in("e3", most=9, at=2 * day) == [False], "the first two are older by now"
    assert stored_in("e1", "e2", most=9, at=3 * day - 1) == [True, True]
    assert stored_in("e4", "e3", "e1", most=9, at=3 * day) == [False, True, False]


def test_ids_whose_time_is_over_go_in_steps_and_new_ones_are_known_meanwhile(path):
    database = open_database(str(path), "normal", (EVENTS,))
    connection, steps = database.connection, []
    connection.executemany("INSERT INTO ids_b VALUES (?, 1)", [(n,) for n in range(2 * FORGOTTEN_IDS + 1)])
    ids = Ids(connection, max_rows=0)
    for n in range(4):
        ids.add(connection, [10**6 + n], n, 0.0)
        steps.append(connection.execute("SELECT (SELECT count(*) FROM ids_a), count(*) FROM ids_b").fetchone())
        assert len(ids.find(connection, [10**6 + m for m in range(n + 1)])) == n + 1
    assert steps == [(1, FORGOTTEN_IDS + 1), (2, 1), (3, 0), (3, 1)]
    database.close(clean=True)


@settings(max_examples=25)
@given(names=st.lists(st.integers(0, 30), max_size=60), most=st.integers(1, 10))
async def test_the_last_ids_are_known_whatever_generation_they_are_in(tmp_path_factory, names, most):
    path = tmp_path_factory.mktemp("ids") / "broker.db"
    database = open_database(str(path), "normal", (EVENTS,))
    connection, position, stored = database.connection, 1, []
    for number, name in enumerate(names):
        ids = Ids(connection, max_rows=most)  # as after a restart
        publish = Publish({"a": [prepared(f"e{name}")]}, {"a": "c."})
        [written], _, position = write_events(connection, ids, [publish], position, 0.0, float(number))
        if name in stored[-most:]:
            assert written.stored["a"][0].duplicate
        if not written.stored["a"][0].duplicate:
            stored.append(name)
    counts = [connection.execute(f"SELECT count(*) FROM ids_{which}").fetchone()[0] for which in "ab"]
    assert max(counts) <= most + 1  # one comes while the older ones go
    database.close(clean=True)
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("count", [1, 2, 5, 255, 256, 257, 1_000, 10_000])
async def test_lists_of_any_length_are_stored_whole(path, count):
    with house_at(path) as house:
        names = [f"e{n}" for n in range(count)]
        stored = house.publish(*names)
        assert [s.event_id for s in stored] == names
        assert house.rows("SELECT count(*) FROM events") == [(count,)]
        assert all(s.duplicate for s in house.publish(*names))
    with house_at(path) as house:
        assert house.names() == names


# --- trims -------------------------------------------------------------------


async def test_disk_keeps_what_is_younger_than_keep_seconds_and_lets_go_the_rest(path, mock_clock):
    with house_at(path, storage=StorageConfig(keep_seconds=1_000)) as house:
        house.publish(*[f"old{n}" for n in range(300)])
        house.trim()
        mock_clock.jump(900)
        house.publish("young", account_id="b")
        house.buffers.expire(trio.current_time(), most=1_000)
        house.trim()
        assert house.rows("SELECT count(*) FROM events") == [(301,)]
        mock_clock.jump(200)
        house.trim()
        assert house.rows("SELECT event_id FROM events") == [("young",)]
        heads = house.rows("SELECT account, head = dropped_through FROM accounts")
        assert heads == [("a", 1), ("b", 0)]


async def test_disk_lets_nothing_go_that_memory_holds_however_large_it_is(path, mock_clock, monkeypatch):
    with house_at(path, storage=StorageConfig(keep_seconds=REPLAY_SECONDS)) as house:
        monkeypatch.setattr(rows, "used_bytes", lambda _: 1 << 60)
        mock_clock.jump(REPLAY_SECONDS + 1)
        house.publish("e1")
        mock_clock.jump(5)
        house.publish("e2")
        house.trim()
        assert house.rows("SELECT count(*) FROM events") == [(2,)]
        with pytest.raises(RequestError) as refused:
            raise house.engine.refusal
        assert refused.value.code == "unavailable"
        outcomes = []
        house.engine.begin({"a": [prepared("e3")]}, outcomes.append)
        assert [outcome.code for outcome in outcomes] == ["unavailable"]
        mock_clock.jump(REPLAY_SECONDS + 1)
        house.buffers.expire(trio.current_time(), most=100)
        house.trim()
        assert house.rows("SELECT event_id FROM events") == []


async def test_the_largest_log_lets_its_oldest_events_go_before_it_refuses_new_ones(path, mock_clock, monkeypatch):
    with house_at(path) as house:
        mock_clock.jump(REPLAY_SECONDS + 1)
        house.publish(*[f"e{n}" for n in range(500)])
        mock_clock.jump(REPLAY_SECONDS + 1)
        house.buffers.expire(trio.current_time(), most=1_000)
        used = iter([1 << 60, 1 << 60, 0, 0])
        monkeypatch.setattr(rows, "used_bytes", lambda _: next(used))
        house.trim()
        assert house.rows("SELECT count(*) FROM events") == [(500 - 2 * 128,)]
        assert house.engine.refusal is None


async def test_what_is_known_of_events_that_are_gone_goes_before_new_ones_are_refused(path, mock_clock, monkeypatch):
    with house_at(path) as house:
        mock_clock.jump(REPLAY_SECONDS + 1)
        house.publish("e1", "e2")
        house.rows("INSERT INTO ids_a VALUES (1, 1)")
        mock_clock.jump(REPLAY_SECONDS + 1)
        house.buffers.expire(trio.current_time(), most=100)
        monkeypatch.setattr(rows, "used_bytes", lambda _: 1 << 60)
        counts = []
        for _ in range(3):
            house.trim()
            (left,) = house.rows(
                "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM known), count(*) FROM ids_a"
            )
            counts.append((*left, house.engine.refusal is not None))
        assert counts == [(0, 2, 1, False), (0, 0, 1, False), (0, 0, 0, True)]
        monkeypatch.setattr(rows, "used_bytes", lambda _: 0)
        house.trim()
        assert house.engine.refusal is None


async def test_of_what_is_gone_it_is_known_for_an_hour_more(path, mock_clock):
    days = 2 * rows.ID_SECONDS
    with house_at(path, storage=StorageConfig(keep_seconds=days)) as house:
        house.publish("e1")
        known = []
        for seconds in (days - 1, 2, 3_590, 20):
            mock_clock.jump(seconds)
            house.buffers.expire(trio.current_time(), most=100)
            house.trim()
            known.append(house.rows("SELECT (SELECT count(*) FROM events), count(*) FROM known")[0])
        assert known == [(1, 0), (0, 1), (0, 1), (0, 0)]


async def test_what_cannot_be_let_go_on_a_disk_that_takes_nothing_goes_later(path, mock_clock, monkeypatch):
    async def refuse(*_):
        raise RequestError("unavailable", "The disk is full")

    with house_at(path, storage=StorageConfig(keep_seconds=REPLAY_SECONDS)) as house:
        house.publish("e1")
        mock_clock.jump(2 * REPLAY_SECONDS)
        house.buffers.expire(trio.current_time(), most=100)
        monkeypatch.setattr(StorageInStep, "write", refuse)
        house.trim()
        monkeypatch.undo()
        house.trim()
        assert house.rows("SELECT event_id FROM events") == []


# --- older events ------------------------------------------------------------


@pytest.mark.parametrize("others", [1, 40])
async def test_a_page_of_few_inboxes_or_many_is_found_among_very_many_others(path, monkeypatch, others):
    monkeypatch.setattr(pages, "_WALK_STEPS", 50)
    with house_at(path) as house:
        wanted = []
        for number in range(300):
            inbox = f"mine{number % others}" if number % 60 == 0 else "noise"
            (stored,) = house.publish(f"e{number}", inbox=inbox)
            if inbox != "noise":
                wanted.append(stored.position)
        selection = Selection(frozenset({f"mine{number}" for number in range(others)}))
        found, after, through, calls = [], 0, stored.position, 0
        while after < through:
            page = at_once(
                house.engine.archive.read("a", Older(selection, after, through), max_events=9, max_bytes=9_999)
            )
            assert page.reached > after
            found += [entry.position for entry in page.entries]
            after, calls = page.reached, calls + 1
        assert found == wanted
        assert calls == (1 if others == 1 else 6), "along an index, or in walks"


async def test_what_was_let_go_so_long_ago_that_nobody_knows_is_not_counted(path, mock_clock):
    with house_at(path, storage=StorageConfig(keep_seconds=REPLAY_SECONDS)) as house:
        old, _ = house.publish("old", "older")
        archive = house.engine.archive
        mock_clock.jump(REPLAY_SECONDS * 2)
        house.buffers.expire(trio.current_time(), most=100)
        house.trim()
        (young,) = house.publish("young")
        ask = partial(archive.count, "a", EVERYTHING, through=young.position)
        assert at_once(ask(after=old.position - 1)) == Kept(1, old.position + 1, 2)
        mock_clock.jump(2 * rows.ID_SECONDS)
        house.trim()
        assert at_once(ask(after=old.position - 1)).missed is None
        assert at_once(ask(after=old.position + 1)).missed == 0
        assert at_once(archive.position_before("a", wall_at(0).timestamp())) is None


# --- rows beside -------------------------------------------------------------


def note(connection, account_id, entries):
    connection.executemany("INSERT INTO notes VALUES (?, ?)", [(entry.position, account_id) for entry in entries])


def one_each(account_id):
    return 1


async def test_rows_beside_are_in_the_events_own_transaction(path):
    with house_at(path, beside=Beside(note, one_each)) as house:
        first = house.publish("e1", "e2")
        house.publish("e1", account_id="b")
        house.publish("e1")
        noted = house.rows("SELECT position, account FROM notes")
        assert noted[:2] == [(stored.position, "a") for stored in first]
        assert [account for _, account in noted] == ["a", "a", "b"]


async def test_rows_beside_that_cannot_be_written_take_their_events_with_them(path):
    def refuse(connection, account_id, entries):
        note(connection, account_id, entries)
        raise RequestError("unavailable", "no room")

    with house_at(path, beside=Beside(refuse, one_each)) as house:
        outcomes = []
        house.engine.begin({"a": [prepared("e1")]}, outcomes.append)
        assert [outcome.message for outcome in outcomes] == ["no room"]
        assert house.names() == []
        assert house.rows("SELECT (SELECT count(*) FROM notes), (SELECT count(*) FROM events)") == [(0, 0)]


async def test_rows_beside_are_counted_in_what_a_publish_is_of_a_commit(path, monkeypatch):
    begun = []

    def begin(write, item, done, weight=1, owners=()):
        begun.append((weight, owners))

    with house_at(path, beside=Beside(note, rows_of={"a": 16, "b": 0}.get)) as house:
        monkeypatch.setattr(house.storage, "begin_together", begin)
        events = [prepared(f"e{n}") for n in range(30)]
        house.engine.begin({"a": events}, print)
        house.engine.begin({"b": events}, print)
        assert begun == [(30 * 17, ("a",)), (30, ("b",))]


async def test_what_somebody_beside_needs_stays(path, mock_clock):
    needed = [None]
    beside = Beside(note, one_each, lambda _: needed[0])
    with house_at(path, storage=StorageConfig(keep_seconds=REPLAY_SECONDS), beside=beside) as house:
        mock_clock.jump(REPLAY_SECONDS + 1)
        stored = house.publish("e1", "e2", "e3")
        needed[0] = stored[1].position
        mock_clock.jump(REPLAY_SECONDS + 1)
        house.buffers.expire(trio.current_time(), most=100)
        house.trim()
        assert house.rows("SELECT event_id FROM events") == [("e2",), ("e3",)]
        needed[0] = None
        house.trim()
        assert house.rows("SELECT event_id FROM events") == []


# --- the disk is full --------------------------------------------------------


@pytest.mark.parametrize("why", ["is_stuck", "short_of_room"])
async def test_while_the_disk_does_not_answer_or_is_almost_full_everything_is_refused_at_once(path, monkeypatch, why):
    with house_at(path) as house:
        monkeypatch.setattr(StorageInStep, why, True)
        outcomes = []
        house.engine.begin({"a": [prepared("e1")]}, outcomes.append)
        assert [(outcome.code, outcome.retry_after_ms) for outcome in outcomes] == [("unavailable", 1_000)]
        assert house.engine.refusal.code == "unavailable"
        monkeypatch.undo()
        assert house.engine.refusal is None
        assert [stored.duplicate for stored in house.publish("e1")] == [False]


async def test_on_a_full_disk_nothing_is_stored_nor_delivered_and_the_next_publish_may_succeed(path):
    def limit(pages, connection):
        return connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    with house_at(path) as house:
        at_once(house.storage.write(partial(limit, 1)))
        outcomes = []
        for size in (100_000, 200_000):
            house.engine.begin({"a": [prepared("e1", payload=b'{"x":"%b"}' % (b"x" * size))]}, outcomes.append)
        assert [(outcome.code, outcome.retry_after_ms) for outcome in outcomes] == [("unavailable", 1_000)] * 2
        assert house.names() == []
        at_once(house.storage.write(partial(limit, 100_000)))
        assert [stored.duplicate for stored in house.publish("e1")] == [False]
        assert house.names() == ["e1"]
