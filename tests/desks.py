"""The queues of an account without a disk or a thread: for tests whose clock jumps."""

from contextlib import asynccontextmanager
from functools import partial

import trio
from inline import InlineStorage

from broker.access.keyring import Keyring
from broker.access.keys import Access, Key
from broker.access.tokens import Tokens
from broker.config import AccountConfig, AccountQueueConfig, Config, LimitsConfig
from broker.log.backlog import Backlog
from broker.log.engines.rows import EVENTS
from broker.log.jobs import JOBS
from broker.protocol.messages import Entry, PreparedEvent
from broker.queues.asked import LeaseParams, WorkAsked
from broker.queues.giving import Giving
from broker.queues.queues import Queues
from broker.schedule import Schedule

ACCOUNT = "acct"
START = 1_800_000_000.0
MOST_SECONDS = 100.0
"""No worker waits for longer than it says, a minute at most."""
KEY = Key("library", ACCOUNT, frozenset({"subscribe", "webhooks"}))


class SlowStorage(InlineStorage):
    """A storage whose answers to what is written come when they are told to."""

    def __init__(self):
        super().__init__(EVENTS, JOBS)
        self.answers = []

    def begin_write(self, work, done):
        super().begin_write(work, lambda outcome: self.answers.append(partial(done, outcome)))

    async def write(self, work):
        return work(self.connection)

    def answer(self):
        while self.answers:
            self.answers.pop(0)()


class Desk:
    """The queues of an account, and what it was told."""

    def __init__(self, storage=None, max_bytes=1e12, chance=0.5, **section):
        self.storage = storage or InlineStorage(EVENTS, JOBS)
        self.backlog = Backlog(self.storage, lambda: START + trio.current_time())
        self.told = []
        schedule = Schedule()
        self.schedule = schedule
        keyring = Keyring(Access(Config()), Tokens("x" * 32, 60), None, schedule)
        announce = lambda account_id, kind, payload: self.told.append((kind, payload))  # noqa: E731
        self.giving = Giving(self.backlog, schedule, lambda _: "c1-", announce, lambda: chance)
        self.queues = Queues(self.backlog, keyring, LimitsConfig(), self.giving, max_bytes)
        self.accounts = (AccountConfig(id=ACCOUNT, queues=(AccountQueueConfig(id="q", **section),)),)
        self.position = 0
        self.draining = trio.Event()

    @asynccontextmanager
    async def open(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.schedule.run)
            await nursery.start(partial(self.queues.run, self.accounts, self.draining))
            yield self
            nursery.cancel_scope.cancel()

    def publish(self, thread="t"):
        self.position += 1
        payload = b'{"message":{"thread_id":"%b"}}' % thread.encode()
        event = PreparedEvent("m.r", "in_1", f"e{self.position}", "2026-01-01T00:00:00.000Z", payload, None)
        self.storage.connection.execute(
            "INSERT INTO events VALUES (?, ?, 'in_1', 'm.r', ?, ?, ?, ?, NULL)",
            (self.position, ACCOUNT, event.event_id, event.created_at, START, payload),
        )
        entry = Entry(self.position, 0.0, "m.r", "in_1", event.event_id, b"", START, event)
        self.backlog.add(self.storage.connection, ACCOUNT, [entry])

    async def work(self, params, client_id=""):
        with trio.fail_after(MOST_SECONDS):
            result, _ = await self.queues.work(WorkAsked("", "", params), client_id, lambda: KEY)
        return result

    async def lease(self, wait_seconds=0, **fields):
        return (await self.work(LeaseParams("q", wait_seconds=wait_seconds, **fields))).leases

    async def deliveries(self):
        return (await self.queues.deliveries(KEY, "q", {})).deliveries
