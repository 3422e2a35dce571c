"""The operator's own API as a real HTTP server that answers, refuses, hangs, cuts and lies as it is told."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

from broker.transport.http11 import HttpLimits, serve_http
from broker.transport.request import Request
from broker.transport.response import Response
from broker.transport.stream import ClientStream

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def json_answer(value: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode())


def headers_of(request: Request) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in request.headers}


class Api:
    """The operator's API: does to each request what it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Any = json_answer({"result": {"done": True}})
        """A `Response`; raw bytes, after which the connection is cut; or None, for no answer at all."""
        self.cuts = True
        """Whether the connection is cut after raw bytes; else nothing more comes."""
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.was_asked = trio.Event()
        self.url = ""

    @property
    def question(self) -> dict[str, Any]:
        question: dict[str, Any] = json.loads(self.asked[-1][1])
        return question

    async def serve(self, transport: trio.SocketStream) -> None:
        stream = ClientStream(transport)
        try:
            taken = await serve_http(stream, self._handle, HttpLimits())
            if taken is not None:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(taken[0])
                    if not self.cuts:
                        await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(stream)

    async def _handle(self, request: Request) -> Response | bytes:
        self.asked.append((headers_of(request), await request.body()))
        self.paths.append(f"{request.method} {request.path}")
        self.was_asked.set()
        if self.answer is None:
            await trio.sleep_forever()
        answer: Response | bytes = self.answer
        return answer


@asynccontextmanager
async def running_api() -> AsyncIterator[Api]:
    api = Api()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, api.serve, 0, host="127.0.0.1"))
        api.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/commands"
        yield api
        nursery.cancel_scope.cancel()
