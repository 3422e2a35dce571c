"""`/v1/webhooks…` over real sockets, with a log on disk and a sender in its thread."""

import json
from contextlib import asynccontextmanager

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    LISTENER,
    OPERATOR,
    ask,
    config_of,
    configured_key,
    connected,
    post_events,
    serving,
)
from receivers import OK, answering, receiving
from trio.testing import wait_all_tasks_blocked

from broker import AccountConfig, ConfigError, KeyConfig, open_broker
from broker.config import AccountWebhookConfig, StorageConfig, WebhooksConfig
from broker.webhooks.signing import secret_of

SECRET, OTHER_SECRET = secret_of(bytes(range(32))), secret_of(bytes(range(1, 33)))
URL = "https://hooks.example.com/in"
BOTH = ("subscribe", "publish", "webhooks")
LOOPBACK = WebhooksConfig(allow_networks=("127.0.0.0/8",), allow_http=True)


def keys():
    return (
        configured_key(ALICE, scopes=BOTH),
        configured_key(INBOXES, scopes=BOTH, inbox_ids=("in_1", "in_2")),
        configured_key(LISTENER),
    )


def config(path, *, section=LOOPBACK, webhooks=(), of_alice=None):
    alice = AccountConfig(id=ACCOUNT, tier="enterprise", keys=of_alice or keys(), webhooks=webhooks)
    bob = AccountConfig(id="acct_bob", keys=(configured_key(BOB, scopes=BOTH),))
    storage = StorageConfig(path=None if path is None else str(path), synchronous="normal", min_free_bytes=0)
    return config_of(alice, bob, storage=storage, webhooks=section)


class Hooks:
    """A served broker, asked for its webhooks."""

    def __init__(self, served):
        self.served = served
        self.address = served.address

    async def ask(self, method, path="", body=None, key=ALICE):
        text = None if body is None else json.dumps(body).encode()
        return await ask(self.address, method, f"/v1/webhooks{path}", key=key, body=text)

    async def make(self, key=ALICE, **fields):
        answer = await self.ask("POST", body={"url": URL} | fields, key=key)
        assert answer.status == 200, answer.body
        return answer.result

    async def refusal(self, method, path="", body=None, key=ALICE):
        answer = await self.ask(method, path, body, key)
        return answer.status, answer.code, answer.message

    async def publish(self, *events, key=ALICE):
        made = [{"type": "message.received", "inbox_id": "in_1", "payload": {}} | event for event in events or ({},)]
        return [each["event_id"] for each in (await post_events(self.address, made, key=key)).result["events"]]

    async def delivery(self, webhook_id, event_id, state="delivered"):
        """The delivery of an event, once it is in a state."""
        with trio.fail_after(60):
            while True:
                answer = await self.ask("GET", f"/{webhook_id}/deliveries?event_id={event_id}")
                found = answer.result["deliveries"]
                if found and found[0]["state"] == state:
                    return found[0]
                await trio.sleep(0.01)

    async def failure(self, webhook_id, event_id):
        """Wait until an event was posted and not taken."""
        last = None
        while last is None:
            await trio.sleep(0.01)
            last = (await self.delivery(webhook_id, event_id, "waiting"))["last"]


@asynccontextmanager
async def hooking(path, **fields):
    async with serving(config(path, **fields)) as served:
        yield Hooks(served)


@pytest.fixture
async def hooks(tmp_path):
    async with hooking(tmp_path / "log.db") as hooks:
        yield hooks


# --- end to end


async def test_what_is_published_is_posted_as_a_subscriber_gets_it_and_verifies(hooks):
    async with receiving() as receiver, connected(hooks.address, "inbox_ids=*") as client:
        made = await hooks.make(url=receiver.url)
        [event_id] = await hooks.publish({"payload": {"a": 1}, "inbox_id": "in_1"})
        await receiver.received(1)
        [request] = receiver.requests
        request.verify(made["secret"])
        _, frame = await client.frame()
        assert request.body == frame
        assert request.headers["webhook-account"] == ACCOUNT
        delivery = await hooks.delivery(made["webhook_id"], event_id)
        assert (delivery["type"], delivery["attempts"], delivery["due_at"]) == ("message.received", 1, None)
        assert (delivery["last"]["status"], delivery["last"]["error"]) == (200, None)


async def test_a_post_that_is_under_way_is_finished_before_the_broker_ends(hooks):
    """Cut off, it would be posted again."""
    release = trio.Event()

    async def answer_late(stream):
        await release.wait()
        await stream.send_all(OK)

    async with receiving() as receiver:
        receiver.answer = answer_late
        made = await hooks.make(url=receiver.url)
        [event_id] = await hooks.publish()
        await receiver.received(1)
        hooks.served.broker.start_draining()
        await wait_all_tasks_blocked()
        assert not hooks.served.ended.is_set()
        release.set()
        with trio.fail_after(60):
            await hooks.served.ended.wait()
        key = await hooks.served.broker.keyring.authenticate(ALICE, None)
        page = await hooks.served.broker.webhooks.deliveries(key, made["webhook_id"], {"event_id": event_id})
        assert [(each.state, each.attempts) for each in page.deliveries] == [("delivered", 1)]


async def test_events_and_endpoints_outlive_a_restart(tmp_path):
    async with receiving() as receiver:
        receiver.answer = answering(500)
        async with hooking(tmp_path / "log.db") as hooks:
            made = await hooks.make(url=receiver.url)
            [event_id] = await hooks.publish()
            await hooks.failure(made["webhook_id"], event_id)
        async with hooking(tmp_path / "log.db") as hooks:
            [seen] = (await hooks.ask("GET")).result["webhooks"]
            assert seen == {name: value for name, value in made.items() if name != "secret"} | {
                "failing_since": seen["failing_since"]
            }
            assert seen["failing_since"] is not None
            assert (await hooks.ask("POST", f"/{made['webhook_id']}/resend", {"event_ids": [event_id]})).result == {
                "resent": 0
            }
            receiver.answer = OK
            [other] = await hooks.publish()
            await hooks.delivery(made["webhook_id"], other)
            receiver.requests[-1].verify(made["secret"])


async def test_an_endpoint_that_is_gone_is_told_of_on_the_stream_and_to_other_endpoints(hooks):
    async with receiving() as gone, receiving() as other, connected(hooks.address, "inbox_ids=*") as client:
        gone.answer = answering(410)
        made = await hooks.make(url=gone.url + "?secret=1", event_types=["message.*", "webhook.*"])
        await hooks.make(url=other.url, event_types=["webhook.*"])
        await hooks.publish()
        await client.next()
        event = await client.next()
        assert event["type"] == "webhook.disabled"
        payload = {"webhook_id": made["webhook_id"], "url": gone.url, "because": "gone"}
        assert event["payload"] == payload
        assert "inbox_id" not in event
        await other.received(1)
        assert json.loads(other.requests[0].body)["payload"] == payload
        assert len(gone.requests) == 1
        seen = (await hooks.ask("GET", f"/{made['webhook_id']}")).result
        assert (seen["status"], seen["disabled_because"]) == ("disabled", "gone")


async def test_what_a_client_acknowledged_is_not_posted_by_a_fallback_and_what_was_begun_is_said(hooks):
    async with receiving() as receiver, connected(hooks.address, "inbox_ids=*&client_id=cli") as client:
        later = await hooks.make(url=receiver.url, mode="fallback", client_ids=["cli"], fallback_seconds=600)
        at_once = await hooks.make(url=receiver.url, mode="fallback", client_ids=["cli"], fallback_seconds=0)
        [event_id] = await hooks.publish()
        await hooks.delivery(at_once["webhook_id"], event_id)
        event = await client.next()
        await client.say(action="ack", request_id="r1", cursor=event["cursor"])
        answer = await client.answer("r1")
        assert (answer["result"]["acked"], answer["result"]["claimed"]) == (1, [event_id])
        delivery = await hooks.delivery(later["webhook_id"], event_id, "acked")
        assert (delivery["acked_by"], delivery["attempts"]) == ("cli", 0)
        assert receiver.ids == [event_id]


async def test_what_a_client_holds_waits_for_it_and_is_not_posted_meanwhile(hooks):
    async with receiving() as receiver, connected(hooks.address, "inbox_ids=*&client_id=cli") as client:
        made = await hooks.make(url=receiver.url, mode="fallback", client_ids=["cli"], fallback_seconds=60)
        [event_id] = await hooks.publish()
        await client.next()
        before = (await hooks.delivery(made["webhook_id"], event_id, "waiting"))["due_at"]
        await client.say(action="hold", request_id="r1", event_ids=[event_id], seconds=600)
        answer = (await client.answer("r1"))["result"]
        assert answer["claimed"] == []
        assert (await hooks.delivery(made["webhook_id"], event_id, "waiting"))["due_at"] > before
        assert not receiver.requests


# --- making


async def test_an_endpoint_is_made_with_a_secret_that_is_said_once(hooks):
    made = await hooks.make()
    assert made["secret"].startswith("whsec_")
    expected = {
        "url": URL,
        "inbox_ids": ["*"],
        "event_types": None,
        "mode": "always",
        "client_ids": [],
        "fallback_seconds": 30,
        "order": "none",
        "status": "active",
        "disabled_because": None,
        "failing_since": None,
        "configured": False,
        "key_id": "key_alice",
    }
    assert expected.items() <= made.items()
    assert made["webhook_id"].startswith("wh_")
    seen = (await hooks.ask("GET", f"/{made['webhook_id']}")).result
    assert seen == {name: value for name, value in made.items() if name != "secret"}
    assert (await hooks.ask("GET")).result == {"webhooks": [seen]}


async def test_an_endpoint_may_bring_its_id_and_its_secret(hooks):
    made = await hooks.make(webhook_id="wh_mine", secret=SECRET, inbox_ids=["in_2", "in_1"], event_types=["message.*"])
    assert (made["webhook_id"], made["secret"]) == ("wh_mine", SECRET)
    assert (made["inbox_ids"], made["event_types"]) == (["in_1", "in_2"], ["message.*"])


async def test_the_same_again_is_the_same_endpoint_and_other_content_is_a_conflict(hooks):
    made = await hooks.make(webhook_id="wh_mine")
    again = await hooks.make(webhook_id="wh_mine")
    assert again == {name: value for name, value in made.items() if name != "secret"}
    status, code, message = await hooks.refusal("POST", body={"url": URL + "/other", "webhook_id": "wh_mine"})
    assert (status, code) == (409, "conflict")
    assert "`$.webhook_id`" in message


async def test_an_account_has_sixteen_endpoints_at_most(hooks):
    for number in range(16):
        await hooks.make(webhook_id=f"wh_{number}")
    assert (await hooks.refusal("POST", body={"url": URL}))[:2] == (409, "conflict")
    await hooks.make(key=BOB)
    assert (await hooks.ask("DELETE", "/wh_3")).result == {"webhook_id": "wh_3"}
    await hooks.make(webhook_id="wh_3")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"url": "ftp://hooks.example.com/"}, "$.url"),
        ({"url": "https://"}, "$.url"),
        ({"url": "hooks.example.com"}, "$.url"),
        ({"url": "https://hooks.example.com:99999/"}, "$.url"),
        ({"url": "https://user:pw@hooks.example.com/"}, "$.url"),
        ({"url": "https://hooks.example.com/#part"}, "$.url"),
        ({"url": "https://hooks.example.com/a b"}, "$.url"),
        ({"url": "https://hööks.example.com/"}, "$.url"),
        ({"url": "https://hooks.example.com/\n"}, "$.url"),
        ({"url": "https://hooks.example.com/" + "x" * 2048}, "$.url"),
        ({"url": "https://10.0.0.1/"}, "$.url"),
        ({"url": "https://[::1]/"}, "$.url"),
        ({"url": 5}, "$.url"),
        ({}, "url"),
        ({"url": URL, "mode": "fallback"}, "$.client_ids"),
        ({"url": URL, "mode": "sometimes"}, "$.mode"),
        ({"url": URL, "order": "time"}, "$.order"),
        ({"url": URL, "status": "paused"}, "$.status"),
        ({"url": URL, "mode": "fallback", "client_ids": ["a"], "fallback_seconds": -1}, "$.fallback_seconds"),
        ({"url": URL, "client_ids": ["a b"]}, "$.client_ids[0]"),
        ({"url": URL, "client_ids": ["a"] * 101}, "$.client_ids"),
        ({"url": URL, "inbox_ids": []}, "$.inbox_ids"),
        ({"url": URL, "inbox_ids": [f"in_{n}" for n in range(1001)]}, "$.inbox_ids"),
        ({"url": URL, "inbox_id": "in_1"}, "$.inbox_id"),
        ({"url": URL, "event_type": "a"}, "$.event_type"),
        ({"url": URL, "event_types": ["A"]}, "$.event_types[0]"),
        ({"url": URL, "event_types": [f"a.b{n}" for n in range(101)]}, "$.event_types"),
        ({"url": URL, "secret": "whsec_short"}, "$.secret"),
        ({"url": URL, "webhook_id": "a b"}, "$.webhook_id"),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_name(hooks, fields, place):
    status, code, message = await hooks.refusal("POST", body=fields)
    assert (status, code) == (400, "invalid_params")
    assert f"`{place}`" in message


async def test_plain_http_is_refused_unless_the_operator_allows_it(tmp_path):
    async with hooking(tmp_path / "log.db", section=WebhooksConfig()) as hooks:
        status, code, message = await hooks.refusal("POST", body={"url": "http://hooks.example.com/"})
        assert (status, code) == (400, "invalid_params")
        assert "`$.url`" in message


# --- rights


@pytest.mark.parametrize("key", [LISTENER, OPERATOR])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", ""),
        ("GET", "/wh"),
        ("PATCH", "/wh"),
        ("DELETE", "/wh"),
        ("POST", "/wh/secret"),
        ("POST", "/wh/test"),
        ("GET", "/wh/deliveries"),
        ("POST", "/wh/resend"),
    ],
)
async def test_only_a_key_with_the_scope_sees_to_webhooks(hooks, key, method, path):
    assert (await hooks.refusal(method, path, key=key))[:2] == (403, "forbidden")


async def test_a_token_opens_no_webhooks(hooks):
    token = (await ask(hooks.address, "POST", "/v1/websocket/token", key=ALICE)).result["token"]
    assert (await hooks.refusal("GET", key=token))[:2] == (403, "forbidden")


async def test_an_inbox_key_gets_its_inboxes_and_sees_its_own_endpoints(hooks):
    whole = await hooks.make()
    made = await hooks.make(key=INBOXES)
    assert made["inbox_ids"] == ["in_1", "in_2"]
    refused = await hooks.refusal("POST", body={"url": URL, "inbox_ids": ["in_3"]}, key=INBOXES)
    assert refused[:2] == (403, "forbidden")
    assert "`$.inbox_ids[0]`" in refused[2]
    assert [each["webhook_id"] for each in (await hooks.ask("GET", key=INBOXES)).result["webhooks"]] == [
        made["webhook_id"]
    ]
    assert (await hooks.refusal("GET", f"/{whole['webhook_id']}", key=INBOXES))[:2] == (404, "not_found")
    assert len((await hooks.ask("GET")).result["webhooks"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"order": "inbox"}),
        ("DELETE", "", None),
        ("POST", "/secret", None),
        ("POST", "/test", None),
        ("GET", "/deliveries", None),
        ("POST", "/resend", {"state": "dead"}),
    ],
)
async def test_another_accounts_endpoint_is_not_there(hooks, method, path, body):
    made = await hooks.make()
    refused = await hooks.refusal(method, f"/{made['webhook_id']}{path}", body, key=BOB)
    assert refused[:2] == (404, "not_found")
    assert (await hooks.refusal(method, f"/wh_none{path}", body))[:2] == (404, "not_found")


async def test_without_a_log_on_disk_there_are_no_webhooks():
    async with hooking(None) as hooks:
        assert (await hooks.refusal("POST", body={"url": URL}))[:2] == (503, "unavailable")
        assert (await hooks.refusal("GET"))[:2] == (503, "unavailable")


async def test_an_endpoint_whose_key_is_revoked_is_disabled(hooks, tmp_path):
    made = await hooks.make(key=INBOXES)
    less = config(tmp_path / "log.db", of_alice=keys()[:1])
    hooks.served.broker.reload(less)
    seen = (await hooks.ask("GET", f"/{made['webhook_id']}")).result
    assert (seen["status"], seen["disabled_because"]) == ("disabled", "key_gone")


async def test_a_key_that_loses_the_scope_loses_its_endpoints(hooks, tmp_path):
    made = await hooks.make(key=INBOXES)
    bare: KeyConfig = configured_key(INBOXES, inbox_ids=("in_1",))
    hooks.served.broker.reload(config(tmp_path / "log.db", of_alice=(keys()[0], bare)))
    assert (await hooks.ask("GET", f"/{made['webhook_id']}")).result["disabled_because"] == "key_gone"


# --- changing


async def test_what_is_changed_holds_and_the_rest_stays(hooks):
    made = await hooks.make(inbox_ids=["in_1"], event_types=["a.*"])
    path = f"/{made['webhook_id']}"
    changed = (await hooks.ask("PATCH", path, {"inbox_ids": "*", "order": "inbox", "event_types": None})).result
    expected = {"inbox_ids": ["*"], "order": "inbox", "event_types": None, "url": URL, "mode": "always"}
    assert expected.items() <= changed.items()
    assert (await hooks.ask("PATCH", path, {"status": "paused"})).result["status"] == "paused"
    assert (await hooks.ask("PATCH", path, {"status": "active"})).result["status"] == "active"
    assert (await hooks.ask("GET", path)).result == changed


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"status": "disabled"}, "$.status"),
        ({"mode": "fallback"}, "$.client_ids"),
        ({"url": "http:"}, "$.url"),
        ({"webhook_id": "another"}, "$.webhook_id"),
        ({"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, "$.secret"),
    ],
)
async def test_a_change_that_does_not_fit_changes_nothing(hooks, change, place):
    made = await hooks.make()
    path = f"/{made['webhook_id']}"
    status, code, message = await hooks.refusal("PATCH", path, {"order": "inbox"} | change)
    assert (status, code) == (400, "invalid_params")
    assert f"`{place}`" in message
    assert (await hooks.ask("GET", path)).result["order"] == "none"


@pytest.mark.parametrize("change", [{"enabled": False}, {"state": "paused"}, {}])
async def test_a_change_that_names_no_field_is_not_answered_as_if_it_were_done(hooks, change):
    path = f"/{(await hooks.make())['webhook_id']}"
    assert (await hooks.refusal("PATCH", path, change))[:2] == (400, "invalid_params")


async def test_an_endpoint_as_it_was_read_may_be_sent_back(hooks):
    path = f"/{(await hooks.make())['webhook_id']}"
    seen = (await hooks.ask("GET", path)).result
    assert (await hooks.ask("PATCH", path, seen)).result == seen


async def test_while_a_secret_is_changed_both_sign(hooks):
    async with receiving() as receiver:
        made = await hooks.make(url=receiver.url, secret=SECRET)
        rotated = (await hooks.ask("POST", f"/{made['webhook_id']}/secret")).result
        assert rotated["secret"] != SECRET
        await hooks.publish()
        await receiver.received(1)
        receiver.requests[0].verify(SECRET)
        receiver.requests[0].verify(rotated["secret"])
        assert receiver.requests[0].headers["webhook-signature"].count("v1,") == 2


async def test_what_is_removed_is_gone_with_what_it_was_owed(hooks):
    async with receiving() as receiver:
        receiver.answer = answering(500)
        made = await hooks.make(url=receiver.url, webhook_id="wh_mine")
        [event_id] = await hooks.publish()
        await hooks.failure("wh_mine", event_id)
        assert (await hooks.ask("DELETE", "/wh_mine")).result == {"webhook_id": "wh_mine"}
        assert (await hooks.refusal("GET", "/wh_mine"))[:2] == (404, "not_found")
        again = await hooks.make(url=receiver.url, webhook_id="wh_mine")
        assert again["secret"] != made["secret"]
        assert (await hooks.ask("GET", "/wh_mine/deliveries")).result["deliveries"] == []


# --- trying, looking up, sending again


async def test_a_test_event_is_posted_once_and_not_stored(hooks):
    async with receiving() as receiver:
        made = await hooks.make(url=receiver.url)
        path = f"/{made['webhook_id']}"
        tested = (await hooks.ask("POST", f"{path}/test")).result
        assert (tested["status"], tested["error"]) == (200, None)
        [request] = receiver.requests
        request.verify(made["secret"])
        event = json.loads(request.body)
        assert (event["type"], event["payload"]) == ("webhook.test", {"webhook_id": made["webhook_id"]})
        assert request.event_id == event["event_id"]
        receiver.answer = answering(302)
        assert (await hooks.ask("POST", f"{path}/test")).result["error"] == "redirect"
        await hooks.ask("POST", f"{path}/test")
        status, code, _ = await hooks.refusal("POST", f"{path}/test")
        assert (status, code) == (429, "rate_limited")
        assert (await hooks.ask("GET", f"{path}/deliveries")).result == {"deliveries": [], "next": None}
        assert len(receiver.requests) == 3


async def test_a_test_says_why_an_address_is_not_posted_to(tmp_path):
    async with hooking(tmp_path / "log.db", section=WebhooksConfig(allow_http=True)) as hooks, receiving() as receiver:
        made = await hooks.make(url=receiver.url.replace("127.0.0.1", "localhost"))
        tested = (await hooks.ask("POST", f"/{made['webhook_id']}/test")).result
        assert (tested["status"], tested["error"]) == (None, "blocked")
        assert receiver.connections == 0


async def test_deliveries_are_looked_up_page_by_page(hooks):
    async with receiving() as receiver:
        made = await hooks.make(url=receiver.url)
        ids = await hooks.publish({}, {}, {})
        for event_id in ids:
            await hooks.delivery(made["webhook_id"], event_id)
        path = f"/{made['webhook_id']}/deliveries"
        first = (await hooks.ask("GET", f"{path}?limit=2&state=delivered")).result
        assert [each["event_id"] for each in first["deliveries"]] == [ids[2], ids[1]]
        second = (await hooks.ask("GET", f"{path}?limit=2&before={first['next']}")).result
        assert [each["event_id"] for each in second["deliveries"]] == [ids[0]]
        assert second["next"] is None
        assert (await hooks.ask("GET", f"{path}?state=dead")).result["deliveries"] == []


@pytest.mark.parametrize(
    "query", ["state=gone", "limit=0", "limit=1001", "limit=x", "before=x", "before=-1", "event_id=a%20b", "state="]
)
async def test_a_look_up_that_does_not_fit_is_refused_by_its_name(hooks, query):
    made = await hooks.make()
    status, code, message = await hooks.refusal("GET", f"/{made['webhook_id']}/deliveries?{query}")
    assert (status, code) == (400, "bad_request")
    assert query.partition("=")[0] in message


async def test_what_was_delivered_is_posted_again_on_demand(hooks):
    async with receiving() as receiver:
        made = await hooks.make(url=receiver.url)
        ids = await hooks.publish({}, {})
        for event_id in ids:
            await hooks.delivery(made["webhook_id"], event_id)
        path = f"/{made['webhook_id']}/resend"
        assert (await hooks.ask("POST", path, {"event_ids": [ids[0], "evt_none", ids[0]]})).result == {"resent": 1}
        await receiver.received(3)
        assert receiver.ids[-1] == ids[0]
        assert (await hooks.ask("POST", path, {"state": "dead", "since": "1h"})).result == {"resent": 0}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "$"),
        ({"event_ids": ["a"], "state": "dead"}, "$"),
        ({"event_ids": []}, "$.event_ids"),
        ({"event_ids": ["a"] * 1001}, "$.event_ids"),
        ({"state": "waiting"}, "$.state"),
        ({"state": "dead", "since": "yesterday"}, "$.since"),
        ({"state": "dead", "after": "1h"}, "$.after"),
        ({"state": "dead", "sinc": "1h"}, "$.sinc"),
    ],
)
async def test_what_cannot_be_sent_again_is_refused_by_its_name(hooks, body, place):
    made = await hooks.make()
    status, code, message = await hooks.refusal("POST", f"/{made['webhook_id']}/resend", body)
    assert (status, code) == (400, "invalid_params")
    assert f"`{place}`" in message


# --- the configuration's


def configured_webhook(**fields):
    return AccountWebhookConfig(**{"id": "wh_conf", "url": URL, "secret": SECRET} | fields)


async def test_endpoints_of_the_configuration_are_there_and_only_read_by_the_api(tmp_path):
    async with receiving() as receiver:
        async with hooking(tmp_path / "log.db", webhooks=(configured_webhook(url=receiver.url),)) as hooks:
            [seen] = (await hooks.ask("GET")).result["webhooks"]
            assert (seen["webhook_id"], seen["configured"], seen["key_id"]) == ("wh_conf", True, None)
            assert "secret" not in seen
            for method, path, body in (
                ("PATCH", "", {"order": "inbox"}),
                ("DELETE", "", None),
                ("POST", "/secret", None),
            ):
                assert (await hooks.refusal(method, f"/wh_conf{path}", body))[:2] == (409, "conflict")
            assert (await hooks.refusal("POST", body={"url": URL, "webhook_id": "wh_conf"}))[:2] == (409, "conflict")
            [event_id] = await hooks.publish()
            await hooks.delivery("wh_conf", event_id)
            receiver.requests[0].verify(SECRET)
            assert (await hooks.ask("POST", "/wh_conf/test")).result["status"] == 200
        async with hooking(tmp_path / "log.db") as hooks:
            assert (await hooks.ask("GET")).result == {"webhooks": []}


async def test_a_reload_changes_adds_and_removes_them_and_both_secrets_sign(tmp_path):
    path = tmp_path / "log.db"
    async with receiving() as receiver:
        first = (configured_webhook(url=receiver.url), configured_webhook(id="wh_old"))
        async with hooking(path, webhooks=first) as hooks:
            second = (configured_webhook(url=receiver.url, secret=OTHER_SECRET), configured_webhook(id="wh_new"))
            hooks.served.broker.reload(config(path, webhooks=second))
            with trio.fail_after(60):
                names = set()
                while names != {"wh_conf", "wh_new"}:
                    await trio.sleep(0.01)
                    names = {each["webhook_id"] for each in (await hooks.ask("GET")).result["webhooks"]}
            await hooks.publish()
            await receiver.received(1)
            receiver.requests[0].verify(SECRET)
            receiver.requests[0].verify(OTHER_SECRET)


async def test_webhooks_in_the_configuration_need_a_log_on_disk(tmp_path):
    with pytest.raises(ConfigError, match=r"storage\.path.*\$\.accounts\[0\]\.webhooks"):
        async with open_broker(config(None, webhooks=(configured_webhook(),))):
            pass
    async with open_broker(config(None)) as broker:
        with pytest.raises(ConfigError, match=r"storage\.path"):
            broker.reload(config(None, webhooks=(configured_webhook(),)))


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"mode": "fallback"}, "webhooks[0].client_ids"),
        ({"url": "http://hooks.example.com"}, "webhooks[0].url"),
        ({"secret": "x"}, "webhooks[0].secret"),
        ({"id": "a b"}, "webhooks[0].id"),
    ],
)
async def test_a_webhook_of_the_configuration_that_does_not_fit_is_named(tmp_path, fields, place):
    with pytest.raises(ConfigError) as raised:
        async with open_broker(
            config(tmp_path / "log.db", section=WebhooksConfig(), webhooks=(configured_webhook(**fields),))
        ):
            pass
    assert place in str(raised.value)
