"""Where the broker of the state machine runs: here, as two nodes that share an engine, or as a process to be killed."""

import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio
from clients import INBOXES, Closed, ask, serving
from processes import free_port
from proofs.hurried import SMALL_STEPS, hurried
from proofs.theatre import Theatre
from valkeys import Server

from broker import Config

ROOT = Path(__file__).parent.parent.parent
READY_SECONDS = 60
FAILURES = (OSError, AssertionError, Closed, ValueError, IndexError, trio.BrokenResourceError, trio.TooSlowError)
"""What a client may see of a broker that begins or was killed."""


class _Here:
    """One broker in the theatre's own loop."""

    def __init__(self, nursery, config):
        self._nursery, self.config = nursery, config
        self.served = None

    async def begin(self):
        self._scope, self._gone = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run)

    async def _run(self, task_status):
        with self._scope:
            async with serving(self.config) as self.served:
                task_status.started()
                await trio.sleep_forever()
        self._gone.set()

    async def end(self):
        self._scope.cancel()
        await self._gone.wait()


class Stage:
    """Brokers of one configuration, in the theatre's own loop. ``nodes``: how many."""

    def __init__(self, theatre: Theatre, nodes: int = 1) -> None:
        self.theatre = theatre
        self.nodes = nodes
        self.small_steps = False
        """Whether brokers do little at a time: to be said before they begin."""
        self._here: list[_Here] = []

    async def open(self, config: Config) -> None:
        """Begin, until the curtain falls."""
        stack = self.theatre.stack
        stack.enter_context(hurried(self.small_steps))
        nursery = await stack.enter_async_context(_nursery())
        self._here = [_Here(nursery, config) for _ in range(self.nodes)]
        for here in self._here:
            await here.begin()

    def address(self, node: int):
        return self._here[node].served.address

    @property
    def broker(self):
        """The only one."""
        [here] = self._here
        return here.served.broker

    async def reload(self, config: Config) -> None:
        for here in self._here:
            here.config = config
            here.served.broker.reload(config)

    async def start_draining(self, node: int) -> None:
        self._here[node].served.broker.start_draining()

    async def begin_again(self, node: int) -> None:
        """Wait until one that drains has ended, and begin it again."""
        here = self._here[node]
        with trio.fail_after(60):
            await here.served.ended.wait()
        await here.end()
        await here.begin()


class Pair(Stage):
    """Two nodes that share a server of their own."""

    def __init__(self, theatre: Theatre) -> None:
        super().__init__(theatre, nodes=2)
        self.server = Server()
        self.server.start()


class Process(Stage):
    """A broker as a process, which can be killed."""

    def __init__(self, theatre: Theatre, folder: Path) -> None:
        super().__init__(theatre)
        self._port = free_port()
        self._config, self._log = folder / "broker.toml", folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    async def open(self, config: Config) -> None:
        self._write(config)
        await self._begin()
        self.theatre.stack.callback(self.kill)

    def address(self, node: int):
        return "127.0.0.1", self._port

    def _write(self, config: Config) -> None:
        sections = msgspec.to_builtins(config)
        self._config.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in sections.items()))

    async def _begin(self) -> None:
        places = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        given = {"PYTHONPATH": os.pathsep.join(filter(None, places)), SMALL_STEPS: "1" if self.small_steps else ""}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-m", "proofs.hurried", "serve", "--config", self._config, "--port", str(self._port)],
                stdout=log, stderr=log, env=os.environ | given,
            )  # fmt: skip
        with trio.fail_after(READY_SECONDS):
            while not await self._answers("/readyz", None, 200):
                assert self._process.poll() is None, self._log.read_text()
                await trio.sleep(0.02)

    async def _answers(self, target: str, key: str | None, status: int) -> bool:
        with suppress(*FAILURES):
            return (await ask(self.address(0), "GET", target, key=key)).status == status
        return False

    def kill(self) -> None:
        """Kill it, in whatever it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def reload(self, config: Config) -> None:
        """Let it read its configuration again, and wait until it has."""
        reaches = any(key.inbox_ids and "in_2" in key.inbox_ids for key in config.accounts[0].keys)
        self._write(config)
        self._signal(signal.SIGHUP)
        while not await self._answers("/v1/events?inbox_ids=in_2", INBOXES, 200 if reaches else 403):  # noqa: ASYNC110
            await trio.sleep(0.01)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def start_draining(self, node: int) -> None:
        self._signal(signal.SIGTERM)

    async def begin_again(self, node: int) -> None:
        if self._process is not None:  # it was told to end
            assert await trio.to_thread.run_sync(self._process.wait, READY_SECONDS) == 0, self._log.read_text()
        await self._begin()


@asynccontextmanager
async def _nursery():
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


def _toml(value) -> str:
    """A value in one line of TOML; what is None is left out."""
    if isinstance(value, dict):
        given = [f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items() if each is not None]
        return f"{{{', '.join(given)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
