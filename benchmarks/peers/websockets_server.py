"""A server that broadcasts by ``websockets``.

``python -m benchmarks.peers.websockets_server SUBSCRIBE_PORT PUBLISH_PORT``

A subscriber's path is its channel. The publish port takes lines, "CHANNEL PAYLOAD".
"""

import asyncio
import resource
import sys
from collections import defaultdict

from websockets.asyncio.server import ServerConnection, broadcast, serve

HOST = "127.0.0.1"
BACKLOG = 4096
LINE_BYTES = 1 << 20


class Channels:
    """Who is subscribed to what, and the two kinds of connections."""

    def __init__(self) -> None:
        self._subscribers: defaultdict[str, set[ServerConnection]] = defaultdict(set)

    async def subscribe(self, connection: ServerConnection) -> None:
        """Keep a subscriber until it leaves."""
        subscribers = self._subscribers[connection.request.path.removeprefix("/")]
        subscribers.add(connection)
        try:
            await connection.send("subscribed")
            await connection.wait_closed()
        finally:
            subscribers.discard(connection)

    async def publish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Broadcast each line of a publisher."""
        async for line in reader:
            channel, _, payload = line.decode().rstrip("\n").partition(" ")
            broadcast(self._subscribers[channel], payload)
        writer.close()


async def main(subscribe_port: int, publish_port: int) -> None:
    """Serve until the process is ended."""
    channels = Channels()
    publishers = await asyncio.start_server(channels.publish, HOST, publish_port, limit=LINE_BYTES)
    async with serve(channels.subscribe, HOST, subscribe_port, compression=None, backlog=BACKLOG):
        await publishers.serve_forever()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
