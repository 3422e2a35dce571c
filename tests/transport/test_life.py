"""What a connection's life is, whatever carries it: of a thousand that end at once, one after the other does."""

from contextlib import AsyncExitStack

import pytest
import trio
from clients import ALICE, connected, open_socket, serving, until
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
