"""What the tests of commands share: a configuration, callers without a network, and clients with one."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Any

import httpx
import trio
import trio_websocket
from clients import key_of
from trio.testing import wait_all_tasks_blocked as blocked

from broker import AccountConfig, Broker, Config, KeyConfig, OperatorConfig, serve
from broker.commands.remembered import Outcome
from broker.commands.requests import check_command
from broker.errors import RequestError
from broker.protocol.decoding import decode_command

ACCOUNT = "acct_alice"
ALICE = "dm_live_alice"
"""Reaches the whole of `ACCOUNT`."""
ALSO = "dm_live_also"
"""Another key of `ACCOUNT`."""
INBOXES = "dm_live_inboxes"
"""Reaches two inboxes of `ACCOUNT`: in_1 and in_2."""
LISTENER = "dm_live_listener"
"""Reaches `ACCOUNT`, but may only subscribe."""
BOB = "dm_live_bob"
"""Of another account, acct_bob."""
OPERATOR = "dm_operator_main"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def _key(secret: str, **fields: Any) -> KeyConfig:
    return KeyConfig(id=secret.replace("dm_live_", "key_"), sha256=sha256(secret.encode()).hexdigest(), **fields)


def configured(**sections: Any) -> Config:
    """The accounts and keys above, of the tier `developer`, with other sections where they are given."""
    keys = (_key(ALICE), _key(ALSO), _key(INBOXES, inbox_ids=("in_1", "in_2")), _key(LISTENER, scopes=("subscribe",)))
    return Config(
        accounts=(AccountConfig(id=ACCOUNT, keys=keys), AccountConfig(id="acct_bob", keys=(_key(BOB),))),
        operators=(OperatorConfig(id="op_main", sha256=sha256(OPERATOR.encode()).hexdigest()),),
        **sections,
    )


class Sent:
    """A command that was sent, and every outcome that was told to its sender."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    @property
    def outcome(self) -> Any:
        """The result, the error's code, or None if there is no outcome yet."""
        if not self.outcomes:
            return None
        [outcome] = self.outcomes
        return json.loads(outcome.result) if outcome.error is None else outcome.error.code

    @property
    def error(self) -> RequestError:
        [outcome] = self.outcomes
        assert outcome.error is not None
        return outcome.error


class Caller:
    """A connection without a network: a lane, and a key."""

    def __init__(self, broker: Broker, secret: str = ALICE) -> None:
        self._broker = broker
        self._key = key_of(broker, secret)
        self._made = 0
        self.lane = broker.commands.lane(self._key)

    def send(self, action: str, request_id: str | None = None, **params: Any) -> Sent:
        """Send a command, and wait for nothing."""
        sent = Sent()
        command = decode_command(json.dumps({"action": action, "request_id": request_id, **params}))
        self._made += 1
        request = check_command(self._key, command, request_id or f"made_{id(self)}_{self._made}")
        self._broker.commands.submit(self.lane, request, sent.outcomes.append)
        return sent

    async def ask(self, action: str, request_id: str | None = None, **params: Any) -> Sent:
        """Send a command, and wait until nothing moves any more."""
        sent = self.send(action, request_id, **params)
        await blocked()
        return sent

    async def leave(self) -> None:
        """End the connection."""
        self._broker.commands.leave(self.lane)
        await blocked()


@asynccontextmanager
async def serving(broker: Broker) -> AsyncIterator[str]:
    """Serve a broker on a free port of loopback; gives host and port."""
    async with trio.open_nursery() as nursery:
        [(host, port), *_] = await nursery.start(partial(serve, broker, host="127.0.0.1", port=0))
        yield f"{host}:{port}"
        nursery.cancel_scope.cancel()


class Client:
    """A WebSocket client that has read its `connection.ready`."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection) -> None:
        self.websocket = websocket
        self.ready: dict[str, Any] = {}
        self.frames: list[dict[str, Any]] = []
        """What was heard while an answer was waited for."""

    async def say(self, action: str, request_id: str | None = None, **params: Any) -> None:
        await self.websocket.send_message(json.dumps({"action": action, "request_id": request_id, **params}))

    async def hear(self) -> dict[str, Any]:
        with trio.fail_after(60):
            frame: dict[str, Any] = json.loads(await self.websocket.get_message())
            return frame

    async def answer(self, request_id: str) -> dict[str, Any]:
        """The answer to a command; what comes before it is kept in `frames`."""
        while True:
            frame = await self.hear()
            if frame.get("request_id") == request_id:
                return frame
            self.frames.append(frame)

    async def ask(self, action: str, request_id: str, **params: Any) -> Any:
        """The result of a command, or its error."""
        await self.say(action, request_id, **params)
        answer = await self.answer(request_id)
        return answer.get("result", answer.get("error"))


@asynccontextmanager
async def connected(address: str, secret: str = ALICE, query: str = "") -> AsyncIterator[Client]:
    """Open a stream."""
    headers = [(b"Authorization", b"Bearer " + secret.encode())]
    host, _, port = address.partition(":")
    # trio-websocket does not close a socket whose other end closed first.
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream, trio.open_nursery() as nursery:
        websocket = await trio_websocket.wrap_client_stream(
            nursery, stream, address, f"/v1/stream{query}", extra_headers=headers
        )
        client = Client(websocket)
        client.ready = await client.hear()
        yield client
        with trio.move_on_after(1):
            await websocket.aclose()
        nursery.cancel_scope.cancel()


async def post(address: str, body: Any, secret: str | None = ALICE, **headers: str) -> httpx.Response:
    """`POST /v1/commands`, with ``body`` as JSON, or as it is if it is bytes."""
    if secret is not None:
        headers["Authorization"] = f"Bearer {secret}"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.post(f"http://{address}/v1/commands", content=content, headers=headers)
