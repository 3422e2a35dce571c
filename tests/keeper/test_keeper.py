"""The keeper of a cluster: what is published at any node is posted and leased there, and what is lost is told."""

import json
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    ask,
    broker_log,
    config_of,
    configured_key,
    connected,
    post_events,
    serving,
    until,
)
from receivers import OK, answering, receiving
from valkeys import server

from broker import AccountConfig
from broker.cli.picture import Picture, contact_words
from broker.config import (
    AccountQueueConfig,
    AccountWebhookConfig,
    EngineConfig,
    ReplayConfig,
    StorageConfig,
    WebhooksConfig,
)
from broker.fanout.handed import LIST
from broker.webhooks.signing import secret_of

SECRET = secret_of(bytes(range(32)))
SCOPES = ("subscribe", "publish", "command", "webhooks")
LOOPBACK = WebhooksConfig(allow_networks=("127.0.0.0/8",), allow_http=True)
QUEUES = (AccountQueueConfig(id="support", order="none"),)
KEEPER = "{daimon}keeper:"
GUARD_SECONDS = 60


@pytest.fixture(scope="module")
def engine():
    with server() as running:
        yield running


@pytest.fixture(autouse=True)
def emptied(engine):
    engine.command("FLUSHALL")
    engine.command("SET", KEEPER, "")  # there was a keeper before: who comes need not wait until all nodes know of one


def config(engine, path=None, *, seconds=300, webhooks=(), queues=()):
    alice = AccountConfig(
        id=ACCOUNT, tier="enterprise", keys=(configured_key(ALICE, scopes=SCOPES),), webhooks=webhooks, queues=queues
    )
    storage = StorageConfig(path=None if path is None else str(path), synchronous="normal", min_free_bytes=0)
    shared = EngineConfig(url=engine.url)
    return config_of(alice, engine=shared, storage=storage, webhooks=LOOPBACK, replay=ReplayConfig(seconds=seconds))


def hook(receiver, **fields):
    return AccountWebhookConfig(id="wh", url=receiver.url, secret=SECRET, **fields)


class Site:
    """A node as its clients have it."""

    def __init__(self, served, engine):
        self.engine = engine
        self.broker = served.broker
        self.address = served.address

    async def publish(self, *names, kind="message.received"):
        events = [{"type": kind, "inbox_id": "in_1", "event_id": name, "payload": {"n": name}} for name in names]
        answer = await post_events(self.address, events)
        assert answer.status == 200, answer.body
        return [each["cursor"] for each in answer.result["events"]]

    async def ask(self, method, path, body=None):
        return await ask(
            self.address, method, f"/v1/{path}", key=ALICE, body=None if body is None else json.dumps(body).encode()
        )

    async def command(self, action, **params):
        answer = await self.ask("POST", "commands", {"action": action, "params": params})
        return answer.json.get("result") or answer.json["error"]

    async def lease(self, count, queue_id="support"):
        """So many leases, which are acknowledged."""
        found = []
        while len(found) < count:
            result = await self.command("lease", queue_id=queue_id, max=count - len(found), wait_seconds=5)
            found += result.get("leases", [])
        ids = [lease["lease_id"] for lease in found]
        assert (await self.command("ack", lease_ids=ids))["lost"] == []
        return [lease["event"]["event_id"] for lease in found]

    async def keeps(self):
        """Wait until this node is the keeper, and follows."""
        await until(lambda: self.broker.statistics().keeper.held and self.cursors())

    async def leave(self):
        """Let another be the keeper."""
        self.broker.start_draining()
        await until(lambda: self.engine.command("GET", KEEPER) == "")

    def cursors(self):
        return [each.cursor for each in self.broker.keeping._keeper.following._accounts.values() if each.cursor]


@asynccontextmanager
async def node(*args, **fields):
    with trio.fail_after(GUARD_SECONDS):
        async with serving(config(*args, **fields)) as served:
            yield Site(served, args[0])


async def test_what_is_published_at_any_node_is_posted_by_the_keeper(engine, tmp_path):
    async with receiving() as receiver:
        webhooks = (hook(receiver),)
        async with node(engine, webhooks=webhooks) as site, node(engine, tmp_path / "db", webhooks=webhooks) as keeper:
            await keeper.keeps()
            [cursor] = await site.publish("e1")
            await receiver.received(1)
            [request] = receiver.requests
            request.verify(SECRET)
            posted = json.loads(request.body)
            assert (posted["event_id"], posted["cursor"], posted["payload"]) == ("e1", cursor, {"n": "e1"})
            await keeper.publish("e2")
            await receiver.received(2)
            assert keeper.broker.statistics().keeper.events == 2


async def test_an_endpoint_that_is_made_gets_what_is_published_at_another_node_from_its_answer_on(engine, tmp_path):
    async with receiving() as receiver, node(engine) as site, node(engine, tmp_path / "db") as keeper:
        await site.publish("before")
        while (answer := await keeper.ask("POST", "webhooks", {"url": receiver.url})).status != 200:
            assert answer.code == "unavailable"
        await site.publish("after")
        await receiver.received(1)
        assert receiver.ids == ["after"]


async def test_queues_give_what_was_published_at_any_node(engine, tmp_path):
    async with node(engine, queues=QUEUES) as site, node(engine, tmp_path / "db", queues=QUEUES) as keeper:
        await keeper.keeps()
        await site.publish("e1", "e2", "e3")
        assert sorted(await keeper.lease(3)) == ["e1", "e2", "e3"]


async def test_a_file_that_was_a_log_before_is_taken_over_with_what_it_owes(engine, tmp_path):
    async with receiving() as receiver:
        receiver.answer = answering(500)
        settings = config(engine, tmp_path / "db", webhooks=(hook(receiver),), queues=QUEUES)
        alone = msgspec.structs.replace(settings, engine=EngineConfig())
        async with serving(alone) as served:
            await Site(served, engine).publish("e1")
            await receiver.received(1)
        receiver.answer = OK
        async with serving(settings) as served:
            keeper = Site(served, engine)
            await keeper.keeps()
            await keeper.publish("e2")
            await receiver.received(3)
            assert sorted(receiver.ids) == ["e1", "e1", "e2"]
            assert sorted(await keeper.lease(2)) == ["e1", "e2"]


async def test_a_node_without_a_log_on_disk_says_who_has_webhooks_and_queues(engine):
    async with node(engine) as site:
        for path, what in (("webhooks", "Webhooks"), ("queues", "Queues")):
            answer = await site.ask("GET", path)
            assert (answer.status, answer.code) == (503, "unavailable")
            assert answer.message.startswith(f"{what} need a log on disk (storage.path), and this broker has none")
        refused = await site.command("lease", queue_id="support")
        assert refused["code"] == "unavailable"

        @site.broker.command("work")
        async def work(params: dict, context) -> dict:
            return {}

        fenced = {"action": "work", "inbox_id": "in_1", "lease_id": "lse_1_1_x", "params": {}}
        assert (await site.ask("POST", "commands", fenced)).code == "unavailable"


async def test_a_keeper_that_comes_back_posts_what_was_published_while_it_was_away(engine, tmp_path):
    async with receiving() as receiver:
        webhooks, path = (hook(receiver),), tmp_path / "db"
        async with node(engine, webhooks=webhooks, queues=QUEUES) as site:
            async with node(engine, path, webhooks=webhooks, queues=QUEUES) as keeper:
                await keeper.keeps()
                await site.publish("e1")
                await receiver.received(1)
                await keeper.leave()
            await site.publish("e2", "e3")
            async with node(engine, path, webhooks=webhooks, queues=QUEUES) as keeper:
                await receiver.received(3)
                assert sorted(receiver.ids) == ["e1", "e2", "e3"]
                assert sorted(await keeper.lease(3)) == ["e1", "e2", "e3"]
                assert keeper.broker.statistics().keeper.gaps == 0


async def test_what_left_the_window_while_the_keeper_was_away_is_told(engine, tmp_path, caplog):
    fields = {"seconds": 1, "queues": QUEUES}
    async with receiving() as receiver, node(engine, seconds=1) as site:
        fields["webhooks"] = (hook(receiver),)
        async with node(engine, tmp_path / "db", **fields) as keeper:
            await keeper.keeps()
            [before] = await site.publish("e1")
            await receiver.received(1)
            await until_written(keeper, before)
            await keeper.leave()
        await site.publish("lost1", "lost2")
        await trio.sleep(1.2)
        async with connected(site.address, "inbox_ids=*") as client, node(engine, tmp_path / "db", **fields) as keeper:
            gaps = [await client.next_event(), await client.next_event()]
            await site.publish("e2")
            await receiver.received(4)
            assert keeper.broker.statistics().keeper.missed == 2
    assert [gap["type"] for gap in gaps] == ["webhook.gap", "queue.gap"]
    assert [gap["payload"]["count"] for gap in gaps] == [2, 2]
    assert gaps[0]["payload"]["from"] == before
    assert set(receiver.ids) == {"e1", "e2", *(gap["event_id"] for gap in gaps)}
    assert "were lost to its webhooks and queues: 2" in broker_log(caplog)


async def until_written(keeper, cursor):
    await until(lambda: keeper.cursors() == [cursor])


def empty(engine):
    engine.command("FLUSHALL")


def restart(engine):
    engine.restart()


@pytest.mark.parametrize("lose", [empty, restart])
async def test_another_history_of_the_engine_is_a_gap_and_what_comes_then_is_posted_once(engine, tmp_path, lose):
    async with receiving() as receiver:
        webhooks = (hook(receiver, event_types=("message.received", "webhook.gap")),)
        async with node(engine) as site, node(engine, tmp_path / "db", webhooks=webhooks) as keeper:
            await keeper.keeps()
            await site.publish("e1")
            await receiver.received(1)
            for times in (1, 2):
                lose(engine)
                names = ["e1", *(f"new{number}" for number in range(times))]
                while True:  # the same event again, in the new history, and one more
                    answer = await post_events(site.address, [event(name) for name in names])
                    if answer.status == 200:
                        break
                await receiver.received(1 + 2 * times)
                posted = [json.loads(request.body) for request in receiver.requests]
                gaps = [each for each in posted if each["type"] == "webhook.gap"]
                assert [gap["payload"]["count"] for gap in gaps] == [None] * times
                assert len({gap["event_id"] for gap in gaps}) == times
                assert sorted(each["event_id"] for each in posted if each not in gaps) == names


async def test_a_keeper_begins_without_its_engine_and_posts_when_that_is_there(engine, tmp_path):
    async with receiving() as receiver:
        engine.kill()
        async with node(engine, tmp_path / "db", webhooks=(hook(receiver),)) as keeper:
            assert (await keeper.ask("POST", "queues", {"queue_id": "mine"})).code == "unavailable"
            engine.start()
            await keeper.keeps()
            await keeper.publish("e1")
            await receiver.received(1)
            assert receiver.ids == ["e1"]


@asynccontextmanager
async def no_room_at(keeper):
    """The keeper takes nothing in while the block lasts: its disk is short of room."""
    writer = keeper.broker._disk.storage._writer
    least, writer._min_free_bytes = writer._min_free_bytes, 1 << 62
    await until(lambda: keeper.broker.statistics().storage.short_of_room)
    yield
    writer._min_free_bytes = least


async def test_what_waits_at_the_disk_is_taken_in_when_there_is_room_again(engine, tmp_path):
    async with receiving() as receiver, node(engine, tmp_path / "db", webhooks=(hook(receiver),)) as keeper:
        await keeper.keeps()
        async with no_room_at(keeper), connected(keeper.address, "inbox_ids=*") as client:
            await keeper.publish("e1")
            await client.next_event()
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert keeper.broker.statistics().keeper.events == 0
        await receiver.received(1)
        assert keeper.broker.statistics().keeper.events == 1


def event(name):
    return {"type": "message.received", "inbox_id": "in_1", "event_id": name, "payload": {}}


async def test_of_two_nodes_with_a_log_on_disk_one_stands_by_until_the_other_is_gone(engine, tmp_path):
    async with receiving() as receiver:
        webhooks = (hook(receiver),)
        async with node(engine, tmp_path / "second", webhooks=webhooks, queues=QUEUES) as second:
            await second.keeps()
            async with node(engine, tmp_path / "first", webhooks=webhooks, queues=QUEUES) as first:
                await until(lambda: first.broker.keeping._keeper.lease.is_others)
                made = await first.ask("POST", "queues", {"queue_id": "mine"})
                assert (made.code, made.message) == ("unavailable", OTHERS)
                assert (await first.command("lease", queue_id="support"))["message"] == OTHERS
                await first.publish("e1")
                await receiver.received(1)
                assert "not the keeper of webhooks and queues" in await seen(first)
                assert "serving, keeper of webhooks and queues" in await seen(second)
                second.broker.start_draining()
                await first.keeps()
                await first.publish("e2")
                await receiver.received(2)
                assert receiver.ids == ["e1", "e2"]
                assert (await first.ask("POST", "queues", {"queue_id": "mine"})).status == 200


async def test_who_has_lost_the_lease_keeps_nothing(engine, tmp_path):
    async with (
        receiving() as receiver,
        receiving() as others,
        node(engine, tmp_path / "first", webhooks=(hook(receiver),)) as first,
    ):
        await first.keeps()
        async with node(engine, tmp_path / "second", webhooks=(hook(others),)) as second:
            await until(lambda: second.broker.keeping._keeper.lease.is_others)
            engine.command("SET", KEEPER, second.broker._joined.wire.node)
            await until(lambda: not first.broker.statistics().keeper.held)
            await second.keeps()
            await first.publish("e1")
            await others.received(1)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert (receiver.ids, others.ids) == ([], ["e1"])


async def seen(site):
    """What `broker top` says of a node."""
    picture = Picture("here")
    picture.take(await site.broker.live.own())
    return contact_words(picture)


OTHERS = "Another node of this cluster keeps its webhooks and queues"


WAITS = {"mode": "fallback", "client_ids": ("agent",), "fallback_seconds": 0.5}
AGENT = "inbox_ids=*&client_id=agent"


async def settled(keeper):
    """Wait until the keeper knows what clients have acknowledged."""
    await keeper.keeps()
    await until(lambda: keeper.broker.keeping._keeper.is_settled(ACCOUNT))


async def say(client, action, **params):
    """The result of a command."""
    await client.say(action=action, request_id="r", params=params)
    answer = await client.answer("r")
    assert "error" not in answer, answer
    return answer["result"]


async def test_what_a_client_acknowledges_at_any_node_is_not_posted(engine, tmp_path):
    async with receiving() as receiver:
        webhooks = (hook(receiver, **WAITS),)
        async with node(engine) as site, node(engine, tmp_path / "db", webhooks=webhooks) as keeper:
            await settled(keeper)
            async with connected(site.address, AGENT) as there, connected(keeper.address, AGENT + "2") as here:
                await keeper.publish("e1")
                cursor = (await there.next_event())["cursor"]
                assert (await say(there, "ack", cursor=cursor))["claimed"] == []
                await keeper.publish("e2", "e3")
                await there.next_event()
                assert (await say(there, "ack", event_ids=["e2"]))["claimed"] == []
                cursor = (await here.next_event())["cursor"]
                await say(here, "ack", cursor=cursor)
            await receiver.received(1)
            await site.publish("e4")
            await receiver.received(2)
            assert receiver.ids == ["e3", "e4"]
            taken = keeper.broker._joined.wire.key(LIST, ACCOUNT)
            await until(lambda: engine.command("LLEN", taken) == 0)


async def test_who_acknowledges_too_late_is_told_what_the_keeper_had_begun_with(engine, tmp_path):
    async with receiving() as receiver:
        webhooks = (hook(receiver, **(WAITS | {"fallback_seconds": 0})),)
        async with node(engine) as site, node(engine, tmp_path / "db", webhooks=webhooks) as keeper:
            await settled(keeper)
            async with connected(site.address, AGENT) as client:
                await site.publish("e1")
                cursor = (await client.next_event())["cursor"]
                await receiver.received(1)
                assert (await say(client, "ack", cursor=cursor))["claimed"] == ["e1"]


async def test_what_is_acknowledged_while_the_keeper_is_away_is_not_posted_when_it_is_back(engine, tmp_path):
    async with receiving() as receiver:
        fields = {"webhooks": (hook(receiver, **WAITS),)}
        async with node(engine) as site, connected(site.address, AGENT) as client:
            async with node(engine, tmp_path / "db", **fields) as keeper:
                await settled(keeper)
                [cursor] = await site.publish("e1")
                await until_written(keeper, cursor)
                await keeper.leave()
            await site.publish("e2", "e3")
            await client.next_event()
            cursor = (await client.next_event())["cursor"]
            assert (await say(client, "ack", cursor=cursor))["claimed"] == []
            fields = {"webhooks": (hook(receiver, **(WAITS | {"fallback_seconds": 0})),)}
            async with node(engine, tmp_path / "db", **fields) as keeper:
                await settled(keeper)
                await site.publish("e4")
                await receiver.received(2)
                assert receiver.ids == ["e3", "e4"]


async def test_what_is_acknowledged_before_the_keeper_has_it_is_not_posted(engine, tmp_path):
    async with receiving() as receiver:
        webhooks = (hook(receiver, **WAITS),)
        async with node(engine) as site, node(engine, tmp_path / "db", webhooks=webhooks) as keeper:
            await settled(keeper)
            async with connected(site.address, AGENT) as client:
                async with no_room_at(keeper):
                    await site.publish("e1")
                    cursor = (await client.next_event())["cursor"]
                    await client.say(action="ack", request_id="late", params={"cursor": cursor})
                    assert (await client.answer("late"))["error"]["code"] == "unavailable"
                await site.publish("e2")
                await receiver.received(1)
                assert receiver.ids == ["e2"]
                assert (await say(client, "ack", event_ids=["e1", "e2"]))["claimed"] == ["e2"]


async def test_all_nodes_know_of_the_first_keeper_before_it_takes_anything_in(engine, tmp_path):
    engine.command("DEL", KEEPER)
    async with receiving() as receiver, node(engine) as site, connected(site.address, AGENT) as client:
        handing = site.broker._joined.handing
        assert (await say(client, "ack", event_ids=["e0"]))["claimed"] == []
        assert not handing.waits_for(client)
        async with node(engine, tmp_path / "db", webhooks=(hook(receiver, **WAITS),)) as keeper:
            while not keeper.broker.statistics().keeper.held:
                await say(client, "ack", event_ids=["e0"])
            assert handing.waits_for(client)
            await settled(keeper)
            await site.publish("e1", "e2")
            await client.next_event()
            assert (await say(client, "ack", event_ids=["e1"]))["claimed"] == []
            await receiver.received(1)
            assert receiver.ids == ["e2"]


async def test_a_client_holds_an_event_at_any_node(engine, tmp_path):
    async with receiving() as receiver:
        webhooks = (hook(receiver, **WAITS),)
        async with node(engine) as site, node(engine, tmp_path / "db", webhooks=webhooks) as keeper:
            await settled(keeper)
            async with connected(site.address, AGENT) as client:
                await site.publish("e1", "e2")
                await client.next_event()
                for event_id, seconds in (("e1", 60), ("e2", 1)):
                    assert (await say(client, "hold", event_ids=[event_id], seconds=seconds))["claimed"] == []
                await receiver.received(1)
                await say(client, "ack", event_ids=["e1"])
                await site.publish("e3")
                await receiver.received(2)
                assert receiver.ids == ["e2", "e3"]


async def test_who_needs_an_account_no_longer_does_not_follow_it(engine, tmp_path):
    async with receiving() as receiver, node(engine, tmp_path / "db") as keeper:
        while (answer := await keeper.ask("POST", "webhooks", {"url": receiver.url})).status != 200:
            pass
        assert keeper.broker.statistics().keeper.accounts == 1
        await keeper.publish("e1")
        await receiver.received(1)
        await keeper.ask("DELETE", f"webhooks/{answer.result['webhook_id']}")
        assert keeper.broker.statistics().keeper.accounts == 0
        await until(lambda: keeper.broker.statistics().hub.live == 0)


async def test_it_is_written_down_how_far_an_account_was_where_nothing_was_for_anybody(engine, tmp_path):
    async with receiving() as receiver:
        webhooks = (hook(receiver, event_types=("message.received",)),)
        async with node(engine, tmp_path / "db", webhooks=webhooks) as keeper:
            await keeper.keeps()
            [cursor] = await keeper.publish("e1", kind="message.sent")
            await until_written(keeper, cursor)


async def test_an_endpoint_that_is_made_again_gets_nothing_of_what_came_meanwhile(engine, tmp_path):
    async with receiving() as receiver, node(engine) as site:
        for number, name in ((1, "e1"), (2, "e2")):
            async with node(engine, tmp_path / "db") as keeper:
                while (answer := await keeper.ask("POST", "webhooks", {"url": receiver.url})).status != 200:
                    pass
                await site.publish(name)
                await receiver.received(number)
                await keeper.ask("DELETE", f"webhooks/{answer.result['webhook_id']}")
                await keeper.leave()
            await site.publish(f"after_{name}")
        assert receiver.ids == ["e1", "e2"]
