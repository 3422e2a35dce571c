"""What the keeper takes in of an account: in steps that hold up nobody, each whole with its cursor."""

from contextlib import asynccontextmanager

import pytest
import trio
from clients import event
from fairness.commits import Waits
from log.test_lists import is_full

from broker import open_broker
from broker.disk import ROOMS
from broker.keeper.following import Following
from broker.log import kept
from broker.log.backlog import Backlog
from broker.log.database import open_database
from broker.log.jobs import Intake
from broker.log.letters import Route
from broker.log.outbox import Outbox
from broker.log.shares import SHARE
from broker.protocol.selection import EVERYTHING, Selection

EACH = 16
"""Endpoints, and queues, that get each event."""
LONGEST = 200_000
"""Steps of SQLite that somebody else may wait for."""


class House:
    """A log on disk with all endpoints and queues that an account may have, beside a broker whose log is elsewhere."""

    def __init__(self, path, selection=EVERYTHING):
        self.storage = Waits(open_database(str(path), "normal", ROOMS), 0)
        self.connection = self.storage._database.connection
        self.outbox, self.backlog = Outbox(self.storage), Backlog(self.storage)
        for number in range(1, EACH + 1):
            for table in ("webhooks (account, webhook_id, record)", "queues (account, queue_id, record)"):
                self.connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ('acct', '{number}', x'')")
        numbers = range(1, EACH + 1)
        self.outbox.route("acct", [Route(n, "", selection, None, 0.0, in_order=True) for n in numbers], {})
        self.backlog.take_in("acct", [Intake(n, selection, None, "inbox") for n in numbers])

    @asynccontextmanager
    async def following(self, opened):
        subscribe = lambda account_id, since: opened.subscribe(account_id, since=since)  # noqa: E731
        following = Following(self.outbox, self.backlog, subscribe, None)
        await following.load()
        following.changed("acct")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(following.run)
            await trio.testing.wait_all_tasks_blocked()
            yield following
            nursery.cancel_scope.cancel()

    def rows(self, query):
        return self.connection.execute(query).fetchall()

    def kept(self):
        return [name for (name,) in self.rows("SELECT event_id FROM kept ORDER BY position")]

    def cursor(self):
        [(cursor,)] = self.rows("SELECT cursor FROM followed")
        return cursor


@pytest.fixture
async def house(tmp_path):
    house = House(tmp_path / "broker.db")
    yield house
    house.storage.close()


@pytest.fixture
def taken(monkeypatch):
    """The pieces that were taken in: how many events, and their cursor."""
    pieces, take_in = [], kept.take_in

    def noted(connection, taken, *args):
        pieces.append((len(taken.entries), taken.cursor))
        return take_in(connection, taken, *args)

    monkeypatch.setattr(kept, "take_in", noted)
    return pieces


async def test_of_a_list_for_all_endpoints_and_queues_some_are_taken_in_at_a_time_with_their_cursor(
    house, taken, autojump_clock
):
    async with open_broker() as opened, house.following(opened) as following:
        taken.clear()
        house.storage.of(lambda: None)
        published = await opened.publish("acct", [event(n) for n in range(200)])
        await trio.testing.wait_all_tasks_blocked()
        most = SHARE // (1 + 2 * EACH)
        assert [count for count, _ in taken] == [most] * (200 // most) + [200 % most]
        ends = [*range(most - 1, 199, most), 199]
        assert [cursor for _, cursor in taken] == [published[end].cursor for end in ends]
        assert 0 < house.storage.longest < LONGEST
        assert following.events == len(house.kept()) == 200
        assert house.rows("SELECT count(*) FROM letters") == house.rows("SELECT count(*) FROM jobs") == [(200 * EACH,)]


async def test_what_the_disk_takes_of_a_page_is_whole_and_the_rest_is_taken_in_later_and_all_once(
    house, monkeypatch, autojump_clock
):
    calls, add = [], house.backlog._add

    def add_or_fail(connection, wanting, entries):
        calls.append(len(entries))
        return is_full() if len(calls) == 3 else add(connection, wanting, entries)

    monkeypatch.setattr(house.backlog, "_add", add_or_fail)
    async with open_broker() as opened, house.following(opened):
        published = await opened.publish("acct", [event(n) for n in range(100)])
        await trio.testing.wait_all_tasks_blocked()
        most = calls[0]
        names = [each.event_id for each in published]
        assert (house.kept(), house.cursor()) == (names[: 2 * most], published[2 * most - 1].cursor)
        assert house.rows("SELECT count(*) FROM letters") == [(2 * most * EACH,)]
        await trio.sleep(2)
        assert (house.kept(), house.cursor()) == (names, published[-1].cursor)
        assert house.rows("SELECT count(*) FROM letters") == house.rows("SELECT count(*) FROM jobs") == [(100 * EACH,)]


async def test_what_is_for_few_is_taken_in_together_and_what_is_for_nobody_is_passed(tmp_path, taken, autojump_clock):
    house = House(tmp_path / "broker.db", Selection(frozenset({"in_9"})))
    async with open_broker() as opened, house.following(opened):
        taken.clear()
        published = await opened.publish("acct", [event(n, inbox=f"in_{n % 20}") for n in range(200)])
        await trio.testing.wait_all_tasks_blocked()
        assert taken == [(10, published[-1].cursor)]
    house.storage.close()
