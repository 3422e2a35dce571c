"""What clients acknowledge, on disk: each move of a position is written, and whoever asks hears when it is committed.

Memory has all positions, and is what is read. It is never behind the disk; where a write failed, it is ahead, and the
next that asks has it written again.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from ..errors import RequestError
from ..log.positions import (
    KEPT_SECONDS,
    PAGE,
    Moved,
    check_epoch,
    expire_positions,
    read_positions,
    write_positions,
)
from ..log.storage import Storage
from .acknowledged import SOMEBODY, Acknowledged, Client

logger = logging.getLogger(__name__)

EXPIRE_SECONDS: Final = 600.0
"""How often it is looked for positions that were not moved for a week."""

Told = Callable[[RequestError | None], None]
_Who = tuple[str, bytes]


async def until_told(when_recorded: Callable[[Client, Told], None], client: Client) -> None:
    """Wait until somebody who asks ``when_recorded`` of a client is told. Raises the `RequestError` that he is told."""
    errors: list[RequestError | None] = []
    told = trio.Event()

    def tell(error: RequestError | None) -> None:
        errors.append(error)
        told.set()

    when_recorded(client, tell)
    await told.wait()
    [error] = errors
    if error is not None:
        raise error.again()


class _Write:
    """A position that is being written, and who is to be told."""

    __slots__ = ("told",)

    def __init__(self) -> None:
        self.told: list[Told] = []


class Recorded:
    """The positions of all clients, kept by a storage. ``wall_clock`` returns seconds since 1970."""

    def __init__(self, acknowledged: Acknowledged, storage: Storage, wall_clock: Callable[[], float]) -> None:
        self._acknowledged = acknowledged
        self._storage = storage
        self._wall_clock = wall_clock
        self._under_way: dict[_Who, _Write] = {}
        """The last write of each client that has one."""
        self._failed: set[_Who] = set()

    async def restore(self) -> None:
        """Read all positions, and write each move from now on. Raises `RequestError`.

        Where the log may have lost events, no position is good any more: whoever had one is told of a gap.
        """
        check = partial(check_epoch, epoch=self._storage.epoch, now=self._wall_clock())
        if await self._storage.write(check):
            logger.warning("what clients acknowledged is of another log: they are told of a gap")
        moved = None
        while page := await self._storage.read(partial(read_positions, after=moved)):
            moved = page[-1]
            for move in page:
                if move.client == SOMEBODY:
                    self._acknowledged.forgot_one(move.account_id)
                elif move.position is not None:
                    self._acknowledged.put(move.account_id, move.client, move.position)
        self._acknowledged.moved = self._moved

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Restore, then forget from time to time who has not moved for a week, for ever."""
        await self.restore()
        task_status.started()
        while True:
            await self.expire()
            await trio.sleep(EXPIRE_SECONDS)

    async def expire(self) -> None:
        """Forget who has not moved for a week. What cannot be written now is left for the next time."""
        work = partial(expire_positions, moved_before=self._wall_clock() - KEPT_SECONDS)
        is_last = False
        while not is_last:
            told = trio.Event()
            gone: list[Moved] = []
            self._storage.begin_write(work, partial(self._expired, gone, told))
            await told.wait()
            is_last = len(gone) < PAGE

    def _expired(self, gone: list[Moved], told: trio.Event, outcome: list[Moved] | RequestError) -> None:
        """Forget in memory what is gone from the disk: in the step that says so, before any later move is told."""
        if not isinstance(outcome, RequestError):
            gone.extend(outcome)
            for move in outcome:
                if (move.account_id, move.client) not in self._under_way:
                    self._acknowledged.expired(move.account_id, move.client, move.position)
        told.set()

    async def look_up(self, client: Client) -> None:
        """Do nothing: memory has all positions."""

    def when_recorded(self, client: Client, told: Told) -> None:
        """Call ``told`` when a client's position is committed, at once if it is; or with why it could not be."""
        who = client.account_id, client.digest
        if who in self._failed and client.position is not None:
            self._moved(*who, client.position)
        write = self._under_way.get(who)
        if write is None:
            told(None)
        else:
            write.told.append(told)

    async def until_recorded(self, client: Client) -> None:
        """Wait until a client's position is committed. Raises `RequestError` if it could not be."""
        await until_told(self.when_recorded, client)

    async def until_recorded_or_forgotten(self, client: Client) -> None:
        """Wait until a new client's position is committed. Raises `RequestError`, and then it is as if it had not come.

        Whoever is cancelled meanwhile leaves it as it is.
        """
        position = client.position
        try:
            await self.until_recorded(client)
        except RequestError:
            self._acknowledged.expired(client.account_id, client.digest, position)
            raise

    def _moved(self, account_id: str, client: bytes, position: int | None) -> None:
        """Write where a client is now."""
        who = account_id, client
        write = self._under_way[who] = _Write()
        self._failed.discard(who)
        moved = Moved(account_id, client, position, self._wall_clock())
        told = partial(self._written, who, write)
        self._storage.begin_together(write_positions, moved, told, owners=(account_id,))

    def _written(self, who: _Who, write: _Write, outcome: RequestError | None) -> None:
        if self._under_way.get(who) is write:
            del self._under_way[who]
            if outcome is not None:
                self._failed.add(who)
        for told in write.told:
            told(outcome)
