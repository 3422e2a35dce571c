"""The keeper as a whole: whether this node is it, what it follows, and what clients of all nodes acknowledge."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Final

import trio

from ..errors import RequestError
from ..log import kept
from ..log.backlog import Backlog
from ..log.engines.rows import trim_events
from ..log.kept import Followed, KeeperStatistics
from ..log.outbox import Outbox
from ..log.statements import LATEST
from ..nodes import Wire
from .following import BEGIN_SECONDS, Following, Subscribe, Tell
from .lease import Lease
from .settling import Taking

FORGET_SECONDS: Final = 60.0
TRIM_ROWS: Final = 128
"""Events that leave in one transaction."""


class Keeper(Followed):
    """What a node does that has a log on disk beside others. `Following.load` before anything is kept; then `run`."""

    def __init__(self, outbox: Outbox, backlog: Backlog, wire: Wire, subscribe: Subscribe, tell: Tell) -> None:
        self.lease = Lease(wire)
        self.following = Following(outbox, backlog, subscribe, tell)
        self._taking = Taking(outbox, wire, self.following)
        self._outbox = outbox
        outbox.followed = backlog.followed = self

    # --- for who is followed for

    @asynccontextmanager
    async def beginning(self, account_id: str) -> AsyncIterator[None]:
        """Let all come that an account is published from the block's start on. Raises `RequestError`."""
        self.require()
        async with self.following.beginning(account_id):
            yield
            with trio.move_on_after(BEGIN_SECONDS):
                await self._taking.said(account_id)

    def changed(self, account_id: str) -> None:
        """Hear that an account has other endpoints or queues."""
        self.following.changed(account_id)
        self._taking.changed(account_id)

    def is_settled(self, account_id: str) -> bool:
        """Whether it is known what clients of an account have acknowledged until now."""
        return self.lease.held and self._taking.is_settled(account_id)

    def require(self) -> None:
        """Raise `RequestError` (`unavailable`) if another node is the keeper."""
        self.lease.require()

    # --- its life

    async def run(
        self,
        keep_seconds: float,
        leaving: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be the keeper whenever that can be, until ``leaving`` is set; keep house for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.lease.run, leaving)
            nursery.start_soon(self._forget, keep_seconds)
            task_status.started()
            while True:
                await self.lease.taken.wait()
                async with trio.open_nursery() as keeping:
                    keeping.start_soon(self.following.run)
                    keeping.start_soon(self._taking.run)
                    await self.lease.lost.wait()
                    keeping.cancel_scope.cancel()

    async def _forget(self, keep_seconds: float) -> None:
        """Forget from time to time what was kept for long enough and nobody waits for, for ever."""
        while True:
            with suppress(RequestError):  # the storage has said why
                await self._forget_before(self._outbox.wall_clock() - keep_seconds)
            await trio.sleep(FORGET_SECONDS)

    async def make_room(self) -> None:
        """Forget all that is kept and nobody waits for. Raises `RequestError`."""
        await self._forget_before(inf)

    async def _forget_before(self, moment: float) -> None:
        storage = self._outbox.storage
        after: int | None = 0
        while after is not None:
            after = await storage.write(partial(kept.forget, kept_before=moment, after=after))
        # What the file has of a log that it was before there was an engine.
        while await storage.write(partial(trim_events, stored_before=moment, keep_from=LATEST, most=TRIM_ROWS)):
            pass

    def statistics(self) -> KeeperStatistics:
        """Return how the keeper does."""
        following = self.following
        return KeeperStatistics(self.lease.held, len(following), following.events, following.gaps, following.missed)
