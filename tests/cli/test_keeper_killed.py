"""The keeper of a cluster killed in a stream of publishes at another node: nothing that was answered is missing.

One fault here; `make prove-cluster` has six of each kind.
"""

import json
import os
import random
import signal
import sqlite3
from contextlib import closing, suppress

import pytest
import trio
from chaos import FAILURES, Node
from clients import ask, connected, post_events
from processes import free_port
from receivers import receiving
from valkeys import server

from broker.keys import hash_key
from broker.webhooks.signing import secret_of

TIMES = int(os.environ.get("BROKER_CHAOS", "1"))
PROVING = TIMES > 1
SECONDS = 600 if PROVING else 300
ACCOUNTS = ("acct_0", "acct_1", "acct_2")
PUBLISHERS, WORKERS = 3, 3
EVENTS_BETWEEN = 15
SETTLE_SECONDS = 300
CONFIG = """
[server]
drain_seconds = 1
[engine]
url = "{url}"
[replay]
seconds = {seconds}
[webhooks]
allow_networks = ["127.0.0.0/8"]
allow_http = true
{storage}
"""
STORAGE = '[storage]\npath = "{path}"\nmin_free_bytes = 0\nsynchronous = "normal"\n'
ACCOUNT = """
[[accounts]]
id = "{id}"
tier = "enterprise"
[[accounts.keys]]
id = "key"
sha256 = "{sha256}"
scopes = ["subscribe", "publish", "command", "webhooks"]
[[accounts.webhooks]]
id = "wh"
url = "{url}"
secret = "{secret}"
event_types = ["x.y"]
[[accounts.webhooks]]
id = "backup"
url = "{url}?backup"
secret = "{secret}"
event_types = ["x.y"]
mode = "fallback"
client_ids = ["agent"]
fallback_seconds = 0.3
[[accounts.queues]]
id = "work"
order = "none"
event_types = ["x.y"]
lease_seconds = 5
max_attempts = 100
"""
GAPS = """
[[accounts.webhooks]]
id = "gaps"
url = "{url}"
secret = "{secret}"
event_types = ["webhook.gap", "queue.gap"]
"""


def key_of(account_id):
    return f"dm_live_{account_id}"


def accounts(url):
    secret = secret_of(bytes(range(32)))
    each = [ACCOUNT + GAPS] * len(ACCOUNTS)
    return "".join(
        text.format(id=account_id, sha256=hash_key(key_of(account_id)), url=url, secret=secret)
        for text, account_id in zip(each, ACCOUNTS, strict=True)
    )


class Site:
    """A node that clients publish to, the keeper, a receiver, and who counts what they are told."""

    def __init__(self, folder, engine, receiver, seconds=300):
        self.engine, self.receiver, self.path = engine, receiver, folder / "keeper.db"
        self.answered, self.acked, self.lost = set(), [], set()
        self.taken, self.asked = {}, set()
        """What agents acknowledged before an endpoint began with it, and how many posts had come by then; what else
        they asked for."""
        self._number = 0
        texts = {"site": "", "keeper": STORAGE.format(path=self.path)}
        for name, storage in texts.items():
            (folder / name).mkdir()
            text = CONFIG.format(url=engine.url, seconds=seconds, storage=storage) + accounts(receiver.url)
            (folder / name / "broker.toml").write_text(text)
        self.node, self.keeper = Node(folder / "site", 0), Node(folder / "keeper", 0)

    async def publish(self, account_id):
        """Publish, the same again until it is answered, for ever."""
        while True:
            names = [f"{account_id}.{self._number}.{n}" for n in range(random.choice((1, 1, 3)))]
            self._number += 1
            events = [{"type": "x.y", "inbox_id": "in_1", "event_id": name, "payload": {}} for name in names]
            while not await self._answers(account_id, events):  # noqa: ASYNC110
                await trio.sleep(0.05)
            self.answered |= set(names)
            await trio.sleep(random.expovariate(10))

    async def _answers(self, account_id, events):
        with suppress(*FAILURES):
            with trio.fail_after(8):
                return (await post_events(self.node.address, events, key=key_of(account_id))).status == 200
        return False

    async def answer(self, account_id):
        """Follow an account at the other node as its agent, and acknowledge every second event, for ever."""
        cursor = None
        while True:
            query = "inbox_ids=*&client_id=agent" + (f"&since={cursor}" if cursor else "")
            with suppress(*FAILURES):
                async with connected(self.node.address, query, key=key_of(account_id), seconds=1e6) as client:
                    while True:
                        frame = await client.next_event()
                        cursor, name = frame["cursor"], frame["event_id"]
                        if frame["type"] == "x.y" and random.random() < 0.5:
                            self.asked.add(name)
                            await client.say(action="ack", request_id=name, params={"event_ids": [name]})
                            told = (await client.answer(name)).get("result")
                            if told is not None and not told["claimed"]:
                                self.taken[name] = len(self.receiver.requests)
            await trio.sleep(0.05)

    async def work(self, account_id):
        """Take events at the keeper and acknowledge them, for ever."""
        while True:
            leases = (await self._do(account_id, "lease", queue_id="work", max=10, wait_seconds=1)).get("leases", [])
            names = {lease["lease_id"]: lease["event"]["event_id"] for lease in leases}
            if not names:
                await trio.sleep(0.05)
                continue
            done = {}
            while "acked" not in done:
                done = await self._do(account_id, "ack", lease_ids=list(names))
            self.acked += [name for lease_id, name in names.items() if lease_id not in done["lost"]]
            self.lost |= {name for lease_id, name in names.items() if lease_id in done["lost"]}

    async def _do(self, account_id, action, **params):
        await trio.sleep(0.02)
        with suppress(*FAILURES):
            with trio.fail_after(10):
                body = json.dumps({"action": action, "params": params}).encode()
                answer = await ask(self.keeper.address, "POST", "/v1/commands", key=key_of(account_id), body=body)
                return answer.json.get("result") or {}
        return {}

    async def has_answered(self, more):
        enough = len(self.answered) + more
        while len(self.answered) < enough:  # noqa: ASYNC110
            await trio.sleep(0.01)

    def rows(self, statement):
        """What stands in the keeper's file."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()

    def posts(self, backup, first=0):
        """Ids of the posts to one endpoint, from one on."""
        requests = self.receiver.requests[first:]
        return {each.event_id for each in requests if each.target.endswith("?backup") == backup}

    @property
    def posted(self):
        return self.posts(backup=False)

    @property
    def gaps(self):
        return [json.loads(each.body) for each in self.receiver.requests if b'.gap","event_id"' in each.body]

    def missing(self):
        """What was answered and is not posted, not done, or neither posted to the other endpoint nor acknowledged."""
        taken = self.posts(backup=True) | self.asked
        return self.answered - (self.posted & taken & (set(self.acked) | self.lost))

    def posted_too_late(self):
        """What an agent had acknowledged before it was posted."""
        return [name for name, first in self.taken.items() if name in self.posts(backup=True, first=first)]


async def ready(*nodes):
    with trio.fail_after(120):
        for node in nodes:
            await node.ready()


async def followed(site):
    """Wait until the keeper has taken in something of each account."""
    while True:
        seen = {name.partition(".")[0] for name in site.posted}
        if seen >= set(ACCOUNTS):
            return
        await trio.sleep(0.05)


async def killed(site):
    """The keeper is killed, and started again."""
    site.keeper.kill()
    await trio.sleep(random.uniform(0, 1))
    site.keeper.start()
    await ready(site.keeper)


async def drained(site):
    """The keeper is told to end, and started again."""
    site.keeper.process.terminate()
    await trio.to_thread.run_sync(site.keeper.process.wait)
    site.keeper.start()
    await ready(site.keeper)


async def stopped(site):
    """The keeper stands still, for longer than its lease lasts."""
    site.keeper.send(signal.SIGSTOP)
    await trio.sleep(random.choice((0.5, 7)))
    site.keeper.send(signal.SIGCONT)


async def cut(site):
    """Every link to the server is cut."""
    site.engine.command("CLIENT", "KILL", "TYPE", "pubsub")


async def stuck(site):
    """The server does not answer for a while."""
    site.engine.freeze()
    await trio.sleep(random.uniform(0.2, 4))
    site.engine.thaw()


FAULTS = {"killed": killed, "drained": drained, "stopped": stopped, "cut": cut, "stuck": stuck}


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if PROVING or kind == "killed"])
async def test_all_that_was_answered_is_posted_and_done_whatever_befalls_the_keeper(tmp_path, kind):
    times = min(TIMES, 6)
    with server("valkey", port=free_port()) as engine, trio.fail_after(SECONDS):
        async with receiving() as receiver:
            site = Site(tmp_path, engine, receiver)
            try:
                site.keeper.start()
                await ready(site.keeper)
                await until_kept(site)
                site.node.start()
                await ready(site.node)
                async with trio.open_nursery() as workers:
                    for account_id in ACCOUNTS:
                        workers.start_soon(site.work, account_id)
                        workers.start_soon(site.answer, account_id)
                    async with trio.open_nursery() as publishers:
                        for account_id in ACCOUNTS:
                            publishers.start_soon(site.publish, account_id)
                        await followed(site)
                        for _ in range(times):
                            await site.has_answered(EVENTS_BETWEEN)
                            await FAULTS[kind](site)
                        await site.has_answered(EVENTS_BETWEEN)
                        publishers.cancel_scope.cancel()
                    with trio.move_on_after(SETTLE_SECONDS):
                        while site.missing():  # noqa: ASYNC110
                            await trio.sleep(0.05)
                    workers.cancel_scope.cancel()
            finally:
                site.node.kill()
                site.keeper.kill()
    print(kind, f"taken by agents {len(site.taken)} of {len(site.asked)}")
    print(kind, f"answered {len(site.answered)}, posts {len(receiver.ids)}, done {len(site.acked)}, gaps {site.gaps}")
    missing = site.missing()
    assert not missing, f"{len(missing)} missing of {len(site.answered)}: {sorted(missing)[:5]}"
    assert len(site.acked) == len(set(site.acked)), "an event was done twice"
    jobs = site.rows("SELECT event_id, state FROM jobs")
    assert {job for job in jobs if job[0] in site.answered} == {(name, "acked") for name in site.answered}
    assert len(jobs) == len(set(jobs))
    assert not site.gaps
    assert site.taken
    if kind != "stopped":  # who stands still may have claimed an event, and post it when he goes on
        assert not site.posted_too_late()
    for node in (site.node, site.keeper):
        assert "Traceback" not in node.log.read_text(), node.log.read_text()[-4_000:]


async def until_kept(site):
    """Wait until the keeper follows all accounts."""
    while site.rows("SELECT count(*) FROM followed") != [(len(ACCOUNTS),)]:  # noqa: ASYNC110
        await trio.sleep(0.02)
