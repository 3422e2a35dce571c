"""Webhooks at work without a disk, a thread or a network: a clock that jumps sees nothing but them wait."""

import math
from collections import defaultdict
from contextlib import asynccontextmanager, nullcontext

import msgspec
import trio
from inline import InlineStorage

from broker.access.keyring import Keyring
from broker.access.keys import Access, Key
from broker.access.tokens import Tokens
from broker.config import AccountConfig, Config, KeyConfig, LimitsConfig, check_config
from broker.log.engines.rows import EVENTS
from broker.log.letters import LETTERS
from broker.log.outbox import Outbox
from broker.protocol.messages import Entry, PreparedEvent
from broker.schedule import Schedule
from broker.webhooks.endpoint import Checks, NewEndpoint
from broker.webhooks.guard import Guard
from broker.webhooks.sender import Outcome
from broker.webhooks.webhooks import Webhooks

ACCOUNT = "acct"
START = 1_800_000_000.0
URL = "https://hooks.example.com/in"
KEY, INBOX_KEY, BARE_KEY = "a" * 64, "b" * 64, "c" * 64
HOUR = 3600.0


def config_of(*, inbox_ids=("in_1", "in_2"), keys=None, webhooks=(), others=()):
    keys = keys or (
        KeyConfig(id="key", sha256=KEY, scopes=("webhooks",)),
        KeyConfig(id="key_inbox", sha256=INBOX_KEY, scopes=("webhooks",), inbox_ids=inbox_ids),
        KeyConfig(id="key_bare", sha256=BARE_KEY),
    )
    return Config(accounts=(AccountConfig(id=ACCOUNT, keys=keys, webhooks=webhooks), *others))


class Posts:
    """Stands for the sender: keeps what is posted, and answers as it is told."""

    def __init__(self):
        self.posts = []
        self.times = defaultdict(list)
        """When each event was posted, in seconds since the start."""
        self.answers = {}
        """By event id: status or kind of failure; else `answer`."""
        self.answer = 200
        self.seconds = 0.0
        self.retry_after = 0.0
        self.under_way = self.most_under_way = 0

    @property
    def ids(self):
        return [post.event_id for post in self.posts]

    async def post(self, post):
        self.posts.append(post)
        self.times[post.event_id].append(trio.current_time())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.under_way -= 1
        answer = self.answers.get(post.event_id, self.answer)
        if isinstance(answer, str):
            return Outcome(None, answer, self.seconds)
        error = None if 200 <= answer < 300 else "status"
        return Outcome(answer, error, self.seconds, 0.0 if error is None else self.retry_after)


class AtWork:
    """Webhooks of one process. A second one over the same storage is a restart."""

    def __init__(self, storage=None, config=None, posts=None, max_bytes=math.inf):
        self.storage = storage or InlineStorage(EVENTS, LETTERS)
        self.posts = posts or Posts()
        self.config = check_config(config or config_of())
        self.started_at = trio.current_time()
        self.outbox = Outbox(self.storage, lambda: START + trio.current_time())
        schedule = Schedule()
        self.keyring = Keyring(Access(self.config), Tokens("x" * 32, 60), None, schedule)
        self.announced = []
        self.draining = trio.Event()
        checks = Checks(LimitsConfig(), Guard(), allow_http=False)
        self.webhooks = Webhooks(
            self.outbox,
            self.keyring,
            checks,
            lambda: nullcontext(self.posts),
            lambda account_id: "cprefix.",
            self.announce,
            self.draining,
            lambda: 0.5,
            max_bytes,
        )
        self._schedule = schedule
        self._position = self.storage.connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()[0]

    def announce(self, account_id, kind, payload):
        self.announced.append((account_id, kind, dict(payload), trio.current_time()))

    @property
    def said(self):
        return [kind for _, kind, _, _ in self.announced]

    def key(self, sha256=KEY) -> Key:
        return self.keyring.access.account_key(sha256)

    async def make(self, key=None, **asked):
        return await self.webhooks.endpoints.make(key or self.key(), NewEndpoint(**{"url": URL} | asked))

    def publish(self, inbox="in_1", kind="message.received", event_id=None, payload=b'{"a":1}', account=ACCOUNT):
        """Store an event as an engine does; return its id."""
        self._position += 1
        event_id = event_id or f"evt_{self._position}"
        event = PreparedEvent(kind, inbox or None, event_id, "2026-01-01T00:00:00.000Z", payload, None)
        wall = self.outbox.wall_clock()
        self.storage.connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (self._position, account, inbox, kind, event_id, event.created_at, wall, payload),
        )
        entry = Entry(self._position, 0.0, kind, inbox, event_id, b"", wall, event)
        self.outbox.add(self.storage.connection, account, [entry])
        return event_id

    def reload(self, config):
        self.config = check_config(config)
        self.keyring.reload(Access(self.config))
        self.webhooks.reload(self.config.accounts)

    async def deliveries(self, webhook_id, key=None, **query):
        page = await self.webhooks.deliveries(key or self.key(), webhook_id, query)
        return {each.event_id: each for each in page.deliveries}

    async def states(self, webhook_id):
        return {name: each.state for name, each in (await self.deliveries(webhook_id, limit="1000")).items()}


@asynccontextmanager
async def working(storage=None, config=None, posts=None, max_bytes=math.inf):
    work = AtWork(storage, config, posts, max_bytes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work._schedule.run)
        await nursery.start(work.keyring.run)
        await nursery.start(work.webhooks.run, work.config.accounts)
        yield work
        nursery.cancel_scope.cancel()


def body_of(post):
    return msgspec.json.decode(post.body)
