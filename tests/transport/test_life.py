"""What a connection's life is, whatever carries it: of a thousand that end at once, one after the other does."""

import pkgutil
from collections import Counter
from contextlib import AsyncExitStack
from functools import reduce

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    CLOSE,
    TEXT,
    connected,
    event,
    masked,
    open_socket,
    serving,
    until,
    upgrade_head,
)
from garbage import garbage
from trio.testing import wait_all_tasks_blocked as blocked

from broker import CloseCode, Config
from broker.transport.session import Session


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode()


DEEP = reduce(lambda inner, _: [inner], range(200), 1)
"""More levels than parameters may have."""
OPENINGS = {
    "a WebSocket": upgrade_head("inbox_ids=in_1"),
    "an event stream": get("/v1/events/stream?inbox_ids=*"),
    "a poll": get("/v1/events?wait=30&inbox_ids=*"),
}
CLIENTS = 60
MOST_AT_ONCE = 20
"""That go on in one turn of the loop: eight are let in at first, then fewer, and those before them go on, too."""
MOST_STEPS = 20
"""Of their tasks between two looks at the network: one begins to stop, and those before it go on with theirs."""


class Rounds(trio.abc.Instrument):
    """Counts the steps of clients' tasks between two looks at the network."""

    def __init__(self):
        self.most = 0
        self._count = 0

    def before_task_step(self, task):
        self._count += "serve_client" in task.name or "_reader_task" in task.name

    def before_io_wait(self, timeout):
        self.most = max(self.most, self._count)
        self._count = 0


async def open_event_stream(stack, served):
    stream = await stack.enter_async_context(await open_socket(served.address))
    await stream.send_all(get("/v1/events/stream?inbox_ids=*"))


async def open_websocket(stack, served):
    await stack.enter_async_context(connected(served.address, key=ALICE))


def end_each(served):
    for connection in list(served.server.connections.values()):
        connection.end(CloseCode.GOING_AWAY, "away")


def revoke(served):
    served.broker.reload(Config())


def miss_a_heartbeat(served):
    for connection in list(served.server.connections.values()):
        connection.beat(trio.current_time() + 10_000)


@pytest.mark.parametrize("end", [end_each, revoke, miss_a_heartbeat])
@pytest.mark.parametrize("open_one", [open_websocket, open_event_stream])
async def test_of_many_that_are_ended_at_once_none_is_open_and_they_stop_one_after_the_other(
    open_one, end, monkeypatch
):
    monkeypatch.setattr("broker.transport.stream.ClientStream.unacknowledged_seconds", lambda _: 1_000)
    async with serving() as served, AsyncExitStack() as stack:
        for _ in range(CLIENTS):
            await open_one(stack, served)
        await until(lambda: len(served.server.connections) == CLIENTS)
        await blocked()
        connections = list(served.server.connections.values())
        rounds = Rounds()
        trio.lowlevel.add_instrument(rounds)
        end(served)
        await until(lambda: all(one._stream.statistics().closing for one in connections))
        trio.lowlevel.remove_instrument(rounds)
        assert rounds.most <= MOST_STEPS
        assert served.broker.statistics().slots.connections == 0


# --- what many ask for at once -------------------------------------------------


class Growth(trio.abc.Instrument):
    """Notes by how much a list grew at most between two looks at the network."""

    def __init__(self, watched):
        self.most = 0
        self._watched = watched
        self._length = len(watched)

    def before_io_wait(self, timeout):
        self.most = max(self.most, len(self._watched) - self._length)
        self._length = len(self._watched)


async def open_poll(stack, served):
    stream = await stack.enter_async_context(await open_socket(served.address))
    await stream.send_all(OPENINGS["a poll"])


async def publish_to_all(served):
    await served.broker.publish(ACCOUNT, event(1))


async def fall_behind(served):
    for connection in list(served.server.connections.values()):
        connection.session.follower.pause()


@pytest.mark.parametrize(
    ("open_one", "ask", "done"),
    [
        (open_websocket, fall_behind, "broker.transport.session.Session.take"),
        (open_event_stream, publish_to_all, "broker.transport.session.Session.take"),
        (open_poll, publish_to_all, "broker.fanout.follower.Follower.next"),
    ],
)
async def test_what_is_to_be_written_to_many_at_once_is_written_as_turns_have_room(open_one, ask, done, monkeypatch):
    monkeypatch.setattr("broker.turns.LONG_SECONDS", -1)  # each turn is too long: one more client is let in
    async with serving() as served, AsyncExitStack() as stack:
        for _ in range(CLIENTS):
            await open_one(stack, served)
        await until(lambda: len(served.broker.connections) == CLIENTS)
        await blocked()
        monkeypatch.setattr("broker.turns.FULL_SECONDS", -1)
        real, calls = pkgutil.resolve_name(done), []

        def noted(*args):
            calls.append(None)
            return real(*args)

        monkeypatch.setattr(done, noted)
        growth = Growth(calls)
        trio.lowlevel.add_instrument(growth)
        await ask(served)
        await until(lambda: len(calls) >= CLIENTS)
        trio.lowlevel.remove_instrument(growth)
        assert growth.most <= MOST_AT_ONCE


async def test_what_many_send_at_once_is_obeyed_as_turns_have_room_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr("broker.turns.LONG_SECONDS", -1)
    received, real = [], Session.receive

    def noted(session, message, *when):
        received.append(message)
        return real(session, message, *when)

    monkeypatch.setattr(Session, "receive", noted)
    async with serving() as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.address, key=ALICE)) for _ in range(CLIENTS)]
        await blocked()
        monkeypatch.setattr("broker.turns.FULL_SECONDS", -1)
        growth = Growth(received)
        trio.lowlevel.add_instrument(growth)
        for client in clients:
            client.stream.socket._sock.send(masked(TEXT, b'{"action":"ping","request_id":"r"}'))
        for client in clients:
            assert (await client.next())["request_id"] == "r"
        trio.lowlevel.remove_instrument(growth)
        assert len(received) == CLIENTS
        assert growth.most <= MOST_AT_ONCE


# --- what is left of it ------------------------------------------------------


async def leave(served, stream):
    await stream.aclose()


async def be_ended(served, stream):
    [entry] = served.broker.connections._entries.values()
    entry.connected.end(CloseCode.GOING_AWAY, "away")
    await blocked()
    await stream.aclose()


async def command_and_close(served, stream):
    await stream.send_all(masked(TEXT, b'{"action":"ping"}') + masked(CLOSE, b"\x03\xe8"))
    await blocked()
    await stream.aclose()


async def fall_behind_and_leave(served, stream):
    for number in range(100):
        await served.broker.publish(ACCOUNT, event(number, size=8_000))
    await blocked()
    await stream.aclose()


@pytest.mark.parametrize("end", [leave, be_ended, command_and_close, fall_behind_and_leave])
@pytest.mark.parametrize("opening", OPENINGS)
async def test_an_ended_connection_leaves_nothing_for_the_garbage_collector(opening, end):
    async def come_and_go(served):
        stream = await open_socket(served.address)
        await stream.send_all(OPENINGS[opening])
        await until(lambda: len(served.broker.connections))
        await blocked()
        await end(served, stream)
        await until(lambda: not len(served.broker.connections))
        await blocked()

    async with serving() as served:
        await come_and_go(served)
        with garbage() as left:
            await come_and_go(served)
        assert left == Counter()


async def test_nor_do_event_streams_that_are_cut_at_once_while_they_are_written():
    async def come_and_go(served):
        streams = [await open_socket(served.address) for _ in range(20)]
        for stream in streams:
            await stream.send_all(get("/v1/events/stream?inbox_ids=*&since=5m"))
        await until(lambda: len(served.broker.connections) == len(streams))
        await blocked(0.01)
        for stream in streams:
            stream.socket.close()
        await until(lambda: not len(served.broker.connections))
        await blocked()

    async with serving() as served:
        for number in range(200):
            await served.broker.publish(ACCOUNT, event(number, size=100_000))
        await come_and_go(served)
        with garbage() as left:
            await come_and_go(served)
        assert left == Counter()


@pytest.mark.parametrize(
    ("action", "answer", "fields"),
    [
        ("publish", "result", {"events": [event(1)]}),
        ("publish", "error", {"events": [1]}),
        ("unheard_of", "error", {"events": [event(1)]}),
        ("unheard_of", "error", {"deep": DEEP}),
        ("subscribe", "error", {"inbox_ids": [1]}),
        ("ack", "error", {"events": [event(1)]}),
        ("wait_for", "error", {"where": 1}),
        ("lease", "error", {"queue_id": 1}),
    ],
)
async def test_a_command_that_was_answered_leaves_nothing_for_it_either(action, answer, fields):
    async with serving() as served, connected(served.address) as client:

        async def publish(request_id):
            await client.say(action=action, request_id=request_id, **fields)
            assert answer in await client.answer(request_id)
            await blocked()

        await publish("one")
        with garbage() as left:
            await publish("two")
        assert left == Counter()
