"""What is owed to endpoints, in the loop: who is woken, and who wins between a client and a webhook."""

import random
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from log.test_letters import ACCOUNT, Desk

from broker.log import letters
from broker.log.engines.rows import EVENTS
from broker.log.letters import LETTERS
from broker.log.outbox import Outbox
from broker.log.owed import PAGE
from broker.log.storage import open_storage
from broker.protocol.selection import EVERYTHING

TAKEN = letters.Tried(200, None, 1)


class Post:
    """An outbox over a real file, with one endpoint that waits for the client `cli`."""

    def __init__(self, storage):
        self.storage = storage
        self.outbox = Outbox(storage, lambda: 0.0)
        self.woken = []
        self.changed = trio.lowlevel.ParkingLot()
        self.outbox.woken = self.wake
        self.route = None

    def wake(self, webhook, due_at):
        self.woken.append((webhook, due_at))
        self.changed.unpark_all()

    async def begin(self, **fields):
        self.route = await self.storage.write(lambda connection: Desk(connection).endpoint(**fields))
        self.outbox.route(ACCOUNT, [self.route], {"cli": (self.route.webhook,)})

    async def publish(self, count=1):
        """Events in one transaction with their letters, as an engine stores them."""

        def work(connection):
            desk = Desk(connection)
            desk.position = connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()[0]
            for _ in range(count):
                entries = desk.entries()
                self.outbox.add(connection, ACCOUNT, entries)

        await self.storage.write(work)

    async def acknowledge(self, **what):
        told, heard = [], trio.Event()

        def hear(outcome):
            told.append(outcome)
            heard.set()

        self.outbox.acknowledge(ACCOUNT, "cli", hear, **{"reach": EVERYTHING} | what)
        await heard.wait()
        return told[0]

    async def claim(self, most=8, now=0.0):
        claimed = await self.storage.write(partial(letters.claim, webhook=self.route.webhook, now=now, most=most))
        return [letter.position for letter in claimed.letters]


@asynccontextmanager
async def posting(path, **fields):
    opened = open_storage(str(path), synchronous="normal", rooms=[EVENTS, LETTERS])
    async with opened as storage, trio.open_nursery() as nursery:
        await nursery.start(storage.run)
        post = Post(storage)
        await post.begin(**fields)
        yield post
        nursery.cancel_scope.cancel()


@pytest.fixture
async def post(tmp_path):
    async with posting(tmp_path / "log.db") as post:
        yield post


async def test_an_endpoint_is_woken_when_it_has_got_a_letter(post):
    await post.publish()
    while not post.woken:
        await post.changed.park()
    assert post.woken == [(post.route.webhook, 0.0)]
    assert await post.claim() == [1]


async def test_what_nobody_waits_for_is_told_at_once_and_writes_nothing(post):
    post.outbox.route(ACCOUNT, [], {})
    assert not post.outbox.waits_for(ACCOUNT, "cli")
    written = post.storage.statistics().works
    told = []
    post.outbox.acknowledge(ACCOUNT, "cli", told.append, covers=lambda *_: True, through=7, reach=EVERYTHING)
    post.outbox.hold(ACCOUNT, "cli", told.append, event_ids=["evt_1"], seconds=5, reach=EVERYTHING)
    assert [(each.acked, each.claimed) for each in told] == [(0, []), (0, [])]
    assert post.storage.statistics().works == written


async def test_only_the_clients_that_an_endpoint_waits_for_take_events_from_it(post):
    assert post.outbox.waits_for(ACCOUNT, "cli")
    assert not post.outbox.waits_for(ACCOUNT, "other")
    assert not post.outbox.waits_for("acct_other", "cli")


async def test_a_long_acknowledgement_is_told_once_for_all_of_it(post):
    count = 2 * PAGE + 5
    await post.publish(count)
    assert await post.claim(most=1) == [1]
    told = await post.acknowledge(covers=lambda position, *_: position != count, through=count)
    assert (told.acked, told.claimed) == (count - 2, ["evt_1"])
    assert await post.claim() == [count]


async def test_a_cursor_and_ids_are_acknowledged_together(post):
    await post.publish(3)
    told = await post.acknowledge(covers=lambda *_: True, through=1, event_ids=["evt_3"])
    assert told.acked == 2
    assert await post.claim() == [2]


async def test_whoever_stands_behind_what_was_acknowledged_is_woken(tmp_path):
    async with posting(tmp_path / "log.db", in_order=True) as post:
        await post.publish(2)
        await post.acknowledge(event_ids=["evt_1"])
        assert (post.route.webhook, 0.0) in post.woken
        assert await post.claim() == [2]


async def test_what_a_client_holds_is_not_due_before(post):
    await post.publish(2)
    heard = trio.Event()
    post.outbox.hold(ACCOUNT, "cli", lambda _: heard.set(), event_ids=["evt_1"], seconds=60, reach=EVERYTHING)
    await heard.wait()
    assert await post.claim(now=59.0) == [2]
    assert await post.claim(now=60.0) == [1]


async def test_of_a_thousand_races_between_a_client_and_a_post_exactly_one_wins_each(post):
    """None that was told acked is posted from then on, none that nobody acknowledged is dropped."""
    count = 1000
    await post.publish(count)
    chance = random.Random(3)
    posts = dict.fromkeys(range(1, count + 1), 0)
    posts_when_acked = {}
    claimed_by_webhook = set()

    async def client():
        for position in chance.sample(range(1, count + 1), count):
            if position % 10 == 0:
                continue  # never acknowledged
            told = await post.acknowledge(covers=lambda *_: True, after=position - 1, through=position)
            if told.acked:
                posts_when_acked[position] = posts[position]
            else:
                claimed_by_webhook.update(told.claimed)

    async def webhook():
        while True:
            claimed = await post.storage.write(
                lambda connection: letters.claim(connection, post.route.webhook, 1e9, chance.randint(1, 8))
            )
            if not claimed.letters and claimed.next_due is None:
                return
            for letter in claimed.letters:
                posts[letter.position] += 1
                tried = TAKEN if chance.random() < 0.5 else letters.Tried(500, "status", 1, 0.0)
                await post.storage.write(
                    lambda c, letter=letter, tried=tried: letters.settle(
                        c, post.route.webhook, letter.position, tried, 0.0
                    )
                )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        nursery.start_soon(webhook)
    states = await post.storage.read(
        lambda c: dict(c.execute("SELECT position, state FROM letters WHERE webhook = ?", (post.route.webhook,)))
    )
    assert set(states) == set(posts)
    assert set(states.values()) <= {"acked", "delivered"}
    assert len(posts_when_acked) > 50
    assert len(claimed_by_webhook) > 50
    for position, state in states.items():
        if position in posts_when_acked:
            assert state == "acked"
            assert posts[position] == posts_when_acked[position]
        if position % 10 == 0:
            assert state == "delivered"
