"""A broker in your tests, whatever event loop they run on: for who tests an agent.

    # conftest.py
    pytest_plugins = ["daimon_email.testing"]

    # test_agent.py
    async def test_my_agent_answers(local_broker):
        async with DaimonWebSocket(local_broker.key, url=local_broker.url) as client:
            ...
            local_broker.receive_mail(subject="Hello")

The broker has a thread and a loop of its own, so its methods are called without `await`. Needs the extra `testing`.
"""

import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Final

import pytest
import trio

from broker import AccountConfig, Broker, Config, KeyConfig, open_broker, serve

ACCOUNT: Final = "acct_test"
KEY: Final = "dm_live_for_tests"
INBOX: Final = "inbox_test"
_CALL_SECONDS: Final = 30.0
_READ_BYTES: Final = 65_536


@dataclass(frozen=True)
class GivenCommand:
    """A command that a client gave: what it asked for, and by which name it is done once."""

    action: str
    inbox_id: str | None
    params: dict[str, Any]
    once: str | None


class _Clock(trio.abc.Clock):
    """The system's clock, which can be set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.perf_counter() + self.ahead

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()


class _Road:
    """TCP between clients and the broker, which can be broken, closed and narrow."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._scopes: set[trio.CancelScope] = set()
        self.open = True
        self.bytes_per_second = math.inf

    def cut(self) -> None:
        for scope in self._scopes:
            scope.cancel()

    async def carry(self, client: trio.SocketStream) -> None:
        async with client:
            if not self.open:
                return
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as server, trio.open_nursery() as nursery:
                self._scopes.add(nursery.cancel_scope)
                nursery.start_soon(self._copy, client, server, nursery.cancel_scope)
                nursery.start_soon(self._copy, server, client, nursery.cancel_scope)
            self._scopes.discard(nursery.cancel_scope)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(_READ_BYTES):
                if self.bytes_per_second < math.inf:
                    await trio.sleep(len(data) / self.bytes_per_second)
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


class LocalBroker:
    """A broker in a thread of this process. Made by `local_broker` or `open_local_broker`; no method is awaited.

    ``url`` and ``key`` are for the client; ``commands`` holds the commands that were given, in order.
    """

    def __init__(self) -> None:
        self.key = KEY
        self.url = ""
        self.commands: list[GivenCommand] = []
        self._answers: dict[str, Callable[[GivenCommand], Any]] = {}
        self._numbers = itertools.count(1)
        self._clock = _Clock()
        self._started = Future[None]()
        self._thread = threading.Thread(target=self._run, name="local broker", daemon=True)
        self._thread.start()
        self._started.result(_CALL_SECONDS)

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=self._clock)
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)

    async def _main(self) -> None:
        key = KeyConfig(id="key_test", sha256=sha256(KEY.encode()).hexdigest())
        account = AccountConfig(id=ACCOUNT, tier="enterprise", keys=(key,))
        async with open_broker(Config(accounts=(account,))) as self._broker, trio.open_nursery() as self._nursery:
            for action in ("send_email", "mark_as_read"):
                self._take(action)
            [(_, port)] = await self._nursery.start(partial(serve, self._broker, host="127.0.0.1", port=0))
            self._road = _Road(int(port))
            [listener] = await self._nursery.start(partial(trio.serve_tcp, self._road.carry, 0, host="127.0.0.1"))
            self.url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
            self._token, self._end = trio.lowlevel.current_trio_token(), trio.Event()
            self._started.set_result(None)
            await self._end.wait()
            self._nursery.cancel_scope.cancel()

    def _take(self, action: str) -> None:
        async def done(params: dict[str, Any], context: Any) -> Any:
            given = GivenCommand(action, context.inbox_id, params, context.once)
            self.commands.append(given)
            answer = self._answers.get(action)
            return {"message_id": f"sent_{len(self.commands)}"} if answer is None else answer(given)

        self._broker.command(action)(done)

    def call(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Run an async function in the broker's own loop, and return what it returns."""
        future = Future[Any]()

        async def run() -> None:
            try:
                future.set_result(await function(*arguments))
            except Exception as error:
                future.set_exception(error)

        self._token.run_sync_soon(lambda: self._nursery.start_soon(run))
        return future.result(_CALL_SECONDS)

    @property
    def broker(self) -> Broker:
        """The broker itself, for `call`."""
        return self._broker

    # --- events

    def publish(self, *events: Mapping[str, Any]) -> list[Any]:
        """Publish events; return what became of each (`event_id`, `cursor`)."""
        return list(self.call(self._broker.publish, ACCOUNT, [dict(event) for event in events]))

    def receive_mail(self, inbox_id: str = INBOX, **message: Any) -> str:
        """Let a mail come in, with these fields (`from_` for `from`); return its event's id."""
        number = next(self._numbers)
        fields = {name.removesuffix("_"): value for name, value in message.items()}
        mail = {"message_id": f"msg_{number}", "from": "ada@example.com", "to": [], "subject": "", "body": "", **fields}
        event = {"type": "message.received", "event_id": f"evt_{number}", "inbox_id": inbox_id}
        self.publish({**event, "payload": {"message": mail}})
        return f"evt_{number}"

    # --- commands

    def answer(self, action: str, answer: Callable[[GivenCommand], Any]) -> None:
        """Let commands of this action be answered so: with what is returned, or a raised `broker.CommandError`."""
        if action not in {"send_email", "mark_as_read", *self._answers}:
            self.call(self._known, action)
        self._answers[action] = answer

    async def _known(self, action: str) -> None:
        self._take(action)

    # --- what may go wrong

    def cut(self) -> None:
        """Break all connections; clients may come back at once."""
        self.call(self._cut)

    async def _cut(self) -> None:
        self._road.cut()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Break all connections, and refuse others, while the block lasts."""
        self._road.open = False
        self.cut()
        try:
            yield
        finally:
            self._road.open = True

    def gap(self, count: int = 1, inbox_id: str = INBOX) -> None:
        """Break all connections, and lose so many mails for good before clients are back: they are told of a gap."""
        with self.away():
            for _ in range(count):
                self.receive_mail(inbox_id)
            self.call(self._age)

    async def _age(self) -> None:
        held = self._broker.statistics().replay
        self._clock.ahead += 301  # more than the window of five minutes
        while self._broker.statistics().replay.dropped < held.dropped + held.events:  # noqa: ASYNC110
            await trio.sleep(0.01)

    def slow(self, bytes_per_second: float = math.inf) -> None:
        """Let only so many bytes through each second and way of each connection; as before if nothing is said."""
        self._road.bytes_per_second = bytes_per_second

    def close(self) -> None:
        """End it."""
        self._token.run_sync_soon(self._end.set)
        self._thread.join(_CALL_SECONDS)


@contextmanager
def open_local_broker() -> Iterator[LocalBroker]:
    """Run a broker while the block lasts."""
    broker = LocalBroker()
    try:
        yield broker
    finally:
        broker.close()


@pytest.fixture
def local_broker() -> Iterator[LocalBroker]:
    """A broker of this test's own."""
    with open_local_broker() as broker:
        yield broker
