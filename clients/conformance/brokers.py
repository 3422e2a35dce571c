"""The broker of a scene: in this process, over TCP, so that a scene can steer it."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from broker import (
    AccountConfig,
    CommandContext,
    Config,
    KeyConfig,
    StorageConfig,
    TokensConfig,
    keys,
    open_broker,
    serve,
)

ACCOUNT: Final = "acct_conform"
KEY: Final = "dm_live_conform"
"""Reaches the whole of `ACCOUNT`."""
SILENT_KEY: Final = "dm_live_conform_no_events"
"""May only give commands."""
INBOX: Final = "inbox_a"
OTHER_INBOX: Final = "inbox_b"


@dataclass(frozen=True)
class Sent:
    """A `send_email` that was done."""

    request_id: str
    once: str | None
    params: dict[str, Any]


@dataclass
class Brokers:
    """A broker that may be stopped and started again at the same log; one at a time."""

    config: Config
    nursery: trio.Nursery
    sent: list[Sent] = field(default_factory=list)
    """What was done over all of them, in order."""
    address: tuple[str, int] = ("127.0.0.1", 1)
    _ended: trio.Event = field(default_factory=trio.Event)

    async def start(self) -> None:
        """Start one, after the one before has ended."""
        await self.nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._ended = trio.Event()
        async with open_broker(self.config) as self.broker:
            self.broker.command("send_email")(self._send_email)
            async with trio.open_nursery() as serving:
                [self.address] = await serving.start(partial(serve, self.broker, host="127.0.0.1", port=0))
                task_status.started()
        self._ended.set()

    async def _send_email(self, params: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        self.sent.append(Sent(context.request_id, context.once, params))
        return {"message_id": f"sent_{len(self.sent)}"}

    async def drain(self) -> None:
        """Let it say goodbye to everybody, and wait for its end."""
        self.broker.start_draining()
        await self._ended.wait()

    async def publish(self, *events: dict[str, Any]) -> None:
        """Publish to `ACCOUNT`."""
        await self.broker.publish(ACCOUNT, list(events))

    def revoke(self) -> None:
        """Take all keys away."""
        self._reload()

    def narrow(self, inbox_id: str) -> None:
        """Let `KEY` reach this inbox alone."""
        self._reload(KeyConfig(id="key_all", sha256=keys.hash_key(KEY), inbox_ids=(inbox_id,)))

    def _reload(self, *made: KeyConfig) -> None:
        account = AccountConfig(id=ACCOUNT, tier="developer", keys=made)
        self.broker.reload(msgspec.structs.replace(self.config, accounts=(account,)))


def mail(number: int, inbox_id: str = INBOX, **message: Any) -> dict[str, Any]:
    """A `message.received`, `evt_1` for 1."""
    said = {"message_id": f"msg_{number}", "from": "ada@example.com", "subject": f"Mail {number}", "body": "Hello"}
    payload = {"message": said | {"to": [inbox_id], "labels": []} | message}
    return {"type": "message.received", "event_id": f"evt_{number}", "inbox_id": inbox_id, "payload": payload}


@asynccontextmanager
async def open_brokers(sections: dict[str, Any], *, stored: bool) -> AsyncIterator[Brokers]:
    """The first broker of a scene, with settings in ``sections``; ``stored``: with its log on disk."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        if stored:
            sections = sections | {"storage": StorageConfig(path=str(Path(folder) / "broker.db"), synchronous="normal")}
        made = (KeyConfig(id="key_all", sha256=keys.hash_key(KEY)),
                KeyConfig(id="key_silent", sha256=keys.hash_key(SILENT_KEY), scopes=("command",)))  # fmt: skip
        account = AccountConfig(id=ACCOUNT, tier="developer", keys=made)
        usual: dict[str, Any] = {"accounts": (account,), "tokens": TokensConfig(secret="x" * 32)}
        async with trio.open_nursery() as nursery:
            brokers = Brokers(Config(**(usual | sections)), nursery)
            await brokers.start()
            yield brokers
            nursery.cancel_scope.cancel()
