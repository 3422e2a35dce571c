"""What may stand between a client and a server, and do harm: TCP proxies that cut, hold back, change or lead astray."""

import itertools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

Change = Callable[[bytes], bytes]


class Between:
    """A TCP proxy that does no harm. ``ports``: where its connections lead, in turns."""

    def __init__(self, *ports: int) -> None:
        self._ports = itertools.cycle(ports)
        self.connections = 0

    async def carry(self, client: trio.SocketStream) -> None:
        self.connections += 1
        async with (
            client,
            await trio.open_tcp_stream("127.0.0.1", next(self._ports)) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._copy, client, server, self.to_server, nursery.cancel_scope)
            nursery.start_soon(self._copy, server, client, self.to_client, nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, change: Change, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await self.wait()
                if changed := change(bytes(data)):
                    await sink.send_all(changed)
        scope.cancel()

    async def wait(self) -> None:
        """Wait before something is passed on."""

    def to_server(self, data: bytes) -> bytes:
        return data

    def to_client(self, data: bytes) -> bytes:
        return data


class Slow(Between):
    """Passes everything on a little later, and nothing sooner."""

    async def wait(self) -> None:
        await trio.sleep(0.01)


class CutsWhatIsQuiet(Between):
    """Ends a connection over which nothing went for a while."""

    idle_seconds = 1.0

    async def carry(self, client: trio.SocketStream) -> None:
        with trio.move_on_after(self.idle_seconds) as self._scope:
            await super().carry(client)

    async def wait(self) -> None:
        self._scope.deadline = trio.current_time() + self.idle_seconds


class ForgetsWhatIsQuiet(CutsWhatIsQuiet):
    """Passes nothing on any more over such a connection, and lets nobody know."""

    async def carry(self, client: trio.SocketStream) -> None:
        self._quiet_since = trio.current_time()
        await Between.carry(self, client)

    async def wait(self) -> None:
        if trio.current_time() - self._quiet_since > self.idle_seconds:
            await trio.sleep_forever()
        self._quiet_since = trio.current_time()


class DropsUpgrade(Between):
    """Forwards requests as a proxy of HTTP does that knows nothing of WebSockets."""

    def to_server(self, data: bytes) -> bytes:
        return re.sub(rb"(?im)^(Upgrade|Connection): .*\r\n", b"", data)


class HoldsBack(Between):
    """Holds back all that comes after ``marks`` within an answer, as a proxy does that buffers."""

    def __init__(self, *ports: int, mark: bytes) -> None:
        super().__init__(*ports)
        self._mark = mark
        self._held = False

    async def carry(self, client: trio.SocketStream) -> None:
        self._held = False
        await super().carry(client)

    def to_client(self, data: bytes) -> bytes:
        if self._held:
            return b""
        before, found, _ = data.partition(self._mark)
        self._held = bool(found)
        return before + found


class AsksForMore(Between):
    """Lets the broker replay five minutes, whatever cursor a client comes back with."""

    def to_server(self, data: bytes) -> bytes:
        return re.sub(rb"since=[^ &]*", b"since=5m", data)


class ShiftsTime(Between):
    """Moves the year that the broker tells: the clock of one side is off."""

    def to_client(self, data: bytes) -> bytes:
        return re.sub(rb'"server_time":"20\d\d-', b'"server_time":"2001-', data)


class Says:
    """A server that answers each connection with the same bytes, whatever it is asked; none: it is silent."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def carry(self, client: trio.SocketStream) -> None:
        async with client:
            await client.receive_some()
            if not self._answer:
                await trio.sleep_forever()
            await client.send_all(self._answer)


@asynccontextmanager
async def standing(there: Between | Says) -> AsyncIterator[str]:
    """Let it stand on a free port; gives `host:port`."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, there.carry, 0, host="127.0.0.1"))
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
