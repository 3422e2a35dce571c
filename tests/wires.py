"""Nodes without brokers: each has its own way to one shared server, a real one."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import trio
from coredis.connection import UnixDomainSocketLocation
from coredis.pool import ConnectionPool

from broker.errors import RequestError

PREFIX = "{test}"
LEASE_MS = 6_000
_NUMBERS = count()


class Wire:
    """A node's way to the server. ``cut`` is for as long as it has none."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.node = f"node_{next(_NUMBERS)}"
        self.cut = False
        self._following: list[tuple[Any, Any]] = []

    async def ask(self, *arguments):
        return await self._connection.create_request(*arguments)

    leases = f"{PREFIX}n:"
    channels = f"{PREFIX}0:t:"

    def key(self, kind: str, account_id: str) -> str:
        return f"{PREFIX}{kind}:{account_id}"

    async def call(self, script, keys, arguments):
        if self.cut:
            raise RequestError("unavailable", "The wire is cut")
        return await self.ask(b"EVAL", script, len(keys), *keys, *arguments)

    async def tell(self, node, message):
        if not self.cut:
            await self.ask(b"PUBLISH", self.channels + node, message)

    def follow(self, heard, renewed):
        self._following.append((heard, renewed))

    def renewed(self):
        for _, renewed in self._following:
            renewed()

    async def live(self):
        """Take the lease, as a node does again and again."""
        await self.ask(b"SET", self.leases + self.node, b"1", b"PX", LEASE_MS)

    async def die(self):
        """Let the lease end, as it does by itself after six seconds."""
        await self.ask(b"DEL", self.leases + self.node)

    async def forget(self):
        """Let the server lose all that it has."""
        await self.ask(b"FLUSHALL")

    async def hear(self):
        self._connection.send_command(b"SUBSCRIBE", self.channels + self.node)
        async for message in self._connection.push_messages:
            if message[0] == b"message":
                for heard, _ in self._following:
                    heard(message[2])


@asynccontextmanager
async def wires(path: str, number: int) -> AsyncIterator[list[Wire]]:
    """So many nodes at one server, each of which lives."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(number):
            pool = await stack.enter_async_context(ConnectionPool(location=UnixDomainSocketLocation(path)))
            made.append(Wire(await pool.get_connection()))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for wire in made:
            await wire.live()
            nursery.start_soon(wire.hear)
        yield made
        nursery.cancel_scope.cancel()
