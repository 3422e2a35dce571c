"""HTTP/1.1 on one stream: memory streams for the rules, real sockets where the kernel has a say."""

import contextlib
import json
import logging
import socket
import struct
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from unittest.mock import ANY

import pytest
import trio
from trio.testing import memory_stream_pair

from broker.errors import RequestError
from broker.transport.http11 import HttpLimits, PeerGoneError, serve_http
from broker.transport.parsing import STEP_BYTES
from broker.transport.poller import FEW, open_pollers
from broker.transport.request import Request
from broker.transport.response import Response, error_response, json_response
from broker.transport.stream import ClientStream
from broker.turns import Turns

GET = b"GET /hello?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST / HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def hello(request: Request) -> Response:
    return json_response(request.path)


async def echo(request: Request) -> Response:
    return Response(200, await request.body(), content_type="text/plain")


async def small_echo(request: Request) -> Response:
    return Response(200, await request.body(10), content_type="text/plain")


async def taking_over(request: Request) -> str:
    return request.path


async def failing(request: Request) -> Response:
    raise ValueError("surprise")


class Answer:
    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode().split("\r\n")
        _, status, self.reason = line.split(" ", 2)
        self.status = int(status)
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
        return "close" in self.headers.get("connection", "").split(", ")


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
    assert await serve_http(ClientStream(server), handle, HttpLimits(**limits)) is None
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
        async with ClientStream(server) as stream:
            await serve_http(stream, handle, HttpLimits(**limits))

    # on a mock clock this ends a test that would hang
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield client
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def served_socket(handle, **limits):
    """A real socket connected to a server."""

    async def serve(transport: trio.SocketStream) -> None:
        async with ClientStream(transport) as stream:
            assert await serve_http(stream, handle, HttpLimits(**limits)) is None

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(60):
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                yield client
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- exchanges


async def test_a_request_is_answered_with_date_length_type_and_no_store():
    answer = await one(hello, GET)
    assert (answer.status, answer.reason) == (200, "OK")
    assert answer.json == {"result": "/hello"}
    assert abs(parsedate_to_datetime(answer.headers.pop("date")) - datetime.now(UTC)) < timedelta(seconds=60)
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


async def test_what_a_handler_keeps_is_let_go_when_the_client_has_taken_the_answer():
    client, server = memory_stream_pair()
    kept, sent = [], trio.Event()

    async def handle(request: Request) -> Response:
        kept.append("kept")
        request.when_answered(lambda: kept.append("let go"))
        if request.method == "POST":
            raise RequestError("conflict", "no")
        return Response(200, close=request.method == "PUT")

    server.send_stream.send_all_hook = sent.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, ClientStream(server), handle, HttpLimits())
        await client.send_all(GET + post(b"") + GET.replace(b"GET", b"PUT"))
        await trio.testing.wait_all_tasks_blocked()
        assert kept == ["kept"]
        sent.set()
    assert kept == ["kept", "let go"] * 3


async def test_an_answer_larger_than_the_kernels_buffer_is_sent_whole_and_once():
    body = bytes(range(256)) * 20_000

    async def handle(request: Request) -> Response:
        return Response(200, body, close=True)

    async with served_socket(handle) as client:
        await client.send_all(GET)
        await trio.testing.wait_all_tasks_blocked()
        (answer,) = parse_answers(await read_all(client))
        assert answer.body == body


async def test_an_answer_without_content_has_no_length():
    async def handle(request: Request) -> Response:
        return Response(204, headers=(("X-Y", "z"),))

    answers = await exchange(handle, GET + GET)
    assert [answer.headers for answer in answers] == [{"date": ANY, "cache-control": "no-store", "x-y": "z"}] * 2


async def test_connect_is_refused_before_the_handler():
    answer = await one(hello, b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, answer.closes) == (400, True)


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
    async with served(small_echo) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n")
        (answer,) = parse_answers(await read_all(client))
        assert (answer.status, answer.code, answer.closes) == (413, "too_large", True)


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(autojump_clock):
    async with served(small_echo) as client:
        await client.send_all(CHUNKED + b"a\r\n0123456789\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.send_all(b"1\r\nx\r\n")
        (answer,) = parse_answers(await read_all(client))
        assert (answer.status, answer.code, answer.closes) == (413, "too_large", True)


async def test_a_body_of_exactly_the_limit_is_taken():
    assert (await one(small_echo, post(b"0123456789"))).status == 200
    assert (await one(small_echo, CHUNKED + b"a\r\n0123456789\r\n0\r\n\r\n")).status == 200


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
    answer = await one(echo, CHUNKED + body, eof=False)
    assert (answer.status, answer.code, answer.closes) == (400, "bad_request", True)


async def test_a_body_broken_once_stays_broken():
    async def handle(request: Request) -> Response:
        with pytest.raises(RequestError):
            await request.body()
        return Response(200, await request.body())

    assert (await one(handle, CHUNKED + b"1\r\na\r\nzz\r\n")).code == "bad_request"


async def test_a_waiting_client_gets_100_continue_when_the_body_is_wanted():
    async with served_socket(echo) as client:
        await client.send_all(post(b"hello", b"Expect: 100-continue")[:-5])
        assert await client.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send_all(b"hello")
        (answer,) = parse_answers(await client.receive_some())
        assert answer.body == b"hello"


async def test_a_waiting_client_gets_no_100_continue_when_the_body_is_not_wanted():
    answer = await one(hello, post(b"hello", b"Expect: 100-continue")[:-5])
    assert (answer.status, answer.closes) == (200, True)


async def test_a_client_that_did_not_wait_gets_no_100_continue():
    assert (await one(echo, post(b"hello", b"Expect: 100-continue"))).status == 200


async def test_a_client_still_sending_20_mb_reads_the_413(monkeypatch):
    monkeypatch.setattr("broker.transport.stream.LINGER_SECONDS", 60)  # however long it takes to send that here
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


# ---------------------------------------------------------------- turns


@contextlib.asynccontextmanager
async def another_task():
    """Another task that always wants its turn; what is given counts how often it had it."""
    turns = [0]

    async def run() -> None:
        while True:
            turns[0] += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield turns
        nursery.cancel_scope.cancel()


async def test_a_long_run_of_tiny_chunks_lets_others_have_their_turn():
    async with another_task() as turns:
        answer = await one(echo, CHUNKED + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
    assert answer.body == b"x" * 50_000
    assert turns[0] > 6 * 50_000 / STEP_BYTES


async def test_between_requests_that_came_together_others_have_their_turn():
    """Over a real socket: there an answer is written without a pause."""
    number = 1_000
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    async with ClientStream(ours) as stream, theirs, trio.open_nursery() as nursery, another_task() as turns:
        await theirs.send_all(GET * number)
        nursery.start_soon(serve_http, stream, hello, HttpLimits())
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < number:
            received += bytes(await theirs.receive_some())
        nursery.cancel_scope.cancel()
    assert turns[0] > number


class Crowded(Turns):
    """So many want a turn that one has to wait for half a minute."""

    full = True

    async def come_in(self, who: object) -> None:
        await trio.sleep(35)


@pytest.mark.parametrize("parts", [[GET], [post(b"")], [post(b"body")[:-4], b"body"]])
async def test_what_came_in_time_is_answered_however_late_its_turn_is(parts, autojump_clock):
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, ClientStream(server, Crowded()), echo, HttpLimits())
        for part in parts:
            await client.send_all(part)
            await trio.sleep(20)
        with trio.fail_after(100):
            (answer,) = parse_answers(bytes(await client.receive_some()))
        await client.aclose()
    assert (answer.status, answer.body) == (200, b"".join(parts[1:]))


# ---------------------------------------------------------------- answers in pieces


def in_pieces(*pieces: bytes, **options):
    """A handler that answers in these pieces."""

    async def handle(request: Request) -> Response:
        async def body():
            for piece in pieces:
                yield piece

        return Response(200, body(), **options)

    return handle


def pieces_of(data: bytes) -> list[bytes]:
    """The chunks of a body; it must have ended."""
    chunks = []
    while data != b"0\r\n\r\n":
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        chunks.append(data[:length])
        data = data[length + 2 :]
    return chunks


async def raw_exchange(handle, sent: bytes) -> tuple[Answer, bytes]:
    """The head of the answer, and all that comes after it."""
    async with served(handle) as client:
        await client.send_all(sent)
        head, _, rest = (await read_all(client)).partition(b"\r\n\r\n")
    return Answer(head, b""), rest


async def test_an_answer_in_pieces_is_sent_in_chunks(autojump_clock):
    answer, rest = await raw_exchange(
        in_pieces(b"ab", b"", b"x" * 20), GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    assert pieces_of(rest) == [b"ab", b"x" * 20]
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers


async def test_to_http_1_0_an_answer_in_pieces_ends_with_the_connection(autojump_clock):
    answer, rest = await raw_exchange(in_pieces(b"ab", b"c"), b"GET / HTTP/1.0\r\n\r\n")
    assert rest == b"abc"
    assert not {"transfer-encoding", "content-length"} & set(answer.headers)
    assert answer.closes


async def test_after_an_answer_in_pieces_the_connection_goes_on(autojump_clock):
    async with served(in_pieces(b"ab")) as client:
        for _ in range(2):
            await client.send_all(GET)
            await trio.testing.wait_all_tasks_blocked()
            assert (await client.receive_some()).endswith(b"\r\n\r\n2\r\nab\r\n0\r\n\r\n")


async def test_each_piece_is_sent_as_it_comes(autojump_clock):
    send, receive = trio.open_memory_channel[bytes](0)

    async def handle(request: Request) -> Response:
        async def body():
            async for piece in receive:
                yield piece

        return Response(200, body())

    async with served(handle) as client:
        await client.send_all(GET)
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.receive_some()).endswith(b"\r\n\r\n")
        for piece in (b"one", b"two"):
            await send.send(piece)
            await trio.testing.wait_all_tasks_blocked()
            assert await client.receive_some() == b"3\r\n" + piece + b"\r\n"


async def test_an_answer_in_pieces_to_head_has_none_and_is_closed(autojump_clock):
    async def body():
        yield b"never"

    pieces = body()

    async def handle(request: Request) -> Response:
        return Response(200, pieces)

    _, rest = await raw_exchange(handle, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert rest == b""
    assert [piece async for piece in pieces] == []


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_client_that_leaves_ends_an_answer_that_would_last_for_ever(how, autojump_clock, caplog):
    closed = trio.Event()

    async def handle(request: Request) -> Response:
        async def body():
            try:
                yield b"first"
                await trio.sleep_forever()
            finally:
                closed.set()

        return Response(200, body())

    async with served(handle) as client:
        await client.send_all(GET)
        await trio.testing.wait_all_tasks_blocked()
        await client.receive_some()
        if how == "end":
            await client.send_eof()
        else:
            await client.aclose()
        with trio.fail_after(1):
            await closed.wait()
    assert not caplog.records


async def test_a_client_that_takes_no_piece_is_given_up_after_the_answers_own_time(autojump_clock):
    async def endless():
        while True:
            yield b"x" * 100

    async def handle(request: Request) -> Response:
        return Response(200, endless(), piece_seconds=40)

    client, server = memory_stream_pair()
    server.send_stream.send_all_hook = trio.sleep_forever
    await client.send_all(GET)
    assert await serve_http(ClientStream(server), handle, HttpLimits()) is None
    assert trio.current_time() == pytest.approx(40)


async def test_an_answer_that_breaks_off_is_logged_and_is_never_taken_for_a_whole_one(autojump_clock, caplog):
    async def handle(request: Request) -> Response:
        async def body():
            yield b"ab"
            raise ValueError("surprise")

        return Response(200, body())

    _, rest = await raw_exchange(handle, GET)
    assert rest == b"2\r\nab\r\n"
    (record,) = caplog.records
    assert record.exc_info


async def test_pieces_that_never_wait_let_others_have_their_turn():
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    handle = in_pieces(*[b"x"] * 500)
    async with ClientStream(ours) as stream, theirs, trio.open_nursery() as nursery, another_task() as turns:
        nursery.start_soon(serve_http, stream, handle, HttpLimits())
        await theirs.send_all(GET)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += bytes(await theirs.receive_some())
        nursery.cancel_scope.cancel()
    assert turns[0] > 500


# ---------------------------------------------------------------- while something is done


async def test_what_is_done_for_a_client_is_cancelled_when_it_leaves(autojump_clock, caplog):
    cancelled = trio.Event()

    async def handle(request: Request) -> Response:
        async def act() -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        await request.unless_client_leaves(act)
        raise AssertionError

    async with served(handle) as client:
        await client.send_all(GET + GET)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        with trio.fail_after(1):
            await cancelled.wait()
    assert not caplog.records


async def test_what_is_done_may_return_or_refuse_and_what_was_sent_ahead_is_next():
    async def handle(request: Request) -> Response:
        async def act() -> bytes:
            await trio.testing.wait_all_tasks_blocked()
            if request.method == "POST":
                raise RequestError("conflict", "no")
            return b"done"

        return Response(200, await request.unless_client_leaves(act))

    async with served_socket(handle) as client:
        for _ in range(2):
            await client.send_all(GET + post(b"") + GET)
            received = b""
            while received.count(b"done") < 2:
                received += bytes(await client.receive_some())
            assert [answer.status for answer in parse_answers(received)] == [200, 409, 200]


async def test_of_a_client_that_sends_ahead_without_end_no_more_is_read_than_a_head_and_a_read():
    client, server = memory_stream_pair()
    reads, done = 0, trio.Event()

    async def count() -> None:
        nonlocal reads
        reads += 1

    async def handle(request: Request) -> Response:
        await request.unless_client_leaves(done.wait)
        return Response(200, close=True)

    server.receive_stream.receive_some_hook = count
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, ClientStream(server), handle, HttpLimits())
        for _ in range(100):
            await client.send_all(GET * 1_000)
            await trio.testing.wait_all_tasks_blocked()
        assert reads == 1
        done.set()


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
        await serve_http(ClientStream(server), handle, HttpLimits())
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
    answer = await one(hello, head + GET, eof=False)
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
    async with served(hello) as client:
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
    async with served(hello) as client:
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
    answers = await exchange(hello, GET + GET[:10], eof=False)
    assert [answer.status for answer in answers] == [200, 408]
    assert trio.current_time() == pytest.approx(10)


async def test_a_client_that_reads_nothing_is_given_up(autojump_clock, caplog):
    client, server = memory_stream_pair()
    server.send_stream.send_all_hook = trio.sleep_forever
    await client.send_all(GET)
    assert await serve_http(ClientStream(server), hello, HttpLimits()) is None
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
    ended, never = trio.Event(), HttpLimits(head_seconds=600, idle_seconds=600, body_seconds=600)

    async def serve(transport: trio.SocketStream) -> None:
        async with ClientStream(transport) as stream:
            assert await serve_http(stream, echo, never) is None
        ended.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        client = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        await client.send_all(sent)
        await trio.testing.wait_all_tasks_blocked()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        with trio.fail_after(60):
            await ended.wait()
        nursery.cancel_scope.cancel()
    assert not caplog.records


async def test_a_client_gone_before_its_answer_is_an_ordinary_end(caplog):
    async def handle(request: Request) -> Response:
        await client.aclose()
        return Response(200)

    client, server = memory_stream_pair()
    await client.send_all(GET)
    assert await serve_http(ClientStream(server), handle, HttpLimits()) is None
    assert not caplog.records


async def test_the_stream_is_left_to_the_caller():
    client, server = memory_stream_pair()
    await client.send_all(GET)
    await client.send_eof()
    await serve_http(ClientStream(server), hello, HttpLimits())
    await server.send_all(b"still open")
    assert (await client.receive_some()).endswith(b"still open")


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


# ---------------------------------------------------------------- taking over


async def test_who_takes_a_connection_over_gets_what_came_after_the_head():
    client, server = memory_stream_pair()

    async def handle(request: Request) -> Response | str:
        return "taken" if request.path == "/stream" else Response(200, await request.body())

    await client.send_all(post(b"abc") + GET + GET.replace(b"/hello", b"/stream") + b"early")
    assert await serve_http(ClientStream(server), handle, HttpLimits()) == ("taken", b"early")


async def test_nothing_is_sent_when_a_connection_is_taken_over():
    client, server = memory_stream_pair()
    await client.send_all(GET)
    assert await serve_http(ClientStream(server), taking_over, HttpLimits()) == ("/hello", b"")
    await server.aclose()
    assert await read_all(client) == b""


async def test_after_a_websocket_that_was_refused_nothing_is_read_as_http():
    answer = await one(hello, UPGRADE + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.closes


async def test_who_offers_http_2_goes_on_in_http_1():
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    with_length = head + b"Content-Length: 3\r\n\r\nabc"
    in_chunks = head + b"Transfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n"
    assert [answer.body for answer in await exchange(echo, with_length + in_chunks + GET)] == [b"abc", b"def", b""]


async def test_a_head_that_came_in_time_is_answered_though_it_is_read_late(autojump_clock, monkeypatch):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    turns, held = Turns(), []
    # The first time, whoever is to be woken is not: as long as that, this side has other things to do.
    monkeypatch.setattr(turns, "wake", lambda who, act: act() if held else held.append(act))
    async with open_pollers(turns) as pollers:
        pollers.few = FEW
        stream = ClientStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), turns, pollers)
        theirs.send(GET)
        theirs.shutdown(socket.SHUT_WR)
        await serve_http(stream, hello, HttpLimits())
        assert held
        assert theirs.recv(1000).startswith(b"HTTP/1.1 200")
        await stream.aclose()
    theirs.close()
