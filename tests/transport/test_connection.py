"""One client's connection, over real sockets: trio-websocket's traps, slow and hostile clients, heartbeats, errors."""

import json
import logging
import re
import socket

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BINARY,
    CLOSE,
    INBOXES,
    PING,
    PONG,
    PUBLISHER,
    TEXT,
    Closed,
    FrameParser,
    broker_log,
    command,
    configured,
    connected,
    event,
    masked,
    numbers,
    open_socket,
    reset,
    send_raw,
    serving,
    take_all_places,
    unread_bytes,
    unsent_bytes,
    upgrade_head,
)
from trio.testing import wait_all_tasks_blocked as blocked

import broker.transport.connection
import broker.transport.endpoints
import broker.transport.stream
from broker import CloseCode, LimitsConfig, ReplayConfig, StorageConfig
from broker.fanout.follower import READ_BYTES
from broker.intake.publishing import MAX_WAITING_PUBLISHES
from broker.transport.life import State
from broker.transport.session import GRACE_SECONDS, MAX_WAITING_ANSWER_BYTES, SILENT_SECONDS, Session
from broker.transport.stream import SEND_BUFFER_BYTES, ClientStream

SMALL = 4_096
"""A receive buffer so small that a client which does not read soon stops the server's writes."""


async def publish(served, first: int, last: int, size: int = 0, inbox: str | None = "in_1") -> None:
    """Publish events ``first`` … ``last`` one by one."""
    for number in range(first, last + 1):
        await served.broker.publish(ACCOUNT, event(number, size=size, inbox=inbox))


async def read_events(websocket, count: int) -> list[int]:
    """The numbers of the next so many events."""
    found: list[int] = []
    while len(found) < count:
        found += numbers([await websocket.next()])
    return found


async def until(condition) -> None:
    """Let the others run until something holds."""
    with trio.fail_after(60):
        while not condition():
            await blocked()


# --- an ordinary life --------------------------------------------------------


async def test_a_subscriber_gets_events_in_their_order(no_errors):
    async with serving() as served, connected(served.address, "inbox_ids=*") as client:
        await publish(served, 1, 100)
        assert await read_events(client, 100) == list(range(1, 101))


async def test_the_ready_frame_comes_first_and_its_cursor_is_good_for_a_reconnect():
    async with serving() as served:
        async with connected(served.address, "inbox_ids=in_1") as client:
            assert client.ready["inbox_ids"] == ["in_1"]
            assert client.ready["account_id"] == ACCOUNT
            assert "replay" not in client.ready
            cursor = client.ready["cursor"]
        await publish(served, 1, 3)
        async with connected(served.address, f"inbox_ids=in_1&since={cursor}") as client:
            assert client.ready["replay"] == {"recovered": True, "count": 3}
            assert client.ready["cursor"] == cursor
            assert await read_events(client, 3) == [1, 2, 3]


async def test_a_published_event_reaches_the_publisher_and_his_answer_comes_too():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        await client.say(action="publish", request_id="p", events=event(1))
        frames = [await client.next(), await client.next()]
        assert {frame["type"] for frame in frames} == {"response", "test.event"}
        answer = next(frame for frame in frames if frame["type"] == "response")
        delivered = next(frame for frame in frames if frame["type"] == "test.event")
        assert answer["result"]["events"][0]["event_id"] == delivered["event_id"]
        assert answer["result"]["events"][0]["cursor"] == delivered["cursor"]


async def test_a_clients_close_is_answered_with_its_code_and_leaves_nothing(no_errors, caplog):
    caplog.set_level(logging.INFO)
    async with serving() as served:
        before = served.broker.statistics().hub.live
        async with connected(served.address, "inbox_ids=in_1") as client:
            await until(lambda: served.broker.statistics().hub.live == before + 1)
            await client.say_close(1000)
            assert await client.until_closed() == 1000
            assert await client.at_end()
        await served.until_gone()
        assert served.broker.statistics().hub.live == before
        assert not served.broker._hub.account(ACCOUNT).in_use
    (line,) = [line for line in broker_log(caplog).splitlines() if "connection ended" in line]
    assert ACCOUNT in line
    assert "1000" in line


@pytest.mark.parametrize("leave", ["end", "reset"])
async def test_a_client_that_just_leaves_is_an_ordinary_end(no_errors, leave):
    async with serving() as served:
        async with connected(served.address, "inbox_ids=in_1") as client:
            if leave == "reset":
                reset(client.stream)
        await served.until_gone()
        assert not served.broker._hub.account(ACCOUNT).in_use


async def test_frames_sent_together_with_the_upgrade_are_obeyed():
    early = masked(PING, b"early") + command(action="subscribe", request_id="r", inbox_ids=["in_2"])
    async with serving() as served, connected(served.address, early=early) as client:
        found = [await client.frame(), await client.frame()]
        assert sorted(opcode for opcode, _ in found) == [TEXT, PONG]
        answer = json.loads(next(payload for opcode, payload in found if opcode == TEXT))
        assert answer["result"]["inbox_ids"] == ["in_2"]
        assert (PONG, b"early") in found


async def test_frames_sent_right_after_the_upgrade_are_obeyed():
    """They come while trio-websocket has read the head and not answered it yet."""
    async with serving() as served:
        for _ in range(20):
            async with await open_socket(served.address) as stream:
                with trio.fail_after(60):
                    await stream.send_all(upgrade_head())
                    await stream.send_all(masked(PING, b"right after") + masked(CLOSE, b"\x03\xe8"))
                    data = b""
                    async for part in stream:
                        data += bytes(part)
            frames = list(FrameParser().feed(data.partition(b"\r\n\r\n")[2]))
            assert (PONG, b"right after") in frames
            assert frames[-1] == (CLOSE, b"\x03\xe8")


async def test_thousands_of_frames_in_one_read_are_all_answered_in_their_order():
    commands = b"".join(command(action="ping", request_id=f"r{number}") for number in range(2_000))
    async with serving() as served, connected(served.address) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, commands)
            answers = [(await client.next())["request_id"] for _ in range(2_000)]
        assert answers == [f"r{number}" for number in range(2_000)]
        await client.ping()


async def test_thousands_of_publishes_in_one_read_are_all_stored_in_their_order():
    commands = b"".join(command(action="publish", request_id=f"{n}", events=event(n)) for n in range(1_000))
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, commands)
            answers, events = [], []
            while len(answers) < 1_000 or len(events) < 1_000 - sum("error" in a for a in answers):
                frame = await client.next()
                (answers if frame["type"] == "response" else events).append(frame)
        refused = [int(a["request_id"]) for a in answers if "error" in a]
        assert {a["error"]["code"] for a in answers if "error" in a} <= {"rate_limited"}
        assert numbers(events) == sorted(set(range(1_000)) - set(refused))


async def test_answers_to_what_came_in_one_read_go_out_together(monkeypatch):
    writes = []
    write_nowait = ClientStream.write_nowait

    def noted(stream, data):
        writes.append(data)
        return write_nowait(stream, data)

    monkeypatch.setattr(ClientStream, "write_nowait", noted)
    publishes = b"".join(command(action="publish", request_id=f"r{n}", events=event(n)) for n in range(12))
    async with serving() as served, connected(served.address, key=PUBLISHER) as client:
        writes.clear()
        await client.send(publishes)
        assert [(await client.next())["request_id"] for _ in range(12)] == [f"r{n}" for n in range(12)]
        assert len(writes) <= 2, "the last may be taken when the reader waits already"


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
async def test_what_was_published_just_before_the_client_half_closes_is_still_answered(on_disk, tmp_path):
    config = configured(storage=StorageConfig(path=str(tmp_path / "broker.db")) if on_disk else StorageConfig())
    publishes = b"".join(command(action="publish", request_id=f"r{n}", events=event(n)) for n in range(5))
    async with serving(config) as served, connected(served.address, key=PUBLISHER) as client:
        await client.send(publishes)
        await client.stream.send_eof()
        frames, _ = await client.rest()
        assert [frame["request_id"] for frame in frames] == [f"r{n}" for n in range(5)]


# --- trio-websocket's traps --------------------------------------------------


async def test_a_peer_that_pings_after_our_close_ends_only_its_own_connection(quick_close, no_errors):
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as neighbour:
        async with connected(served.address) as client:
            await client.send(masked(TEXT, b"[]") * 20)
            assert await client.until_closed() == CloseCode.TOO_MANY_BAD_FRAMES
            await client.send(masked(PING, b"still here"))
            await until(lambda: len(served.server.connections) == 1)
        await publish(served, 1, 1)
        assert await read_events(neighbour, 1) == [1]


async def test_a_peer_that_pings_after_our_close_still_reads_all_that_came_before_it(quick_close, no_errors):
    """It pings because it has not read that far. A reset would throw away what the kernel has not sent."""
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
    ):
        connection = served.connection(client)
        await publish(served, 1, 6, size=2_000)
        await client.send(masked(TEXT, b"[]") * 20)
        await until(lambda: connection._stream.statistics().closing)
        assert connection.statistics().remainder_bytes == 0
        for _ in range(3):
            await client.send(masked(PING, b"?"))
            await blocked()
        frames, closed = await client.rest()
        assert numbers(frames) == list(range(1, 7))
        assert sum(frame["type"] == "error" for frame in frames) == 20
        assert closed.code == CloseCode.TOO_MANY_BAD_FRAMES
        assert await client.at_end()


async def test_a_stalled_peer_is_closed_forcefully_and_no_close_is_put_inside_a_frame(quick_close, no_errors):
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
        connected(served.address) as neighbour,
    ):
        connection = served.connection(client)
        await publish(served, 1, 40, size=20_000)
        await until(lambda: connection.statistics().remainder_bytes > 0)
        connection.end(CloseCode.RESTART, "restart")
        await until(lambda: len(served.server.connections) == 1)
        parser = FrameParser()
        opcodes = []
        try:
            while data := await client.stream.receive_some(65_536):
                opcodes += [opcode for opcode, _ in parser.feed(data)]
        except trio.BrokenResourceError:
            pass
        assert opcodes == [TEXT] * len(opcodes)
        assert parser.buffer
        await neighbour.ping()


async def test_a_peer_that_never_answers_our_close_is_gone_after_close_seconds(quick_close, no_errors):
    config = configured(limits=LimitsConfig(heartbeat_seconds=600))
    async with serving(config) as served, connected(served.address) as client:
        started = trio.current_time()
        served.connection(client).end(CloseCode.RESTART, "restart")
        assert await client.until_closed() == CloseCode.RESTART
        with trio.fail_after(60):
            await served.until_gone()
        assert trio.current_time() - started >= 0.2


async def test_pings_and_closes_are_handled_while_commands_wait(no_errors):
    async with serving() as served, connected(served.address) as client:
        places = take_all_places(served)
        for number in range(30):
            await client.say(action="publish", request_id=f"{number}", events=event(number))
        await client.ping(b"while they wait")
        assert served.connection(client).statistics().waiting_commands == 30
        await client.say_close()
        assert await client.until_closed() == 1000
        await client.stream.send_eof()
        await served.until_gone()
        for place in places:
            place.__exit__()
    assert served.broker.statistics().published == 0


@pytest.mark.parametrize("fragments", [1, 3])
async def test_a_message_over_the_limit_in_bytes_closes_with_1009_though_its_characters_are_under_it(fragments):
    text = "é".encode() * 600_000
    parts = [text[n * 400_000 : (n + 1) * 400_000] for n in range(3)] if fragments == 3 else [text]
    frames = [
        masked(TEXT, part, first_byte=(TEXT if n == 0 else 0) | (0x80 if n == len(parts) - 1 else 0))
        for n, part in enumerate(parts)
    ]
    async with serving() as served, connected(served.address) as client:
        assert len(text.decode()) < client.ready["limits"]["max_message_bytes"] < len(text)
        await client.send(b"".join(frames))
        assert await client.until_closed() == CloseCode.TOO_BIG
        await client.say_close(CloseCode.TOO_BIG)
        await client.stream.send_eof()
        assert await client.at_end()
        await served.until_gone()


async def test_a_message_of_exactly_the_limit_is_taken():
    limits = LimitsConfig(max_message_bytes=1_000)
    text = command(action="ping", request_id="r", filler="")
    text = command(action="ping", request_id="r", filler="x" * (1_000 - (len(text) - 6)))
    async with serving(configured(limits=limits)) as served, connected(served.address) as client:
        assert len(text) == 1_000 + 8
        await client.send(text)
        assert "result" in await client.answer("r")


HEADS = {
    "no key": upgrade_head("", ("Sec-WebSocket-Key", "")),
    "a short key": upgrade_head("", ("Sec-WebSocket-Key", "dGhlIHNhbXBsZQ==")),
    "version 12": upgrade_head("", ("Sec-WebSocket-Version", "12")),
    "no version": upgrade_head("", ("Sec-WebSocket-Version", "")),
    "a target that is not ASCII": upgrade_head().replace(b"/v1/stream ", "/v1/stream?client_id=é ".encode()),
    "a host of \\xff\\xfe": upgrade_head().replace(b"broker.example", b"\xff\xfe"),
    "no host": upgrade_head("", ("Host", "")),
    "two hosts": upgrade_head().replace(b"Host:", b"Host: other\r\nHost:"),
    "a body": upgrade_head("", ("Content-Length", "3")) + b"abc",
    "a chunked body": upgrade_head("", ("Transfer-Encoding", "chunked")) + b"0\r\n\r\n",
    "two authorizations": upgrade_head().replace(b"Host:", b"Authorization: Bearer x\r\nHost:"),
    "HTTP/1.0": upgrade_head().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "no upgrade": upgrade_head("", ("Upgrade", "")),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
async def test_a_head_that_is_no_upgrade_is_refused_at_once(head, no_errors):
    async with serving() as served:
        with trio.fail_after(60):
            async with await open_socket(served.address) as stream:
                await stream.send_all(head)
                data = bytes(await stream.receive_some())
        assert re.match(rb"HTTP/1\.1 4\d\d ", data), data
        assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"] in {"bad_request", "upgrade_required"}
        assert served.streams().connections == {}


async def test_a_head_that_only_wsproto_refuses_is_ended_by_the_deadline(monkeypatch, no_errors):
    """No such head is known; were there one, trio-websocket would wait for ever."""
    without_key = upgrade_head("", ("Sec-WebSocket-Key", ""))
    async with serving() as served, connected(served.address) as neighbour:
        monkeypatch.setattr(broker.transport.endpoints, "check_upgrade", lambda _: without_key)
        monkeypatch.setattr(broker.transport.connection, "HANDSHAKE_SECONDS", 0.1)
        with trio.fail_after(60):
            async with await open_socket(served.address) as stream:
                await stream.send_all(upgrade_head())
                while await stream.receive_some():
                    pass
        await neighbour.ping()


async def test_a_head_that_breaks_the_reader_ends_only_its_own_connection(monkeypatch, caplog):
    odd_host = upgrade_head().replace(b"broker.example", b"\xff\xfe")
    async with serving() as served, connected(served.address) as neighbour:
        monkeypatch.setattr(broker.transport.endpoints, "check_upgrade", lambda _: odd_host)
        with trio.fail_after(60):
            async with await open_socket(served.address) as stream:
                await stream.send_all(upgrade_head())
                await stream.receive_some()
        await neighbour.ping()
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_peer_that_leaves_inside_the_handshake_is_an_ordinary_end(no_errors):
    async with serving() as served, connected(served.address) as neighbour:
        for _ in range(20):
            stream = await open_socket(served.address)
            await stream.send_all(upgrade_head("inbox_ids=*"))
            reset(stream)
        await blocked()
        await neighbour.ping()
        await until(lambda: len(served.server.connections) == 1)


async def test_a_peer_that_pings_and_reads_nothing_stops_only_its_own_reading(quick_close, no_errors):
    """The reader itself writes the pongs. Only the deadline outside sees that it is stuck."""
    async with (
        serving() as served,
        connected(served.address, receive_buffer_bytes=SMALL) as client,
        connected(served.address, "inbox_ids=in_1") as neighbour,
    ):
        connection = served.connection(client)
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                try:
                    while True:
                        await client.send(masked(PING, b"p" * 125) * 100)
                except trio.BrokenResourceError:
                    pass

            nursery.start_soon(flood)
            await until(lambda: connection.statistics().remainder_bytes > 0)
            assert connection.statistics().remainder_bytes <= 127
            await publish(served, 1, 10)
            assert await read_events(neighbour, 10) == list(range(1, 11))
            silent = served.broker.config.replay.seconds + SILENT_SECONDS + 1
            connection.beat(connection._stream.last_read + silent)
            await until(lambda: len(served.server.connections) == 1)


# --- slow clients ------------------------------------------------------------


async def test_a_client_that_comes_too_late_is_told_exactly_what_it_missed_and_its_neighbour_misses_nothing():
    replay = ReplayConfig(max_events_per_account=200)
    async with (
        serving(configured(replay=replay)) as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as slow,
        connected(served.address, "inbox_ids=in_1") as healthy,
    ):
        cursors: dict[str, int] = {}
        for first in range(1, 1_001, 50):
            for number in range(first, first + 50):
                made = event(number, size=4_000, inbox="in_1" if number % 2 else "in_2")
                (published,) = await served.broker.publish(ACCOUNT, made)
                cursors[published.cursor] = number
            assert await read_events(healthy, 25) == list(range(first, first + 50, 2))
        for_it = [number for number in cursors.values() if number % 2]
        frames: list[dict] = []
        while numbers(frames[-1:]) != [999]:
            frames.append(await slow.next())
        gaps = [index for index, frame in enumerate(frames) if frame["type"] == "replay.gap"]
        before, after = numbers(frames[: gaps[0]]), numbers(frames[gaps[-1] :])
        assert len(gaps) == 1
        gap = frames[gaps[0]]
        assert before == for_it[: len(before)]
        assert after == for_it[-len(after) :]
        assert len(before) + gap["count"] + len(after) == len(for_it)
        assert before[-1] <= cursors[gap["from"]] < after[0]
        assert cursors[gap["to"]] == 800
        assert len(after) == 100
        assert gap["count"] > 0
        await publish(served, 2_001, 2_001)
        assert await read_events(slow, 1) == [2_001]


async def test_a_client_that_resets_while_the_fan_out_writes_disturbs_nobody(no_errors):
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as healthy:
        async with (
            connected(served.address, "inbox_ids=in_1") as first,
            connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as stalled,
            connected(served.address, "inbox_ids=in_1") as last,
        ):
            await publish(served, 1, 150, size=4_000)
            for client in (first, stalled, last):
                reset(client.stream)
            # The sockets are reset; whether the server's readers or its writes find out first is open.
            await publish(served, 151, 300, size=4_000)
            assert await read_events(healthy, 300) == list(range(1, 301))
        await until(lambda: len(served.server.connections) == 1)
        await healthy.ping()


async def test_a_client_that_never_reads_costs_a_bounded_amount_of_memory(record_property):
    """With the default settings on loopback: 34 kB in the stream, 33 kB in our socket, 129 kB in the client's."""
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", seconds=60) as client,
        connected(served.address, "inbox_ids=in_2") as neighbour,
    ):
        connection = served.connection(client)
        raw = connection._stream._socket
        for first in range(0, 20_000, 1_000):
            await served.broker.publish(ACCOUNT, [event(first + n, size=800) for n in range(1_000)])
            user = connection.statistics().remainder_bytes + connection.session.waiting_bytes
            kernel = unsent_bytes(raw), unread_bytes(client.socket)
            assert user <= READ_BYTES + 1_500
            assert sum(kernel) < 400_000
        assert not connection.statistics().live
        # The kernel moves what it holds by timers of its own; what counts is where that ends.
        still = 0
        while still < 5:
            await trio.sleep(0.05)
            before, kernel = kernel, (unsent_bytes(raw), unread_bytes(client.socket))
            still = still + 1 if kernel == before else 0
        user = connection.statistics().remainder_bytes + connection.session.waiting_bytes
        record_property("bytes: user, our kernel's, the client's kernel's", (user, *kernel))
        assert user <= READ_BYTES + 1_500
        assert sum(kernel) < 400_000
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
        await neighbour.ping()


async def test_a_client_that_floods_commands_and_reads_no_answers_is_stopped_and_goes_on_when_it_reads():
    count, batch = 12_000, b"".join(command(action="ping", request_id=f"{n:0120}") for n in range(100))
    async with (
        serving() as served,
        connected(served.address, receive_buffer_bytes=SMALL, seconds=60) as client,
        connected(served.address) as neighbour,
    ):
        connection = served.connection(client)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < count:
                await client.send(batch)
                sent += 100

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await until(lambda: connection.session.congested)
            await blocked()
            stopped_at = sent
            await neighbour.ping()
            assert sent == stopped_at < count
            assert connection.session.waiting_bytes <= MAX_WAITING_ANSWER_BYTES + 1_000
            assert connection.statistics().remainder_bytes <= MAX_WAITING_ANSWER_BYTES + 1_000
            answers = [(await client.next())["request_id"] for _ in range(count)]
        assert answers == [f"{n:0120}" for n in range(100)] * (count // 100)


async def test_a_clients_pings_are_answered_while_it_is_behind_and_no_frame_is_broken():
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
    ):
        connection = served.connection(client)
        await publish(served, 1, 400, size=4_000)
        await until(lambda: not connection.statistics().live and connection.statistics().remainder_bytes)
        await client.send(masked(PING, b"one") + masked(PING, b"two"))
        seen: list[bytes] = []
        found: list[int] = []
        while len(found) < 400:
            opcode, payload = await client.frame()
            if opcode == PONG:
                seen.append(payload)
            elif opcode == TEXT:
                found += numbers([json.loads(payload)])
        assert found == list(range(1, 401))
        assert seen == [b"one", b"two"]
        await until(lambda: connection.statistics().live)


async def test_answers_come_between_the_events_of_a_client_that_is_behind():
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
    ):
        connection = served.connection(client)
        await publish(served, 1, 400, size=4_000)
        await until(lambda: not connection.statistics().live)
        await client.say(action="ping", request_id="r")
        frames = []
        while numbers(frames[-1:]) != [400]:
            frames.append(await client.next())
        assert numbers(frames) == list(range(1, 401))
        assert [frame["request_id"] for frame in frames if frame["type"] == "response"] == ["r"]


# --- publishes that wait -----------------------------------------------------


async def test_waiting_publishes_are_done_in_their_order_and_the_next_after_too_many_is_refused():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        places = take_all_places(served)
        for number in range(MAX_WAITING_PUBLISHES + 2):
            await client.say(action="publish", request_id=f"{number}", events=event(number))
        for number in (MAX_WAITING_PUBLISHES, MAX_WAITING_PUBLISHES + 1):
            refused = await client.answer(f"{number}")
            assert refused["error"]["code"] == "rate_limited"
            assert refused["error"]["retry_after_ms"] > 0
        for place in places:
            place.__exit__()
        frames = [await client.next() for _ in range(2 * MAX_WAITING_PUBLISHES)]
        assert numbers(frames) == list(range(MAX_WAITING_PUBLISHES))
        answers = [frame["request_id"] for frame in frames if frame["type"] == "response"]
        assert answers == [f"{number}" for number in range(MAX_WAITING_PUBLISHES)]


async def test_a_waiting_publish_that_is_bad_is_refused_and_the_others_are_done():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        places = take_all_places(served)
        await client.say(action="publish", request_id="good", events=event(1))
        await client.say(action="publish", request_id="bad", events={"type": "X"})
        await client.say(action="publish", request_id="good.too", events=event(2))
        await client.ping()
        for place in places:
            place.__exit__()
        frames = [await client.next() for _ in range(5)]
        assert numbers(frames) == [1, 2]
        outcomes = {f["request_id"]: "error" in f for f in frames if f["type"] == "response"}
        assert outcomes == {"good": False, "bad": True, "good.too": False}


async def test_the_waiting_publishes_of_a_client_that_leaves_are_not_stored():
    async with serving() as served:
        places = take_all_places(served)
        async with connected(served.address) as client:
            await client.say(action="publish", request_id="p", events=event(1))
            await client.ping()
        await served.until_gone()
        for place in places:
            place.__exit__()
        await blocked()
        assert served.broker.statistics().published == 0


# --- heartbeats --------------------------------------------------------------


async def test_a_live_client_is_pinged():
    config = configured(limits=LimitsConfig(heartbeat_seconds=0.05))
    async with serving(config) as served, connected(served.address) as client:
        assert client.ready["heartbeat_seconds"] == 0.05
        for _ in range(3):
            assert await client.wait_for(PING) == b""
        await client.ping()


async def test_a_quiet_clients_cursor_stays_good():
    async with serving() as served:
        async with connected(served.address, "inbox_ids=in_1") as client:
            connection = served.connection(client)
            await publish(served, 1, 3, inbox="in_2")
            await until(lambda: connection.statistics().live)
            connection.beat(trio.current_time())
            frame = await client.next()
            assert frame["type"] == "connection.cursor"
            connection.beat(trio.current_time())
            await client.ping()
        await publish(served, 4, 4)
        async with connected(served.address, f"inbox_ids=in_1&since={frame['cursor']}") as client:
            assert client.ready["replay"] == {"recovered": True, "count": 1}


async def test_a_client_that_only_pauses_keeps_its_connection():
    """It reads nothing, but its TCP acknowledges: `ws.pause()` for as long as the replay window."""
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
    ):
        connection = served.connection(client)
        await publish(served, 1, 200, size=4_000)
        await until(lambda: not connection.statistics().live)
        last_read = connection._stream.last_read
        for silent in (41, 100, 200, 339):
            assert connection.beat(last_read + silent) == pytest.approx(last_read + silent + 30)
        frames = [await client.next() for _ in range(200)]
        assert numbers(frames) == list(range(1, 201))
        await client.ping()


async def test_a_paused_client_is_given_up_when_its_events_are_gone_anyway(quick_close):
    async with serving() as served, connected(served.address) as client:
        connection = served.connection(client)
        assert connection.beat(connection._stream.last_read + 300 + SILENT_SECONDS + 1) is None
        assert await client.until_closed() == CloseCode.HEARTBEAT_MISSED


async def test_a_client_whose_tcp_acknowledges_nothing_is_dead(quick_close, monkeypatch):
    async with serving() as served, connected(served.address) as client:
        connection = served.connection(client)
        last_read = connection._stream.last_read
        patience = 30 + GRACE_SECONDS
        monkeypatch.setattr(ClientStream, "unacknowledged_seconds", lambda _: patience - 1)
        assert connection.beat(last_read + patience + 1) is not None
        monkeypatch.setattr(ClientStream, "unacknowledged_seconds", lambda _: patience + 1)
        assert connection.beat(last_read + patience - 1) is not None
        assert connection.beat(last_read + patience + 1) is None
        assert await client.until_closed() == CloseCode.HEARTBEAT_MISSED
        await served.until_gone()


async def test_who_was_not_heard_while_the_broker_was_away_is_asked_before_it_is_given_up(mock_clock, monkeypatch):
    mock_clock.rate = 1.0
    monkeypatch.setattr(ClientStream, "unacknowledged_seconds", lambda _: None)
    limits = LimitsConfig(heartbeat_seconds=1)
    async with serving(configured(limits=limits)) as served, connected(served.address, seconds=1_000) as client:
        mock_clock.jump(60)  # nothing was done meanwhile
        await client.wait_for(PING)
        await client.send(masked(PONG))
        await client.ping()


async def test_a_heartbeat_that_is_due_inside_the_handshake_is_put_off():
    async with serving() as served, connected(served.address) as client:
        connection = served.connection(client)
        connection._life.state = State.HANDSHAKING
        long_after = connection._stream.last_read + 1_000
        assert connection.beat(long_after) == long_after + 30
        connection._life.state = State.OPEN
        await client.ping()


async def test_where_nothing_is_known_of_acknowledgements_silence_is_death(quick_close, monkeypatch):
    async with serving() as served, connected(served.address) as client:
        connection = served.connection(client)
        monkeypatch.setattr(ClientStream, "unacknowledged_seconds", lambda _: None)
        assert connection.beat(connection._stream.last_read + 30 + GRACE_SECONDS + 1) is None
        assert await client.until_closed() == CloseCode.HEARTBEAT_MISSED


async def test_a_silent_client_is_looked_at_as_soon_as_it_may_be_dead():
    async with serving() as served, connected(served.address) as client:
        connection = served.connection(client)
        last_read = connection._stream.last_read
        assert connection.beat(last_read + 20) == pytest.approx(last_read + 40, abs=0.01)
        assert connection.beat(last_read) == pytest.approx(last_read + 30)


async def test_a_client_that_owes_the_rest_of_a_message_is_looked_at_as_soon_as_it_is_too_late(quick_close):
    async with serving() as served, connected(served.address) as client:
        connection = served.connection(client)
        await client.send(masked(TEXT, b"{", first_byte=TEXT))
        await until(lambda: connection._lent.owed_seconds(trio.current_time()) is not None)
        begun = trio.current_time() - connection._lent.owed_seconds(trio.current_time())
        connection._stream.last_read = begun + 35
        assert connection.beat(begun + 20) == pytest.approx(begun + 40, abs=0.01)
        assert connection.beat(begun + 41) is None
        assert await client.until_closed() == CloseCode.HEARTBEAT_MISSED


async def test_a_ping_of_the_server_never_lands_inside_a_frame():
    async with (
        serving(configured(limits=LimitsConfig(heartbeat_seconds=0.01))) as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
    ):
        for first in range(1, 301, 100):
            await publish(served, first, first + 99, size=3_000)
            assert await read_events(client, 100) == list(range(first, first + 100))
            await client.wait_for(PING)


# --- errors ------------------------------------------------------------------

BROKEN = {
    "text that is not UTF-8": (masked(TEXT, b"\xff\xfe"), CloseCode.NOT_UTF8),
    "an unmasked frame": (masked(TEXT, b"{}", mask=False), CloseCode.PROTOCOL_ERROR),
    "a reserved bit": (masked(TEXT, b"{}", first_byte=0xC1), CloseCode.PROTOCOL_ERROR),
    "an unknown opcode": (masked(3), CloseCode.PROTOCOL_ERROR),
    "a fragmented ping": (masked(PING, first_byte=PING), CloseCode.PROTOCOL_ERROR),
    "a ping of 126 bytes": (masked(PING, b"x" * 126), CloseCode.PROTOCOL_ERROR),
    "a continuation of nothing": (masked(0, b"x"), CloseCode.PROTOCOL_ERROR),
    "a close of one byte": (masked(CLOSE, b"x"), CloseCode.PROTOCOL_ERROR),
    "a message too big": (masked(TEXT, b"x" * 1_048_577), CloseCode.TOO_BIG),
}


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("more", [b"", b"x" * 300_000], ids=["alone", "with more behind it"])
async def test_broken_messages_close_with_their_code(data, code, more, quick_close, no_errors):
    async with serving() as served, connected(served.address) as neighbour, connected(served.address) as client:
        await client.say(action="ping", request_id="before")
        await client.send(data + more)
        frames, closed = await client.rest()
        assert [frame["request_id"] for frame in frames] == ["before"]
        assert closed.code == code
        assert await client.at_end()
        await client.stream.aclose()
        await until(lambda: len(served.server.connections) == 1)
        await neighbour.ping()


async def test_the_twentieth_bad_frame_in_a_row_closes_with_1008_and_all_answers_can_be_read():
    async with serving() as served, connected(served.address) as client:
        await client.send(masked(TEXT, b"{") * 10 + masked(BINARY, b"x") * 10 + masked(TEXT, b"{") * 5)
        frames, closed = await client.rest()
        assert [frame["type"] for frame in frames] == ["error"] * 20
        assert closed.code == CloseCode.TOO_MANY_BAD_FRAMES


async def test_answers_that_wait_can_be_read_before_the_close(no_errors):
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
    ):
        connection = served.connection(client)
        await publish(served, 1, 100, size=4_000)
        await until(lambda: not connection.statistics().live)
        await client.send(masked(TEXT, b"{") * 20)
        await until(lambda: connection._life.state is State.ENDING)
        frames, closed = await client.rest()
        assert [frame["type"] for frame in frames if "payload" not in frame] == ["error"] * 20
        assert numbers(frames) == list(range(1, len(numbers(frames)) + 1))
        assert closed.code == CloseCode.TOO_MANY_BAD_FRAMES


async def test_a_good_command_between_bad_frames_keeps_the_connection():
    async with serving() as served, connected(served.address) as client:
        for _ in range(3):
            await client.send(masked(TEXT, b"{") * 19)
            await client.say(action="ping", request_id="r")
            assert "result" in await client.answer("r")


async def test_an_unexpected_exception_is_logged_once_and_closes_with_1011_and_others_live(monkeypatch, caplog):
    real = Session.receive

    def receive(self, message, *args):
        if "boom" in message:
            raise ZeroDivisionError("a bug")
        return real(self, message, *args)

    monkeypatch.setattr(Session, "receive", receive)
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as neighbour:
        async with connected(served.address) as client:
            await client.say(action="boom")
            assert await client.until_closed() == CloseCode.INTERNAL_ERROR
        await until(lambda: len(served.server.connections) == 1)
        await publish(served, 1, 1)
        assert await read_events(neighbour, 1) == [1]
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == 1
    assert errors[0].exc_info is not None


async def test_an_unexpected_exception_while_catching_up_closes_with_1011(monkeypatch, caplog):
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        monkeypatch.setattr(served.connection(client).session, "take", lambda: 1 / 0)
        served.connection(client).wake()
        assert await client.until_closed() == CloseCode.INTERNAL_ERROR
        await client.stream.aclose()
        await served.until_gone()
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_an_unexpected_exception_in_a_waiting_publish_closes_with_1011(monkeypatch, caplog):
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    async with serving() as served, connected(served.address) as client:
        monkeypatch.setattr(served.broker.intake, "places_nowait", lambda *_: None)
        monkeypatch.setattr(served.broker.intake, "places", fail)
        await client.say(action="publish", request_id="p", events=event(1))
        assert await client.until_closed() == CloseCode.INTERNAL_ERROR
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_no_key_is_ever_logged(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving() as served:
        async with connected(served.address, f"key={ALICE}", ("Authorization", "")) as client:
            await client.say_close()
            await client.until_closed()
        async with connected(served.address, key=INBOXES) as other:
            await other.send(masked(TEXT, b"{") * 20)
            await other.until_closed()
        await send_raw(served.address, upgrade_head(f"key={PUBLISHER}", ("Connection", "close")))
        await served.until_gone()
    log = broker_log(caplog)
    for said in (client.ready["connection_id"], other.ready["connection_id"], "status 426, code upgrade_required"):
        assert said in log
    assert "dm_live" not in log


async def test_a_peer_that_breaks_off_inside_a_frame_is_an_ordinary_end(no_errors):
    async with serving() as served:
        async with connected(served.address) as client:
            await client.send(command(action="ping")[:5])
            await client.stream.send_eof()
            with pytest.raises(Closed) as closed:
                await client.next()
            assert closed.value.code is None
        await served.until_gone()
