"""What an operator is told of refusals."""

import logging
from functools import partial

import pytest
from clients import ALICE, LISTENER, ask, open_socket, opening, read_to_end, serving

from broker import CommandContext, CommandError
from broker.errors import RequestError
from broker.logline import LogLine
from broker.transport.http11 import HttpLimits
from broker.transport.refusals import MOST, MOST_OF_ONE, WINDOW_SECONDS, Refusals

FORBIDDEN = RequestError("forbidden", "The key does not carry the scope `publish`")


def tell(refusals, now, remote="192.0.2.1", error=FORBIDDEN):
    return refusals.tell(now, "POST /v1/events", remote, "key_a of acct_a", error)


def test_a_refusal_is_told_with_what_who_and_why():
    [line] = tell(Refusals(), 0.0)
    assert line.what == "request refused"
    assert line.fields == {
        "status": 403,
        "request": "POST /v1/events",
        "remote": "192.0.2.1",
        "key": "key_a of acct_a",
        "code": "forbidden",
        "message": FORBIDDEN.message,
    }


def test_one_address_is_told_so_often_and_hides_no_other():
    refusals = Refusals()
    assert sum(len(tell(refusals, 0.0)) for _ in range(10_000)) == MOST_OF_ONE
    assert tell(refusals, 1.0, "192.0.2.2")


def test_all_addresses_together_are_told_so_often():
    refusals = Refusals()
    assert sum(len(tell(refusals, 0.0, f"192.0.2.{n}")) for n in range(256)) == MOST


def test_after_a_minute_the_left_out_are_counted_and_all_begins_again():
    refusals = Refusals()
    for _ in range(MOST_OF_ONE + 1234):
        tell(refusals, 0.0)
    assert tell(refusals, WINDOW_SECONDS - 1) == []
    first, second = tell(refusals, WINDOW_SECONDS)
    assert (first.what, first.fields) == ("more requests were refused", {"requests": 1_235})
    assert second.what == "request refused"
    assert len(tell(refusals, WINDOW_SECONDS * 3)) == 1


def message_of(message):
    [line] = tell(Refusals(), 0.0, error=RequestError("invalid_params", message))
    return line.fields["message"]


def test_what_is_said_is_one_short_line():
    message = message_of("no\nINFO all is well \x1b[2J" + "x" * 9999)
    assert message.isprintable()
    assert message.isascii()
    assert len(message) == 200


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Expected a number, got 'S3CRET' - at `limit`", "Expected a number, got ... - at `limit`"),
        ("Expected `a`, not 'S3CRET - at `$.x`' - at `$.scopes[0]`", "Expected `a`, not ... - at `$.scopes[0]`"),
        ("\"it's S3CRET\" is no time - at `since`", "... is no time - at `since`"),
        ("The number 53CRET… is out of range - at `$.payload`", "The number ... is out of range - at `$.payload`"),
        ("Nothing here is called `S3CRET` - at `$`", "Nothing here is called ... - at `$`"),
        ("The type 'S3CRET' is the broker's own - at `$.type`", "The type ... is the broker's own - at `$.type`"),
        ("'S3CRET" + "x" * 9_999, "..."),
        ("Expected digits and $%&'*+- - at `$.inbox_id`", "Expected digits and $%&'*+- - at `$.inbox_id`"),
        ("'S3\\'CRET' is the operator's, at `x`", "... is the operator's, at `x`"),
    ],
)  # fmt: skip
def test_what_a_client_gave_is_not_told(message, told):
    assert message_of(message) == told


def refused(caplog):
    lines = [record.msg for record in caplog.records if isinstance(record.msg, LogLine)]
    return [line.fields for line in lines if line.what == "request refused"]


async def test_the_server_tells_address_and_key_and_nothing_of_query_or_header(caplog):
    caplog.set_level(logging.INFO, "broker.transport")
    async with serving() as served:
        await ask(served.address, "POST", "/v1/events", key=LISTENER, body=b"{}")
        await opening(served.address, f"key={ALICE}_but_not_quite", key=None)
        await opening(served.address, "since=", key=ALICE)
        await ask(served.address, "GET", f"/v1/{ALICE}")
    assert [(line["request"], line["remote"], line.get("key")) for line in refused(caplog)] == [
        ("POST /v1/events", "127.0.0.1", "key_listener of acct_alice"),
        ("GET /v1/stream", "127.0.0.1", None),
        ("GET /v1/stream", "127.0.0.1", "key_alice of acct_alice"),
        ("GET elsewhere", "127.0.0.1", None),
    ]
    assert ALICE not in caplog.text


HEADS = {
    "no HTTP": (b"\x16\x03\x01 rubbish\r\n\r\n", "bad_request"),
    "a header too many": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", "head_too_large"),
    "another version": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "version_not_supported"),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "bad_request"),
}


@pytest.mark.parametrize("head", HEADS)
async def test_a_head_that_is_not_understood_is_a_refusal_like_others(head, caplog):
    caplog.set_level(logging.INFO, "broker.transport")
    data, code = HEADS[head]
    async with serving() as served:
        async with await open_socket(served.address) as stream:
            await stream.send_all(data.replace(b"rubbish", ALICE.encode()))
            assert await read_to_end(stream)
        assert served.broker.statistics().connections.refused == {code: 1}
    [line] = refused(caplog)
    assert (line["request"], line["remote"], line["code"]) == ("a head that was not understood", "127.0.0.1", code)
    assert ALICE not in caplog.text


async def test_a_head_that_comes_too_slowly_is_a_refusal_too(caplog, monkeypatch):
    monkeypatch.setattr("broker.transport.server.HttpLimits", partial(HttpLimits, head_seconds=0.01))
    caplog.set_level(logging.INFO, "broker.transport")
    async with serving() as served, await open_socket(served.address) as stream:
        await stream.send_all(b"GET /v1/events?key=" + ALICE.encode())
        assert b"408" in await read_to_end(stream)
        assert served.broker.statistics().connections.refused == {"timeout_reading": 1}
    assert [line["code"] for line in refused(caplog)] == ["timeout_reading"]
    assert ALICE not in caplog.text


async def test_a_flood_of_heads_that_are_not_understood_does_not_flood_the_log(caplog):
    caplog.set_level(logging.INFO, "broker.transport")
    async with serving() as served:
        for _ in range(50):
            async with await open_socket(served.address) as stream:
                await stream.send_all(b"rubbish\r\n\r\n")
                assert await read_to_end(stream)
        assert served.broker.statistics().connections.refused == {"bad_request": 50}
    assert len(refused(caplog)) == MOST_OF_ONE


async def test_a_command_that_its_handler_refuses_is_answered_and_is_no_refusal_of_the_log(caplog):
    caplog.set_level(logging.INFO, "broker.transport")
    async with serving() as served:

        @served.broker.command("mail")
        async def mail(params: dict, context: CommandContext) -> None:
            raise CommandError("no_such_person", f"There is no {params['to']}")

        body = b'{"action":"mail","to":"S3CRET"}'
        answer = await ask(served.address, "POST", "/v1/commands", key=ALICE, body=body)
        assert "S3CRET" in answer.message
    assert refused(caplog) == []
    assert "S3CRET" not in caplog.text
