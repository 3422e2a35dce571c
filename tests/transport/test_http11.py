"""HTTP/1.1 on one stream: memory streams for the rules, real sockets where the kernel has a say."""

import contextlib
import json
import logging
import socket
import struct
from functools import partial
from typing import Any

import pytest
import trio
import wsproto
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair
from wsproto.events import AcceptConnection
from wsproto.events import Request as WebSocketRequest

from broker.errors import RequestError
from broker.transport.http11 import (
    HttpLimits,
    PeerGoneError,
    Request,
    Response,
    error_response,
    json_response,
    serve_http,
)
from broker.transport.upgrade import check_upgrade

GET = b"GET /hello?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE_HEADERS = (
    (b"Host", b"broker.example:8765"),
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
)


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST / HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def upgrade(headers=UPGRADE_HEADERS, line: bytes = b"GET /v1/stream HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *(name + b": " + value for name, value in headers)]) + b"\r\n\r\n"


def upgrade_with(*changes: tuple[bytes, bytes | None]) -> bytes:
    """An upgrade's head with headers replaced, added, or (None) left out."""
    changed = dict(UPGRADE_HEADERS) | dict(changes)
    return upgrade([(name, value) for name, value in changed.items() if value is not None])


async def hello(request: Request) -> Response:
    return json_response(request.path)


async def echo(request: Request) -> Response:
    return Response(200, await request.body(), content_type="text/plain")


async def upgrading(request: Request) -> Response | str:
    check_upgrade(request)
    return "taken"


async def failing(request: Request) -> Response:
    raise ValueError("surprise")


class Answer:
    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode().split("\r\n")
        self.status = int(line.split(" ")[1])
        self.fields = [(name.lower(), value) for name, value in (field.split(": ", 1) for field in fields)]
        self.headers = dict(self.fields)
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]

    @property
    def closes(self) -> bool:
        return ("connection", "close") in self.fields


def parse_answers(data: bytes, *, head_only: bool = False) -> list[Answer]:
    answers = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"half an answer: {head!r}"
        answer = Answer(head, b"")
        length = 0 if head_only else int(answer.headers.get("content-length", 0))
        answer.body, data = data[:length], data[length:]
        assert len(answer.body) == length
        answers.append(answer)
    return answers


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def exchange(handle, sent: bytes, *, eof: bool = True, head_only: bool = False, **limits) -> list[Answer]:
    """Send all at once, end, and return all that comes back."""
    client, server = memory_stream_pair()
    await client.send_all(sent)
    if eof:
        await client.send_eof()
    assert await serve_http(server, handle, HttpLimits(**limits)) is None
    await server.aclose()
    return parse_answers(await read_all(client), head_only=head_only)


async def one(handle, sent: bytes, **options) -> Answer:
    (answer,) = await exchange(handle, sent, **options)
    return answer


@contextlib.asynccontextmanager
async def served(handle, **limits):
    """A client's end of a memory stream that is being served; the server closes its own at the end."""
    client, server = memory_stream_pair()

    async def serve() -> None:
        async with server:
            await serve_http(server, handle, HttpLimits(**limits))

    # on a mock clock this ends a test that would hang
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield client
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def served_socket(handle, **limits):
    """A real socket connected to a server."""

    async def serve(stream: trio.SocketStream) -> None:
        assert await serve_http(stream, handle, HttpLimits(**limits)) is None

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(5):
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                yield client
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- exchanges


async def test_a_request_is_answered_with_length_type_and_no_store():
    answer = await one(hello, GET)
    assert answer.status == 200
    assert answer.json == {"result": "/hello"}
    assert answer.headers == {
        "cache-control": "no-store",
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
    }


async def test_the_handler_sees_the_head_as_it_was_sent():
    seen = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(200)

    await exchange(handle, b"PUT /a%20b?c=%41&d HTTP/1.1\r\nHost: x\r\nX-Y:  z \r\n\r\n")
    (request,) = seen
    assert (request.method, request.path, request.query_string) == ("PUT", "/a%20b", "c=%41&d")
    assert request.headers == [(b"host", b"x"), (b"x-y", b"z")]
    assert request.header(b"x-y") == b"z"
    assert request.header(b"none") is None
    assert "%41" not in repr(request)


async def test_a_header_that_stands_twice_has_no_value():
    async def handle(request: Request) -> Response:
        request.header(b"authorization")
        raise AssertionError("not refused")

    answer = await one(handle, b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert "authorization" in answer.json["error"]["message"]


async def test_a_kept_connection_answers_one_request_after_another(autojump_clock):
    async with served(hello) as client:
        for _ in range(3):
            await client.send_all(GET)
            (answer,) = parse_answers(await client.receive_some())
            assert answer.json == {"result": "/hello"}
            assert not answer.closes


async def test_pipelined_requests_are_answered_in_order():
    sent = b"".join(post(str(n).encode()) for n in range(50))
    assert [answer.body for answer in await exchange(echo, sent)] == [str(n).encode() for n in range(50)]


async def test_a_head_may_come_in_single_bytes(autojump_clock):
    async with served(hello) as client:
        for byte in GET:
            await client.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        (answer,) = parse_answers(await client.receive_some())
        assert answer.status == 200


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"], ids=["1.0", "close"]
)
async def test_http_1_0_and_connection_close_end_after_one_answer(head):
    answer = await one(hello, head + GET)
    assert answer.status == 200
    assert answer.closes


async def test_a_head_request_is_answered_without_its_body():
    answers = await exchange(hello, b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n" * 2, head_only=True)
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].headers["content-length"] == str(len(b'{"result":"/hello"}'))


async def test_an_answer_without_content_has_no_length():
    async def handle(request: Request) -> Response:
        return Response(204, headers=(("X-Y", "z"),))

    answers = await exchange(handle, GET + GET)
    assert [answer.headers for answer in answers] == [{"cache-control": "no-store", "x-y": "z"}] * 2


async def test_connect_is_refused_before_the_handler():
    answer = await one(hello, b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, answer.closes) == (400, True)


# ---------------------------------------------------------------- query


def test_a_query_is_percent_decoded_and_plus_stays_plus():
    request = Request("GET", "/", "a=1+2&b=%C3%A4%26&c=&d&&e=x=y")
    assert request.query() == {"a": "1+2", "b": "ä&", "c": "", "d": "", "e": "x=y"}
    assert request.query() is request.query()


@pytest.mark.parametrize("query", ["a=1&a=1", "a=%FF", "%61=1&a=2", "a%FF=1", "a=%ED%A0%80"])
def test_a_query_name_twice_or_not_utf8_is_refused_by_name(query):
    with pytest.raises(RequestError, match=r"'a") as caught:
        Request("GET", "/", query).query()
    assert caught.value.code == "bad_request"


@given(st.text(st.characters(codec="ascii", min_codepoint=33)))
def test_any_query_is_parsed_or_refused(query):
    with contextlib.suppress(RequestError):
        Request("GET", "/", query).query()


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (post(b"x" * 100_000), b"x" * 100_000),
        (CHUNKED + b"3\r\nabc\r\n2;ext\r\nde\r\n0\r\nTrailer: t\r\n\r\n", b"abcde"),
        (post(b""), b""),
        (GET, b""),
    ],
    ids=["length", "chunked", "empty", "none"],
)
async def test_a_body_is_read_whole_and_the_connection_kept(sent, body):
    answers = await exchange(echo, sent + GET)
    assert [answer.body for answer in answers] == [body, b""]
    assert not answers[0].closes


async def test_a_body_may_be_asked_for_twice():
    async def handle(request: Request) -> Response:
        return Response(200, await request.body() + await request.body())

    answers = await exchange(handle, post(b"ab") + post(b"c"))
    assert [answer.body for answer in answers] == [b"abab", b"cc"]


async def test_a_body_whose_reading_was_given_up_is_never_cut_short(autojump_clock):
    async def handle(request: Request) -> Response:
        with trio.move_on_after(1):
            await request.body()
        return Response(200, await request.body())

    async with served(handle) as client:
        await client.send_all(post(b"abcdef")[:-3])
        await trio.sleep(2)
        await client.send_all(b"def")
        (answer,) = parse_answers(await client.receive_some())
        assert answer.body == b"abcdef"


async def test_an_unread_body_closes_the_connection():
    answer = await one(hello, post(b"unread") + GET)
    assert answer.status == 200
    assert answer.closes


async def test_an_unread_body_of_no_bytes_keeps_the_connection():
    assert len(await exchange(hello, post(b"") + GET)) == 2


async def test_a_length_over_the_limit_is_refused_before_a_byte_is_read(autojump_clock):
    async with served(echo, max_body_bytes=10) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n")
        (answer,) = parse_answers(await read_all(client))
        assert (answer.status, answer.code, answer.closes) == (413, "too_large", True)


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(autojump_clock):
    async with served(echo, max_body_bytes=10) as client:
        await client.send_all(CHUNKED + b"a\r\n0123456789\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.send_all(b"1\r\nx\r\n")
        (answer,) = parse_answers(await read_all(client))
        assert (answer.status, answer.code, answer.closes) == (413, "too_large", True)


async def test_a_body_of_exactly_the_limit_is_taken():
    assert (await one(echo, post(b"0123456789"), max_body_bytes=10)).status == 200
    assert (await one(echo, CHUNKED + b"a\r\n0123456789\r\n0\r\n\r\n", max_body_bytes=10)).status == 200


@pytest.mark.parametrize("head", [post(b"ab")[:-1], CHUNKED + b"1\r\n"], ids=["length", "chunked"])
async def test_a_slow_body_is_answered_with_408(head, autojump_clock):
    async with served(echo) as client:
        await client.send_all(head)
        started = trio.current_time()
        (answer,) = parse_answers(await client.receive_some())
        assert (answer.status, answer.code, answer.closes) == (408, "timeout_reading", True)
        assert trio.current_time() - started == pytest.approx(30)


async def test_a_dripping_body_has_one_deadline_for_the_whole(autojump_clock):
    async with served(echo) as client:
        started = trio.current_time()
        await client.send_all(post(b"x" * 100)[:-100])
        for _ in range(29):
            await trio.sleep(1)
            await client.send_all(b"x")
        (answer,) = parse_answers(await read_all(client))
        assert answer.status == 408
        assert trio.current_time() - started == pytest.approx(30)


@pytest.mark.parametrize("body", [b"zz\r\n", b"1\r\nabc\r\n", b"1;" + b"e" * 20_000], ids=["size", "end", "long"])
async def test_broken_body_framing_is_400_and_closes(body):
    answer = await one(echo, CHUNKED + body, eof=False, linger_seconds=0)
    assert (answer.status, answer.code, answer.closes) == (400, "bad_request", True)


async def test_a_body_broken_once_stays_broken():
    async def handle(request: Request) -> Response:
        with pytest.raises(RequestError):
            await request.body()
        return Response(200, await request.body())

    assert (await one(handle, CHUNKED + b"1\r\na\r\nzz\r\n")).code == "bad_request"


async def test_a_long_run_of_tiny_chunks_lets_others_have_their_turn():
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        answer = await one(echo, CHUNKED + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")
        nursery.cancel_scope.cancel()
    assert answer.body == b"x" * 1000
    assert turns > 1000


async def test_a_waiting_client_gets_100_continue_when_the_body_is_wanted():
    async with served_socket(echo) as client:
        await client.send_all(post(b"hello", b"Expect: 100-continue")[:-5])
        assert await client.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
        await client.send_all(b"hello")
        (answer,) = parse_answers(await client.receive_some())
        assert answer.body == b"hello"


async def test_a_waiting_client_gets_no_100_continue_when_the_body_is_not_wanted():
    answer = await one(hello, post(b"hello", b"Expect: 100-continue")[:-5])
    assert (answer.status, answer.closes) == (200, True)


async def test_a_client_that_did_not_wait_gets_no_100_continue():
    assert (await one(echo, post(b"hello", b"Expect: 100-continue"))).status == 200


async def test_a_client_still_sending_20_mb_reads_the_413():
    async with served_socket(echo) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
        await client.send_all(bytes(20_000_000))
        (answer,) = parse_answers(await read_all(client))
        assert (answer.status, answer.code) == (413, "too_large")


async def test_the_linger_ends_by_its_deadline(autojump_clock):
    async def keep_sending(client) -> None:
        try:
            while True:
                await trio.sleep(0.1)
                await client.send_all(b"x")
        except trio.BrokenResourceError:
            pass

    started = trio.current_time()
    async with served(hello) as client, trio.open_nursery() as nursery:
        nursery.start_soon(keep_sending, client)
        await client.send_all(post(bytes(10_000))[:-9_000])
        (answer,) = parse_answers(await read_all(client))
        assert answer.status == 200
        # the half-close comes at once, the end of reading by its deadline
        assert trio.current_time() == started
    assert trio.current_time() - started == pytest.approx(2, abs=0.11)


# ---------------------------------------------------------------- errors


async def test_a_refusal_is_answered_as_json_and_the_connection_kept():
    async def handle(request: Request) -> Response:
        raise RequestError("rate_limited", "slow down", retry_after_ms=1001, headers=(("X-Y", "z"),))

    answers = await exchange(handle, GET + GET)
    assert [answer.status for answer in answers] == [429, 429]
    assert answers[0].json == {"error": {"code": "rate_limited", "message": "slow down", "retry_after_ms": 1001}}
    assert (answers[0].headers["retry-after"], answers[0].headers["x-y"]) == ("2", "z")


def test_a_given_retry_after_is_kept():
    error = RequestError("connection_limit", "full", retry_after_ms=1, headers=(("retry-after", "5"),))
    assert error_response(error).headers == (("retry-after", "5"),)


async def test_a_failing_handler_is_logged_once_and_answered_neutrally(caplog):
    answer = await one(failing, b"GET /p?key=dm_live_secret HTTP/1.1\r\nHost: x\r\nX-Y: dm_live_other\r\n\r\n" + GET)
    assert (answer.status, answer.code, answer.closes) == (500, "internal", True)
    assert b"surprise" not in answer.body
    (record,) = caplog.records
    assert record.exc_info
    assert "/p" in caplog.text
    assert "dm_live" not in caplog.text


async def test_cancellation_passes_through():
    async def handle(request: Request) -> Response:
        scope.cancel()
        await trio.sleep_forever()

    client, server = memory_stream_pair()
    await client.send_all(GET)
    with trio.CancelScope() as scope:
        await serve_http(server, handle, HttpLimits())
    assert scope.cancelled_caught
    await server.aclose()
    assert await read_all(client) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header: dm_live_secret\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
    ids=["line", "tls", "no host", "two hosts", "target", "header", "lengths", "smuggling", "encoding"],
)
async def test_a_malformed_head_is_400_and_ends_the_connection(head, caplog):
    answer = await one(hello, head + GET, eof=False, linger_seconds=0)
    assert (answer.status, answer.code, answer.closes) == (400, "bad_request", True)
    assert b"dm_live" not in answer.body
    assert not caplog.records


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["endless", "whole"])
@pytest.mark.parametrize("pieces", [1, 40])
async def test_a_head_over_the_limit_is_431(end, pieces, autojump_clock):
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: " + b"y" * 17_000 + end
    async with served(hello) as client:
        size = len(head) // pieces + 1
        for start in range(0, len(head), size):
            await client.send_all(head[start : start + size])
            await trio.testing.wait_all_tasks_blocked()
        (answer,) = parse_answers(await read_all(client))
        assert (answer.status, answer.code, answer.closes) == (431, "head_too_large", True)


async def test_a_head_of_exactly_the_limit_is_taken():
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: \r\n\r\n"
    head = head.replace(b"X-Y: ", b"X-Y: " + b"y" * (16_384 - len(head)))
    assert (await one(hello, head)).status == 200
    assert (await one(hello, head.replace(b"X-Y: ", b"X-Y: y"))).status == 431


async def test_a_bad_head_after_a_good_one_is_answered_too():
    answers = await exchange(hello, GET + b"nonsense\r\n\r\n")
    assert [answer.status for answer in answers] == [200, 400]


# ---------------------------------------------------------------- deadlines and departures


async def test_a_slow_head_is_408_counted_from_the_opening(autojump_clock):
    async with served(hello, linger_seconds=0) as client:
        started = trio.current_time()
        await trio.sleep(6)
        await client.send_all(GET[:10])
        (answer,) = parse_answers(await read_all(client))
        assert (answer.status, answer.code, answer.closes) == (408, "timeout_reading", True)
        assert trio.current_time() - started == pytest.approx(10)


async def test_a_connection_that_says_nothing_is_closed_in_silence(autojump_clock):
    assert await exchange(hello, b"", eof=False) == []
    assert trio.current_time() == pytest.approx(10)


async def test_a_later_head_is_counted_from_its_first_byte(autojump_clock):
    async with served(hello, linger_seconds=0) as client:
        await client.send_all(GET)
        await client.receive_some()
        await trio.sleep(60)
        started = trio.current_time()
        await client.send_all(GET[:10])
        (answer,) = parse_answers(await read_all(client))
        assert answer.status == 408
        assert trio.current_time() - started == pytest.approx(10)


async def test_an_idle_connection_just_ends(autojump_clock):
    (answer,) = await exchange(hello, GET, eof=False)
    assert answer.status == 200
    assert trio.current_time() == pytest.approx(75)


async def test_half_a_pipelined_head_has_the_heads_deadline(autojump_clock):
    answers = await exchange(hello, GET + GET[:10], eof=False, linger_seconds=0)
    assert [answer.status for answer in answers] == [200, 408]
    assert trio.current_time() == pytest.approx(10)


async def test_a_client_that_reads_nothing_is_given_up(autojump_clock, caplog):
    client, server = memory_stream_pair()
    server.send_stream.send_all_hook = trio.sleep_forever
    await client.send_all(GET)
    assert await serve_http(server, hello, HttpLimits()) is None
    assert trio.current_time() == pytest.approx(10)
    assert not caplog.records


@pytest.mark.parametrize("sent", [b"", GET[:10], post(b"abc")[:-1], CHUNKED + b"1\r\n"])
async def test_a_client_that_leaves_is_an_ordinary_end(sent, caplog):
    caplog.set_level(logging.DEBUG, "broker")
    assert await exchange(echo, sent) == []
    assert not caplog.records


@pytest.mark.parametrize("sent", [b"", GET[:10], GET, post(b"abc")[:-1]])
async def test_a_reset_is_an_ordinary_end(sent, caplog):
    caplog.set_level(logging.DEBUG, "broker")
    ended = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        assert await serve_http(stream, echo, HttpLimits()) is None
        ended.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        client = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        await client.send_all(sent)
        await trio.testing.wait_all_tasks_blocked()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        with trio.fail_after(5):
            await ended.wait()
        nursery.cancel_scope.cancel()
    assert not caplog.records


async def test_a_client_gone_before_its_answer_is_an_ordinary_end(caplog):
    async def handle(request: Request) -> Response:
        await client.aclose()
        return Response(200)

    client, server = memory_stream_pair()
    await client.send_all(GET)
    assert await serve_http(server, handle, HttpLimits()) is None
    assert not caplog.records


async def test_the_stream_is_left_to_the_caller():
    client, server = memory_stream_pair()
    await client.send_all(GET)
    await client.send_eof()
    await serve_http(server, hello, HttpLimits())
    await server.send_all(b"still open")
    assert (await client.receive_some()).endswith(b"still open")


async def test_a_stream_that_cannot_half_close_is_served_too():
    class WholeStream(trio.abc.Stream):
        def __init__(self, stream) -> None:
            self.send_all, self.receive_some = stream.send_all, stream.receive_some

        async def send_all(self, data): ...
        async def receive_some(self, max_bytes=None): ...
        async def wait_send_all_might_not_block(self): ...
        async def aclose(self): ...

    client, server = memory_stream_pair()
    await client.send_all(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    await client.send_eof()
    assert await serve_http(WholeStream(server), hello, HttpLimits()) is None
    assert (await client.receive_some()).startswith(b"HTTP/1.1 200")


async def test_peer_gone_is_what_a_handler_sees_when_the_client_leaves():
    seen = []

    async def handle(request: Request) -> Response:
        try:
            await request.body()
        except PeerGoneError as error:
            seen.append(error)
            raise
        raise AssertionError

    assert await exchange(handle, post(b"abc")[:-1]) == []
    assert len(seen) == 1


# ---------------------------------------------------------------- upgrades


async def take_over(sent: bytes, *, pieces: int = 1) -> tuple[Request, str] | None:
    """Serve ``sent`` in so many reads; return what `serve_http` returned."""
    client, server = memory_stream_pair()
    result = None

    async def serve() -> None:
        nonlocal result
        result = await serve_http(server, upgrading, HttpLimits(linger_seconds=0, idle_seconds=0, head_seconds=1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        size = len(sent) // pieces + 1
        for start in range(0, len(sent), size):
            await client.send_all(sent[start : start + size])
            await trio.testing.wait_all_tasks_blocked()
    return result


@pytest.mark.parametrize("pieces", [1, 3, 300])
async def test_an_accepted_upgrade_gives_the_exact_bytes_back(pieces):
    sent = upgrade() + b"\x81\x82\x00\x00\x00\x00hi"
    request, taken = await take_over(sent, pieces=pieces)
    assert taken == "taken"
    assert sent.startswith(request.raw)
    assert len(request.raw) >= len(upgrade())
    if pieces == 1:
        assert request.raw == sent


async def test_raw_starts_with_the_upgrade_on_a_kept_connection():
    client, server = memory_stream_pair()

    async def handle(request: Request) -> Response | Request:
        return request if request.path == "/v1/stream" else Response(200, await request.body())

    await client.send_all(post(b"abc") + GET + upgrade() + b"early")
    request, taken = await serve_http(server, handle, HttpLimits())
    assert taken is request
    assert request.raw == upgrade() + b"early"
    assert request.head_bytes == len(upgrade())


async def test_nothing_is_sent_when_a_connection_is_taken_over():
    client, server = memory_stream_pair()
    await client.send_all(upgrade())
    assert await serve_http(server, upgrading, HttpLimits()) is not None
    await server.aclose()
    assert await read_all(client) == b""


@pytest.mark.parametrize(
    "missing", [(b"Upgrade", None), (b"Connection", None), (b"Upgrade", b"h2c"), (b"Connection", b"close")]
)
async def test_no_websocket_upgrade_is_426_and_says_what_to_send(missing):
    answer = await one(upgrading, upgrade_with(missing))
    assert (answer.status, answer.code) == (426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
    assert ("connection", "upgrade") in [(name, value.lower()) for name, value in answer.fields]


@pytest.mark.parametrize("version", [b"8", b"013", None])
async def test_another_websocket_version_is_426_and_names_ours(version):
    answer = await one(upgrading, upgrade_with((b"Sec-WebSocket-Version", version)))
    assert (answer.status, answer.code) == (426, "upgrade_required")
    assert (answer.headers["sec-websocket-version"], answer.headers["upgrade"]) == ("13", "websocket")


@pytest.mark.parametrize(
    "head",
    [
        upgrade_with((b"Sec-WebSocket-Key", None)),
        upgrade_with((b"Sec-WebSocket-Key", b"c2hvcnQ=")),
        upgrade_with((b"Sec-WebSocket-Key", b"?" * 22 + b"==")),
        upgrade_with((b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==A")),
        upgrade((*UPGRADE_HEADERS, (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="))),
        upgrade((*UPGRADE_HEADERS, (b"Authorization", b"a"), (b"Authorization", b"b"))),
        upgrade((*UPGRADE_HEADERS, (b"Host", b"b"))),
        upgrade((*UPGRADE_HEADERS, (b"Connection", b"keep-alive"))),
        upgrade(line=b"GET /v1/stream HTTP/1.0"),
        upgrade(line=b"POST /v1/stream HTTP/1.1"),
        upgrade(line=b"GET /\xc3\xa4 HTTP/1.1"),
        upgrade(UPGRADE_HEADERS[1:], b"GET / HTTP/1.2"),
        upgrade_with((b"Content-Length", b"1")) + b"x",
        upgrade_with((b"Transfer-Encoding", b"chunked")) + b"0\r\n\r\n",
        upgrade_with((b"Host", b"\xff\xfe")),
        upgrade_with((b"Host", b"xn--")),
        upgrade_with((b"Host", b"xn--" + b"a" * 60 + b".example")),
        upgrade_with((b"Host", b"a" * 261)),
        upgrade_with((b"Origin", b"https://\xc3\xa4")),
        upgrade_with((b"Connection", b"Upgrade, \xff")),
        upgrade_with((b"Sec-WebSocket-Protocol", b"a, \xff")),
        upgrade_with((b"Sec-WebSocket-Extensions", b"\xff")),
    ],
)
async def test_a_broken_upgrade_is_400(head):
    answer = await one(upgrading, head, eof=False, linger_seconds=0, idle_seconds=0)
    assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize(
    "head",
    [
        upgrade(),
        upgrade_with((b"Connection", b"keep-alive, UPGRADE"), (b"Upgrade", b"WebSocket")),
        upgrade_with((b"Content-Length", b"0")),
        upgrade_with((b"Host", b"xn--bcher-kva.example")),
        upgrade_with((b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits")),
        upgrade_with((b"Sec-WebSocket-Protocol", b"a, b")),
    ],
)
async def test_a_good_upgrade_is_taken(head):
    assert await take_over(head) is not None


async def test_a_head_that_wsproto_would_refuse_for_its_size_is_431():
    head = upgrade_with((b"X-Y", b"y" * 16_384))
    answer = await one(upgrading, head, max_head_bytes=32_768)
    assert (answer.status, answer.code) == (431, "head_too_large")


async def test_a_refused_upgrade_keeps_the_connection():
    answers = await exchange(upgrading, upgrade_with((b"Sec-WebSocket-Key", None)) + upgrade_with((b"Upgrade", None)))
    assert [answer.status for answer in answers] == [400, 426]


ODD_VALUES = {
    b"Host": [
        b"",
        b"xn--",
        b"xn--a",
        b"xn--bcher-kva.de",
        b"a" * 64 + b".de",
        b"..",
        b"\xff\xfe",
        b"[::1]:80",
        b"XN--9",
        b"a" * 999,
    ],
    b"Connection": [
        b"upgrade",
        b"close",
        b"keep-alive, Upgrade",
        b"Upgrade\x1f",
        b"\xff, upgrade",
        b",",
        b"",
        b"Upgrade ,",
    ],
    b"Upgrade": [b"WebSocket", b"websocket, h2c", b"h2c", b"websocket/13", b"", b"\xff"],
    b"Sec-WebSocket-Version": [b"8", b"13, 8", b"013", b"", b"\xff", b"13"],
    b"Sec-WebSocket-Key": [b"", b"short", b"A" * 22 + b"==", b"A" * 24, b"\xff" * 24, b"dGhlIHNhbXBsZSBub25jZQ=="],
    b"Sec-WebSocket-Protocol": [b"a", b"a,,b", b"\xff", b",", b"", b"a b", b"graphql-ws, \xc3\xa4"],
    b"Sec-WebSocket-Extensions": [
        b"permessage-deflate",
        b'x; y="a,b"',
        b"\xff",
        b";;",
        b"permessage-deflate; client_max_window_bits=z",
    ],
    b"Content-Length": [b"0", b"00", b"5", b"0, 0", b"-1", b"x"],
    b"Transfer-Encoding": [b"chunked", b"identity", b""],
    b"Expect": [b"100-continue", b"x"],
    b"Origin": [b"null", b"https://a.example", b"\xff"],
    b"Authorization": [b"Bearer \xff", b"Bearer x"],
    b"X-Odd": [b"\x01", b"\x80", b"a\r\n b", b"", b"z" * 20_000],
}
ODD_LINES = [
    b"POST / HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET / HTTP/1.2",
    b"GET / HTTP/2.0",
    b"GET * HTTP/1.1",
    b"GET http://a/ HTTP/1.1",
    b"GET /\xff HTTP/1.1",
    b"get / HTTP/1.1",
    b"GET /?a=%FF#b HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"GET  / HTTP/1.1",
]
HOST_BYTES = st.binary(max_size=70) | st.from_regex(rb"(xn--[a-z0-9-]{0,66}\.?){1,3}(:[0-9]+)?", fullmatch=True)


@st.composite
def odd_header(draw) -> tuple[bytes, bytes]:
    name = draw(st.sampled_from(sorted(ODD_VALUES)))
    anything = HOST_BYTES if name == b"Host" else st.binary(max_size=30)
    return name, draw(st.sampled_from(ODD_VALUES[name]) | anything)


@st.composite
def odd_upgrades(draw) -> bytes:
    """A good upgrade with a few things changed, added, repeated, left out or put elsewhere."""
    headers = list(UPGRADE_HEADERS)
    for change in draw(st.lists(odd_header(), max_size=3)):
        places = [place for place, (name, _) in enumerate(headers) if name == change[0]]
        if places and draw(st.integers(0, 3)):
            headers[places[0]] = change
        else:
            headers.append(change)
    if not draw(st.integers(0, 9)):
        del headers[draw(st.integers(0, len(headers) - 1))]
    if draw(st.booleans()):
        headers = draw(st.permutations(headers))
    line = draw(st.sampled_from([*[b"GET /v1/stream?a=b HTTP/1.1"] * 20, *ODD_LINES]))
    early = draw(st.sampled_from([b"", b"\x81\x80\x00\x00\x00\x00", b"\r\n\r\nx"]))
    return upgrade(headers, line) + early


@given(odd_upgrades())
@example(upgrade())
@example(upgrade_with((b"Host", b"xn--bcher-kva.example")))
@settings(max_examples=400, deadline=None)
async def test_whatever_passes_the_check_is_taken_by_wsproto(sent):
    client, server = memory_stream_pair()
    await client.send_all(sent)
    await client.send_eof()
    result = await serve_http(server, upgrading, HttpLimits(linger_seconds=0))
    await server.aclose()
    if result is None:
        assert parse_answers(await read_all(client))[0].status in (400, 426, 431)
        return
    request, _ = result
    assert request.raw == sent
    for size in (len(sent), 4096, 7):
        websocket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        for start in range(0, len(sent), size):
            websocket.receive_data(request.raw[start : start + size])
        (event,) = websocket.events()
        assert isinstance(event, WebSocketRequest)
        assert websocket.send(AcceptConnection()).startswith(b"HTTP/1.1 101 ")
