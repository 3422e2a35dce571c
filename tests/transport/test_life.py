"""What a connection's life is, whatever carries it: of a thousand that end at once, one after the other does."""

import gc
from contextlib import AsyncExitStack

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
from trio.testing import wait_all_tasks_blocked as blocked

from broker import CloseCode, Config

CLIENTS = 60
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
    await stream.send_all(
        f"GET /v1/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode()
    )


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
    open_one, end, quick_close, monkeypatch
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


# --- what is left of it ------------------------------------------------------

OPENINGS = {
    "a WebSocket": upgrade_head("inbox_ids=in_1"),
    "an event stream": f"GET /v1/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode(),
    "a poll": f"GET /v1/events?wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode(),
}


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
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await come_and_go(served)
            gc.collect()
            left = [thing for thing in gc.garbage if type(thing).__module__.startswith(("broker.", "trio"))]
            assert left == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
