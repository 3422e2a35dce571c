"""What a broker keeps in its log on disk for others: webhooks and queues, and who follows accounts for them."""

from collections.abc import Callable
from functools import partial

import trio

from .access.keyring import Keyring
from .config import Config
from .disk import Disk
from .intake.intake import Intake
from .joined import Joined
from .keeper.following import Subscribe
from .keeper.keeper import Keeper
from .log.kept import KeeperStatistics
from .log.replay import cursor_prefix_of
from .queues.queues import make_queues
from .schedule import Schedule
from .turns import Turns
from .webhooks.webhooks import make_webhooks


class Keeping:
    """The webhooks and queues of a broker. ``joined``: what it shares with other nodes; then it is their keeper."""

    def __init__(
        self,
        config: Config,
        disk: Disk,
        joined: Joined | None,
        keyring: Keyring,
        schedule: Schedule,
        intake: Intake,
        draining: trio.Event,
        turns: Turns,
        subscribe: Subscribe,
    ) -> None:
        self._config = config
        self._disk = disk
        self._draining = draining
        self._leaving = trio.Event()
        self._keeper: Keeper | None = None
        prefix: Callable[[str], str] = partial(cursor_prefix_of, epoch=disk.storage.epoch)
        if joined is not None:
            self._keeper = Keeper(disk.outbox, disk.backlog, joined.wire, subscribe, intake.tell)
            prefix = self._keeper.following.cursor_prefix
        self.webhooks = make_webhooks(config, disk.outbox, keyring, prefix, intake.announce_soon, draining)
        self.queues = make_queues(config, disk.backlog, keyring, schedule, prefix, intake.announce_soon, turns)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take back what was kept, then post, give, and follow, for ever. Raises `RequestError`."""
        accounts, keeper = self._config.accounts, self._keeper
        if keeper is not None:
            await self._disk.take_back()
            await keeper.following.load()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.webhooks.run, accounts)
            await nursery.start(self.queues.run, accounts, self._draining)
            if keeper is not None:
                await nursery.start(keeper.run, self._config.storage.keep_seconds, self._leaving)
                nursery.start_soon(self._leave)
            task_status.started()

    async def _leave(self) -> None:
        """Let another be the keeper when this drains, but not before it is known what became of the last posts."""
        await self._draining.wait()
        await self.webhooks.settled()
        self._leaving.set()

    def statistics(self) -> KeeperStatistics | None:
        """Return how the keeper does; None: there are no other nodes."""
        return None if self._keeper is None else self._keeper.statistics()

    async def left(self) -> None:
        """Wait until another node may be the keeper, once this one drains."""
        if self._keeper is not None:
            await self._keeper.lease.ended.wait()
