"""A bare trio-websocket server, as a peer: what a connection costs before the broker adds anything.

It does for each connection what the broker does with the library, and nothing else: one task reads for ever.
"""

import argparse
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from sys import executable

import trio
import trio_websocket

from .generator.opening import raise_open_files_limit
from .peers.adapter import Publication, Running, Subscription
from .peers.process import HOST, free_ports, started
from .peers.wire import upgrade

NAME = "trio-websocket"
RECEIVE_BYTES = 4096


class Bare:
    """The server as a peer; it has no events."""

    name = NAME
    does = "connections only: what the broker's own library costs"

    def version(self) -> str:
        """Return the library's version."""
        return version("trio-websocket")

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start it."""
        [port] = free_ports(1)
        with started([executable, "-m", "benchmarks.bare", str(port)], [port], cores) as process_id:
            yield Running(HOST, port, [process_id], Publication(port), {"history": "no events at all"})

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return a mere upgrade."""
        return Subscription(upgrade(running.host, running.port, "/"))

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return nothing: there are no events."""
        return b""

    def ping(self, message: bytes) -> bytes | None:
        """Return None: it has no pings of its own."""
        return None


async def _serve_client(stream: trio.SocketStream) -> None:
    try:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream, receive_buffer_size=RECEIVE_BYTES)
            websocket = await request.accept()
            while True:
                await websocket.get_message()
    except* (trio_websocket.ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(stream)


async def _serve(port: int) -> None:
    await trio.serve_tcp(_serve_client, port, host=HOST, backlog=4096)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=__doc__)
    parser.add_argument("port", type=int)
    logging.disable()
    raise_open_files_limit()
    gc.freeze()
    trio.run(_serve, parser.parse_args().port)


if __name__ == "__main__":
    main()
