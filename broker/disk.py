"""What a broker has on disk: one log, and the rooms of all who keep something in it."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from .commands.keeping import KeptAnswers
from .config import Config
from .fanout.acknowledged import Acknowledged
from .fanout.acknowledging import OnDisk
from .fanout.recorded import Recorded
from .fanout.settling import Settling
from .log.backlog import Backlog
from .log.engines import Log
from .log.engines.answers import ANSWERS
from .log.engines.lists import take_back
from .log.engines.rows import EVENTS
from .log.engines.sqlite import Beside, SqliteEngine
from .log.jobs import JOBS
from .log.letters import LETTERS
from .log.outbox import Outbox
from .log.positions import POSITIONS
from .log.retention import ReplayBuffers
from .log.storage import Storage, open_storage
from .queues.queues import require_storage_for_queues
from .webhooks.webhooks import require_storage as require_storage_for_webhooks

ROOMS: Final = (EVENTS, ANSWERS, POSITIONS, LETTERS, JOBS)
"""Whose tables are in it. Each is there whether it is used or not."""


def require_storage(config: Config) -> None:
    """Raise `ConfigError` if a configuration needs a log on disk and there is none.

    Where nodes share an engine another one may have it.
    """
    if config.engine.url is None:
        require_storage_for_webhooks(config, config.storage.path)
        require_storage_for_queues(config, config.storage.path)


class Disk:
    """A log on disk, and what stands on it. Made by `open_disk`."""

    def __init__(self, config: Config, storage: Storage) -> None:
        self._config = config
        self._clock = trio.lowlevel.current_clock().current_time
        self.storage = storage
        self.outbox = Outbox(storage)
        self.backlog = Backlog(storage)
        self.answers = KeptAnswers(storage, self._clock, time.time)

    def acknowledged(self, acknowledged: Acknowledged) -> OnDisk:
        """Return where what clients acknowledge is kept, and settled with webhooks that wait for it."""
        return OnDisk(Recorded(acknowledged, self.storage, time.time), Settling(self.outbox))

    async def take_back(self) -> None:
        """Where the log is elsewhere by now, take back what lists have left of the one that was here.

        Raises `RequestError` (`unavailable`).
        """
        beside = (self.outbox.take_back, self.backlog.take_back)
        while await self.storage.write(partial(take_back, beside=beside)):
            pass

    def engine(self, buffers: ReplayBuffers, log: Log) -> SqliteEngine:
        """Return the engine that fills a log from it, and keeps it there."""
        config = self._config
        engine = SqliteEngine(buffers, log, self.storage, config.storage, config.replay.seconds, self._clock, time.time)
        engine.beside += [
            Beside(one.write, rows_of=one.rows_of, finish=one.finish, take_back=one.take_back)
            for one in (self.outbox, self.backlog)
        ]
        return engine


@asynccontextmanager
async def open_disk(config: Config) -> AsyncIterator[Disk | None]:
    """Open what a configuration says, until the block ends; None if it has no path. Raises `StorageError`."""
    section = config.storage
    if section.path is None:
        yield None
        return
    opening = open_storage(
        section.path, synchronous=section.synchronous, rooms=ROOMS, min_free_bytes=section.min_free_bytes
    )
    async with opening as storage:
        yield Disk(config, storage)
