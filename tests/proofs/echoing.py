"""A route that sends each message back, on a broker's own port: what is proved with it is the broker's own reading.

It has the broker's stream, its upgrade, its pacing, its draining task, its last words; no session says anything, and
the fan-out does not know it.
"""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from unittest.mock import patch

import trio
from clients import ALICE, Address, configured, serving

from broker import Broker, LimitsConfig
from broker.transport import endpoints
from broker.transport.connection import Connection
from broker.transport.endpoints import Handover
from broker.transport.life import State
from broker.transport.request import Request
from broker.transport.upgrade import check_upgrade

PATH = "/echo"


def _frame(message: str | bytes) -> bytes:
    """A final frame of the kind that the message was."""
    first, payload = (0x81, message.encode()) if isinstance(message, str) else (0x82, bytes(message))
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


class Echo(Connection):
    """One client that hears what it says."""

    async def _open(self, nursery):
        websocket = await self._handshake(nursery)
        self._life.state = State.OPEN
        return websocket

    async def _receive(self, message):
        await self._stream.send_frames(_frame(message))

    def wake(self):
        """Write nothing: no event is for it."""


async def open_echo(broker: Broker, request: Request) -> Handover:
    """Judge the opening as that of `/v1/stream` is judged."""
    head = check_upgrade(request)
    admitted = await endpoints._admitted(broker, request, request.query())
    return Handover(admitted, partial(Echo, head=head))


@asynccontextmanager
async def echoing(max_message_bytes: int) -> AsyncIterator[tuple[Address, str]]:
    """Serve a broker that has the route; gives the address and the URL of the route, for a client without headers."""
    limits = LimitsConfig(max_message_bytes=max_message_bytes, heartbeat_seconds=3_600)
    with patch.dict(endpoints.ROUTES, {PATH: {"GET": open_echo}}):
        async with serving(configured(limits=limits)) as served:
            host, port = served.address
            yield served.address, f"ws://{host}:{port}{PATH}?key={ALICE}"
            with trio.fail_after(60):
                await served.until_gone()
