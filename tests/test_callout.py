"""Commands that are done by the operator's own API: a real HTTP server that answers, refuses, hangs, cuts and lies."""

import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
import trio
from apis import SECRET, Api, headers_of, json_answer, running_api
from commanding import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    LISTENER,
    TRACE,
    Caller,
    configured,
    connected,
    post,
    serving,
)
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from trio.testing import MockClock
from trio.testing import wait_all_tasks_blocked as blocked

from broker import CommandContext, CommandsConfig, RequestError, open_broker
from broker.callout import MAX_ANSWER_BYTES, MAX_ANSWER_VALUES, MAX_CONNECTIONS, open_callout
from broker.transport.response import Response


@asynccontextmanager
async def forwarding(**settings: Any) -> AsyncIterator[tuple[Api, Any]]:
    """A broker that forwards its commands to an `Api`."""
    async with running_api() as api:
        commands = CommandsConfig(url=api.url, secret=SECRET, **settings)
        async with open_broker(configured(commands=commands)) as opened:
            yield api, opened


async def until_answered(sent) -> Any:
    with trio.fail_after(60):
        while not sent.outcomes:
            await blocked(0.001)
    return sent.outcome


async def ask(opened, *args, secret=ALICE, **params):
    sent = Caller(opened, secret).send(*args, **params)
    await until_answered(sent)
    return sent


# --- the question ------------------------------------------------------------


async def test_any_action_is_posted_to_the_api_and_its_result_is_the_answer():
    async with forwarding() as (api, opened), serving(opened) as address:
        api.answer = json_answer({"result": {"message_id": "msg_1"}})
        async with connected(address) as client:
            sent = await client.ask("send_email", "r1", inbox_id="in_9", params={"to": ["a"], "subject": "é\u2028"})
            assert sent == {"message_id": "msg_1"}
            assert api.paths == ["POST /commands"]
            assert api.question == {
                "action": "send_email",
                "request_id": "r1",
                "account_id": ACCOUNT,
                "key_id": "key_alice",
                "inbox_id": "in_9",
                "inbox_ids": None,
                "params": {"to": ["a"], "subject": "é\u2028"},
            }
        async with connected(address, INBOXES) as client:
            await client.ask("mark_as_read", "r1", message_id="msg_1")
            assert api.question["inbox_ids"] == ["in_1", "in_2"]
            assert (api.question["inbox_id"], api.question["key_id"]) == (None, "key_inboxes")


async def test_the_api_gets_the_parameters_as_the_client_wrote_them():
    written = (
        '{"a":12345678901234567.12,"b":[1e-400,1.0,-0,1E2],"c":123456789012345678901234567890,"d":"\\u0041\u2028"}'
    )
    async with forwarding() as (api, opened), serving(opened) as address:
        await post(address, b'{"action":"work", "params": {"deep" : %b}}' % written.encode())
        assert b'"params":{"deep":%b}' % written.encode() in api.asked[-1][1]


@pytest.mark.parametrize(
    "value", ["1e309", "1" + "0" * 309, "[" * 129 + "]" * 129, '"\\ud800"', '{"a":01}'], ids=lambda value: value[:9]
)
async def test_parameters_that_are_not_strict_json_are_not_asked_about(value):
    async with forwarding() as (api, opened), serving(opened) as address:
        answer = await post(address, b'{"action":"work","params":{"n":%b}}' % value.encode())
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in {"invalid_params", "invalid_json"}
        assert not api.asked


async def test_the_question_is_signed_as_standard_webhooks_are_and_has_a_length():
    async with forwarding() as (api, opened):
        await ask(opened, "work", "r1", text="é\u2028\U0001f600")
        [(headers, body)] = api.asked
        assert Webhook(SECRET).verify(body, headers) == json.loads(body)
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body + b" ", headers)
        with pytest.raises(WebhookVerificationError):
            Webhook("whsec_" + "A" * 32).verify(body, headers)
        assert int(headers["content-length"]) == len(body)
        assert "transfer-encoding" not in headers
        assert headers["accept-encoding"] == "identity", "a small answer stays a small answer"
        assert headers["content-type"] == "application/json"
        assert "traceparent" not in headers


async def test_the_clients_trace_is_passed_on():
    async with forwarding() as (api, opened), serving(opened) as address:
        await ask(opened, "work", traceparent=TRACE)
        assert api.asked[-1][0]["traceparent"] == TRACE
        assert "traceparent" not in api.question["params"]
        await post(address, {"action": "work"}, traceparent=TRACE)
        assert api.asked[-1][0]["traceparent"] == TRACE
        await ask(opened, "work", traceparent="x\r\nwebhook-id: forged")
        assert "traceparent" not in api.asked[-1][0]


async def test_the_webhook_id_is_the_same_when_the_same_command_is_asked_again_and_else_another():
    async with forwarding() as (api, opened):
        api.answer = Response(503)
        for args in (("r1", 1), ("r1", 1), ("r1", 2), ("r2", 1), (None, 1), (None, 1)):
            assert (await ask(opened, "work", args[0], n=args[1])).outcome == "unavailable"
        ids = [headers["webhook-id"] for headers, _ in api.asked]
        assert ids[0] == ids[1]
        assert len(set(ids)) == 5
        assert "." not in "".join(ids), "a dot separates the parts of what is signed"


async def test_a_handler_of_the_library_goes_before_the_api():
    async with forwarding() as (api, opened):

        @opened.command("work")
        async def work(params, context: CommandContext):
            return "mine"

        assert (await ask(opened, "work")).outcome == "mine"
        assert api.asked == []
        assert (await ask(opened, "other")).outcome == {"done": True}


async def test_what_the_key_may_not_is_refused_before_the_api_is_asked():
    async with forwarding() as (api, opened), serving(opened) as address:
        assert (await post(address, {"action": "work", "inbox_id": "in_9"}, INBOXES)).status_code == 403
        assert (await post(address, {"action": "work"}, LISTENER)).status_code == 403
        assert (await post(address, {"action": "work"}, None)).status_code == 401
        assert (await post(address, b"[", ALICE)).status_code == 400
        assert (await post(address, {"action": "publish", "events": []}, ALICE)).status_code == 404
        assert api.asked == []


# --- the answer --------------------------------------------------------------

ERROR = {"code": "no_such_message", "message": "There is none"}

ANSWERS = {
    "a result": (json_answer({"result": {"a": [1]}}), {"a": [1]}, 200),
    "an empty result": (json_answer({"result": {}}), {}, 200),
    "a refusal with 200": (json_answer({"error": ERROR}), "no_such_message", 400),
    "a refusal with 404": (json_answer({"error": ERROR}, 404), "no_such_message", 400),
    "a refusal with more in it": (json_answer({"error": {**ERROR, "x": 1}, "y": 2}, 409), "no_such_message", 400),
    "a known code": (json_answer({"error": {"code": "forbidden", "message": "no"}}, 403), "forbidden", 403),
    "400 without a body": (Response(400), "invalid_params", 400),
    "404 with a page": (Response(404, b"<h1>Not found</h1>", content_type="text/html"), "invalid_params", 400),
    "422 with another error": (json_answer({"error": "no"}, 422), "invalid_params", 400),
    "422 with half an error": (json_answer({"error": {"code": "no"}}, 422), "invalid_params", 400),
    "422 with numbers": (json_answer({"error": {"code": 1, "message": 2}}, 422), "invalid_params", 400),
    "401 with a result": (json_answer({"result": {}}, 401), "invalid_params", 400),
    "500": (Response(500), "unavailable", 503),
    "500 with an error": (json_answer({"error": ERROR}, 500), "unavailable", 503),
    "503 with a result": (json_answer({"result": {}}, 503), "unavailable", 503),
    "200 without a body": (Response(200), "unavailable", 503),
    "204": (Response(204), "unavailable", 503),
    "200 with garbage": (Response(200, b"\xff\xfe{"), "unavailable", 503),
    "200 with half a document": (Response(200, b'{"result":{'), "unavailable", 503),
    "200 with bad UTF-8 in it": (Response(200, b'{"result":{"a":"\xff"}}'), "unavailable", 503),
    "200 too deep": (Response(200, b'{"result":{"a":' + b"[" * 10_000), "unavailable", 503),
    "200 with a list": (json_answer([1]), "unavailable", 503),
    "200 with text": (json_answer("ok"), "unavailable", 503),
    "200 with neither": (json_answer({"ok": True}), "unavailable", 503),
    "a result that is a list": (json_answer({"result": [1]}), "unavailable", 503),
    "a result that is null": (json_answer({"result": None}), "unavailable", 503),
    "an error that is a text": (json_answer({"error": "no"}), "unavailable", 503),
    "a huge answer": (json_answer({"result": {"a": "x" * MAX_ANSWER_BYTES}}), "unavailable", 503),
    "a huge refusal": (json_answer({"error": {"code": "x" * MAX_ANSWER_BYTES, "message": ""}}), "unavailable", 503),
    "an answer of many values": (json_answer({"result": {"a": [1] * MAX_ANSWER_VALUES}}), "unavailable", 503),
    "a refusal of many values": (json_answer({"error": [[]] * MAX_ANSWER_VALUES}, 400), "invalid_params", 400),
    "an answer in chunks of a byte": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"result":{"a":1}}' + b" " * 1_000)
        + b"0\r\n\r\n",
        {"a": 1},
        200,
    ),
    "a compressed answer": (
        Response(200, gzip.compress(b'{"result":{}}'), (("Content-Encoding", "gzip"),)),
        "unavailable",
        503,
    ),
    "a redirect": (Response(302, headers=(("Location", "/elsewhere"),)), "unavailable", 503),
    "a redirect of posts": (Response(307, headers=(("Location", "/elsewhere"),)), "unavailable", 503),
    "cut before the head": (b"", "unavailable", 503),
    "cut in the head": (b"HTTP/1.1 200 OK\r\nContent-Le", "unavailable", 503),
    "cut in the body": (b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"result":{}}', "unavailable", 503),
    "cut in a chunk": (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{"result":{}}', "unavailable", 503),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "unavailable", 503),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000, "unavailable", 503),
    "a head that is too long": (
        b"HTTP/1.1 200 OK\r\n" + b"Set-Cookie: a=1\r\n" * 1_000 + b'Content-Length: 13\r\n\r\n{"result":{}}',
        "unavailable",
        503,
    ),
    "a long head": (
        b"HTTP/1.1 200 OK\r\n" + b"Set-Cookie: a=1\r\n" * 900 + b'Content-Length: 13\r\n\r\n{"result":{}}',
        {},
        200,
    ),
    "first words without end": (b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000, "unavailable", 503),
    "a head in lines of another system": (b'HTTP/1.1 200 OK\nContent-Length: 13\n\n{"result":{}}', {}, 200),
    "a long body after some first words": (
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100
        + b"HTTP/1.1 200 OK\r\nContent-Length: 100017\r\n\r\n"
        + b'{"result":{"a":"%b"}}' % (b"x" * 99_998),
        {"a": "x" * 99_998},
        200,
    ),
    "an answer without length": (b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"result":{"a":1}}', {"a": 1}, 200),
    "an answer after a first word": (
        b'HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"result":{}}',
        {},
        200,
    ),
}


WHY = {
    "500": "(500)",
    "500 with an error": "(500)",
    "503 with a result": "(503)",
    "200 without a body": "no JSON",
    "204": "(204)",
    "200 with garbage": "no JSON",
    "200 with half a document": "no JSON",
    "200 with bad UTF-8 in it": "no JSON",
    "200 too deep": "no JSON",
    "an answer of many values": "20,000 values",
    "200 with a list": "not a list",
    "200 with text": "not text",
    "200 with neither": "neither `result` nor `error`",
    "a result that is a list": "`$.result`",
    "a result that is null": "neither `result` nor `error`",
    "an error that is a text": "`$.error`",
    "a huge answer": "too long",
    "a huge refusal": "too long",
    "a compressed answer": "no JSON",
    "a redirect": "(302)",
    "a redirect of posts": "(307)",
}
"""What the log says of those answers that are none, beside `gave no answer`."""


def said_of_the_api(caplog) -> list[str]:
    """What was logged of the operator's API, with its level; nothing worse than a warning was logged of anything."""
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []
    assert [record for record in caplog.records if record.exc_info] == []
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if record.name == "broker.commands.forward"
    ]


@pytest.mark.parametrize(("name", "answer", "outcome", "status"), [(n, *a) for n, a in ANSWERS.items()], ids=ANSWERS)
async def test_every_answer_of_the_api_has_its_outcome_and_its_status(name, answer, outcome, status, caplog):
    async with forwarding() as (api, opened), serving(opened) as address:
        api.answer = answer
        async with connected(address) as client:
            got = await client.ask("work", "r1")
            assert (got if status == 200 else got["code"]) == outcome
        response = await post(address, {"action": "work"})
        assert response.status_code == status
        body = response.json()
        assert (body["result"] if status == 200 else body["error"]["code"]) == outcome
        assert set(api.paths) == {"POST /commands"}, "no redirect is followed"
        assert len(api.asked) == 2
    if status == 503:
        [line] = said_of_the_api(caplog)
        assert line.startswith("WARNING ")
        assert WHY.get(name, "gave no answer") in line
    else:
        assert said_of_the_api(caplog) == []


async def test_the_words_of_a_refusal_are_passed_on():
    async with forwarding() as (api, opened):
        api.answer = json_answer({"error": ERROR}, 404)
        sent = await ask(opened, "work")
        assert (sent.error.code, sent.error.message) == ("no_such_message", "There is none")


async def test_what_the_api_decided_is_remembered_and_what_it_could_not_is_asked_again():
    async with forwarding() as (api, opened):
        for request_id, answer, lasting in [
            ("r1", json_answer({"result": {}}), True),
            ("r2", json_answer({"error": ERROR}, 404), True),
            ("r3", Response(400), False),
            ("r4", Response(500), False),
            ("r5", b"", False),
            ("r6", json_answer({"error": {"code": "rate_limited", "message": "slowly"}}, 429), False),
        ]:
            api.answer = answer
            first = await ask(opened, "work", request_id)
            api.answer = json_answer({"result": {"another": "answer"}})
            again = await ask(opened, "work", request_id)
            assert (again.outcome == first.outcome) == lasting, request_id
            assert (again.outcome == {"another": "answer"}) != lasting, request_id


async def test_an_outage_of_the_api_is_logged_when_it_begins_and_when_it_ends(caplog):
    caplog.set_level(logging.INFO)
    async with forwarding() as (api, opened):
        for answer in (Response(500), b"", Response(500), json_answer({"result": {}}), json_answer({"result": {}})):
            api.answer = answer
            await ask(opened, "work", password="swordfish")
    began, ended = said_of_the_api(caplog)
    assert began.startswith("WARNING ")
    assert "(500)" in began
    assert ended == "INFO the operator's API does commands again"
    assert "swordfish" not in caplog.text


@pytest.mark.parametrize("answer", [json_answer({"error": ERROR}, 404), Response(400)])
async def test_an_api_that_refuses_has_answered(answer, caplog):
    caplog.set_level(logging.INFO)
    async with forwarding() as (api, opened):
        for given in (Response(500), answer):
            api.answer = given
            await ask(opened, "work")
    assert [line.split()[0] for line in said_of_the_api(caplog)] == ["WARNING", "INFO"]


async def test_an_api_that_fails_now_and_then_does_not_fill_the_log(caplog):
    caplog.set_level(logging.INFO)
    async with forwarding() as (api, opened):
        for number in range(40):
            api.answer = json_answer({"result": []} if number % 4 == 1 else {"result": {}}, 500 * (number % 2) or 200)
            await ask(opened, "work")
    assert len(said_of_the_api(caplog)) == 2


async def test_an_answer_that_is_not_understood_is_logged_once_a_minute_and_names_the_field(caplog):
    async with forwarding() as (api, opened):
        for answer in ({"result": [1]}, {"result": {}}, {"error": {"code": 7}}, {"result": [1]}):
            api.answer = json_answer(answer)
            await ask(opened, "work")
    [line] = said_of_the_api(caplog)
    assert "not understood" in line
    assert "`$.result`" in line


async def test_the_broker_says_its_name_and_version():
    async with forwarding() as (api, opened):
        await ask(opened, "work")
        assert api.asked[0][0]["user-agent"] == f"daimon-broker/{version('daimon-broker')}"


# --- fair shares -------------------------------------------------------------


async def test_the_slow_commands_of_one_account_hold_up_no_other():
    """As many as it may have under way, which is more than there are connections to the API."""
    async with forwarding(max_per_connection=250) as (api, opened), serving(opened) as address:
        api.answer = None
        greedy = Caller(opened)
        for _ in range(250):
            greedy.send("work")
        await until_asked(api, 75)
        api.answer = json_answer({"result": {"quick": True}})
        assert (await ask(opened, "work", secret=BOB)).outcome == {"quick": True}
        async with connected(address, BOB) as client:
            assert await client.ask("work", "r1") == {"quick": True}
        await blocked(0.01)
        assert len(api.asked) == 77
        assert opened.statistics().commands.under_way == 250
        assert MAX_CONNECTIONS == 100


async def until_asked(api, times: int) -> None:
    """Wait until the API has been asked so often, and is asked no more."""
    with trio.fail_after(60):
        while len(api.asked) < times:
            await blocked(0.001)
    await blocked(0.01)
    assert len(api.asked) == times


async def test_an_absent_api_is_unavailable_and_is_asked_again_when_it_is_there():
    async with running_api() as api:
        pass
    commands = CommandsConfig(url=api.url, secret=SECRET)
    async with open_broker(configured(commands=commands)) as opened, serving(opened) as address:
        response = await post(address, {"action": "work", "request_id": "r1"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        port = int(api.url.rpartition(":")[2].partition("/")[0])
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_tcp, api.serve, port, host="127.0.0.1"))
            assert (await ask(opened, "work", "r1")).outcome == {"done": True}
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["http://[x/", "http://a:99999999/", "http://./"])
async def test_a_url_that_leads_nowhere_is_unavailable(url, caplog):
    async with open_broker(configured(commands=CommandsConfig(url=url, secret=SECRET))) as opened:
        assert (await ask(opened, "work")).outcome == "unavailable"


async def test_one_connection_serves_many_questions_and_a_lost_one_harms_none():
    async with forwarding() as (api, opened):
        for _ in range(5):
            assert (await ask(opened, "work")).outcome == {"done": True}
        api.answer = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"result":{}}'
        for _ in range(5):
            assert (await ask(opened, "work")).outcome == {}
            await blocked(0.001)
        assert len(api.asked) == 10


async def test_a_cookie_of_the_api_is_not_sent_back_to_it():
    async with forwarding() as (api, opened):
        api.answer = Response(200, b'{"result":{}}', headers=(("Set-Cookie", "route=1"),))
        for _ in range(2):
            assert (await ask(opened, "work")).outcome == {}
        assert [headers.get("cookie") for headers, _ in api.asked] == [None, None]


# --- its slowness: the clock is jumped once the API has been asked --------------


@pytest.fixture
def clock() -> MockClock:
    return MockClock(rate=1)


@pytest.mark.parametrize(
    "slow",
    [
        None,
        b"HTTP/1.1 200 OK\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"result"',
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n",
    ],
    ids=["no answer", "half a head", "half a body", "no body"],
)
async def test_an_answer_that_is_too_late_is_a_timeout_and_delays_nothing_else(slow, clock, caplog):
    async with forwarding(timeout_seconds=10) as (api, opened), serving(opened) as address:
        api.answer, api.cuts = slow, False
        async with connected(address) as client:
            await client.say("work", "r1")
            with trio.fail_after(60):
                await api.was_asked.wait()
            assert "server_time" in await client.ask("ping", "r2")
            clock.jump(9)
            assert "server_time" in await client.ask("ping", "r3")
            assert client.frames == []
            clock.jump(1)
            assert (await client.answer("r1"))["error"]["code"] == "timeout"
        assert opened.statistics().commands.under_way == 0
    [line] = said_of_the_api(caplog)
    assert "did not answer in time" in line


async def test_of_an_answer_that_is_too_long_no_more_is_read_than_shows_that(clock):
    """It has no end, and nobody waits for it."""
    async with forwarding(timeout_seconds=1000) as (api, opened):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
        api.answer, api.cuts = head + b"x" * (MAX_ANSWER_BYTES + 1), False
        assert (await ask(opened, "work")).outcome == "unavailable"


async def test_a_slow_api_is_504_over_http(clock):
    async with forwarding() as (api, opened), serving(opened) as address, trio.open_nursery() as nursery:
        api.answer = None
        answers = []

        async def ask_over_http():
            answers.append(await post(address, {"action": "work"}))

        nursery.start_soon(ask_over_http)
        with trio.fail_after(60):
            await api.was_asked.wait()
        clock.jump(10)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (504, "timeout")


async def test_a_callout_has_a_deadline_of_its_own(clock):
    async with running_api() as api, open_callout(api.url, SECRET, 10) as callout, trio.open_nursery() as nursery:
        api.answer = None
        refusals = []

        async def ask_in_vain():
            with trio.fail_after(60), pytest.raises(RequestError) as caught:
                await callout.ask({"a": 1}, "msg_1")
            refusals.append(caught.value.code)

        nursery.start_soon(ask_in_vain)
        await api.was_asked.wait()
        clock.jump(9)
        await blocked(0.001)
        assert refusals == []
        clock.jump(1)
    assert refusals == ["timeout"]


async def test_when_the_client_leaves_the_api_goes_on_and_its_answer_is_remembered():
    async with forwarding() as (api, opened), serving(opened) as address:
        api.answer = None
        release = trio.Event()

        async def wait_and_answer(request):
            api.asked.append((headers_of(request), await request.body()))
            api.was_asked.set()
            await release.wait()
            return json_answer({"result": {"late": True}})

        api._handle = wait_and_answer
        async with connected(address) as client:
            await client.say("work", "r1")
            with trio.fail_after(60):
                await api.was_asked.wait()
        with trio.fail_after(60):
            while opened.commands._accounts.open(ACCOUNT).lanes:
                await blocked(0.001)
        assert opened.statistics().commands.under_way == 1
        async with connected(address) as client:
            await client.say("work", "r1")
            await client.ask("ping", "r2")
            release.set()
            assert (await client.answer("r1"))["result"] == {"late": True}
        assert len(api.asked) == 1


async def test_no_key_and_no_secret_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    async with forwarding() as (api, opened), serving(opened) as address, connected(address) as client:
        for answer in (json_answer({"result": {}}), Response(500), b"", b"SSH-2.0\r\n\r\n"):
            api.answer = answer
            await client.ask("work", f"r{len(api.asked)}", password="swordfish")
    ours = [record for record in caplog.records if record.name.split(".")[0] in {"broker", "httpx", "httpcore"}]
    text = "\n".join(map(logging.Formatter().format, ours))
    assert "HTTP Request" in text
    for secret in (ALICE, SECRET, SECRET.removeprefix("whsec_"), "swordfish"):
        assert secret not in text
