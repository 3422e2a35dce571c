"""`serve`: one port for HTTP and WebSocket, the drain, the end, and what must not be left behind."""

import contextlib
import gc
import logging
import socket
from functools import partial

import pytest
import trio
from clients import (
    ACCOUNT,
    OPERATOR,
    PING,
    TEXT,
    ask,
    bearer,
    configured,
    connected,
    event,
    masked,
    numbers,
    open_descriptors,
    open_socket,
    parse_answer,
    post_events,
    send_raw,
    serving,
    upgrade_head,
)
from steps import Growth
from trio.testing import memory_stream_pair
from trio.testing import wait_all_tasks_blocked as blocked

import broker.transport.connection
import broker.transport.endpoints
import broker.transport.server
from broker import CloseCode, ServerConfig, open_broker, serve
from broker.transport.response import Response
from broker.transport.server import serve_stream
from broker.transport.stream import LINGER_SECONDS, SEND_BUFFER_BYTES

LONG_DRAIN = configured(server=ServerConfig(drain_seconds=600))
"""Whatever ends sooner did not wait for that."""


@pytest.fixture
def quick_close(monkeypatch):
    """Let clients that do not answer a Close be gone soon."""
    monkeypatch.setattr(broker.transport.connection, "CLOSE_SECONDS", 0.2)


async def publish(served, first: int, last: int, size: int = 0) -> None:
    for number in range(first, last + 1):
        await served.broker.publish(ACCOUNT, event(number, size=size))


# --- one port ----------------------------------------------------------------


async def test_it_says_where_it_listens_when_it_takes_connections():
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:
        ((host, port),) = await nursery.start(partial(serve, opened, host="127.0.0.1", port=0))
        assert host == "127.0.0.1"
        assert (await ask((host, port), "GET", "/readyz")).status == 200
        nursery.cancel_scope.cancel()


async def test_host_and_port_of_the_configuration_hold_where_none_are_given():
    config = configured(server=ServerConfig(host="127.0.0.2", port=0))
    async with open_broker(config) as opened, trio.open_nursery() as nursery:
        ((host, port),) = await nursery.start(serve, opened)
        assert host == "127.0.0.2"
        assert port != 8765
        nursery.cancel_scope.cancel()


async def test_an_address_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = open_descriptors()
        async with open_broker() as opened:
            with pytest.raises(OSError, match="in use"):
                await serve(opened, host="127.0.0.1", port=taken.getsockname()[1])
        assert open_descriptors() <= before


async def test_http_and_websocket_share_the_port():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        assert (await post_events(served.address, event(7))).status == 200
        assert numbers([await client.next()]) == [7]


async def test_a_connection_may_be_upgraded_after_other_requests():
    async with serving() as served:
        with trio.fail_after(60):
            async with await open_socket(served.address) as stream:
                head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
                await stream.send_all(head + head + upgrade_head("inbox_ids=in_1"))
                data = b""
                while b"connection.ready" not in data:
                    data += bytes(await stream.receive_some())
        assert data.count(b"HTTP/1.1 200 ") == 2
        assert data.count(b"HTTP/1.1 101 ") == 1


async def test_a_clients_socket_has_a_bounded_send_buffer():
    async with serving() as served, connected(served.address) as client:
        raw = served.connection(client)._stream._socket
        # Linux doubles what is asked for, and says so.
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (SEND_BUFFER_BYTES, 2 * SEND_BUFFER_BYTES)


async def test_statistics_say_what_is_open():
    async with serving() as served:
        async with connected(served.address) as client:
            await blocked()
            ((connection_id, found),) = served.streams().connections.items()
            assert connection_id == client.ready["connection_id"]
            assert (found.waiting_commands, found.remainder_bytes) == (0, 0)
            assert served.streams().exchanges == 0
        await served.until_gone()
        assert served.streams().connections == {}


async def test_an_unexpected_exception_of_a_handler_is_answered_and_logged_and_others_live(monkeypatch, caplog):
    async def fail(*_: object) -> Response:
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(broker.transport.endpoints.ROUTES["/healthz"], "GET", fail)
    async with serving() as served, connected(served.address) as client:
        answer = await ask(served.address, "GET", "/healthz")
        assert (answer.status, answer.code) == (500, "internal")
        assert "bug" not in answer.message
        await client.ping()
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_an_unexpected_exception_outside_all_handlers_ends_one_client_only(monkeypatch, caplog):
    real = broker.transport.server.serve_http

    async def fail_once(*args: object) -> object:
        monkeypatch.setattr(broker.transport.server, "serve_http", real)
        raise ZeroDivisionError("a bug")

    async with serving() as served, connected(served.address) as client:
        monkeypatch.setattr(broker.transport.server, "serve_http", fail_once)
        async with await open_socket(served.address) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        await client.ping()
        assert (await ask(served.address, "GET", "/healthz")).status == 200
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_a_socket_that_cannot_be_taken_over_ends_one_client_only(monkeypatch, caplog):
    real = broker.transport.server.ClientStream

    def fail_once(*args: object) -> object:
        monkeypatch.setattr(broker.transport.server, "ClientStream", real)
        raise OSError("not connected any more")

    async with serving() as served, connected(served.address) as client:
        monkeypatch.setattr(broker.transport.server, "ClientStream", fail_once)
        async with await open_socket(served.address) as stream:
            assert await stream.receive_some() == b""
        await client.ping()
        assert (await ask(served.address, "GET", "/healthz")).status == 200
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_hundreds_of_hostile_connections_disturb_nobody(quick_close, no_errors):
    rubbish = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n" + b"x" * 20_000,
        upgrade_head("", ("Sec-WebSocket-Key", "")),
        upgrade_head() + masked(TEXT, b"\xff"),
        upgrade_head() + masked(TEXT, b"x", mask=False) + b"\xff" * 10_000,
        upgrade_head() + masked(PING) * 1_000,
        upgrade_head()[:40],
    ]
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        for number in range(210):
            stream = await open_socket(served.address)
            await stream.send_all(rubbish[number % len(rubbish)])
            if number % 3:
                await blocked()
            stream.socket.close()
        await publish(served, 1, 10)
        assert [numbers([await client.next()])[0] for _ in range(10)] == list(range(1, 11))


# --- draining ----------------------------------------------------------------


async def test_while_it_drains_openings_and_publishing_are_refused_and_it_is_not_ready(monkeypatch):
    monkeypatch.setattr(broker.transport.connection, "CLOSE_SECONDS", 60)
    monkeypatch.setattr(broker.transport.server, "CLOSE_SECONDS", 60)
    monkeypatch.setattr(broker.transport.stream, "LINGER_SECONDS", 60)
    async with (
        serving(configured(server=ServerConfig(drain_seconds=60))) as served,
        connected(served.address) as client,
    ):
        served.broker.start_draining()
        assert (await client.next())["type"] == "server.draining"
        # The client has not answered the Close: the server still waits for it.
        for method, target, headers in [
            ("GET", "/readyz", ()),
            ("POST", "/v1/events", (bearer("dm_live_alice"),)),
            ("POST", "/v1/events", (bearer(OPERATOR),)),
        ]:
            body = None if method == "GET" else b"{}"
            answer = await ask(served.address, method, target, *headers, body=body)
            assert (answer.status, answer.code) == (503, "draining")
        refused = await send_raw(served.address, upgrade_head("", ("Connection", "Upgrade, close")))
        assert (refused.status, refused.code) == (503, "draining")
        assert (await ask(served.address, "GET", "/healthz")).status == 200


async def test_each_client_is_told_to_come_back_gets_everything_and_is_closed_with_1012(no_errors):
    async with (
        serving(LONG_DRAIN) as served,
        connected(served.address, "inbox_ids=in_1") as one,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=4_096) as slow,
        connected(served.address, "inbox_ids=in_2") as other,
    ):
        await publish(served, 1, 300, size=2_000)
        served.broker.start_draining()
        for client, expected in ((one, 300), (slow, 300), (other, 0)):
            frames, closed = await client.rest()
            assert numbers(frames) == list(range(1, expected + 1))
            (said,) = [frame for frame in frames if frame["type"] == "server.draining"]
            assert isinstance(said["reconnect_after_ms"], int)
            assert said["reconnect_after_ms"] > 0
            assert closed.code == CloseCode.RESTART
            await client.say_close(CloseCode.RESTART)
            assert await client.at_end()
            await client.stream.aclose()
        with trio.fail_after(60):
            await served.ended.wait()


async def test_what_was_stored_just_before_the_drain_still_comes():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        await blocked()
        hub = served.broker._hub
        real, calls = hub.take_turns, 0

        def take_turns(until: float) -> None:
            """Let the fan-out be slow."""
            nonlocal calls
            calls += 1
            if calls % 50 == 0:
                real(until)

        hub.take_turns = take_turns
        await served.broker.publish(ACCOUNT, [event(number) for number in range(1_000)])
        served.broker.start_draining()
        frames, closed = await client.rest()
        assert numbers(frames) == list(range(1_000))
        assert closed.code == CloseCode.RESTART


async def test_of_many_clients_one_is_told_between_two_looks_at_the_network(monkeypatch):
    real, told = broker.transport.connection.Connection.drain, []

    async def noted(connection, *args: object) -> None:
        told.append(connection)
        await real(connection, *args)

    monkeypatch.setattr(broker.transport.connection.Connection, "drain", noted)
    async with (
        serving(configured(server=ServerConfig(drain_seconds=0.6))) as served,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(20):
            await stack.enter_async_context(connected(served.address))
        growth = Growth(told)
        trio.lowlevel.add_instrument(growth)
        served.broker.start_draining()
        with trio.fail_after(60):
            await served.ended.wait()
        trio.lowlevel.remove_instrument(growth)
    assert len(told) == 20
    assert growth.most == 1


async def test_the_clients_are_told_different_times():
    async with serving() as served:
        told = []

        async def stay(task_status: trio.TaskStatus[None]) -> None:
            async with connected(served.address) as client:
                task_status.started()
                frames, _ = await client.rest()
                told.append(frames[-1]["reconnect_after_ms"])
                await client.say_close()

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                await nursery.start(stay)
            served.broker.start_draining()
        assert len(set(told)) > 1


async def test_a_client_that_never_reads_holds_the_drain_up_no_longer_than_its_time():
    config = configured(server=ServerConfig(drain_seconds=0.6))
    async with (
        serving(config) as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=4_096),
        connected(served.address, "inbox_ids=in_1") as healthy,
    ):
        await publish(served, 1, 200, size=4_000)
        started = trio.current_time()
        served.broker.start_draining()
        frames, closed = await healthy.rest()
        assert numbers(frames) == list(range(1, 201))
        assert closed.code == CloseCode.RESTART
        with trio.fail_after(60):
            await served.ended.wait()
        assert 0.5 < trio.current_time() - started < 5


async def test_without_clients_the_drain_is_over_at_once():
    async with serving(LONG_DRAIN) as served:
        async with await open_socket(served.address) as idle:
            await idle.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await idle.receive_some()
            served.broker.start_draining()
            with trio.fail_after(60):
                await served.ended.wait()
        with pytest.raises(OSError, match="refused"):
            await open_socket(served.address)


async def test_a_request_under_way_is_answered_before_the_drain_ends():
    for _ in range(20):
        async with serving(LONG_DRAIN) as served, await open_socket(served.address) as stream:
            head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer dm_live_alice\r\n"
            await stream.send_all(head + b"Content-Length: 2\r\n\r\n")
            await blocked()
            assert served.streams().exchanges == 1
            served.broker.start_draining()
            await blocked()
            await stream.send_all(b"[]")
            with trio.fail_after(60):
                answer = parse_answer(bytes(await stream.receive_some()))
                assert (answer.status, answer.code) == (503, "draining")
                await served.ended.wait()


async def test_the_drain_waits_for_an_answer_in_pieces_that_ends_by_itself(monkeypatch):
    async def last_forever(opened, request) -> Response:
        async def pieces():
            yield b"first"
            await opened.draining.wait()
            yield b"last"

        return Response(200, pieces())

    monkeypatch.setitem(broker.transport.endpoints.ROUTES["/healthz"], "GET", last_forever)
    async with serving(LONG_DRAIN) as served, await open_socket(served.address) as stream:
        with trio.fail_after(60):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            while not (await stream.receive_some()).endswith(b"first\r\n"):
                pass
            assert served.streams().exchanges == 1
            served.broker.start_draining()
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += bytes(await stream.receive_some())
            assert received.startswith(b"4\r\nlast\r\n")
            await served.ended.wait()


async def test_a_newcomer_that_was_let_in_before_the_drain_is_closed_with_1012_too(monkeypatch):
    """Between the check of its head and its first frame lies a handshake."""
    real, gate, inside = broker.transport.endpoints.open_stream, trio.Event(), trio.Event()

    async def wait_then_go_on(*args: object) -> object:
        upgrade = await real(*args)
        inside.set()
        await gate.wait()
        return upgrade

    monkeypatch.setitem(broker.transport.endpoints.ROUTES["/v1/stream"], "GET", wait_then_go_on)
    async with serving(LONG_DRAIN) as served, trio.open_nursery() as nursery:

        async def come() -> None:
            async with connected(served.address, "inbox_ids=in_1") as client:
                frames, closed = await client.rest()
                assert [frame["type"] for frame in frames] == ["server.draining"]
                assert closed.code == CloseCode.RESTART

        nursery.start_soon(come)
        await inside.wait()
        served.broker.start_draining()
        await blocked()
        gate.set()
        with trio.fail_after(60):
            await served.ended.wait()


async def test_publishes_that_wait_when_the_drain_begins_are_answered_and_what_was_stored_is_delivered():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        account = served.broker._hub.account(ACCOUNT)
        places = []
        while (place := account.places.take_nowait(1)) is not None:
            places.append(place)
        for number in range(5):
            await client.say(action="publish", request_id=f"{number}", events=event(number))
        await client.ping()
        served.broker.start_draining()
        assert (await client.next())["type"] == "server.draining"
        for place in places:
            place.__exit__()
        frames, closed = await client.rest()
        answers = {int(f["request_id"]): f for f in frames if f["type"] == "response"}
        refused = [number for number, answer in answers.items() if "error" in answer]
        assert sorted(answers) == list(range(5))
        assert {answers[number]["error"]["code"] for number in refused} == {"draining"}
        assert numbers(frames) == sorted(set(answers) - set(refused))
        assert closed.code == CloseCode.RESTART


async def test_commands_are_still_answered_until_the_close():
    async with serving() as served, connected(served.address, receive_buffer_bytes=4_096) as client:
        await client.say(action="ping", request_id="r")
        served.broker.start_draining()
        frames, closed = await client.rest()
        assert [frame["type"] for frame in frames if "request_id" in frame] == ["response"]
        assert closed.code == CloseCode.RESTART


async def test_draining_twice_changes_nothing():
    async with serving() as served, connected(served.address) as client:
        served.broker.start_draining()
        served.broker.start_draining()
        frames, closed = await client.rest()
        assert [frame["type"] for frame in frames] == ["server.draining"]
        assert closed.code == CloseCode.RESTART


# --- the end -----------------------------------------------------------------


@pytest.mark.parametrize("ending", ["serve", "broker"])
async def test_cancelling_ends_at_once_and_leaves_neither_file_nor_task(ending, no_errors, monkeypatch):
    monkeypatch.setattr(broker.transport.connection, "CLOSE_SECONDS", 1_000)
    monkeypatch.setattr(broker.transport.server, "CLOSE_SECONDS", 1_000)
    monkeypatch.setattr(broker.transport.stream, "LINGER_SECONDS", 1_000)
    await blocked()
    gc.collect()  # what others have left is not closed meanwhile
    files, tasks = open_descriptors(), trio.lowlevel.current_statistics().tasks_living
    clients = []
    # A connection of each kind: live, stalled, idle HTTP, half a head, half a body, inside the handshake.
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as server:
                (address,) = await server.start(partial(serve, opened, host="127.0.0.1", port=0))
                for sent, size in [
                    (upgrade_head("inbox_ids=in_1"), None),
                    (upgrade_head("inbox_ids=in_1"), 4_096),
                    (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", None),
                    (upgrade_head()[:50], None),
                    (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer dm_live_alice\r\n"
                     b"Content-Length: 10\r\n\r\n", None),
                    (b"", None),
                ]:  # fmt: skip
                    stream = await open_socket(address, receive_buffer_bytes=size)
                    await stream.send_all(sent)
                    clients.append(stream)
                await blocked()
                await opened.publish(ACCOUNT, [event(n, size=4_000) for n in range(200)])
                await blocked()
                started = trio.current_time()
                (scope if ending == "serve" else nursery.cancel_scope).cancel()
    assert trio.current_time() - started < 100
    for stream in clients:
        stream.socket.close()
    await blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert open_descriptors() == files


@pytest.mark.parametrize("steps", range(12))
async def test_a_server_that_is_cancelled_while_events_flow_leaves_the_broker_whole(steps, no_errors):
    """Its clients end at every moment of a broadcast; some have fallen behind."""
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve_until_cancelled(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            with scope:
                await serve(opened, host="127.0.0.1", port=0, task_status=task_status)

        async def publish_for_ever() -> None:
            while True:
                await opened.publish(ACCOUNT, event(1, size=4_000))

        (address,) = await nursery.start(serve_until_cancelled)
        async with contextlib.AsyncExitStack() as stack:
            for number in range(12):
                client = connected(address, "inbox_ids=in_1", receive_buffer_bytes=4_096 if number % 2 else None)
                await stack.enter_async_context(client)
            nursery.start_soon(publish_for_ever)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            for _ in range(50):
                await trio.lowlevel.checkpoint()
        async with opened.subscribe(ACCOUNT) as subscriber:
            assert (await anext(subscriber)).payload["number"] == 1
        nursery.cancel_scope.cancel()


async def test_after_the_drain_nothing_is_left(quick_close):
    await blocked()
    gc.collect()  # what others have left is not closed meanwhile
    files, tasks = open_descriptors(), trio.lowlevel.current_statistics().tasks_living
    async with (
        serving(configured(server=ServerConfig(drain_seconds=0.3))) as served,
        connected(served.address),
        connected(served.address, receive_buffer_bytes=4_096),
        await open_socket(served.address) as half,
    ):
        await half.send_all(b"GET")
        served.broker.start_draining()
        with trio.fail_after(60):
            await served.ended.wait()
        with contextlib.suppress(trio.BrokenResourceError):
            assert await half.receive_some() == b""
    await blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert open_descriptors() == files


async def test_a_thousand_short_connections_leave_nothing():
    async with serving() as served:
        await ask(served.address, "GET", "/healthz")
        await blocked()
        gc.collect()
        files, tasks = open_descriptors(), trio.lowlevel.current_statistics().tasks_living
        for number in range(300):
            if number % 3 == 0:
                assert (await ask(served.address, "GET", "/healthz")).status == 200
            elif number % 3 == 1:
                async with connected(served.address, "inbox_ids=in_1") as client:
                    await client.say_close()
                    await client.until_closed()
            else:
                async with connected(served.address, "inbox_ids=in_1"):
                    pass
        await served.until_gone()
        await blocked()
        assert not [item for item in served.broker.schedule._items if item.call is not None]
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert open_descriptors() == files
        assert served.broker.statistics().hub.live == 0


# --- how long a client's descriptor is held ----------------------------------


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET /healthz HTTP/1.0\r\n\r\n", upgrade_head(key=None)])
async def test_a_client_that_was_answered_for_the_last_time_is_let_go_after_two_seconds(sent, autojump_clock):
    async with open_broker(configured()) as opened, trio.open_nursery() as nursery:
        client, server = memory_stream_pair()
        ended = trio.Event()

        async def serve_it() -> None:
            await serve_stream(opened, server)
            ended.set()

        nursery.start_soon(serve_it)
        await client.send_all(sent)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 ")
        assert await client.receive_some() == b""
        started = trio.current_time()
        await ended.wait()
        assert trio.current_time() - started == pytest.approx(LINGER_SECONDS)
        nursery.cancel_scope.cancel()
