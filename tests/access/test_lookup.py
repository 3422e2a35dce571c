"""Keys that somebody outside knows: what is asked, how often, what is kept, and what holds while nobody answers."""

import json
import logging
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from apis import SECRET, json_answer, running_api
from clients import ACCOUNT, Outside, alices, config_of, connected, opening, said, serving
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from trio.testing import MockClock
from trio.testing import wait_all_tasks_blocked as blocked

import broker.access.lookup
from broker import AccessConfig, KeyConfig, RequestError, open_broker
from broker.access.keys import digest_of
from broker.access.lookup import (
    MAX_ASKING,
    MAX_WAITING,
    RETRY_SECONDS,
    UNKNOWN_SECONDS,
    Lookup,
    LookupStatistics,
    asks_api,
    share_of,
)
from broker.callout import open_callout
from broker.transport.response import Response

KEY, OTHER = digest_of("dm_live_one"), digest_of("dm_live_two")
TIMEOUT = 10


@asynccontextmanager
async def looking(ask=None):
    """A `Lookup`, and whom it asks."""
    outside = ask or Outside()
    lookup = Lookup(outside, TIMEOUT)
    async with trio.open_nursery() as nursery:
        await nursery.start(lookup.run)
        yield lookup, outside
        nursery.cancel_scope.cancel()


async def code_of(lookup: Lookup, digest: str = KEY) -> str:
    """The code with which a key is refused; "" if it is known, "unknown" if it is said not to be."""
    try:
        kept = await lookup.find(digest, None)
    except RequestError as error:
        return error.code
    return "unknown" if kept.key is None else ""


# --- how often is asked


async def test_a_key_is_asked_for_once_and_its_answer_holds_for_as_long_as_it_says(autojump_clock):
    async with looking() as (lookup, outside):
        outside.knows(KEY, said(ttl_seconds=60, inbox_ids=["in_1"], scopes=["subscribe"], tier="growth"))
        kept = await lookup.find(KEY, "192.0.2.1")
        assert (kept.key.id, kept.key.account_id, kept.key.tier, kept.key.sha256) == ("key_out", ACCOUNT, "growth", KEY)
        assert (kept.key.scopes, kept.key.inbox_ids) == ({"subscribe"}, {"in_1"})
        assert kept.key.narrowing is None
        await trio.sleep(59.9)
        assert await lookup.find(KEY, "192.0.2.2") is kept
        assert outside.asked == [(KEY, "192.0.2.1")]
        await trio.sleep(0.2)
        outside.knows(KEY, said(ttl_seconds=1, inbox_ids=None))
        assert (await lookup.find(KEY, "192.0.2.2")).key.inbox_ids is None
        assert outside.asked[1:] == [(KEY, "192.0.2.2")]


async def test_a_key_that_is_not_known_is_asked_for_again_after_ten_seconds(autojump_clock):
    async with looking() as (lookup, outside):
        assert await code_of(lookup) == "unknown"
        await trio.sleep(UNKNOWN_SECONDS - 0.1)
        outside.knows(KEY, said())
        assert await code_of(lookup) == "unknown"
        assert len(outside.asked) == 1
        await trio.sleep(0.2)
        assert await code_of(lookup) == ""
        assert lookup.statistics() == LookupStatistics(known=1, unknown=0, asking=0)
    assert UNKNOWN_SECONDS == 10


async def test_many_who_want_to_know_the_same_ask_one_question(autojump_clock):
    async with looking() as (lookup, outside):
        outside.knows(KEY, said())
        outside.hold()
        found = []

        async def find():
            found.append(await lookup.find(KEY, None))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(find)
            await blocked()
            assert lookup.statistics().asking == 1
            outside.let_go()
        assert len(outside.asked) == 1
        assert len(found) == 100
        assert all(kept is found[0] for kept in found)


async def test_no_more_than_32_questions_are_under_way_and_the_others_wait(autojump_clock):
    async with looking() as (lookup, outside):
        outside.hold()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(code_of, lookup, digest_of(str(number)))
            await blocked()
            assert len(outside.asked) == MAX_ASKING == 32
            assert lookup.statistics().asking == 100
            outside.let_go()
        assert len(outside.asked) == 100
        assert outside.most_at_once == 32


async def test_more_than_so_many_that_wait_are_refused_and_known_keys_hold(autojump_clock):
    async with looking() as (lookup, outside):
        outside.knows(KEY, said(ttl_seconds=1))
        assert await code_of(lookup) == ""
        await trio.sleep(2)
        outside.hold()
        async with trio.open_nursery() as nursery:
            for number in range(MAX_WAITING):
                nursery.start_soon(code_of, lookup, digest_of(str(number)))
            await blocked()
            assert await code_of(lookup, OTHER) == "unavailable"
            assert await code_of(lookup, KEY) == ""
            assert lookup.statistics().asking == MAX_WAITING
            outside.let_go()
        assert await code_of(lookup, OTHER) == "unknown"


# --- shares of those who ask


async def in_vain(lookup: Lookup, digest: str, remote: str | None) -> str:
    """The code with which a key is refused to a client at an address."""
    with pytest.raises(RequestError) as refused:
        await lookup.find(digest, remote)
    return refused.value.code


def try_keys(nursery, lookup: Lookup, remote: str | None, times: int, name: str = "") -> None:
    """Let an address try so many keys that nobody knows."""
    for number in range(times):
        nursery.start_soon(lookup.find, digest_of(f"{name}{number}"), remote)


async def test_one_address_that_tries_keys_leaves_questions_to_others(autojump_clock):
    async with looking() as (lookup, outside):
        outside.hold()
        async with trio.open_nursery() as nursery:
            try_keys(nursery, lookup, "192.0.2.1", 500)
            await blocked()
            assert len(outside.asked) == 24
            nursery.start_soon(lookup.find, OTHER, "192.0.2.2")
            await blocked()
            assert outside.asked[-1] == (OTHER, "192.0.2.2")
            outside.let_go()


async def test_one_address_that_tries_keys_leaves_room_to_wait_to_others(autojump_clock):
    async with looking() as (lookup, outside):
        outside.knows(OTHER, said())
        outside.hold()
        async with trio.open_nursery() as nursery:
            try_keys(nursery, lookup, "192.0.2.1", 750)
            await blocked()
            assert await in_vain(lookup, KEY, "192.0.2.1") == "unavailable"
            nursery.start_soon(lookup.find, OTHER, "192.0.2.2")
            await blocked()
            outside.let_go()
        assert lookup.kept(OTHER).key is not None


async def test_of_ipv6_a_whole_network_has_one_share(autojump_clock):
    async with looking() as (lookup, outside):
        outside.hold()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                try_keys(nursery, lookup, f"2001:db8::{number:x}:1", 1, f"{number} ")
            await blocked()
            assert len(outside.asked) == 24
            for remote in ("2001:db8:0:1::1", "fe80::1%eth0", "no address: at all"):
                nursery.start_soon(lookup.find, digest_of(remote), remote)
                await blocked()
                assert outside.asked[-1][1] == remote
            outside.let_go()


@pytest.mark.parametrize(
    ("remote", "who"),
    [
        (None, None),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address: at all", "no address: at all"),
    ],
)
def test_an_address_stands_for_itself_and_one_of_ipv6_for_its_network(remote, who):
    assert share_of(remote) == who


async def test_who_asks_and_leaves_has_his_share_taken_until_the_question_is_over(autojump_clock):
    async with looking() as (lookup, outside):
        outside.hold()
        async with trio.open_nursery() as nursery:
            try_keys(nursery, lookup, "192.0.2.1", 750)
            await blocked()
            nursery.cancel_scope.cancel()
        assert lookup.statistics().asking == 750
        assert await in_vain(lookup, KEY, "192.0.2.1") == "unavailable"
        outside.let_go()
        await blocked()
        assert lookup.statistics().asking == 0
        assert (await lookup.find(KEY, "192.0.2.1")).key is None


async def test_a_question_that_never_had_its_turn_is_no_outage(autojump_clock, caplog, monkeypatch):
    monkeypatch.setattr(broker.access.lookup, "MAX_ASKING", 1)
    async with looking() as (lookup, outside), lookup._turns.place(None):
        assert await in_vain(lookup, KEY, "192.0.2.1") == "unavailable"
        assert outside.asked == []
    assert caplog.records == []


async def test_a_key_of_a_form_that_none_has_is_asked_for_by_nobody(autojump_clock):
    outside = Outside()
    async with open_broker(config_of(), access=outside) as opened:
        for rest in ("", "a b", "\u00e9", "x" * 201, "a\n", "\ud800", "{}"):
            with pytest.raises(RequestError, match="unauthorized"):
                await opened.keyring.authenticate(f"dm_live_{rest}", None)
        assert outside.asked == []
        for rest in ("x", "x" * 200, "Aa0-._~+/="):
            with pytest.raises(RequestError, match="unauthorized"):
                await opened.keyring.authenticate(f"dm_live_{rest}", None)
        assert len(outside.asked) == 3


async def test_a_key_of_the_configuration_may_have_any_form(autojump_clock):
    odd = "dm_live_made by hand, and with much love" + "x" * 300
    async with open_broker(
        config_of(alices(KeyConfig(id="key_odd", sha256=digest_of(odd)))), access=Outside()
    ) as opened:
        assert (await opened.keyring.authenticate(odd, None)).id == "key_odd"


async def test_who_gives_up_takes_the_answer_from_nobody(autojump_clock):
    async with looking() as (lookup, outside):
        outside.knows(KEY, said())
        outside.hold()
        found = []

        async def find():
            found.append(await code_of(lookup))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as first:
                nursery.start_soon(find)
                async with trio.open_nursery() as impatient:
                    impatient.start_soon(code_of, lookup)
                    await blocked()
                    first.cancel()
            await blocked()
            outside.let_go()
        assert found == [""]
        assert len(outside.asked) == 1


async def test_the_answer_is_kept_though_whoever_asked_is_gone(autojump_clock):
    async with looking() as (lookup, outside):
        outside.knows(KEY, said())
        outside.hold()
        with trio.move_on_after(1):
            await lookup.find(KEY, None)
        outside.let_go()
        await blocked()
        assert lookup.statistics() == LookupStatistics(known=1, unknown=0, asking=0)
        assert await code_of(lookup) == ""
        assert len(outside.asked) == 1


# --- what is kept


async def test_what_is_kept_is_bounded_and_what_was_not_used_for_longest_goes_first(autojump_clock, monkeypatch):
    monkeypatch.setattr(broker.access.lookup, "MAX_KEPT", 3)
    async with looking() as (lookup, outside):
        keys = [digest_of(str(number)) for number in range(4)]
        for key in keys:
            outside.knows(key, said())
        for key in (keys[0], keys[1], keys[2], keys[0], keys[3]):
            assert await code_of(lookup, key) == ""
        assert lookup.statistics().known == 3
        assert lookup.kept(keys[1]) is None
        assert all(lookup.kept(key) for key in (keys[0], keys[2], keys[3]))


async def test_keys_that_reach_very_many_inboxes_are_kept_within_a_budget_however_often_they_are_used(
    autojump_clock, monkeypatch
):
    """10,000 keys of 20,000 inboxes each would be 22 GB."""
    monkeypatch.setattr(broker.access.lookup, "MAX_KEPT_BYTES", 1_000_000)
    async with looking() as (lookup, outside):
        keys = [digest_of(str(number)) for number in range(4)]
        for number, key in enumerate(keys):
            outside.knows(key, said(inbox_ids=[f"in_{number}_{n}" for n in range(3_000)], ttl_seconds=10))
        small = [digest_of(f"small {number}") for number in range(100)]
        for key in small:
            outside.knows(key, said())
        for key in (keys[0], keys[1], keys[0], keys[2]):
            assert await code_of(lookup, key) == ""
        assert [lookup.kept(key) is None for key in keys] == [False, True, False, True]
        for _ in range(10):
            await trio.sleep(11)
            assert await code_of(lookup, keys[3]) == ""
        for key in small:
            assert await code_of(lookup, key) == ""
        assert all(lookup.kept(key) for key in (keys[3], *small))
        monkeypatch.setattr(broker.access.lookup, "MAX_KEPT_BYTES", 1_000)
        assert await code_of(lookup, keys[0]) == ""
        assert lookup.statistics().known == 1, "the one that was said last is kept, whatever it takes"


async def test_that_a_key_is_not_known_is_kept_for_its_time_and_not_longer(autojump_clock):
    async with looking() as (lookup, _):
        assert await code_of(lookup) == "unknown"
        assert lookup.kept(KEY).key is None
        await trio.sleep(UNKNOWN_SECONDS)
        assert lookup.kept(KEY) is None
        assert lookup.statistics() == LookupStatistics(known=0, unknown=0, asking=0)


async def test_of_a_key_what_was_said_last_is_kept_and_nothing_else(autojump_clock):
    """A key that was revoked is not known because it once was, nor the other way round."""
    async with looking() as (lookup, outside):
        for _ in range(2):
            outside.knows(KEY, said(ttl_seconds=1))
            assert await code_of(lookup) == ""
            assert lookup.kept(KEY).key is not None
            await trio.sleep(2)
            outside.knows(KEY, None)
            assert await code_of(lookup) == "unknown"
            assert lookup.kept(KEY).key is None
            assert lookup.statistics() == LookupStatistics(known=0, unknown=1, asking=0)
            await trio.sleep(UNKNOWN_SECONDS)


async def test_a_flood_of_unknown_keys_drives_no_known_one_out(autojump_clock, monkeypatch):
    monkeypatch.setattr(broker.access.lookup, "MAX_KEPT", 10)
    async with looking() as (lookup, outside):
        outside.knows(KEY, said())
        assert await code_of(lookup) == ""
        for number in range(100):
            assert await code_of(lookup, digest_of(str(number))) == "unknown"
        assert lookup.statistics() == LookupStatistics(known=1, unknown=10, asking=0)
        assert await code_of(lookup) == ""
        assert outside.asked.count((KEY, None)) == 1


# --- no answer

FAILURES: dict[str, Any] = {
    "an exception": ZeroDivisionError("the database is away"),
    "a refusal": RequestError("unavailable", "later"),
    "an end": trio.EndOfChannel(),
    "a group": ExceptionGroup("many", [OSError("one"), OSError("two")]),
    "text": "yes",
    "a mapping without a field": {"account_id": ACCOUNT},
    "a tier that is none": said(tier="gold"),
    "an account that is no name": said(account_id="a b"),
    "an inbox that is no name": said(inbox_ids=["*"]),
    "no time": said(ttl_seconds=0),
    "a negative time": said(ttl_seconds=-1),
    "not a number": said(ttl_seconds=float("nan")),
    "what no JSON is": object(),
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES.keys())
async def test_whatever_is_no_answer_refuses_unknown_keys_for_now_and_leaves_known_ones(answer, autojump_clock, caplog):
    async with looking() as (lookup, outside):
        outside.knows(KEY, said(ttl_seconds=5))
        assert await code_of(lookup) == ""
        await trio.sleep(6)
        for digest in (KEY, OTHER):
            outside.knows(digest, answer)
        assert await code_of(lookup, OTHER) == "unavailable"
        assert await code_of(lookup, KEY) == ""
        assert lookup.statistics() == LookupStatistics(known=1, unknown=0, asking=0)
        outside.knows(OTHER, said())
        assert await code_of(lookup, OTHER) == ""
    assert next(record.levelname for record in caplog.records if record.name == "broker.access.lookup") == "WARNING"


async def test_a_known_key_is_not_asked_for_again_at_each_opening_while_nobody_answers(autojump_clock):
    async with looking() as (lookup, outside):
        outside.knows(KEY, said(ttl_seconds=5))
        await lookup.find(KEY, None)
        await trio.sleep(6)
        outside.knows(KEY, OSError())
        for _ in range(5):
            assert await code_of(lookup) == ""
        assert len(outside.asked) == 2
        await trio.sleep(RETRY_SECONDS)
        assert await code_of(lookup) == ""
        assert len(outside.asked) == 3


async def test_a_key_that_was_said_not_to_be_known_is_not_known_to_hold(autojump_clock):
    async with looking() as (lookup, outside):
        assert await code_of(lookup) == "unknown"
        outside.knows(KEY, OSError())
        assert await code_of(lookup) == "unknown"
        await trio.sleep(UNKNOWN_SECONDS + 1)
        assert await code_of(lookup) == "unavailable"


async def test_a_question_has_its_time_also_while_it_waits_for_its_turn(autojump_clock):
    async with looking() as (lookup, outside):
        outside.hold()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(2 * MAX_ASKING):
                nursery.start_soon(code_of, lookup, digest_of(str(number)))
            assert await code_of(lookup) == "unavailable"
        assert trio.current_time() - began == pytest.approx(TIMEOUT)
        assert lookup.statistics().asking == 0


async def test_an_outage_is_logged_once_and_its_end_once(autojump_clock, caplog):
    caplog.set_level(logging.DEBUG)
    async with looking() as (lookup, outside):
        for _ in range(2):
            outside.knows(KEY, RequestError("unavailable", "The operator's API answered 500"))
            for _ in range(5):
                await code_of(lookup)
            await trio.sleep(RETRY_SECONDS)
            outside.knows(KEY, said(ttl_seconds=0.1))
            for _ in range(5):
                await code_of(lookup)
                await trio.sleep(1)
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "broker.access.lookup"]
    assert [level for level, _ in lines] == ["WARNING", "INFO"] * 2
    assert "answered 500" in lines[0][1]
    assert KEY not in caplog.text


async def test_that_no_answer_comes_in_time_is_an_outage_and_logged_once(autojump_clock, caplog):
    async with looking() as (lookup, outside):
        outside.hold()
        for _ in range(3):
            assert await code_of(lookup) == "unavailable"
        assert trio.current_time() == 3 * TIMEOUT
    [record] = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "broker.access.lookup")
    assert f"no answer within {TIMEOUT} s" in record.getMessage()


# --- the operator's API


@asynccontextmanager
async def asking_api():
    """A `Lookup` that asks an `Api`."""
    async with (
        running_api() as api,
        open_callout(api.url, SECRET, TIMEOUT) as callout,
        looking(asks_api(callout)) as (lookup, _),
    ):
        yield api, lookup


ANSWER = {
    "account_id": ACCOUNT,
    "tier": "free",
    "key_id": "key_out",
    "scopes": ["subscribe"],
    "inbox_ids": ["in_1"],
    "ttl_seconds": 60,
}


async def test_the_question_is_the_hash_and_the_address_and_is_signed_as_standard_webhooks_are():
    async with asking_api() as (api, lookup):
        api.answer = json_answer(ANSWER)
        kept = await lookup.find(KEY, "192.0.2.1")
        assert kept.key.inbox_ids == {"in_1"}
        api.answer = Response(401)
        assert (await lookup.find(OTHER, None)).key is None
        (headers, body), (other_headers, other_body) = api.asked
        assert json.loads(body) == {"key_sha256": KEY, "remote": "192.0.2.1"}
        assert json.loads(other_body) == {"key_sha256": OTHER, "remote": None}
        assert Webhook(SECRET).verify(body, headers) == json.loads(body)
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body, other_headers)
        assert int(headers["content-length"]) == len(body)
        assert headers["webhook-id"] != other_headers["webhook-id"]
        assert api.paths == ["POST /commands"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        json_answer({**ANSWER, "unknown": 1}),
        json_answer({**ANSWER, "inbox_ids": None}),
        json_answer({**ANSWER, "ttl_seconds": 0.5}),
        json_answer({**ANSWER, "scopes": []}),
    ],
)
async def test_an_answer_of_the_right_form_is_believed(answer):
    async with asking_api() as (api, lookup):
        api.answer = answer
        assert (await lookup.find(KEY, None)).key.account_id == ACCOUNT


NO_ANSWERS = {
    "500": (Response(500), "500"),
    "403": (Response(403), "403"),
    "404": (Response(404), "404"),
    "a redirect": (Response(302, headers=(("Location", "/other"),)), "302"),
    "201 with a good body": (json_answer(ANSWER, 201), "201"),
    "204": (Response(204), "204"),
    "no body": (Response(200), ""),
    "no JSON": (Response(200, b"<html>"), ""),
    "a list": (json_answer([ANSWER]), ""),
    "cut before the answer": (b"", "gave no answer"),
    "cut in the answer": (b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"account_id"', "gave no answer"),
    "no HTTP": (b"hello\r\n\r\n", "gave no answer"),
    **{
        f"without {name}": (json_answer({k: v for k, v in ANSWER.items() if k != name}), f"`{name}`") for name in ANSWER
    },
    **{
        f"a bad {name}": (json_answer({**ANSWER, name: bad}), f"`$.{name}")
        for name, bad in (
            ("account_id", ""),
            ("account_id", None),
            ("tier", "platinum"),
            ("key_id", "a\n"),
            ("scopes", ["admin"]),
            ("scopes", None),
            ("inbox_ids", [1]),
            ("ttl_seconds", 0),
            ("ttl_seconds", "60"),
            ("ttl_seconds", None),
        )
    },
}


@pytest.mark.parametrize(("answer", "why"), NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
async def test_anything_else_is_no_answer_and_one_line_says_why(answer, why, caplog):
    caplog.set_level(logging.INFO)
    async with asking_api() as (api, lookup):
        api.answer = answer
        for digest in (KEY, OTHER):
            assert await code_of(lookup, digest) == "unavailable"
        assert len(api.asked) == 2
    [record] = [record for record in caplog.records if record.name == "broker.access.lookup"]
    assert why in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None
    for secret in (KEY, OTHER, SECRET):
        assert secret not in caplog.text


async def test_a_body_that_is_not_said_with_200_is_not_believed():
    async with asking_api() as (api, lookup):
        api.answer = json_answer(ANSWER, 401)
        assert await code_of(lookup) == "unknown"


@pytest.fixture
def clock():
    return MockClock(rate=1)


async def test_an_api_that_does_not_answer_is_given_up(clock):
    async with asking_api() as (api, lookup):
        api.answer = None
        codes = []

        async def find():
            codes.append(await code_of(lookup))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find)
            await api.was_asked.wait()
            clock.jump(TIMEOUT)
        assert codes == ["unavailable"]


async def test_the_configured_api_is_asked_when_a_stream_is_opened():
    async with running_api() as api:
        api.answer = json_answer(ANSWER)
        config = config_of(access=AccessConfig(url=api.url, secret=SECRET))
        async with serving(config) as served:
            async with connected(served.address, key="dm_live_one") as client:
                assert client.ready["inbox_ids"] == ["in_1"]
            assert json.loads(api.asked[0][1]) == {"key_sha256": KEY, "remote": "127.0.0.1"}
            api.answer = Response(401)
            assert (await opening(served.address, key="dm_live_two")).status == 401
            api.answer = Response(503)
            answer = await opening(served.address, key="dm_live_three")
            assert (answer.status, answer.code) == (503, "unavailable")
            async with connected(served.address, key="dm_live_one"):
                pass
            assert len(api.asked) == 3


@pytest.mark.parametrize("digits", [30, 310, 4_000])
async def test_a_time_longer_than_any_clock_has_ends_nobody_but_itself(digits):
    """Python's integers have no end, its floats have."""
    body = json.dumps({**ANSWER, "ttl_seconds": 60}).replace("60", "9" * digits).encode()
    async with asking_api() as (api, lookup):
        api.answer = Response(200, body)
        await code_of(lookup)
        api.answer = json_answer(ANSWER)
        assert await code_of(lookup, OTHER) == ""
