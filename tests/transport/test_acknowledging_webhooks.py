"""Of a client that acknowledges and a webhook that waits for it, exactly one has each event."""

import json
import random
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from clients import ask, connected
from log.test_letters import ACCOUNT, TAKEN, Desk
from log.test_storage import Gate, limited
from processes import KEY as PROCESS_KEY
from processes import serving
from receivers import receiving
from trio.testing import wait_all_tasks_blocked

import broker.disk
from broker import AccountConfig, Config, KeyConfig, ReplayConfig, RequestError, StorageConfig, open_broker
from broker.fanout.settling import Settling
from broker.keys import hash_key
from broker.log import letters
from broker.log.engines.sqlite import Beside
from broker.log.letters import LETTERS
from broker.log.outbox import Outbox
from broker.testing import connect

WHOLE, PART = "dm_live_whole", "dm_live_part"
FALLBACK_SECONDS = 30.0
LATER = 1e12
KILLED = """
[storage]
path = "{path}"
[webhooks]
allow_networks = ["127.0.0.0/8"]
allow_http = true
[[accounts]]
id = "acct_a"
tier = "enterprise"
[[accounts.keys]]
id = "key_a"
sha256 = "{sha256}"
scopes = ["subscribe", "publish", "webhooks"]
"""
FAILED = letters.Tried(500, "status", 1, 0.0)


def event(number, inbox="a", kind="message.received"):
    return {"type": kind, "inbox_id": inbox, "event_id": f"e{number}", "payload": {}}


class Webhook:
    """An endpoint that waits for the client `agent`, and whoever posts to it."""

    def __init__(self, storage, route):
        self._storage = storage
        self.number = route.webhook

    async def begin(self, most=1_000, now=LATER):
        """Begin to post what is due; return the letters."""
        claim = partial(letters.claim, webhook=self.number, now=now, most=most)
        return (await self._storage.write(claim)).letters

    async def posts(self, **how):
        """The ids of the events that it begins to post."""
        return [letter.event.event_id for letter in await self.begin(**how)]

    async def end(self, letter, tried):
        work = partial(letters.settle, webhook=self.number, position=letter.position, tried=tried, now=0.0)
        await self._storage.write(work)

    async def states(self):
        statement = "SELECT event_id, state FROM letters WHERE webhook = ?"
        return dict(await self._storage.read(lambda c: c.execute(statement, (self.number,)).fetchall()))


@pytest.fixture
def with_webhook(tmp_path, monkeypatch):
    monkeypatch.setattr(broker.disk, "ROOMS", (*broker.disk.ROOMS, LETTERS))
    keys = (
        KeyConfig(id="key_whole", sha256=hash_key(WHOLE)),
        KeyConfig(id="key_part", sha256=hash_key(PART), inbox_ids=("a",)),
    )
    account = AccountConfig(id=ACCOUNT, tier="enterprise", keys=keys)
    storage = StorageConfig(path=str(tmp_path / "broker.db"), synchronous="normal")

    @asynccontextmanager
    async def opened(**sections):
        config = Config(accounts=(account,), storage=storage, **sections)
        async with open_broker(config) as opened:
            outbox = Outbox(opened._disk.storage, lambda: 0.0)
            endpoint = partial(Desk.endpoint, delay_seconds=FALLBACK_SECONDS)
            route = await opened._disk.storage.write(lambda connection: endpoint(Desk(connection)))
            outbox.route(ACCOUNT, [route], {"agent": (route.webhook,)})
            opened._engine.beside.append(Beside(outbox.add, outbox.rows_of))
            opened.on_disk.settling = Settling(outbox)
            with trio.fail_after(60):
                yield opened, Webhook(opened._disk.storage, route)

    return opened


def agent(opened, key=WHOLE, **query):
    return connect(opened, key, **({"client_id": "agent", "since": "acked"} | query))


async def publish(opened, *events):
    return [told.cursor for told in await opened.publish(ACCOUNT, list(events))]


async def received(client, number):
    return [(await client.receive())["event_id"] for _ in range(number)]


async def test_what_a_cursor_acknowledges_is_not_posted_and_all_else_is(with_webhook):
    async with with_webhook() as (opened, webhook), agent(opened, inbox_ids="a", event_types="message.*") as client:
        cursors = await publish(opened, event(1), event(2, "b"), event(3, kind="note.added"), event(4), event(5))
        await received(client, 3)
        answer = await client.ask("ack", {"cursor": cursors[3]})
        assert answer == {"cursor": cursors[3], "acked": 2, "claimed": []}
        assert await webhook.posts() == ["e2", "e3", "e5"]


async def test_ids_are_acknowledged_in_the_inboxes_that_the_key_reaches(with_webhook):
    async with with_webhook() as (opened, webhook), agent(opened, PART) as client:
        await publish(opened, event(1), event(2), event(1, "b"))
        assert (await client.ask("ack", {"event_ids": ["e1"]}))["acked"] == 1
        assert sorted(await webhook.posts()) == ["e1", "e2"]


async def test_who_comes_too_late_is_told_that_a_webhook_has_begun(with_webhook):
    async with with_webhook() as (opened, webhook), agent(opened) as client:
        cursors = await publish(opened, event(1), event(2), event(3))
        await received(client, 3)
        [letter] = await webhook.begin(most=1)
        answer = await client.ask("ack", {"cursor": cursors[1], "event_ids": ["e3"]})
        assert answer == {"cursor": cursors[1], "acked": 3, "claimed": ["e1"]}
        assert await webhook.posts() == []
        await webhook.end(letter, FAILED)
        assert await webhook.states() == {"e1": "acked", "e2": "acked", "e3": "acked"}, "it is not posted again"


async def test_what_is_held_is_posted_later_unless_it_is_acknowledged_by_then(with_webhook):
    async with with_webhook() as (opened, webhook), agent(opened) as client:
        await publish(opened, event(1), event(2), event(3))
        [_] = await webhook.begin(most=1)
        held = await client.ask("hold", {"event_ids": ["e1", "e2", "e3"], "seconds": 600})
        assert held == {"held": 3, "claimed": ["e1"]}
        assert await webhook.posts(now=599.0) == []
        await client.ask("ack", {"event_ids": ["e2"]})
        assert await webhook.posts(now=600.0) == ["e3"]


async def test_another_client_takes_nothing_from_a_webhook(with_webhook):
    async with with_webhook() as (opened, webhook), agent(opened, client_id="other") as client:
        cursors = await publish(opened, event(1))
        await received(client, 1)
        assert await client.ask("ack", {"cursor": cursors[0]}) == {"cursor": cursors[0], "acked": 1, "claimed": []}
        assert await webhook.posts() == ["e1"]


async def test_a_connected_client_that_acknowledges_nothing_keeps_nothing_from_a_webhook(with_webhook):
    async with with_webhook() as (opened, webhook), agent(opened) as client:
        await publish(opened, event(1))
        await received(client, 1)
        assert await webhook.posts(now=FALLBACK_SECONDS - 1) == []
        assert await webhook.posts(now=FALLBACK_SECONDS) == ["e1"]


async def test_what_a_client_missed_in_a_gap_is_posted_whatever_it_acknowledges_after_it(with_webhook):
    async with with_webhook(replay=ReplayConfig(max_events_per_account=2)) as (opened, webhook):
        async with agent(opened):
            pass
        cursors = await publish(opened, *map(event, range(1, 5)))
        async with agent(opened) as client:
            if not client.ready["replay"]["recovered"]:
                await client.receive()
            told = client.ready["replay"]["count"]
            await received(client, told)
            assert (await client.ask("ack", {"cursor": cursors[-1]}))["claimed"] == []
        assert await webhook.posts() == [f"e{number}" for number in range(1, 5 - told)]


async def test_what_a_full_disk_did_not_take_is_not_told_and_the_next_cursor_takes_it_along(with_webhook):
    async with with_webhook() as (opened, webhook), agent(opened) as client:
        cursors = await publish(opened, event(1), event(2))
        await received(client, 2)
        storage = opened._disk.storage
        await storage.write(limited(1))
        gate = Gate(storage)
        await client.send({"action": "ack", "request_id": "r", "cursor": cursors[0]})
        await wait_all_tasks_blocked()
        storage.begin_write(lambda c: c.execute("CREATE TABLE x AS SELECT zeroblob(1000000)"), lambda _: None)
        gate.open()
        assert (await client.receive())["error"]["code"] == "unavailable"
        await storage.write(limited(1_000_000))
        await client.ask("ack", {"cursor": cursors[1]})
        assert await webhook.posts() == []
        assert await webhook.states() == {"e1": "acked", "e2": "acked"}


async def test_raced_a_thousand_times_nothing_that_was_told_acked_is_posted_and_nothing_else_is_dropped(with_webhook):
    count, chance = 1_000, random.Random(11)
    posts = dict.fromkeys((f"e{number}" for number in range(count)), 0)
    told, claimed = {}, set()
    """By event: how often it had been posted when its client was told that it is acked."""

    async def post(webhook):
        while True:
            begun = await webhook.begin(most=chance.randint(1, 8))
            for letter in begun:
                posts[letter.event.event_id] += 1
                await webhook.end(letter, TAKEN if chance.random() < 0.5 else FAILED)
            if not begun and "waiting" not in (await webhook.states()).values():
                return

    async def acknowledge(client):
        asked = {}
        left = chance.sample(sorted(posts), count)
        while left or asked:
            while left and len(asked) < 16:
                event_id = left.pop()
                if not event_id.endswith("7"):  # these are never acknowledged
                    asked[event_id] = None
                    await client.send({"action": "ack", "request_id": event_id, "event_ids": [event_id]})
            if asked:
                answer = await client.receive()
                event_id = answer["request_id"]
                del asked[event_id]
                if answer["result"]["claimed"]:
                    claimed.add(event_id)
                else:
                    told[event_id] = posts[event_id]

    async with with_webhook() as (opened, webhook), agent(opened) as client:
        await publish(opened, *map(event, range(count)))
        await received(client, count)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, webhook)
            nursery.start_soon(acknowledge, client)
        states = await webhook.states()
    assert states.keys() == posts.keys()
    assert set(states.values()) == {"acked", "delivered"}
    assert len(told) > 5
    assert len(claimed) > 5
    for event_id, state in states.items():
        if event_id in told:
            assert (state, posts[event_id]) == ("acked", told[event_id]), "posted after it was told to be acked"
        if event_id.endswith("7"):
            assert state == "delivered", "dropped, though nobody acknowledged it"


async def test_a_refusal_of_the_disk_is_a_refusal_for_a_subscriber_in_the_program_too(with_webhook):
    async with with_webhook() as (opened, _), opened.subscribe(ACCOUNT, client_id="agent", since="acked") as events:
        await publish(opened, event(1))
        await anext(events)
        await opened._disk.storage.write(limited(1))
        gate = Gate(opened._disk.storage)

        async def acknowledge():
            with pytest.raises(RequestError) as refused:
                await events.ack()
            assert refused.value.code == "unavailable"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(acknowledge)
            await wait_all_tasks_blocked()
            opened._disk.storage.begin_write(
                lambda c: c.execute("CREATE TABLE x AS SELECT zeroblob(1000000)"), lambda _: None
            )
            gate.open()


async def test_after_a_kill_what_was_told_to_be_acked_is_not_posted_and_all_else_is(tmp_path):
    settings = tmp_path / "broker.toml"
    settings.write_text(KILLED.format(path=tmp_path / "broker.db", sha256=hash_key(PROCESS_KEY)))
    ids = [f"e{number}" for number in range(40)]
    to_ack = ids[::2]
    told = set()
    async with receiving() as receiver:
        with serving("--config", settings) as (process, url):
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            endpoint = {"url": receiver.url, "webhook_id": "wh", "mode": "fallback", "client_ids": ["agent"]}
            body = json.dumps(endpoint | {"fallback_seconds": 2}).encode()
            assert (await ask(address, "POST", "/v1/webhooks", body=body, key=PROCESS_KEY)).status == 200
            async with connected(address, "inbox_ids=*&client_id=agent", key=PROCESS_KEY) as client:
                await client.say(action="publish", request_id="p", events=[event(event_id[1:]) for event_id in ids])
                await client.answer("p")
                for event_id in to_ack:
                    await client.say(action="ack", request_id=event_id, event_ids=[event_id])
                while len(told) < len(to_ack) // 2:
                    frame = await client.next()
                    if frame.get("request_id") in to_ack and not frame["result"]["claimed"]:
                        told.add(frame["request_id"])
                process.kill()
                process.wait()
        with serving("--config", settings) as (_, url):
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            with trio.fail_after(60):
                while not set(ids) - set(to_ack) <= set(receiver.ids):
                    await receiver.received(len(receiver.requests) + 1)
            query = "/v1/webhooks/wh/deliveries?limit=100"
            deliveries = (await ask(address, "GET", query, key=PROCESS_KEY)).result["deliveries"]
    states = {delivery["event_id"]: delivery["state"] for delivery in deliveries}
    assert states.keys() == set(ids)
    assert {states[event_id] for event_id in told} == {"acked"}
    assert not told & set(receiver.ids)
