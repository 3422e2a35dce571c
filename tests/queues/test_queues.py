"""Queues as accounts and their workers meet them: over a socket, by a request, over a restart."""

import json
import time
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256

import httpx
import pytest
import trio
from clients import until
from commanding import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    LISTENER,
    OPERATOR,
    Caller,
    configured,
    connected,
    post,
    serving,
)

from broker import AccountConfig, Config, KeyConfig, open_broker
from broker.config import AccountQueueConfig, StorageConfig
from broker.errors import ConfigError
from broker.queues.queue import MAX_QUEUES
from broker.queues.queues import require_storage_for_queues

CLERK, INBOX_CLERK = "dm_live_clerk", "dm_live_inbox_clerk"
"""Keys with the scope `webhooks`: of the whole account, and of in_1 and in_2."""


def stored(path, *queues, account=ACCOUNT):
    config = configured(storage=StorageConfig(path=str(path / "broker.db"), synchronous="normal"))
    clerks = tuple(
        KeyConfig(
            id=name, sha256=sha256(name.encode()).hexdigest(), scopes=("webhooks", "subscribe"), inbox_ids=inboxes
        )
        for name, inboxes in ((CLERK, None), (INBOX_CLERK, ("in_1", "in_2")))
    )
    alice, bob = config.accounts
    alice = AccountConfig(id=ACCOUNT, keys=alice.keys + clerks, queues=queues)
    return Config(accounts=(alice, bob), operators=config.operators, storage=config.storage)


def mail(number, thread="t", inbox="in_1"):
    payload = {"message": {"thread_id": thread, "subject": f"Mail {number}"}}
    return {"type": "message.received", "inbox_id": inbox, "event_id": f"evt_{number}", "payload": payload}


@asynccontextmanager
async def working(tmp_path, *queues):
    """A broker with a log on disk, its address, and who asks its queues' routes."""
    async with open_broker(stored(tmp_path, *queues)) as opened, serving(opened) as address:
        yield opened, address


async def ask(address, method, path="", body=None, key=CLERK):
    content = None if body is None else json.dumps(body).encode()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        url = f"http://{address}/v1/queues{path}"
        return await client.request(method, url, content=content, headers={"Authorization": f"Bearer {key}"})


def told(answer):
    return answer.json()["error"]["code"] if "error" in answer.json() else answer.json()["result"]


def events_of(result):
    return [lease["event"]["event_id"] for lease in result["leases"]]


def ids_of(result):
    return [lease["lease_id"] for lease in result["leases"]]


SUPPORT = AccountQueueConfig(id="support")


async def test_a_worker_takes_an_event_and_says_that_it_is_done(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        [published] = await opened.publish(ACCOUNT, mail(1))
        leased = await client.ask("lease", "l1", queue_id="support")
        [lease] = leased["leases"]
        assert (lease["event"]["event_id"], lease["event"]["cursor"]) == ("evt_1", published.cursor)
        assert lease["event"]["payload"]["message"]["subject"] == "Mail 1"
        assert (lease["attempt"], leased["waiting"]) == (1, 0)
        assert await client.ask("ack", "a1", lease_ids=[lease["lease_id"]]) == {"acked": 1, "lost": []}
        assert await client.ask("ack", "a2", lease_ids=[lease["lease_id"]]) == {"acked": 0, "lost": [lease["lease_id"]]}
        assert await client.ask("lease", "l2", queue_id="support") == {"leases": [], "waiting": 0}


async def test_a_worker_that_waits_gets_an_event_when_it_comes_and_nothing_when_the_time_is_over(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        await client.say("lease", "l1", queue_id="support", wait_seconds=20)
        assert await client.ask("ping", "p")
        await opened.publish(ACCOUNT, mail(1))
        assert events_of((await client.answer("l1"))["result"]) == ["evt_1"]
        assert events_of(await client.ask("lease", "l2", queue_id="support", wait_seconds=0.05)) == []


async def test_two_workers_never_have_one_event_and_a_thread_waits_for_its_first(tmp_path):
    async with (
        working(tmp_path, SUPPORT) as (opened, address),
        connected(address) as one,
        connected(address) as other,
    ):
        await opened.publish(ACCOUNT, [mail(1, "a"), mail(2, "a"), mail(3, "b")])
        first = await one.ask("lease", "l1", queue_id="support", max=10)
        assert events_of(first) == ["evt_1", "evt_3"]
        await other.say("lease", "l2", queue_id="support", wait_seconds=20)
        await one.ask("ack", "a1", lease_ids=ids_of(first)[:1])
        assert events_of((await other.answer("l2"))["result"]) == ["evt_2"]


async def test_a_lease_that_was_not_acknowledged_in_time_comes_again_and_is_dead_in_the_end(tmp_path):
    queue = AccountQueueConfig(id="support", lease_seconds=1, max_attempts=2)
    async with working(tmp_path, queue) as (opened, address), connected(address, query="?inbox_ids=*") as client:
        await opened.publish(ACCOUNT, mail(1))
        first = await client.ask("lease", "l1", queue_id="support", wait_seconds=5)
        second = await client.ask("lease", "l2", queue_id="support", wait_seconds=5)
        assert [lease["attempt"] for lease in first["leases"] + second["leases"]] == [1, 2]
        assert (await client.ask("ack", "a1", lease_ids=ids_of(first)))["lost"] == ids_of(first)
        assert events_of(await client.ask("lease", "l3", queue_id="support", wait_seconds=2)) == []
        [dead] = [frame for frame in client.frames if frame["type"] == "queue.dead"]
        assert dead["payload"] == {"queue_id": "support", "event_ids": ["evt_1"], "count": 1}
        [delivery] = told(await ask(address, "GET", "/support/deliveries?state=dead"))["deliveries"]
        assert (delivery["event_id"], delivery["attempts"], delivery["last"]["reason"]) == ("evt_1", 2, "expired")


async def told_dead(client):
    """Hear frames until an event is told to be dead."""
    while (frame := await client.hear())["type"] != "queue.dead":
        pass
    return frame


@pytest.mark.parametrize("held", [False, True])
async def test_a_last_lease_that_is_over_is_told_at_once_though_nobody_waits(tmp_path, held, monkeypatch):
    monkeypatch.setattr("broker.queues.queues.KEEP_HOUSE_SECONDS", 600)  # by itself it would be looked at then
    queue = AccountQueueConfig(id="support", lease_seconds=60 if held else 1, max_attempts=1)
    async with working(tmp_path, queue) as (opened, address), connected(address, query="?inbox_ids=*") as client:
        await opened.publish(ACCOUNT, [mail(1, "a"), mail(2, "b")])
        first = await client.ask("lease", "l1", queue_id="support")
        other = await client.ask("lease", "l2", queue_id="support", seconds=60)
        if held:
            await client.ask("hold", "h1", lease_ids=ids_of(first), seconds=1)
        with trio.fail_after(60):
            dead = await told_dead(client)
        assert dead["payload"] == {"queue_id": "support", "event_ids": ["evt_1"], "count": 1}
        [delivery] = told(await ask(address, "GET", "/support/deliveries?state=leased"))["deliveries"]
        assert delivery["event_id"] == "evt_2"
        await client.ask("hold", "h2", lease_ids=ids_of(other), seconds=1)
        with trio.fail_after(60):
            assert (await told_dead(client))["payload"]["event_ids"] == ["evt_2"]


async def test_what_is_given_back_comes_when_that_is_said_and_its_reason_is_kept(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        await opened.publish(ACCOUNT, mail(1))
        leases = ids_of(await client.ask("lease", "l1", queue_id="support"))
        assert await client.ask("nack", "n1", lease_ids=leases, reason="not now") == {"nacked": 1, "lost": []}
        assert events_of(await client.ask("lease", "l2", queue_id="support")) == []
        [delivery] = told(await ask(address, "GET", "/support/deliveries"))["deliveries"]
        assert (delivery["state"], delivery["last"]["reason"]) == ("waiting", "not now")
        await opened.publish(ACCOUNT, mail(2, "other"))
        leases = ids_of(await client.ask("lease", "l3", queue_id="support"))
        await client.ask("nack", "n2", lease_ids=leases, retry_after_ms=0)
        assert events_of(await client.ask("lease", "l4", queue_id="support")) == ["evt_2"]


async def test_a_lease_that_is_held_lasts_longer(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        await opened.publish(ACCOUNT, mail(1))
        leased = await client.ask("lease", "l1", queue_id="support", seconds=30)
        held = await client.ask("hold", "h1", lease_ids=ids_of(leased), seconds=600)
        assert (held["held"], held["lost"]) == (1, [])
        assert held["expires_at"] > leased["leases"][0]["expires_at"]
        [delivery] = told(await ask(address, "GET", "/support/deliveries?state=leased"))["deliveries"]
        assert delivery["expires_at"] == held["expires_at"]
        assert (await client.ask("ack", "a1", lease_ids=ids_of(leased)))["acked"] == 1
        assert (await client.ask("hold", "h2", lease_ids=ids_of(leased), seconds=600))["lost"] == ids_of(leased)


@pytest.mark.parametrize(("code", "again"), [(1000, 1), (1001, 1), (4000, 0)])
async def test_who_closes_for_good_leaves_its_events_to_others_at_once_and_no_attempt_is_counted(tmp_path, code, again):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as other:
        await opened.publish(ACCOUNT, mail(1))
        async with connected(address) as client:
            await client.ask("lease", "l1", queue_id="support")
            await client.websocket.aclose(code)
        wait_seconds = 20 if again else 0.1
        leased = await other.ask("lease", "l2", queue_id="support", wait_seconds=wait_seconds)
        assert [lease["attempt"] for lease in leased["leases"]] == [1] * again


async def test_what_a_worker_has_said_before_it_closed_is_so(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as other:
        await opened.publish(ACCOUNT, [mail(1, "a"), mail(2, "b")])
        async with connected(address) as client:
            first, second = ids_of(await client.ask("lease", "l1", queue_id="support", max=2))
            opened.webhooks.outbox.storage.begin_write(lambda _: time.sleep(0.2), lambda _: None)
            await client.say("ack", "a1", lease_ids=[first])
            await client.say("nack", "n1", lease_ids=[second], dead=True)
            await client.websocket.aclose(1000)
        assert events_of(await other.ask("lease", "l2", queue_id="support", wait_seconds=0.2)) == []
        deliveries = told(await ask(address, "GET", "/support/deliveries"))["deliveries"]
        assert [each["state"] for each in deliveries] == ["dead", "acked"]


async def test_a_worker_that_comes_back_goes_on_with_its_leases(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address):
        await opened.publish(ACCOUNT, mail(1))
        async with connected(address) as client:
            leases = ids_of(await client.ask("lease", "l1", queue_id="support"))
            await client.websocket.aclose(4000)
        async with connected(address) as client:
            assert (await client.ask("ack", "a1", lease_ids=leases))["acked"] == 1


async def test_who_leaves_while_it_waits_is_given_nothing(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as other:
        async with connected(address) as client:
            await client.say("lease", "l1", queue_id="support", wait_seconds=30)
            assert await client.ask("ping", "p")
        await opened.publish(ACCOUNT, mail(1))
        assert events_of(await other.ask("lease", "l2", queue_id="support", wait_seconds=20)) == ["evt_1"]
        assert opened.queues.giving.waiters() == 0


async def test_leases_stand_over_a_restart_and_what_waits_waits(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        await opened.publish(ACCOUNT, [mail(1, "a"), mail(2, "b"), mail(3, "a")])
        leased = await client.ask("lease", "l1", queue_id="support", seconds=1)
        await client.websocket.aclose(4000)
    await trio.sleep(1.1)
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        assert events_of(await client.ask("lease", "l1", queue_id="support", max=9)) == ["evt_2"]
        assert opened.queues.giving.is_current(ACCOUNT, ids_of(leased)[0])
        assert (await client.ask("ack", "a1", lease_ids=ids_of(leased)))["acked"] == 1
        assert events_of(await client.ask("lease", "l2", queue_id="support", max=9)) == ["evt_3"]


# --- the fence


async def test_a_command_by_a_lease_that_is_over_is_not_done(tmp_path):
    done = []
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:

        @opened.command("send_email")
        async def send_email(params, context):
            done.append(params)
            return {"sent": True}

        await opened.publish(ACCOUNT, mail(1))
        [lease_id] = ids_of(await client.ask("lease", "l1", queue_id="support"))
        reply = partial(client.ask, "send_email", inbox_id="in_1", lease_id=lease_id)
        assert await reply("s1", once="evt_1") == {"sent": True}
        assert done == [{}]
        await client.ask("ack", "a1", lease_ids=[lease_id])
        assert (await reply("s2", once="other"))["code"] == "lease_lost"
        assert await reply("s3", once="evt_1") == {"sent": True}
        refused = await post(address, {"action": "send_email", "lease_id": "lse_1_1_unknown"})
        assert (refused.status_code, told(refused)) == (409, "lease_lost")
        assert len(done) == 1


async def test_a_lease_is_over_for_the_fence_when_its_time_is(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        await opened.publish(ACCOUNT, mail(1))
        leases = ids_of(await client.ask("lease", "l1", queue_id="support"))
        assert opened.queues.giving.is_current(ACCOUNT, leases[0])
        assert not opened.queues.giving.is_current("acct_bob", leases[0])
        await client.ask("hold", "h1", lease_ids=leases, seconds=1)
        await until(lambda: not opened.queues.giving.is_current(ACCOUNT, leases[0]))


async def test_without_queues_no_lease_is_current():
    async with open_broker(configured()) as opened:

        @opened.command("send_email")
        async def send_email(params, context):
            return {}

        sent = await Caller(opened).ask("send_email", lease_id="lse_1_1_0f")
        assert sent.outcome == "lease_lost"


# --- who may


async def test_over_http_a_worker_does_the_same_with_the_scope_subscribe(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address):
        await opened.publish(ACCOUNT, mail(1))
        leased = told(await post(address, {"action": "lease", "queue_id": "support", "wait_seconds": 5}, LISTENER))
        assert events_of(leased) == ["evt_1"]
        acked = await post(address, {"action": "ack", "lease_ids": ids_of(leased)}, LISTENER)
        assert told(acked) == {"acked": 1, "lost": []}
        assert told(await post(address, {"action": "nack", "lease_ids": ids_of(leased)}))["nacked"] == 0
        assert (await post(address, {"action": "lease", "queue_id": "support"}, OPERATOR)).status_code == 403


async def test_who_does_not_reach_all_inboxes_of_a_queue_does_not_work_at_it(tmp_path):
    some = AccountQueueConfig(id="some", inbox_ids=("in_1",))
    async with working(tmp_path, SUPPORT, some) as (opened, address):
        await opened.publish(ACCOUNT, mail(1))
        assert told(await post(address, {"action": "lease", "queue_id": "support"}, INBOXES)) == "forbidden"
        assert events_of(told(await post(address, {"action": "lease", "queue_id": "some"}, INBOXES))) == ["evt_1"]
        assert told(await post(address, {"action": "lease", "queue_id": "some"}, BOB)) == "not_found"
        leased = told(await post(address, {"action": "lease", "queue_id": "support"}))
        lost = told(await post(address, {"action": "ack", "lease_ids": ids_of(leased)}, INBOXES))
        assert lost == {"acked": 0, "lost": ids_of(leased)}
        assert told(await post(address, {"action": "ack", "lease_ids": ids_of(leased)}, BOB))["acked"] == 0


async def test_a_key_that_reaches_less_while_it_waits_is_given_nothing(tmp_path):
    config = stored(tmp_path, SUPPORT)
    async with open_broker(config) as opened, serving(opened) as address, connected(address, LISTENER) as client:
        await client.say("lease", "l1", queue_id="support", wait_seconds=20)
        await client.ask("ping", "p")
        keys = tuple(
            KeyConfig(id=key.id, sha256=key.sha256, scopes=key.scopes, inbox_ids=("in_1",))
            if key.id == "key_listener"
            else key
            for key in config.accounts[0].keys
        )
        account = AccountConfig(id=ACCOUNT, keys=keys, queues=(SUPPORT,))
        opened.reload(Config(accounts=(account,), operators=config.operators, storage=config.storage))
        await opened.publish(ACCOUNT, mail(1))
        assert (await client.answer("l1"))["error"]["code"] == "forbidden"
        leased = told(await post(address, {"action": "lease", "queue_id": "support", "wait_seconds": 5}))
        assert [lease["attempt"] for lease in leased["leases"]] == [1]


async def test_one_connection_waits_once_at_a_queue(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        await client.say("lease", "l1", queue_id="support", wait_seconds=20)
        refused = await client.ask("lease", "l2", queue_id="support", wait_seconds=20)
        assert (refused["code"], refused["retry_after_ms"]) == ("rate_limited", 1000)
        await opened.publish(ACCOUNT, mail(1))
        assert events_of((await client.answer("l1"))["result"]) == ["evt_1"]
        assert events_of(await client.ask("lease", "l3", queue_id="support")) == []


async def test_without_a_log_on_disk_there_are_no_queues():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        assert (await client.ask("lease", "l1", queue_id="support"))["code"] == "unavailable"
        assert (await post(address, {"action": "lease", "queue_id": "support"})).status_code == 503


def test_queues_in_the_configuration_need_a_log_on_disk():
    config = Config(accounts=(AccountConfig(id=ACCOUNT, queues=(SUPPORT,)),))
    with pytest.raises(ConfigError, match=r"storage.path` - at `\$.accounts\[0\].queues`"):
        require_storage_for_queues(config, None)


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ({"action": "lease"}, "queue_id"),
        ({"action": "lease", "queue_id": "q", "max": 101}, "$.max"),
        ({"action": "lease", "queue_id": "q", "wait_seconds": 61}, "$.wait_seconds"),
        ({"action": "nack"}, "lease_ids"),
        ({"action": "nack", "lease_ids": []}, "$.lease_ids"),
        ({"action": "nack", "lease_ids": ["l"], "reason": "x" * 257}, "$.reason"),
        ({"action": "ack", "lease_ids": ["l"] * 101}, "$.lease_ids"),
        ({"action": "ack", "lease_ids": ["l"], "params": {"event_ids": ["e"]}}, "$.params.event_ids"),
        ({"action": "hold", "lease_ids": ["l"]}, "seconds"),
    ],
)
async def test_what_a_worker_says_wrong_is_refused_by_the_name_of_its_field(tmp_path, command, path):
    async with working(tmp_path, SUPPORT) as (_, address):
        refused = await post(address, command)
        assert (refused.status_code, told(refused)) == (400, "invalid_params")
        assert path in refused.json()["error"]["message"]


# --- the routes


async def test_a_queue_is_made_once_changed_paused_and_removed(tmp_path):
    async with working(tmp_path) as (opened, address):
        made = told(await ask(address, "POST", body={"queue_id": "q", "inbox_ids": ["in_1"], "lease_seconds": 5}))
        assert (made["inbox_ids"], made["order"], made["max_attempts"], made["status"]) == (
            ["in_1"], "thread", 5, "active",
        )  # fmt: skip
        again = await ask(address, "POST", body={"queue_id": "q", "inbox_ids": ["in_1"], "lease_seconds": 5})
        assert told(again) == made
        assert told(await ask(address, "POST", body={"queue_id": "q"})) == "conflict"
        assert told(await ask(address, "GET"))["queues"] == [made]
        assert told(await ask(address, "PATCH", "/q", {"status": "paused"}))["status"] == "paused"
        await opened.publish(ACCOUNT, mail(1))
        waiting = await post(address, {"action": "lease", "queue_id": "q", "wait_seconds": 0.05})
        assert events_of(told(waiting)) == []
        await ask(address, "PATCH", "/q", {"status": "active"})
        leased = told(await post(address, {"action": "lease", "queue_id": "q"}))
        assert events_of(leased) == ["evt_1"]
        assert told(await ask(address, "DELETE", "/q")) == {"queue_id": "q"}
        assert told(await ask(address, "GET", "/q")) == "not_found"
        assert told(await post(address, {"action": "ack", "lease_ids": ids_of(leased)}))["lost"] == ids_of(leased)
        assert told(await ask(address, "POST", body={"queue_id": "q", "order": "none"}))["order"] == "none"


async def test_the_order_of_a_queue_stays(tmp_path):
    async with working(tmp_path) as (_, address):
        await ask(address, "POST", body={"queue_id": "q"})
        refused = await ask(address, "PATCH", "/q", {"order": "none"})
        assert told(refused) == "invalid_params"
        assert "$.order" in refused.json()["error"]["message"]


async def test_a_change_of_a_queue_that_names_no_field_is_not_answered_as_if_it_were_done(tmp_path):
    async with working(tmp_path) as (_, address):
        made = told(await ask(address, "POST", body={"queue_id": "q"}))
        for body in ({"paused": True}, {"state": "paused"}, {}):
            assert told(await ask(address, "PATCH", "/q", body)) == "invalid_params"
        assert told(await ask(address, "PATCH", "/q", made)) == made


async def test_queues_that_were_made_are_there_after_a_restart(tmp_path):
    async with working(tmp_path) as (opened, address):
        made = told(await ask(address, "POST", body={"queue_id": "q"}))
        await opened.publish(ACCOUNT, mail(1))
    async with working(tmp_path) as (opened, address):
        assert told(await ask(address, "GET", "/q")) == made
        assert events_of(told(await post(address, {"action": "lease", "queue_id": "q"}))) == ["evt_1"]


async def test_dead_events_are_done_again_on_demand(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address):
        await opened.publish(ACCOUNT, [mail(1, "a"), mail(2, "b")])
        leased = told(await post(address, {"action": "lease", "queue_id": "support", "max": 2}))
        await post(address, {"action": "nack", "lease_ids": ids_of(leased), "dead": True})
        assert told(await ask(address, "POST", "/support/resend", {"event_ids": ["evt_2", "evt_2"]})) == {"resent": 1}
        assert told(await ask(address, "POST", "/support/resend", {"state": "dead", "since": "1h"})) == {"resent": 1}
        again = told(await post(address, {"action": "lease", "queue_id": "support", "max": 2}))
        assert [(lease["event"]["event_id"], lease["attempt"]) for lease in again["leases"]] == [
            ("evt_2", 1), ("evt_1", 1),
        ]  # fmt: skip
        assert told(await ask(address, "POST", "/support/resend", {})) == "invalid_params"


async def test_the_routes_are_for_keys_with_the_scope_and_an_inbox_key_sees_what_it_reaches(tmp_path):
    some = AccountQueueConfig(id="some", inbox_ids=("in_1",))
    async with working(tmp_path, SUPPORT, some) as (_, address):
        assert told(await ask(address, "GET", key=ALICE)) == "forbidden"
        assert [queue["queue_id"] for queue in told(await ask(address, "GET", key=INBOX_CLERK))["queues"]] == ["some"]
        assert told(await ask(address, "GET", "/support", key=INBOX_CLERK)) == "not_found"
        made = told(await ask(address, "POST", body={"queue_id": "mine"}, key=INBOX_CLERK))
        assert made["inbox_ids"] == ["in_1", "in_2"]
        refused = await ask(address, "POST", body={"queue_id": "x", "inbox_ids": ["in_9"]}, key=INBOX_CLERK)
        assert told(refused) == "forbidden"
        assert "$.inbox_ids[0]" in refused.json()["error"]["message"]
        assert told(await ask(address, "PATCH", "/some", {"max_attempts": 2})) == "conflict"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "queue_id"),
        ({"queue_id": "q", "order": "type"}, "$.order"),
        ({"queue_id": "q", "status": "paused"}, "$.status"),
        ({"queue_id": "q", "lease_seconds": 0}, "$.lease_seconds"),
        ({"queue_id": "q", "max_attempts": 101}, "$.max_attempts"),
        ({"queue_id": "q", "dead_after": "never"}, "$.dead_after"),
        ({"queue_id": "q", "inboxes": ["in_1"]}, "inboxes"),
        ({"queue_id": "q", "inbox_ids_": ["in_1"], "event_typs": ["a.*"]}, "inbox_ids"),
    ],
)
async def test_a_queue_that_cannot_be_is_refused_by_the_name_of_its_field(tmp_path, body, path):
    async with working(tmp_path) as (_, address):
        refused = await ask(address, "POST", body=body)
        assert told(refused) == "invalid_params"
        assert path in refused.json()["error"]["message"]


async def test_an_account_has_no_more_than_so_many_queues(tmp_path):
    async with working(tmp_path) as (_, address):
        for number in range(MAX_QUEUES):
            await ask(address, "POST", body={"queue_id": f"q{number}"})
        assert told(await ask(address, "POST", body={"queue_id": "more"})) == "conflict"


async def test_a_reload_makes_changes_and_removes_the_queues_of_the_configuration(tmp_path):
    other = AccountQueueConfig(id="other")
    async with working(tmp_path, SUPPORT) as (opened, address):
        opened.reload(stored(tmp_path, AccountQueueConfig(id="support", max_attempts=9, order="none"), other))
        with trio.fail_after(60):
            while len(told(await ask(address, "GET"))["queues"]) < 2:
                await trio.lowlevel.checkpoint()
        queues = {queue["queue_id"]: queue for queue in told(await ask(address, "GET"))["queues"]}
        assert (queues["support"]["max_attempts"], queues["support"]["order"]) == (9, "thread")
        opened.reload(stored(tmp_path, other))
        with trio.fail_after(60):
            while len(told(await ask(address, "GET"))["queues"]) > 1:
                await trio.lowlevel.checkpoint()


async def test_a_draining_broker_lets_its_workers_go(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address), connected(address) as client:
        await client.say("lease", "l1", queue_id="support", wait_seconds=60)
        await client.ask("ping", "p")
        opened.start_draining()
        assert (await client.answer("l1"))["result"] == {"leases": [], "waiting": 0}


async def test_no_more_than_so_many_workers_wait_at_a_queue(tmp_path, monkeypatch):
    monkeypatch.setattr("broker.queues.giving.MAX_WAITERS", 1)
    async with (
        working(tmp_path, SUPPORT) as (_, address),
        connected(address) as one,
        connected(address) as other,
    ):
        await one.say("lease", "l1", queue_id="support", wait_seconds=20)
        await one.ask("ping", "p")
        assert (await other.ask("lease", "l2", queue_id="support"))["code"] == "rate_limited"


@pytest.mark.parametrize("query", ["state=lost", "event_id=*", "before=x", "limit=0"])
async def test_deliveries_that_cannot_be_looked_up_are_refused_by_the_name_of_the_parameter(tmp_path, query):
    async with working(tmp_path, SUPPORT) as (_, address):
        refused = await ask(address, "GET", f"/support/deliveries?{query}")
        assert told(refused) == "bad_request"
        assert f"`{query.partition('=')[0]}`" in refused.json()["error"]["message"]


async def test_deliveries_come_in_pages_the_newest_first(tmp_path):
    async with working(tmp_path, SUPPORT) as (opened, address):
        await opened.publish(ACCOUNT, [mail(number) for number in range(3)])
        page = told(await ask(address, "GET", "/support/deliveries?limit=2&state=waiting"))
        assert [each["event_id"] for each in page["deliveries"]] == ["evt_2", "evt_1"]
        rest = told(await ask(address, "GET", f"/support/deliveries?limit=2&before={page['next']}"))
        assert [each["event_id"] for each in rest["deliveries"]] == ["evt_0"]
        one = told(await ask(address, "GET", "/support/deliveries?event_id=evt_1"))
        assert [each["event_id"] for each in one["deliveries"]] == ["evt_1"]
