"""The HTTP routes over real sockets: every refusal with its status, body and headers; publishing in every form."""

import contextlib
import json
import logging
from hashlib import sha256

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    LISTENER,
    OPERATOR,
    PUBLISHER,
    TEXT,
    WEBSOCKET_HEADERS,
    Answer,
    ask,
    bearer,
    broker_log,
    configured,
    configured_key,
    connected,
    event,
    masked,
    numbers,
    open_socket,
    parse_answer,
    post_events,
    read_to_end,
    reset,
    send_raw,
    serving,
    token_of,
    until,
    upgrade_head,
)
from msgspec.structs import replace

from broker import Config, LimitsConfig, RateConfig, RatesConfig, RequestError, StorageConfig, TierRatesConfig
from broker.access.keyring import Keyring

CLOSE = ("Connection", "Upgrade, close")
NDJSON = ("Content-Type", "application/x-ndjson")


async def refused(served, query: str = "", *headers: tuple[str, str], key: str | None = ALICE) -> Answer:
    """The answer to an upgrade that must not be accepted."""
    return await send_raw(served.address, upgrade_head(query, CLOSE, *headers, key=key))


def check_refusal(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert set(answer.json) == {"error"}
    assert answer.message
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    if status == 503:
        assert int(answer.headers["retry-after"]) > 0


# --- who may connect (PROTOCOL section 1) ------------------------------------

NO_CREDENTIALS = {
    "none": (),
    "an unknown key": (bearer("dm_live_nobody"),),
    "an unknown operator key": (bearer("dm_operator_nobody"),),
    "a key of no known form": (bearer("secret"),),
    "an empty key": (("Authorization", "Bearer "),),
    "another scheme": (("Authorization", "Basic ZG06bGl2ZQ=="),),
    "a key that is not ASCII": (bearer("dm_live_\xe9"),),
    "a token of nobody": (bearer("wst_nothing"),),
    "the hash of a key": (bearer("dm_live_" + sha256(ALICE.encode()).hexdigest()),),
}


@pytest.mark.parametrize("headers", NO_CREDENTIALS.values(), ids=NO_CREDENTIALS.keys())
async def test_without_a_good_credential_everything_is_unauthorized(headers):
    async with serving() as served:
        check_refusal(await ask(served.address, "POST", "/v1/events", *headers, body=b"{}"), 401, "unauthorized")
        check_refusal(await refused(served, "", *headers, key=None), 401, "unauthorized")


@pytest.mark.parametrize("name", ["key", "token"])
async def test_a_key_may_stand_in_the_query(name):
    async with serving() as served:
        target = f"/v1/events?{name}={ALICE}"
        assert (await ask(served.address, "POST", target, body=b"[]")).status == 200
        async with connected(served.address, f"{name}={ALICE}", ("Authorization", "")) as client:
            assert client.ready["account_id"] == ACCOUNT


async def test_the_scheme_is_compared_without_case():
    async with serving() as served:
        headers = ("Authorization", f"bEARER {ALICE}")
        assert (await ask(served.address, "POST", "/v1/events", headers, body=b"[]")).status == 200


TWO_CREDENTIALS = {
    "header and key": (f"key={ALICE}", ALICE),
    "header and token": (f"token={ALICE}", ALICE),
    "key and token": (f"key={ALICE}&token={ALICE}", None),
    "key twice": (f"key={ALICE}&key={ALICE}", None),
    "a query name twice": ("inbox_ids=a&inbox_ids=b", ALICE),
    "a query name twice, once encoded": ("since=5m&sinc%65=5m", ALICE),
}


@pytest.mark.parametrize(("query", "key"), TWO_CREDENTIALS.values(), ids=TWO_CREDENTIALS.keys())
async def test_two_credentials_or_a_query_name_twice_are_a_bad_request(query, key):
    async with serving() as served:
        check_refusal(await refused(served, query, key=key), 400, "bad_request")
        if "twice" not in query:
            check_refusal(
                await ask(served.address, "POST", f"/v1/events?{query}", key=key, body=b"[]"), 400, "bad_request"
            )


async def test_two_authorization_headers_are_a_bad_request():
    async with serving() as served:
        answer = await ask(served.address, "POST", "/v1/events", bearer(ALICE), bearer(ALICE), body=b"[]")
        check_refusal(answer, 400, "bad_request")


async def test_refusals_quote_no_key(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving() as served:
        for query, key in TWO_CREDENTIALS.values():
            answer = await refused(served, query, key=key)
            assert b"dm_live" not in answer.body
        assert b"dm_live" not in (await refused(served, key="dm_live_nobody")).body
    log = broker_log(caplog)
    assert log.count("status 400, code bad_request") == len(TWO_CREDENTIALS)
    assert log.count("status 401, code unauthorized") == 1
    assert "dm_live" not in log


# --- opening a stream (PROTOCOL section 2) -----------------------------------

REFUSED = {
    "inboxes that are no names": ("inbox_ids=a%20b", ALICE, 400, "bad_request"),
    "no inboxes": ("inbox_ids=", ALICE, 400, "bad_request"),
    "a type that is none": ("event_types=Message", ALICE, 400, "bad_request"),
    "no types": ("event_types=", ALICE, 400, "bad_request"),
    "a query that is not UTF-8": ("since=%ff", ALICE, 400, "bad_request"),
    "an operator": ("", OPERATOR, 403, "forbidden"),
    "inboxes without the scope": ("inbox_ids=a", PUBLISHER, 403, "forbidden"),
    "since without the scope": ("since=5m", PUBLISHER, 403, "forbidden"),
    "an inbox out of reach": ("inbox_ids=in_1,in_3", INBOXES, 403, "forbidden"),
}


@pytest.mark.parametrize(("query", "key", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_an_opening_that_asks_for_what_it_may_not_have_is_refused(query, key, status, code):
    async with serving() as served:
        check_refusal(await refused(served, query, key=key), status, code)
        assert served.streams().connections == {}


async def test_a_refusal_names_the_field():
    async with serving() as served:
        assert "`inbox_ids[1]`" in (await refused(served, "inbox_ids=a,b%20c")).message
        assert "`event_types[0]`" in (await refused(served, "event_types=X")).message
        assert "`inbox_ids[1]`" in (await refused(served, "inbox_ids=in_1,in_9", key=INBOXES)).message


MISSPELT = [
    ("inbox", "inbox_ids"),
    ("inboxes", "inbox_ids"),
    ("inboxId", "inbox_ids"),
    ("inbox_id", "inbox_ids"),
    ("event_type", "event_types"),
    ("eventTypes", "event_types"),
    ("types", "event_types"),
    ("cursor", "since"),
    ("after", "since"),
    ("clientId", "client_id"),
]


@pytest.mark.parametrize(("name", "right"), MISSPELT)
async def test_a_name_that_is_misspelt_is_refused_with_the_right_one(name, right):
    async with serving() as served:
        query = f"{name}=in_1"
        polled = await ask(served.address, "GET", f"/v1/events?{query}", key=ALICE)
        for answer in (await refused(served, query), polled):
            check_refusal(answer, 400, "bad_request")
            assert f"`{right}`" in answer.message
            assert f"`{name}`" in answer.message


async def test_beside_the_right_name_another_is_ignored_as_all_that_are_not_known():
    async with serving() as served:
        async with connected(
            served.address, "inbox_ids=a&inbox=b&types=x&event_types=y&client=me&client_id=you"
        ) as client:
            assert client.ready["inbox_ids"] == ["a"]
        said = {"inbox_ids": ["a"], "inbox_id": "b", "scopes": ["publish"], "scope": "all", "ttl": 7, "ttl_seconds": 5}
        assert await token_of(served.address, **said)
        body = json.dumps({"inbox_ids": None, "inbox_id": "b"}).encode()
        answer = await ask(served.address, "POST", "/v1/websocket/token", key=ALICE, body=body)
        check_refusal(answer, 400, "invalid_params")


@pytest.mark.parametrize("name", ["inbox_id", "inbox_ids", "inbox"])
async def test_an_inbox_in_the_query_of_a_publish_does_not_make_an_event_the_accounts(name):
    async with serving() as served:
        event = b'{"type":"x.y","payload":{}}'
        answer = await ask(served.address, "POST", f"/v1/events?{name}=in_1", body=event, key=ALICE)
        check_refusal(answer, 400, "bad_request")
        assert "`inbox_id`" in answer.message
        assert f"- at `{name}`" in answer.message
        first = (await ask(served.address, "POST", "/v1/events", body=event, key=ALICE)).json["result"]["events"][0]
        assert first["cursor"].endswith(".1"), "nothing was published before that"


async def test_too_many_inboxes_are_a_bad_request():
    limits = LimitsConfig(max_inboxes_per_connection=3)
    async with serving(configured(limits=limits)) as served:
        check_refusal(await refused(served, "inbox_ids=a,b,c,d"), 400, "bad_request")
        async with connected(served.address, "inbox_ids=a,b,c") as client:
            assert client.ready["limits"]["max_inboxes"] == 3


async def test_a_request_that_asks_for_no_websocket_is_told_to_upgrade():
    async with serving() as served:
        answer = await ask(served.address, "GET", "/v1/stream", key=ALICE)
        check_refusal(answer, 426, "upgrade_required")
        assert answer.headers["upgrade"] == "websocket"
        assert "upgrade" in answer.headers["connection"].lower()
        other_version = await refused(served, "", ("Sec-WebSocket-Version", "8"))
        check_refusal(other_version, 426, "upgrade_required")
        assert other_version.headers["sec-websocket-version"] == "13"


async def test_an_upgrade_with_a_body_is_a_bad_request():
    async with serving() as served:
        check_refusal(await refused(served, "", ("Content-Length", "1")), 400, "bad_request")


async def test_every_opening_that_is_allowed_is_accepted():
    async with serving() as served:
        for query, key, inboxes in [
            ("", ALICE, []),
            ("inbox_ids=*", ALICE, ["*"]),
            ("inbox_ids=b,a,a", ALICE, ["a", "b"]),
            ("", INBOXES, ["in_1", "in_2"]),
            ("inbox_ids=*", INBOXES, ["in_1", "in_2"]),
            ("inbox_ids=in_2", INBOXES, ["in_2"]),
            ("", PUBLISHER, []),
            ("inbox_ids=a&event_types=a.b,message.*", ALICE, ["a"]),
            ("inbox_ids=a%40b.example", ALICE, ["a@b.example"]),
            ("inbox_ids=a&unknown=1", ALICE, ["a"]),
            ("", BOB, []),
        ]:
            async with connected(served.address, query, key=key) as client:
                assert client.ready["inbox_ids"] == inboxes, query


@pytest.mark.parametrize("since", ["5m", "90s", "2026-11-23T10:00:00Z", "2026-11-23T10:00:00.123%2B01:00"])
async def test_since_may_be_a_duration_or_a_time(since):
    async with serving() as served, connected(served.address, f"inbox_ids=a&since={since}") as client:
        assert client.ready["replay"]["recovered"] is True


@pytest.mark.parametrize("since", ["c", "cnothing", "nonsense", "c0123456789abcdef.5", "5", "-1s", "%20"])
async def test_a_since_that_is_not_known_is_said_and_no_refusal(since):
    async with serving() as served:
        await served.broker.publish(ACCOUNT, event(1))
        async with connected(served.address, f"inbox_ids=in_1&since={since}") as client:
            assert client.ready["replay"]["recovered"] is False
            gap = await client.next()
            assert (gap["type"], gap["from"], gap["count"]) == ("replay.gap", None, None)
            assert numbers([await client.next()]) == [1]


async def test_a_cursor_of_another_account_is_not_known():
    async with serving() as served:
        (published,) = await served.broker.publish(ACCOUNT, event(1))
        async with connected(served.address, f"since={published.cursor}", key=BOB) as client:
            assert client.ready["replay"]["recovered"] is False


# --- other paths and methods -------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/", "/v1", "/v1/events/", "/v1/Events", "//v1/events", "/v1/events%2f", "/metricz"]
)
async def test_an_unknown_path_is_not_found(target):
    async with serving() as served:
        check_refusal(await ask(served.address, "GET", target, key=ALICE), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("DELETE", "/v1/events", "POST"),
        ("POST", "/v1/stream", "GET"),
        ("PUT", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
    ],
)
async def test_another_method_is_not_allowed_and_the_allowed_ones_are_named(method, target, allowed):
    async with serving() as served:
        answer = await ask(served.address, method, target, key=ALICE)
        check_refusal(answer, 405, "method_not_allowed")
        assert allowed in answer.headers["allow"].split(", ")


async def test_health_and_readiness_need_no_key():
    async with serving() as served:
        assert (await ask(served.address, "GET", "/healthz")).status == 200
        assert (await ask(served.address, "GET", "/readyz")).status == 200
        head = await ask(served.address, "HEAD", "/healthz")
        assert (head.status, head.body) == (200, b"")


async def test_while_draining_it_lives_and_is_not_ready():
    async with serving() as served, connected(served.address):
        served.broker.start_draining()
        check_refusal(await ask(served.address, "GET", "/readyz"), 503, "draining")
        check_refusal(await refused(served), 503, "draining")
        check_refusal(await post_events(served.address, []), 503, "draining")
        assert (await ask(served.address, "GET", "/healthz")).status == 200


@pytest.mark.parametrize("what", ["webhooks", "queues"])
async def test_while_draining_what_an_account_has_can_be_looked_at_and_not_changed(tmp_path, what):
    config = configured(storage=StorageConfig(path=str(tmp_path / "broker.db")))
    clerk = configured_key("dm_live_clerk", scopes=("webhooks",))
    alice, *others = config.accounts
    config = replace(config, accounts=(replace(alice, keys=(*alice.keys, clerk)), *others))
    async with serving(config) as served, connected(served.address):
        served.broker.start_draining()
        for method, path, body in (("POST", "", b"{}"), ("PATCH", "/x", b"{}"), ("DELETE", "/x", b"")):
            answer = await ask(served.address, method, f"/v1/{what}{path}", bearer("dm_live_clerk"), body=body)
            check_refusal(answer, 503, "draining")
        assert (await ask(served.address, "GET", f"/v1/{what}", bearer("dm_live_clerk"))).json["result"] == {what: []}


# --- publishing (PROTOCOL section 6) -----------------------------------------


async def delivered(client, count: int) -> list[dict]:
    return [await client.next() for _ in range(count)]


async def test_one_event_is_published():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        answer = await post_events(
            served.address, event(1, event_id="evt_mine", created_at="2026-11-23T10:00:00+01:00")
        )
        assert answer.status == 200
        (published,) = answer.result["events"]
        (frame,) = await delivered(client, 1)
        assert frame == {
            "type": "test.event",
            "event_id": "evt_mine",
            "inbox_id": "in_1",
            "created_at": "2026-11-23T09:00:00.000Z",
            "cursor": published["cursor"],
            "payload": {"number": 1, "filler": ""},
        }
        assert published == {"event_id": "evt_mine", "cursor": frame["cursor"]}


async def test_a_list_is_published_in_its_order():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        answer = await post_events(served.address, [event(n) for n in range(300)])
        frames = await delivered(client, 300)
        assert numbers(frames) == list(range(300))
        assert [item["event_id"] for item in answer.result["events"]] == [frame["event_id"] for frame in frames]
        assert len({frame["event_id"] for frame in frames}) == 300


async def test_an_empty_list_publishes_nothing():
    async with serving() as served:
        answer = await post_events(served.address, [])
        assert (answer.status, answer.result) == (200, {"events": []})


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "Application/X-NDJSON; charset=utf-8"])
async def test_lines_of_json_are_published(content_type):
    body = b"\n".join(json.dumps(event(n)).encode() for n in range(3)) + b"\r\n\n"
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        answer = await post_events(served.address, body, ("Content-Type", content_type))
        assert len(answer.result["events"]) == 3
        assert numbers(await delivered(client, 3)) == [0, 1, 2]


async def test_a_chunked_body_is_published():
    body = json.dumps([event(1), event(2)]).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        headers = (("Transfer-Encoding", "chunked"), bearer(ALICE))
        answer = await ask(served.address, "POST", "/v1/events", *headers, body=chunks)
        assert answer.status == 200
        assert numbers(await delivered(client, 2)) == [1, 2]


async def test_a_client_that_waits_for_100_continue_gets_it():
    body = json.dumps(event(1)).encode()
    head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {ALICE}\r\n"
    async with serving() as served, await open_socket(served.address) as stream:
        with trio.fail_after(60):
            await stream.send_all(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(body)
            assert parse_answer(await read_to_end(stream)).status == 200


@pytest.mark.parametrize("key", [None, "dm_live_nobody", LISTENER])
async def test_a_client_that_waits_for_100_continue_and_may_not_publish_is_refused_before_it_sends(key):
    head = "POST /v1/events HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    async with serving() as served:
        answer = await send_raw(served.address, head.encode() + b"\r\n")
        assert answer.status == (403 if key == LISTENER else 401)


async def test_the_same_event_again_is_answered_with_the_first_ones_cursor():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        first = (await post_events(served.address, event(1, event_id="e"))).result["events"][0]
        again = (await post_events(served.address, event(2, event_id="e"))).result["events"][0]
        assert "duplicate" not in first
        assert again == first | {"duplicate": True}
        twice = await post_events(served.address, [event(3, event_id="f"), event(4, event_id="f"), event(5)])
        assert [item.get("duplicate", False) for item in twice.result["events"]] == [False, True, False]
        assert numbers(await delivered(client, 3)) == [1, 3, 5]


async def test_the_same_id_in_another_account_is_another_event():
    async with serving() as served:
        await post_events(served.address, event(1, event_id="e"))
        other = await post_events(served.address, event(1, event_id="e"), key=BOB)
        assert "duplicate" not in other.result["events"][0]


BAD_EVENTS = {
    "no type": ({"payload": {}}, "invalid_params", "type"),
    "no payload": ({"type": "a.b"}, "invalid_params", "payload"),
    "a payload that is no object": (event() | {"payload": []}, "invalid_params", "payload"),
    "a type with capitals": (event() | {"type": "A"}, "invalid_params", "type"),
    "a type of the broker's": (event() | {"type": "connection.ready"}, "invalid_params", "type"),
    "a type that is an answer": (event() | {"type": "response"}, "invalid_params", "type"),
    "a type that ends in a line break": (event() | {"type": "a.b\n"}, "invalid_params", "type"),
    "an empty inbox": (event(inbox=""), "invalid_params", "inbox_id"),
    "an id with a space": (event(event_id="a b"), "invalid_params", "event_id"),
    "a time without an offset": (event(created_at="2026-11-23T10:00:00"), "invalid_params", "created_at"),
    "a time that UTC does not reach": (event(created_at="0001-01-01T00:00:00+12:00"), "invalid_params", "created_at"),
    "another account": (event(account_id="acct_bob"), "forbidden", "account_id"),
    "too many bytes": (event(size=262_144), "too_large", ""),
    "no object": (7, "invalid_params", ""),
}


@pytest.mark.parametrize(("bad", "code", "field"), BAD_EVENTS.values(), ids=BAD_EVENTS.keys())
async def test_a_list_with_one_bad_event_publishes_nothing_and_the_error_names_its_index(bad, code, field):
    path = f"$[1].{field}" if field else "$[1]"
    async with serving() as served:
        answer = await post_events(served.address, [event(1), bad, event(2)])
        check_refusal(answer, {"too_large": 413, "forbidden": 403}.get(code, 400), code)
        assert f"`{path}" in answer.message or f"`{field}` - at `$[1]`" in answer.message
        lines = b"\n".join(json.dumps(item).encode() for item in (event(1), bad, event(2)))
        answer = await post_events(served.address, lines, NDJSON)
        assert answer.code == code
        assert "$[1]" in answer.message
        alone = await post_events(served.address, bad)
        assert alone.code == code
        assert served.broker.statistics().published == 0
        assert served.broker.statistics().replay.events == 0


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"type":"a","payload":{}}', "application/json"),
        (b' [{"type":"a","payload":{}}, {"type":"a","payload":{}}]', "application/json"),
        (b'{"type":"a","payload":{}}\n{"type":"a","payload":{}}\n', "application/x-ndjson"),
    ],
    ids=["one event", "a list", "lines"],
)
async def test_a_byte_order_mark_before_a_body_is_passed_over(body, content_type):
    async with serving() as served:
        headers = (bearer(ALICE), ("Content-Type", content_type))
        answer = await ask(served.address, "POST", "/v1/events", *headers, body=MARK + body)
        assert answer.status == 200
        assert served.broker.statistics().published == body.count(b"payload")
        token = await ask(served.address, "POST", "/v1/websocket/token", bearer(ALICE), body=MARK + b"{}")
        assert token.status == 200
        command = MARK + b'{"action":"ping"}'
        assert (await ask(served.address, "POST", "/v1/commands", bearer(ALICE), body=command)).status == 200


async def test_a_byte_order_mark_anywhere_else_is_refused_by_its_name():
    line = b'{"type":"a","payload":{}}\n'
    async with serving() as served, connected(served.address) as client:
        for body, place in ((MARK * 2 + line, "$[0]"), (line + MARK + line, "$[1]")):
            answer = await post_events(served.address, body, NDJSON)
            check_refusal(answer, 400, "invalid_json")
            assert answer.message == f"It begins with a byte order mark - at `{place}`"
        await client.send(masked(TEXT, MARK + b'{"action":"ping"}'))
        assert (await client.next())["error"]["message"] == "It begins with a byte order mark - at `$`"


BAD_BODIES = {
    "nothing": (b"", "invalid_json"),
    "no JSON": (b"{", "invalid_json"),
    "two documents": (b'{"type":"a","payload":{}} {}', "invalid_json"),
    "not UTF-8": (b'{"type":"a","payload":{"x":"\xff"}}', "invalid_json"),
    "half a character": (b'[{"type":"a","payload":{"x":"\xc3"}}]', "invalid_json"),
    "a surrogate": (b'{"type":"a","payload":{"x":"\xed\xa0\x80"}}', "invalid_json"),
    "nested too deep": (b'{"type":"a","payload":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, "invalid_json"),
    "a payload nested too deep": (b'{"type":"a","payload":' + b'{"a":' * 500 + b"1" + b"}" * 501, "invalid_json"),
    "a list that is cut": (b'[{"type":"a","payload":{}}', "invalid_json"),
    "a payload that is cut": (b'{"type":"a","payload":{"a":}}', "invalid_json"),
    "a string": (b'"event"', "invalid_params"),
    "not a number": (b'{"type":"a","payload":{"a":NaN}}', "invalid_json"),
}


@pytest.mark.parametrize(("body", "code"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_body_that_is_no_strict_json_is_refused(body, code):
    async with serving() as served:
        check_refusal(await post_events(served.address, body), 400, code)
        assert served.broker.statistics().published == 0


async def test_frames_made_from_payloads_with_line_breaks_hold_none():
    body = b'{\n "type":"test.event",\r\n "inbox_id":"in_1", "payload":{\n "number" :\r\n 1, "text":"a\\nb"}}'
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        assert (await post_events(served.address, body)).status == 200
        _, payload = await client.frame()
        assert b"\n" not in payload
        assert b"\r" not in payload
        assert json.loads(payload)["payload"] == {"number": 1, "text": "a\nb"}


async def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read():
    head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nContent-Length: 8388609\r\n\r\n"
    async with serving() as served:
        check_refusal(await send_raw(served.address, head.encode()), 413, "too_large")


async def test_a_chunked_body_that_grows_too_large_is_refused():
    limits = LimitsConfig(max_body_bytes=1_000)
    async with serving(configured(limits=limits)) as served:
        headers = (("Transfer-Encoding", "chunked"), bearer(ALICE))
        chunk = b"100\r\n" + b" " * 256 + b"\r\n"
        answer = await ask(served.address, "POST", "/v1/events", *headers, body=chunk * 100 + b"0\r\n\r\n")
        check_refusal(answer, 413, "too_large")


# --- the right first, then the size, then the body ---------------------------


async def refused_before_its_body(served, path: str, size: int | None, key: str) -> Answer:
    """The answer to a request whose body, of an announced size or (None) in chunks, is never sent."""
    framing = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{framing}\r\n\r\n"
    return await send_raw(served.address, head.encode())


SMALL, LARGE = 16_384, 1_000_000
BEFORE_THE_BODY = {
    "events without the scope": ("/v1/events", LARGE, LISTENER, 403, "forbidden"),
    "events of nobody": ("/v1/events", LARGE, "dm_live_nobody", 401, "unauthorized"),
    "too large events without the scope": ("/v1/events", 8_388_609, LISTENER, 403, "forbidden"),
    "too large events": ("/v1/events", 8_388_609, ALICE, 413, "too_large"),
    "a large command without the scope": ("/v1/commands", LARGE, LISTENER, 403, "forbidden"),
    "a command in chunks without the scope": ("/v1/commands", None, LISTENER, 403, "forbidden"),
    "a command of an operator": ("/v1/commands", 10, OPERATOR, 403, "forbidden"),
    "a too large command": ("/v1/commands", 1_048_577, ALICE, 413, "too_large"),
    "a too large token": ("/v1/websocket/token", SMALL + 1, LISTENER, 413, "too_large"),
}


@pytest.mark.parametrize(
    ("path", "size", "key", "status", "code"), BEFORE_THE_BODY.values(), ids=BEFORE_THE_BODY.keys()
)
async def test_what_may_not_be_sent_is_refused_before_its_body(path, size, key, status, code):
    async with serving() as served:
        check_refusal(await refused_before_its_body(served, path, size, key), status, code)


@pytest.mark.parametrize(("path", "kind"), [("/v1/events", "events"), ("/v1/commands", "commands")])
async def test_who_has_used_up_its_rate_is_refused_before_a_large_body(path, kind):
    rates = RatesConfig(enterprise=TierRatesConfig(**{f"{kind}_per_account": RateConfig(per_second=0.001, burst=1)}))
    async with serving(configured(rates=rates)) as served:

        @served.broker.command("work")
        async def work(params, context):
            return {}

        body = json.dumps(event(1) if kind == "events" else {"action": "work"}).encode()
        assert (await ask(served.address, "POST", path, key=ALICE, body=body)).status == 200
        answer = await refused_before_its_body(served, path, LARGE, ALICE)
        check_refusal(answer, 429, "rate_limited")
        assert int(answer.headers["retry-after"]) > 0
        # nothing was taken of anybody else's, and an operator has no rate
        assert (await post_events(served.address, event(1), key=BOB)).status == 200
        operators = event(1, account_id="acct_alice", size=SMALL)
        assert (await post_events(served.address, operators, key=OPERATOR)).status == 200


async def test_a_small_command_needs_no_scope_to_be_read():
    async with serving() as served:
        answer = await ask(served.address, "POST", "/v1/commands", key=LISTENER, body=b'{"action":"ping"}')
        assert "server_time" in answer.result


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("inbox_id", "inbox_ids"),
        ("inbox", "inbox_ids"),
        ("Inbox_Ids", "inbox_ids"),
        ("inboxIds", "inbox_ids"),
        ("inbox-ids", "inbox_ids"),
        ("inbox_idz", "inbox_ids"),
        ("ibnox_ids", "inbox_ids"),
        ("scope", "scopes"),
        ("SCOPES", "scopes"),
        ("scopess", "scopes"),
        ("ttl", "ttl_seconds"),
        ("ttl_second", "ttl_seconds"),
    ],
)
async def test_a_token_whose_narrowing_is_misspelt_is_refused_by_the_right_name(name, right):
    async with serving() as served:
        body = json.dumps({name: 1}).encode()
        answer = await ask(served.address, "POST", "/v1/websocket/token", key=ALICE, body=body)
        check_refusal(answer, 400, "invalid_params")
        assert f"`{right}`" in answer.message
        assert f"`$.{name}`" in answer.message


@pytest.mark.parametrize("name", ["note", "purpose", "x", "inboxes_of_a_team", "scoping", ""])
async def test_another_field_of_a_token_is_ignored(name):
    async with serving() as served:
        assert await token_of(served.address, **{name: 1})


async def test_what_a_misspelt_name_has_beside_letters_is_not_told_back():
    async with serving() as served:
        body = json.dumps({"inbox_id\n": 1}).encode()
        answer = await ask(served.address, "POST", "/v1/websocket/token", key=ALICE, body=body)
        check_refusal(answer, 400, "invalid_params")
        assert "`inbox_ids` - at `$`" in answer.message


async def test_a_token_is_judged_when_it_is_made_not_when_it_was_asked_for():
    head = f"POST /v1/websocket/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {ALICE}\r\n"
    async with serving() as served, await open_socket(served.address) as stream:
        with trio.fail_after(60):
            await stream.send_all(f"{head}Content-Length: 2\r\n\r\n{{".encode())
            await until(lambda: served.streams().exchanges == 1)
            served.broker.reload(Config())
            await stream.send_all(b"}")
            check_refusal(parse_answer(await read_to_end(stream)), 401, "unauthorized")


# --- bodies under way --------------------------------------------------------


@contextlib.asynccontextmanager
async def body_under_way(served, size: int, *, key: str = ALICE, chunked: bool = False):
    """A POST of events of which all but the last two bytes was sent, and read by the broker."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n{framing}\r\n\r\n"
    )
    before = served.broker.bodies.bytes
    with trio.fail_after(60):
        async with await open_socket(served.address) as stream:
            start = b" " * (size - 2)
            await stream.send_all(head.encode() + (b"%x\r\n%b\r\n" % (len(start), start) if chunked else start))
            await until(lambda: served.broker.bodies.bytes == before + size - 2)
            yield stream


def bodies(most: int) -> Config:
    return configured(limits=LimitsConfig(max_bodies_bytes=most))


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_under_way_are_bounded_for_each_account_and_let_go_when_they_are_answered(chunked):
    async with serving(bodies(40_000)) as served:
        async with body_under_way(served, 6_002, chunked=chunked) as stream:
            answer = await post_events(served.address, b" " * 4_002 + b"[]")
            check_refusal(answer, 503, "unavailable")
            assert (await post_events(served.address, b" " * 3_000 + b"[]")).status == 200
            assert (await post_events(served.address, b" " * 9_000 + b"[]", key=BOB)).status == 200
            await stream.send_all(b"2\r\n[]\r\n0\r\n\r\n" if chunked else b"[]")
            assert parse_answer(await read_to_end(stream)).status == 200
        assert served.broker.bodies.bytes == 0
        assert (await post_events(served.address, b" " * 9_000 + b"[]")).status == 200


@pytest.mark.parametrize("path", ["/v1/events", "/v1/commands"])
async def test_what_is_announced_and_will_not_fit_is_refused_before_it_is_read(path):
    async with serving(bodies(40_000)) as served:
        check_refusal(await refused_before_its_body(served, path, 10_001, ALICE), 503, "unavailable")


async def test_who_announces_much_and_sends_nothing_takes_no_room_and_who_leaves_gives_it_back():
    async with serving(bodies(40_000)) as served:
        head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nContent-Length: 9999\r\n\r\n"
        async with await open_socket(served.address) as stream:
            await stream.send_all(head.encode())
            assert (await post_events(served.address, b" " * 9_900 + b"[]")).status == 200
        async with body_under_way(served, 9_000):
            pass
        await until(lambda: served.broker.bodies.bytes == 0)


async def test_an_answer_is_held_until_its_client_has_taken_it():
    """A short command, a long answer, and a client that reads late."""
    async with serving(bodies(4_000_000)) as served:

        @served.broker.command("work")
        async def work(params, context):
            return {"long": "x" * 1_000_000}

        body = b'{"action":"work"}'
        head = f"POST /v1/commands HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {ALICE}\r\n"
        async with await open_socket(served.address, receive_buffer_bytes=4_096) as stream:
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: served.broker.bodies.bytes > 1_000_000)
            check_refusal(await post_events(served.address, event(1)), 503, "unavailable")
            assert (await post_events(served.address, event(1), key=BOB)).status == 200
            with trio.fail_after(60):
                assert len(parse_answer(await read_to_end(stream)).result["long"]) == 1_000_000
        await until(lambda: served.broker.bodies.bytes == 0)
        assert (await post_events(served.address, event(1))).status == 200


async def test_a_page_of_events_is_held_until_its_client_has_taken_it():
    async with serving(bodies(4_000_000)) as served:
        await served.broker.publish(ACCOUNT, [event(number, size=20_000) for number in range(60)])
        line = "GET /v1/events?inbox_ids=*&since=5m HTTP/1.1"
        head = f"{line}\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {ALICE}\r\n\r\n"
        async with await open_socket(served.address, receive_buffer_bytes=4_096) as stream:
            await stream.send_all(head.encode())
            await until(lambda: served.broker.bodies.bytes > 1_000_000)
            check_refusal(await ask(served.address, "GET", "/v1/events", key=ALICE), 503, "unavailable")
            with trio.fail_after(60):
                assert len(parse_answer(await read_to_end(stream)).result["events"]) == 60
        await until(lambda: served.broker.bodies.bytes == 0)


async def test_an_answer_whose_client_leaves_is_let_go():
    async with serving(bodies(400_000)) as served:

        @served.broker.command("work")
        async def work(params, context):
            return {"long": "x" * 1_000_000}

        body = b'{"action":"work"}'
        head = f"POST /v1/commands HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n"
        async with await open_socket(served.address, receive_buffer_bytes=4_096) as stream:
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: served.broker.bodies.bytes > 1_000_000)
            reset(stream)
        await until(lambda: served.broker.bodies.bytes == 0)


async def test_a_body_that_is_refused_is_let_go():
    async with serving(bodies(40_000)) as served:
        for body in (b" " * 20_000, b" " * 5_000, b"[" * 5_000):
            await post_events(served.address, body)
            assert served.broker.bodies.bytes == 0


# --- which key may publish what ----------------------------------------------


async def test_without_the_scope_nothing_is_published():
    async with serving() as served:
        check_refusal(await post_events(served.address, event(1), key=LISTENER), 403, "forbidden")
        assert (await post_events(served.address, event(1), key=PUBLISHER)).status == 200


async def test_an_inbox_key_publishes_to_its_inboxes_and_nowhere_else():
    async with serving() as served:
        assert (await post_events(served.address, event(1, inbox="in_2"), key=INBOXES)).status == 200
        for inbox in ("in_3", None):
            answer = await post_events(served.address, [event(1), event(2, inbox=inbox)], key=INBOXES)
            check_refusal(answer, 403, "forbidden")
            assert "`$[1].inbox_id`" in answer.message
        assert served.broker.statistics().published == 1


async def test_an_account_key_may_name_its_own_account_and_no_other():
    async with serving() as served:
        assert (await post_events(served.address, event(1, account_id=ACCOUNT))).status == 200
        check_refusal(await post_events(served.address, event(1, account_id="acct_bob")), 403, "forbidden")
        check_refusal(await post_events(served.address, event(1, account_id="acct_none")), 403, "forbidden")


async def test_an_operator_publishes_for_any_account_and_must_name_it():
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1") as alice,
        connected(served.address, "inbox_ids=in_1", key=BOB) as bob,
    ):
        events = [event(1, account_id=ACCOUNT), event(2, account_id="acct_bob"), event(3, account_id=ACCOUNT)]
        answer = await post_events(served.address, events, key=OPERATOR)
        assert answer.status == 200
        got = await delivered(alice, 2) + await delivered(bob, 1)
        assert numbers(got) == [1, 3, 2]
        by_number = {frame["payload"]["number"]: frame["event_id"] for frame in got}
        assert [item["event_id"] for item in answer.result["events"]] == [by_number[n] for n in (1, 2, 3)]

        nameless = await post_events(served.address, [event(1, account_id=ACCOUNT), event(4)], key=OPERATOR)
        check_refusal(nameless, 400, "invalid_params")
        assert "`$[1].account_id`" in nameless.message
        unknown = await post_events(served.address, event(4, account_id="acct_none"), key=OPERATOR)
        check_refusal(unknown, 404, "not_found")
        unknown = await post_events(
            served.address, [event(1, account_id=ACCOUNT), event(4, account_id="acct_none")], key=OPERATOR
        )
        check_refusal(unknown, 404, "not_found")
        assert "`$[1].account_id`" in unknown.message
        assert served.broker.statistics().published == 3


async def test_events_of_one_account_never_reach_another():
    async with serving() as served, connected(served.address, "inbox_ids=*", key=BOB) as bob:
        await post_events(served.address, [event(1), event(2, inbox=None)])
        await post_events(served.address, event(3), key=BOB)
        assert numbers([await bob.next()]) == [3]


async def test_account_events_reach_everybody_but_inbox_keys():
    async with (
        serving() as served,
        connected(served.address) as account_key,
        connected(served.address, key=INBOXES) as inbox_key,
    ):
        await post_events(served.address, [event(1, inbox=None), event(2, inbox="in_1")])
        assert numbers([await account_key.next()]) == [1]
        assert numbers([await inbox_key.next()]) == [2]
        await account_key.ping()


# --- limits said with a time -------------------------------------------------


async def test_a_refusal_with_a_time_says_it_in_whole_seconds_too(monkeypatch):
    async def refuse(*_: object) -> None:
        raise RequestError("rate_limited", "Too many", retry_after_ms=1_200)

    monkeypatch.setattr(Keyring, "authenticate", refuse)
    async with serving() as served:
        answer = await post_events(served.address, event(1))
        check_refusal(answer, 429, "rate_limited")
        assert answer.headers["retry-after"] == "2"
        assert answer.json["error"]["retry_after_ms"] == 1_200


async def test_a_broker_without_keys_refuses_everybody():
    async with serving(Config()) as served:
        check_refusal(await post_events(served.address, event(1)), 401, "unauthorized")
        check_refusal(await refused(served), 401, "unauthorized")


async def test_the_upgrade_is_answered_as_rfc_6455_wants_it():
    async with serving() as served, await open_socket(served.address) as stream:
        with trio.fail_after(60):
            await stream.send_all(upgrade_head())
            head = bytes(await stream.receive_some()).partition(b"\r\n\r\n")[0]
    answer = parse_answer(head)
    assert answer.status == 101
    assert dict(WEBSOCKET_HEADERS)["Sec-WebSocket-Key"] == "dGhlIHNhbXBsZSBub25jZQ=="
    assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert answer.headers["upgrade"].lower() == "websocket"
    assert "sec-websocket-extensions" not in answer.headers
