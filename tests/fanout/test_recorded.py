"""recorded.py: positions on disk, over restarts, weeks and a disk that is full."""

import sqlite3
from contextlib import asynccontextmanager

import pytest
import trio
from log.test_storage import Gate, limited
from trio.testing import wait_all_tasks_blocked

from broker.errors import RequestError
from broker.fanout.acknowledged import Acknowledged, Sent
from broker.fanout.recorded import Recorded
from broker.log.positions import KEPT_SECONDS, POSITIONS
from broker.log.storage import open_storage
from broker.protocol.selection import EVERYTHING


class Keeping:
    """Positions over a real file. ``now`` is the time of day."""

    def __init__(self, storage, bounds):
        self.storage = storage
        self.now = 0.0
        self.acknowledged = Acknowledged(**bounds)
        self.recorded = Recorded(self.acknowledged, storage, lambda: self.now)

    def client(self, name="agent", account="acct_a"):
        return self.acknowledged.client(account, "key", name)

    async def put(self, name, position, account="acct_a"):
        client = self.client(name, account)
        client.advance(position)
        await self.recorded.until_recorded(client)

    def positions(self, *names):
        return [self.client(name).position for name in names]

    async def rows(self):
        return await self.storage.read(
            lambda c: c.execute("SELECT count(*) FROM positions WHERE account <> ''").fetchone()[0]
        )


@asynccontextmanager
async def keeping(path, now=0.0, *, runs=False, **bounds):
    opened = open_storage(str(path / "broker.db"), rooms=(POSITIONS,))
    async with opened as storage, trio.open_nursery() as nursery:
        await nursery.start(storage.run)
        kept = Keeping(storage, bounds)
        kept.now = now
        with trio.fail_after(60):
            await (nursery.start(kept.recorded.run) if runs else kept.recorded.restore())
            yield kept
        nursery.cancel_scope.cancel()


async def test_positions_outlive_the_process(tmp_path):
    async with keeping(tmp_path) as kept:
        for number in range(1_500):
            kept.client(f"agent{number}").advance(number)
        await kept.put("agent7", 10_000)
        kept.client("agent8").take_back(3)
        await kept.put("other", 5, "acct_b")
    async with keeping(tmp_path) as kept:
        assert kept.positions("agent0", "agent7", "agent8", "agent1499", "other") == [0, 10_000, 3, 1_499, None]
        assert kept.client("other", "acct_b").position == 5
        assert kept.acknowledged.statistics().clients == 1_501


async def test_it_is_told_after_the_commit_and_at_once_when_there_is_nothing_to_be_written(tmp_path):
    async with keeping(tmp_path) as kept:
        gate, told, client = Gate(kept.storage), [], kept.client()
        client.advance(7)
        kept.recorded.when_recorded(client, told.append)
        assert told == []
        gate.open()
        await kept.recorded.until_recorded(client)
        assert told == [None]
        kept.recorded.when_recorded(client, told.append)
        assert told == [None, None]


async def test_an_acknowledgement_that_moves_nothing_writes_nothing(tmp_path):
    async with keeping(tmp_path) as kept:
        await kept.put("agent", 7)
        written = kept.storage.statistics().works
        for position in (7, 3):
            await kept.put("agent", position)
        assert kept.storage.statistics().works == written


async def test_of_moves_in_one_commit_the_last_counts(tmp_path):
    async with keeping(tmp_path) as kept:
        gate, client = Gate(kept.storage), kept.client()
        for position in (3, 9, 5):
            client.advance(position)
        client.take_back(4)
        gate.open()
        await kept.recorded.until_recorded(client)
    async with keeping(tmp_path) as kept:
        assert kept.positions("agent") == [4]


async def test_what_a_full_disk_did_not_take_is_said_and_written_when_it_is_asked_for_again(tmp_path):
    async with keeping(tmp_path) as kept:
        await kept.storage.write(limited(1))
        gate, client = Gate(kept.storage), kept.client()
        client.advance(7)
        kept.storage.begin_write(lambda c: c.execute("CREATE TABLE x AS SELECT zeroblob(1000000)"), lambda _: None)
        gate.open()
        with pytest.raises(RequestError) as refused:
            await kept.recorded.until_recorded(client)
        assert refused.value.code == "unavailable"
        assert client.position == 7
        await kept.storage.write(limited(100_000))
        await kept.recorded.until_recorded(client)
    async with keeping(tmp_path) as kept:
        assert kept.positions("agent") == [7]


async def test_who_has_not_moved_for_a_week_is_forgotten_in_memory_and_on_disk(tmp_path):
    async with keeping(tmp_path) as kept:
        for number in range(1_200):
            kept.client(f"old{number}").advance(1)
        await kept.put("busy", 1)
        await kept.put("idle", 1)
        kept.now = KEPT_SECONDS / 2
        kept.client("busy").come(9)
        await kept.put("idle", 1)
        kept.now = KEPT_SECONDS + 1
        await kept.recorded.expire()
        assert kept.positions("old0", "old1199", "idle", "busy") == [None, None, None, 1]
        assert await kept.rows() == 1
        assert kept.acknowledged.statistics().clients == 1
        assert Sent(kept.client("old0"), EVERYTHING, 8).resume() == 8


async def test_it_is_looked_for_them_at_the_start_and_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr("broker.fanout.recorded.EXPIRE_SECONDS", 0)
    async with keeping(tmp_path) as kept:
        await kept.put("agent", 1)
    async with keeping(tmp_path, KEPT_SECONDS + 1, runs=True) as kept:
        while await kept.rows():
            await trio.lowlevel.checkpoint()
        await kept.put("agent", 1)
        kept.now += KEPT_SECONDS + 1
        while await kept.rows() or kept.positions("agent") != [None]:  # memory forgets after the commit
            await trio.lowlevel.checkpoint()


async def test_who_moves_while_it_is_forgotten_is_not(tmp_path):
    async with keeping(tmp_path) as kept:
        await kept.put("agent", 1)
        kept.now = KEPT_SECONDS + 1
        gate = Gate(kept.storage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept.recorded.expire)
            await wait_all_tasks_blocked()
            kept.client().come(1)
            gate.open()
        await kept.recorded.until_recorded(kept.client())
        assert kept.positions("agent") == [1]
        assert await kept.rows() == 1


async def test_who_was_forgotten_for_want_of_room_may_have_been_known_after_a_restart_too(tmp_path):
    async with keeping(tmp_path, max_of_account=2) as kept:
        for name in ("one", "two", "three"):
            await kept.put(name, 5)
        assert await kept.rows() == 3
    async with keeping(tmp_path, max_of_account=2) as kept:
        assert kept.positions("one", "two", "three") == [None, 5, 5]
        assert Sent(kept.client("one"), EVERYTHING, 9).resume() is None
        assert Sent(kept.client("one", "acct_b"), EVERYTHING, 9).resume() == 9
        kept.now = KEPT_SECONDS + 1
        await kept.recorded.expire()
        assert Sent(kept.client("one"), EVERYTHING, 9).resume() == 9


async def test_where_the_log_may_have_lost_events_no_position_is_good_any_more(tmp_path):
    async with keeping(tmp_path) as kept:
        await kept.put("agent", 7)
        await kept.put("other", 7, "acct_b")
    connection = sqlite3.connect(tmp_path / "broker.db")
    connection.execute("UPDATE meta SET value = x'00112233445566778899aabbccddeeff' WHERE name = 'epoch'")
    connection.commit()
    connection.close()
    for _ in range(2):  # it is known for as long as they would have been
        async with keeping(tmp_path) as kept:
            for account in ("acct_a", "acct_b"):
                assert Sent(kept.client("agent", account), EVERYTHING, 9).resume() is None
            assert Sent(kept.client("agent", "acct_c"), EVERYTHING, 9).resume() == 9
            await kept.put("new", 8)
    async with keeping(tmp_path) as kept:
        assert kept.positions("new", "agent") == [8, None]
