"""How a connection ends that is not at rest, over real sockets: what is still said, what is not, who is told what."""

import logging
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from certificates import Authority
from clients import (
    ACCOUNT,
    ALICE,
    CLOSE,
    INBOXES,
    PING,
    PONG,
    TEXT,
    Closed,
    command,
    config_of,
    configured,
    connected,
    event,
    key_of,
    masked,
    numbers,
    open_socket,
    reset,
    serving,
    take_all_places,
    until,
    upgrade_head,
)
from trio.testing import wait_all_tasks_blocked as blocked

import broker.transport.connection
import broker.transport.session
from broker import CloseCode, LimitsConfig, RequestError, ServerConfig, open_broker, testing
from broker.logline import LogLine
from broker.transport.life import CLOSE_SECONDS, State
from broker.transport.pacing import MAX_EMPTY_FRAGMENTS, MIN_FRAGMENTS

SMALL = 4_096
"""A receive buffer so small that a client which does not read soon stops the server's writes."""


async def publish(served, first: int, last: int, size: int = 0) -> None:
    for number in range(first, last + 1):
        await served.broker.publish(ACCOUNT, event(number, size=size))


@asynccontextmanager
async def behind(served, events: int = 400, **fields):
    """A client that does not read and has fallen behind: so many events of 4 kB wait for it."""
    async with connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL, **fields) as client:
        await publish(served, 1, events, size=4_000)
        await until(lambda: not served.connection(client).statistics().live)
        await blocked()
        yield client


def ended(caplog) -> list[str]:
    """What the log says of how connections ended."""
    lines = [record.msg for record in caplog.records if isinstance(record.msg, LogLine)]
    return [line.fields["reason"] for line in lines if line.what == "connection ended"]


# --- who closes, and with what -----------------------------------------------


@pytest.mark.parametrize("code", [None, 1000, 1001, 1010, 1012, 1013, 1014, 3000, 4999])
async def test_every_code_that_a_client_may_close_with_is_echoed(code, no_errors, caplog):
    caplog.set_level(logging.INFO)
    payload = b"" if code is None else code.to_bytes(2) + b"bye"
    async with serving() as served, connected(served.address) as client:
        await client.send(masked(CLOSE, payload))
        with pytest.raises(Closed) as closed:
            await client.next()
        assert (closed.value.code, closed.value.reason) == ((code, "bye") if code else (0, ""))
        assert await client.at_end()
        await client.stream.aclose()
        await served.until_gone()
    assert ended(caplog) == [f"closed by the client with{f' {code}' if code else 'out a code'}"]


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 1100, 2999, 5000])
async def test_a_code_that_no_client_may_close_with_is_broken_framing(code, no_errors):
    async with serving() as served, connected(served.address) as client:
        await client.say_close(code)
        assert await client.until_closed() == CloseCode.PROTOCOL_ERROR


ENDINGS = {
    "the client leaves": (None, "the client left without a Close"),
    "the client resets": (None, "the client left without a Close"),
    "a bad frame too many": (CloseCode.TOO_MANY_BAD_FRAMES, "closed by the broker with 1008: too many frames that"),
    "a message too big": (CloseCode.TOO_BIG, "closed by the broker with 1009: a message of more than 1048576 bytes"),
    "broken framing": (CloseCode.PROTOCOL_ERROR, "closed by the broker with 1002: broken framing"),
    "no UTF-8": (CloseCode.NOT_UTF8, "closed by the broker with 1007: text that is not UTF-8"),
    "a restart": (CloseCode.RESTART, "closed by the broker with 1012: restart"),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_the_log_says_in_a_line_who_ended_it_and_why(how, no_errors, caplog):
    code, line = ENDINGS[how]
    sent = {
        "a bad frame too many": masked(TEXT, b"[]") * 20,
        "a message too big": masked(TEXT, b"x" * 1_048_577)[:14],
        "broken framing": masked(TEXT, b"{}", mask=False),
        "no UTF-8": masked(TEXT, b"\xff"),
    }
    caplog.set_level(logging.INFO)
    async with serving() as served, connected(served.address) as client:
        if how in sent:
            await client.send(sent[how])
        elif how == "a restart":
            served.broker.start_draining()
        if how == "the client resets":
            reset(client.stream)
        elif how != "the client leaves":
            assert await client.until_closed() == code
        await client.stream.aclose()
        await served.until_gone()
    [said] = ended(caplog)
    assert said.startswith(line)


# --- too much, over a socket --------------------------------------------------

BEGUN = masked(TEXT, b"a", first_byte=TEXT)
TOO_MUCH = {
    "a message too big by its header alone": (masked(TEXT, b"x" * 1_048_577)[:14], CloseCode.TOO_BIG),
    "a message too big in characters of two bytes": (
        BEGUN + masked(0, "é".encode() * 100_000, first_byte=0) * 6,
        CloseCode.TOO_BIG,
    ),
    "a message in too many fragments": (BEGUN + masked(0, b"a", first_byte=0) * 16_384, CloseCode.TOO_BIG),
    "empty fragments": (
        BEGUN + masked(0, first_byte=0) * (MAX_EMPTY_FRAGMENTS + 1),
        CloseCode.TOO_MANY_BAD_FRAMES,
    ),
}


@pytest.mark.parametrize(("data", "code"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
async def test_a_message_that_becomes_too_much_closes_though_it_is_not_finished(data, code, no_errors):
    async with serving() as served, connected(served.address) as client:
        await client.send(command(action="ping", request_id="before") + data)
        frames, closed = await client.rest()
        assert [frame["request_id"] for frame in frames] == ["before"]
        assert closed.code == code


async def test_a_message_in_many_fragments_with_pings_between_them_is_obeyed():
    text = b'{"action":"ping","request_id":"r"}'
    parts = [masked(0, text[n : n + 1], first_byte=0) for n in range(1, len(text) - 1)]
    parts = parts + [masked(0, first_byte=0)] * (MIN_FRAGMENTS // 20)
    message = masked(TEXT, text[:1], first_byte=TEXT) + masked(PING, b"?").join(parts) + masked(0, text[-1:])
    async with serving() as served, connected(served.address) as client:
        await client.send(message)
        assert "result" in await client.answer("r")


async def test_a_message_that_is_begun_and_not_finished_ends_the_connection(monkeypatch, no_errors, caplog):
    monkeypatch.setattr(broker.transport.session, "GRACE_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    async with (
        serving(configured(limits=LimitsConfig(heartbeat_seconds=0.05))) as served,
        connected(served.address) as client,
    ):
        await client.send(BEGUN)
        assert await client.until_closed() == CloseCode.HEARTBEAT_MISSED
        await client.stream.aclose()
        await served.until_gone()
    assert ended(caplog) == ["closed by the broker with 4408: a message that was begun was not finished"]


# --- after our own Close -----------------------------------------------------


async def test_after_our_close_the_stream_stays_open_until_the_clients_has_come(no_errors):
    """RFC 6455 section 7.1.1: a client that has still to say something is not cut off."""
    async with serving() as served, connected(served.address) as client:
        served.connection(client).end(CloseCode.RESTART, "restart")
        assert await client.until_closed() == CloseCode.RESTART
        await client.send(masked(TEXT, b"{}") * 100)
        await blocked()
        with pytest.raises(BlockingIOError):
            client.socket._sock.recv(1)
        await client.say_close(CloseCode.RESTART)
        assert await client.stream.receive_some() == b""


async def test_after_our_close_nothing_is_obeyed_whatever_still_comes():
    publish_one = command(action="publish", events=event(1))
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        await client.send(masked(TEXT, b"[]") * 20 + publish_one * 10)
        assert await client.until_closed() == CloseCode.TOO_MANY_BAD_FRAMES
        await client.send(publish_one * 1_000 + masked(PING, b"?"))
        await client.say_close(CloseCode.TOO_MANY_BAD_FRAMES)
        assert await client.stream.receive_some() == b"", "not even a pong"
        await client.stream.aclose()
        await served.until_gone()
        assert served.broker.statistics().published == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_client_that_reads_gets_its_answers_and_the_close_however_late_the_broker_is(
    tls, tmp_path, mock_clock, no_errors
):
    """More time than a client has for it passes between any two of the broker's steps."""
    authority = Authority(tmp_path) if tls else None
    config = configured(server=authority.sign()) if authority else configured()
    async with serving(config) as served, connected(served.address, tls=authority and authority.trust()) as client:
        await client.ping()
        connection = served.connection(client)
        connection.session.answer("r1", "ping", RequestError("internal", "the last"))
        connection.end(CloseCode.REVOKED, "the key was revoked")
        for _ in range(12):
            mock_clock.jump(1.1 * CLOSE_SECONDS)
            await trio.lowlevel.checkpoint()
        frames, closed = await client.rest()
        assert [frame["request_id"] for frame in frames] == ["r1"]
        assert closed.code == CloseCode.REVOKED


async def test_a_peer_that_talks_on_after_our_close_is_gone_after_close_seconds(quick_close, no_errors):
    async with serving() as served, connected(served.address) as client:
        with trio.CancelScope() as talking:
            async with trio.open_nursery() as nursery:

                async def talk() -> None:
                    while True:
                        await client.send(masked(PONG) * 100)

                async def wait() -> None:
                    served.connection(client).end(CloseCode.RESTART, "restart")
                    await served.until_gone()
                    talking.cancel()

                nursery.start_soon(wait)
                with trio.fail_after(60):
                    try:
                        await talk()
                    except trio.BrokenResourceError:
                        await served.until_gone()


# --- an end while more is to be said ------------------------------------------


async def test_one_that_is_behind_reads_nothing_more_of_the_log_after_its_end():
    async with serving() as served, behind(served) as client:
        connection = served.connection(client)
        cursor = connection.session.follower.cursor
        connection.end(CloseCode.GOING_AWAY, "away")
        frames, closed = await client.rest()
        assert closed.code == CloseCode.GOING_AWAY
        assert frames[-1]["cursor"] == cursor
        assert len(frames) < 400
        assert numbers(frames) == list(range(1, len(frames) + 1))


async def test_one_whose_turn_to_write_comes_in_the_step_of_its_end_reads_nothing_more_either():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        connection = served.connection(client)
        await blocked()
        async with connection._stream._alone():
            await publish(served, 1, 3)
            await blocked()
            assert not connection.statistics().live
        connection.end(CloseCode.GOING_AWAY, "away")
        frames, closed = await client.rest()
        assert (frames, closed.code) == ([], CloseCode.GOING_AWAY)


async def test_answers_that_were_taken_to_be_written_are_not_lost_by_the_end():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        connection = served.connection(client)
        await blocked()
        async with connection._stream._alone():
            for number in range(5):
                await client.say(action="ping", request_id=f"{number}")
            await publish(served, 1, 1)
            await until(lambda: connection.session.waiting_bytes)
            await blocked()
            connection.end(CloseCode.GOING_AWAY, "away")
            await blocked()
        frames, closed = await client.rest()
        assert [frame["request_id"] for frame in frames] == [f"{number}" for number in range(5)]
        assert closed.code == CloseCode.GOING_AWAY


async def test_who_takes_answers_is_read_from_again_while_events_still_wait():
    async with serving() as served, behind(served, seconds=60) as client:
        connection = served.connection(client)
        pings = b"".join(command(action="ping", request_id=f"{n:0120}") for n in range(100))

        async def flood() -> None:
            for _ in range(30):
                await client.send(pings)
            await client.send(masked(PING, b"the last"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await until(lambda: connection.session.congested)
            await blocked()
            found: list[int] = []
            opcode = None
            while opcode != PONG:
                opcode, payload = await client.frame()
                if opcode == TEXT and b"payload" in payload:
                    found.append(len(found) + 1)
        assert len(found) < 400
        assert not connection.statistics().live


@pytest.mark.parametrize("steps", range(12))
async def test_over_what_is_no_socket_a_frame_is_whole_and_the_close_comes_wherever_the_end_finds_the_writer(
    steps, autojump_clock
):
    async with open_broker(testing.config()) as opened, testing.connect(opened) as client:
        await opened.publish(testing.ACCOUNT, [event(number, size=1_000) for number in range(100)])
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        opened.reload(config_of())
        found = numbers([frame async for frame in client])
        assert found == list(range(len(found)))
        assert client.close_code == CloseCode.REVOKED


# --- publishes ---------------------------------------------------------------


@pytest.mark.parametrize("first", ["the key goes", "there is room"])
async def test_what_waits_to_be_published_when_its_key_goes_in_the_same_step_is_not_published(first):
    async with serving() as served, connected(served.address) as client:
        places = take_all_places(served)
        await client.say(action="publish", request_id="p", events=event(1))
        await client.ping()
        if first == "the key goes":
            served.broker.reload(config_of())
        for place in places:
            place.__exit__()
        if first == "there is room":
            served.broker.reload(config_of())
        frames, _ = await client.rest()
        assert [frame for frame in frames if "result" in frame] == []
        await client.stream.aclose()
        await served.until_gone()
        assert served.broker.statistics().published == 0


@pytest.mark.parametrize(("where", "code"), [("places_nowait", "internal"), ("places", "unavailable")])
async def test_a_publish_that_fails_inside_is_answered_and_may_be_sent_again(where, code, monkeypatch, caplog):
    async with serving() as served:
        said = {"action": "publish", "request_id": "p", "events": event(1)}
        with monkeypatch.context() as broken:
            broken.setattr(served.broker.intake, "places_nowait", lambda *_: None)
            broken.setattr(served.broker.intake, where, lambda *_: 1 / 0)
            async with connected(served.address) as client:
                await client.say(**said)
                assert (await client.answer("p"))["error"]["code"] == code
                assert await client.until_closed() == CloseCode.INTERNAL_ERROR
        async with connected(served.address) as client:
            await client.say(**said)
            assert len((await client.answer("p"))["result"]["events"]) == 1
        assert served.broker.statistics().published == 1
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_what_waits_to_be_published_when_the_connection_ends_is_refused_before_the_close():
    async with serving() as served, connected(served.address) as client:
        take_all_places(served)
        for number in range(3):
            await client.say(action="publish", request_id=f"{number}", events=event(number))
        await client.ping()
        served.connection(client).end(CloseCode.GOING_AWAY, "away")
        frames, closed = await client.rest()
        assert [(frame["request_id"], frame["error"]["code"]) for frame in frames] == [
            (f"{number}", "unavailable") for number in range(3)
        ]
        assert closed.code == CloseCode.GOING_AWAY


# --- the drain ---------------------------------------------------------------


async def test_who_falls_behind_during_the_drain_still_gets_everything():
    async with (
        serving() as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=SMALL) as client,
    ):
        connection = served.connection(client)
        await blocked()
        hub, gate = served.broker._hub, False
        real = hub.take_turns
        hub.take_turns = lambda until: real(until) if gate else None
        await served.broker.publish(ACCOUNT, [event(number, size=4_000) for number in range(100)])
        served.broker.start_draining()
        assert (await client.next())["type"] == "server.draining"
        assert connection.statistics().live
        gate = True
        await until(lambda: not connection.statistics().live)
        frames, closed = await client.rest()
        assert numbers(frames) == list(range(100))
        assert closed.code == CloseCode.RESTART


async def test_a_client_that_leaves_during_the_drain_while_its_command_runs_does_not_hold_it_up(no_errors):
    """Where the handler wants to be cancelled then; else the command is finished (tests/transport/test_drain.py)."""
    async with serving(configured(server=ServerConfig(drain_seconds=600))) as served:

        @served.broker.command("sleep", seconds=600, when_client_leaves="cancel")
        async def sleep(params: dict, context) -> None:
            await trio.sleep_forever()

        async with connected(served.address) as client:
            await client.say(action="sleep", request_id="s")
            await client.ping()
            served.broker.start_draining()
            assert (await client.next())["type"] == "server.draining"
            await blocked()
            assert not served.ended.is_set()
        with trio.fail_after(60):
            await served.ended.wait()


async def test_who_reads_nothing_is_still_sent_its_1012_in_time():
    config = configured(server=ServerConfig(drain_seconds=3))
    async with serving(config) as served, behind(served, 50) as client:
        connection = served.connection(client)
        served.broker.start_draining()
        await until(lambda: connection._life.state is State.ENDING)
        assert not served.ended.is_set()
        frames, closed = await client.rest()
        assert closed.code == CloseCode.RESTART
        assert [frame["type"] for frame in frames if "payload" not in frame] == ["server.draining"]


async def test_a_client_in_its_handshake_is_waited_for_by_the_drain_and_one_that_ends_there_is_not(monkeypatch):
    real, gate = broker.transport.connection.Connection._handshake, trio.Event()

    async def wait(connection, nursery):
        await gate.wait()
        return await real(connection, nursery)

    monkeypatch.setattr(broker.transport.connection.Connection, "_handshake", wait)
    async with serving(configured(server=ServerConfig(drain_seconds=600))) as served:
        async with await open_socket(served.address) as stream:
            await stream.send_all(upgrade_head())
            await until(lambda: served.server.connections)
            [connection] = served.server.connections.values()
            served.broker.start_draining()
            await blocked()
            connection.end(CloseCode.REVOKED, "revoked")
            gate.set()
            said = b""
            with trio.fail_after(60):
                while CloseCode.REVOKED.to_bytes(2) not in said:
                    said += await stream.receive_some()
            assert b"draining" not in said
        with trio.fail_after(60):
            await served.ended.wait()


async def test_who_is_still_in_its_handshake_when_the_time_to_drain_is_up_is_told_of_the_restart_and_nothing_else(
    monkeypatch,
):
    real, gate = broker.transport.connection.Connection._handshake, trio.Event()

    async def wait(connection, nursery):
        await gate.wait()
        return await real(connection, nursery)

    monkeypatch.setattr(broker.transport.connection.Connection, "_handshake", wait)
    async with serving() as served, await open_socket(served.address) as stream:
        await stream.send_all(upgrade_head())
        await until(lambda: served.server.connections)
        [connection] = served.server.connections.values()
        await connection.drain(1_000, trio.current_time())
        gate.set()
        said = b""
        with trio.fail_after(60):
            while CloseCode.RESTART.to_bytes(2) not in said:
                said += await stream.receive_some()
        assert b"101 Switching Protocols" in said
        assert b"draining" not in said


# --- when it has ended -------------------------------------------------------


async def test_a_connection_that_has_ended_does_nothing_any_more_whoever_calls_it(no_errors):
    async with serving() as served:
        async with connected(served.address, "inbox_ids=in_1") as client:
            connection = served.connection(client)
        await served.until_gone()
        for call in (
            connection.wake,
            connection.ask_for_life,
            partial(connection.change_key, key_of(served.broker, INBOXES)),
            partial(connection.change_key, None),
            partial(connection.end, CloseCode.RESTART, "again"),
        ):
            call()
        assert connection.beat(trio.current_time() + 1_000) is None
        with trio.fail_after(60):
            await connection.drain(1_000, trio.current_time() + 1_000)
        assert connection.lived_since(trio.current_time())
        assert not served.broker._hub.account(ACCOUNT).in_use
        async with connected(served.address, "inbox_ids=in_1", key=ALICE) as other:
            await publish(served, 1, 1)
            assert numbers([await other.next()]) == [1]
