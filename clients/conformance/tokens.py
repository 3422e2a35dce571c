"""Where a driver's client fetches its connection tokens, as from an operator's own server."""

import contextlib
import json
from collections.abc import AsyncIterator

import trio

from .brokers import KEY, Brokers

READ_BYTES = 65_536


class TokenServer:
    """Answers each GET with a fresh token. Made by `open_token_server`."""

    def __init__(self, brokers: Brokers) -> None:
        self.url = ""
        self.asked = 0
        self.fails = 0
        """So many of the next requests get 500."""
        self._brokers = brokers

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one request."""
        with contextlib.suppress(trio.BrokenResourceError):
            data = b""
            while b"\r\n\r\n" not in data and (part := await stream.receive_some(READ_BYTES)):
                data += part
            self.asked += 1
            status, body = ("200 OK", await self._token()) if self.fails == 0 else ("500 Away", b"")
            self.fails = max(0, self.fails - 1)
            await stream.send_all(
                f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )

    async def _token(self) -> bytes:
        async with await trio.open_tcp_stream(*self._brokers.address) as stream:
            await stream.send_all(
                b"POST /v1/websocket/token HTTP/1.1\r\nHost: broker\r\nConnection: close\r\nContent-Length: 0\r\n"
                b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n"
            )
            answer = b""
            while part := await stream.receive_some(READ_BYTES):
                answer += part
        token: str = json.loads(answer.partition(b"\r\n\r\n")[2])["result"]["token"]
        return token.encode()


@contextlib.asynccontextmanager
async def open_token_server(brokers: Brokers) -> AsyncIterator[TokenServer]:
    """A token server on a free port, for as long as the block lasts."""
    server = TokenServer(brokers)
    async with trio.open_nursery() as nursery:
        [listener] = (await nursery.start(trio.serve_tcp, server.serve, 0))[:1]
        server.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/token"
        yield server
        nursery.cancel_scope.cancel()
