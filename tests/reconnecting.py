"""A client that comes back by cursor, whoever wrote it: cut off, it misses an event, and gets it when it is back."""

import itertools
import os
import re
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked as blocked

from broker import AccountConfig, Broker, Config, KeyConfig, open_broker, serve
from broker.keys import hash_key

ACCOUNT, INBOX = "acct_demo", "inbox_abc123"
KEY = "dm_live_of_the_documentation"
GUARD_SECONDS = 60
PORT = "8765"
"""What the documentation calls the broker's port."""
CONFIG = Config(accounts=(AccountConfig(id=ACCOUNT, keys=(KeyConfig(id="key_agent", sha256=hash_key(KEY)),)),))


class Road:
    """A TCP proxy between clients and a server, that can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = True
        self._scopes: set[trio.CancelScope] = set()

    def cut(self) -> None:
        """Break all connections, and let none through."""
        self._open = False
        for scope in self._scopes:
            scope.cancel()

    def mend(self) -> None:
        self._open = True

    async def carry(self, client: trio.SocketStream) -> None:
        async with client:
            if not self._open:
                return
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as server, trio.open_nursery() as nursery:
                self._scopes.add(nursery.cancel_scope)
                nursery.start_soon(self._copy, client, server, nursery.cancel_scope)
                nursery.start_soon(self._copy, server, client, nursery.cancel_scope)
            self._scopes.discard(nursery.cancel_scope)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


class Lines:
    """What a program prints, line by line."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._text = ""
        self.seen: list[str] = []

    async def until(self, word: str) -> str:
        """The first line not yet read that has the word in it."""
        while True:
            line, newline, rest = self._text.partition("\n")
            if newline:
                self._text = rest
                self.seen.append(line)
                if word in line:
                    return line
                continue
            data = await self._stream.receive_some()
            assert data, f"the program ended before it printed {word!r}: {self.seen}"
            self._text += data.decode()


@asynccontextmanager
async def running(command: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Lines]:
    """A program, ended with the block."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, env={**os.environ, **environment}, check=False)
        )
        yield Lines(process)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def broker_on_a_road() -> AsyncIterator[tuple[Broker, Road, str]]:
    """A broker, the road that leads to it, and the URL at its end."""
    async with open_broker(CONFIG) as broker, trio.open_nursery() as nursery:
        [(_, port)] = await nursery.start(partial(serve, broker, host="127.0.0.1", port=0))
        road = Road(port)
        [listener] = await nursery.start(partial(trio.serve_tcp, road.carry, 0, host="127.0.0.1"))
        yield broker, road, f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def publish(broker: Broker, subject: str) -> None:
    message = {"subject": subject}
    await broker.publish(ACCOUNT, {"type": "message.received", "inbox_id": INBOX, "payload": {"message": message}})


async def comes_back_by_cursor(lines: Lines, broker: Broker, road: Road) -> None:
    """Fail unless the program prints each event once, over a cut in the middle."""
    with trio.fail_after(GUARD_SECONDS):
        await _hears(lines, broker)
        road.cut()
        await publish(broker, "missed")
        await blocked()
        road.mend()
        await lines.until("missed")
        await publish(broker, "last")
        await lines.until("last")
    heard = re.findall(r"early \d+|missed|last", "\n".join(lines.seen))
    first = int(heard[0].removeprefix("early "))
    assert heard == [*(f"early {first + number}" for number in range(len(heard) - 2)), "missed", "last"]


async def _hears(lines: Lines, broker: Broker) -> None:
    """Publish until the client is there and has heard something."""

    async def publish_often() -> None:
        for number in itertools.count():
            await publish(broker, f"early {number}")
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_often)
        await lines.until("early ")
        nursery.cancel_scope.cancel()
