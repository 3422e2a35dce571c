"""Queues as a whole: made, changed, removed, and what accounts and their workers may ask about them.

They follow the log on disk: without one there are none. What is changed is written down first, then it holds, then it
is answered; changes of one account are made one after the other.
"""

import logging
import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import msgspec
import trio
from msgspec import Struct

from ..access.keyring import Keyring
from ..access.keys import Key
from ..config import AccountConfig, Config, LimitsConfig
from ..errors import ConfigError, RequestError
from ..log import jobbook, jobs
from ..log.backlog import Backlog
from ..log.engines.rows import used_bytes
from ..log.jobs import State
from ..schedule import Schedule
from ..turns import Turns
from .asked import AckLeases, HoldLeases, LeaseParams, LeaseResult, WorkAsked, WorkResult
from .giving import Giving
from .live import Announce, Live
from .looking import QueueDeliveries, deliveries, resend
from .queue import (
    MAX_QUEUES,
    NewQueue,
    Queue,
    QueueChange,
    QueueResend,
    QueueSeen,
    changed,
    configured,
    decode_queue,
    encode_queue,
    made,
    seen,
    time_of,
)

logger = logging.getLogger(__name__)

KEEP_HOUSE_SECONDS: Final = 60.0
STALLED_SECONDS: Final = 3_600.0
"""How long the oldest event waits until its account is told."""
GRACE_SECONDS: Final = 10.0
"""How long leases last at least after a start: whoever has one can come back."""
RETRY_SECONDS: Final = 5.0
_INSERT: Final = "INSERT INTO queues (account, queue_id, record) VALUES (?, ?, ?)"
_UPDATE: Final = "UPDATE queues SET record = ? WHERE number = ?"
_REMOVE: Final = "UPDATE queues SET queue_id = ?, record = ? WHERE number = ?"

Judge = Callable[[], Key]
"""Returns what the key of a worker reaches in this step. Raises `RequestError` if it is gone."""


class QueuesStatistics(Struct, frozen=True):
    """What queues there are, and how they do."""

    queues: Mapping[str, int]
    """By status."""
    jobs: Mapping[State, int]
    """By state, when that was looked at last."""
    oldest_waiting_seconds: float
    """Of the event that waits longest, then."""
    leases: Mapping[str, int]
    """What became of them, since the start."""
    waiters: int
    """Workers that wait."""


class Queues:
    """The queues of all accounts. `run` is to run while they are used."""

    def __init__(
        self, backlog: Backlog, keyring: Keyring, limits: LimitsConfig, giving: Giving, max_bytes: float = math.inf
    ) -> None:
        self.giving = giving
        self._backlog = backlog
        self._storage = backlog.storage
        self._keyring = keyring
        self._limits = limits
        self._max_bytes = max_bytes
        self._accounts: dict[str, dict[str, Live]] = {}
        self._changing: dict[str, tuple[trio.Lock, list[int]]] = {}
        """Locks of accounts of which somebody changes something, with how many those are."""
        self._jobs: dict[State, int] = {}
        self._was_over = False
        self._nursery: trio.Nursery | None = None

    # --- its life

    async def run(
        self,
        accounts: Iterable[AccountConfig],
        draining: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take back what was kept, follow the configuration, and give, for ever. Raises `RequestError`."""
        until = self._backlog.wall_clock() + GRACE_SECONDS
        while await self._storage.write(partial(jobbook.prolong, until=until)):
            pass
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for number, record in await self._storage.read(_all):
                live = Live(number, decode_queue(record), {})
                if live.queue.status == "removed":
                    nursery.start_soon(self._forget, live)
                    continue
                live.leases |= await self._storage.read(partial(jobbook.leased, queue=number))
                self._accounts.setdefault(live.queue.account_id, {})[live.queue.queue_id] = live
                self.giving.begin(live)
            for account_id in self._accounts:
                self._take_in(account_id)
            self._backlog.woken = self.giving.woken
            await self.follow(accounts)
            nursery.start_soon(self._keep_house)
            task_status.started()
            try:
                await draining.wait()
                self.giving.end_all_waits()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def reload(self, accounts: Iterable[AccountConfig]) -> None:
        """Follow another configuration from now on."""
        if self._nursery is not None:
            self._nursery.start_soon(self._follow, tuple(accounts))

    async def _follow(self, accounts: tuple[AccountConfig, ...]) -> None:
        try:
            await self.follow(accounts)
        except RequestError as error:
            logger.warning("the queues of the new configuration are not all there: %s", error)

    async def follow(self, accounts: Iterable[AccountConfig]) -> None:
        """Let these be the configuration's queues: others that stood there are removed. Raises `RequestError`."""
        wanted = {account.id: {queue.id: queue for queue in account.queues} for account in accounts if account.queues}
        now = self._backlog.wall_clock()
        for account_id in {*wanted, *self._accounts}:
            async with self._change_of(account_id):
                sections = wanted.get(account_id, {})
                for live in list(self._accounts.get(account_id, {}).values()):
                    if live.queue.configured and live.queue.queue_id not in sections:
                        await self._remove(live)
                for queue_id, section in sections.items():
                    queue = configured(account_id, section, now)
                    existing = self._accounts.get(account_id, {}).get(queue_id)
                    if existing is None:
                        await self._begin(queue)
                        continue
                    if queue.order != existing.queue.order:
                        logger.warning("queue %s of account %s keeps its order: make another", queue_id, account_id)
                    kept = {"order": existing.queue.order, "created_at": existing.queue.created_at}
                    await self._change(existing, msgspec.structs.replace(queue, **kept))

    # --- for accounts

    def of(self, key: Key) -> list[Live]:
        """Return the queues that a key sees: those of whose inboxes it reaches all."""
        lives = self._accounts.get(str(key.account_id), {}).values()
        return sorted((live for live in lives if live.queue.is_reached_by(key)), key=lambda live: live.number)

    def find(self, key: Key, queue_id: str) -> Live:
        """Return one of them. Raises `RequestError` (`not_found`)."""
        live = self._accounts.get(str(key.account_id), {}).get(queue_id)
        if live is None or not live.queue.is_reached_by(key):
            raise RequestError("not_found", "There is no such queue")
        return live

    async def make(self, key: Key, asked: NewQueue) -> QueueSeen:
        """Make a queue; the same again is answered with the one that is there.

        Raises `RequestError`: `invalid_params`, `forbidden`, `conflict`, `unavailable`.
        """
        async with self._change_of(str(key.account_id)):
            key = self._judged(key)
            queue = made(asked, key, self._limits, self._backlog.wall_clock())
            lives = self._accounts.get(queue.account_id, {})
            existing = lives.get(queue.queue_id)
            if existing is not None:
                if existing.queue.content() != queue.content():
                    raise RequestError("conflict", "There is another queue of this id - at `$.queue_id`")
                return seen(existing.queue)
            if len(lives) >= MAX_QUEUES:
                raise RequestError("conflict", f"An account may have {MAX_QUEUES} queues")
            async with self._backlog.followed.beginning(queue.account_id):
                return seen((await self._begin(queue)).queue)

    async def change(self, key: Key, queue_id: str, change: QueueChange) -> QueueSeen:
        """Change a queue. Raises `RequestError` as `make` does, and `not_found`."""
        async with self._change_of(str(key.account_id)):
            key = self._judged(key)
            live = self._own(key, queue_id)
            await self._change(live, changed(live.queue, change, key, self._limits))
            return seen(live.queue)

    async def remove(self, key: Key, queue_id: str) -> None:
        """Remove a queue, with all that waits in it. Raises `RequestError`."""
        async with self._change_of(str(key.account_id)):
            await self._remove(self._own(self._judged(key), queue_id))

    async def deliveries(self, key: Key, queue_id: str, query: Mapping[str, str]) -> QueueDeliveries:
        """Return what became of events of a queue (PROTOCOL section 11). Raises `RequestError`."""
        return await deliveries(self._backlog, self.find(key, queue_id).number, query)

    async def resend(self, key: Key, queue_id: str, asked: QueueResend) -> int:
        """Let events be done again: those named, or what is dead; return how many. Raises `RequestError`."""
        live = self.find(key, queue_id)
        resent = await resend(self._backlog, live.number, asked)
        self.giving.woken(live.number)
        return resent

    # --- for workers

    async def work(self, asked: WorkAsked, client_id: str, judge: Judge) -> tuple[WorkResult, list[str]]:
        """Do what a worker asks for; return its result, and the leases that it has by that.

        ``judge`` is asked again in the step in which events are handed out. Raises `RequestError`.
        """
        params = asked.params
        if isinstance(params, LeaseParams):
            return await self._lease(params, client_id, judge)
        lives = self.of(judge())
        if isinstance(params, AckLeases):
            return await self.giving.ack(lives, params), []
        if isinstance(params, HoldLeases):
            return await self.giving.hold(lives, params), []
        return await self.giving.nack(lives, params), []

    async def _lease(self, params: LeaseParams, client_id: str, judge: Judge) -> tuple[LeaseResult, list[str]]:
        live = self._workable(judge(), params)
        self._backlog.followed.require()
        leases, waiting = await self.giving.lease(live, params, client_id)
        lease_ids = [lease.lease_id for lease in leases]
        try:
            self._workable(judge(), params)
        except RequestError:
            self.giving.free(lease_ids)
            raise
        return self.giving.shown(live, leases, waiting), lease_ids

    def _workable(self, key: Key, params: LeaseParams) -> Live:
        key.require("subscribe")
        live = self._accounts.get(str(key.account_id), {}).get(params.queue_id)
        if live is None:
            raise RequestError("not_found", "There is no such queue - at `$.queue_id`")
        if not live.queue.is_reached_by(key):
            message = "The key does not reach all inboxes of this queue - at `$.queue_id`"
            raise RequestError("forbidden", message)
        return live

    # --- changing

    @asynccontextmanager
    async def _change_of(self, account_id: str) -> AsyncIterator[None]:
        """Change queues of an account inside the block, and nobody else does."""
        lock, users = self._changing.setdefault(account_id, (trio.Lock(), []))
        users.append(0)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._changing[account_id]

    def _judged(self, key: Key) -> Key:
        key = self._keyring.confirm(key) if not key.is_library else key
        key.require("webhooks")
        return key

    def _own(self, key: Key, queue_id: str) -> Live:
        live = self.find(key, queue_id)
        if live.queue.configured:
            raise RequestError("conflict", "This queue stands in the configuration of the broker")
        return live

    async def _begin(self, queue: Queue) -> Live:
        row = (queue.account_id, queue.queue_id, encode_queue(queue))
        number = await self._storage.write(lambda connection: connection.execute(_INSERT, row).lastrowid)
        live = Live(int(number or 0), queue, {})
        self._accounts.setdefault(queue.account_id, {})[queue.queue_id] = live
        self._take_in(queue.account_id)
        self.giving.begin(live)
        return live

    async def _change(self, live: Live, queue: Queue) -> None:
        if queue == live.queue:
            return
        row = (encode_queue(queue), live.number)
        await self._storage.write(lambda connection: connection.execute(_UPDATE, row).rowcount)
        stopped = live.queue.dead_after == "stop"
        live.queue = queue
        self._take_in(queue.account_id)
        if stopped and queue.dead_after == "continue":
            after: int | None = 0
            while after is not None:
                after = await self._storage.write(partial(jobbook.open_keys, queue=live.number, after=after))
        self.giving.let_go(live)
        self.giving.woken(live.number)

    async def _remove(self, live: Live) -> None:
        queue_id, account_id = live.queue.queue_id, live.queue.account_id
        removed = msgspec.structs.replace(live.queue, status="removed")
        # Another may have its name from now on: what is left of it goes by one that nobody can give.
        row = (f"{queue_id}\0{live.number}", encode_queue(removed), live.number)
        await self._storage.write(lambda connection: connection.execute(_REMOVE, row).rowcount)
        live.queue = removed
        del self._accounts[account_id][queue_id]
        self._take_in(account_id)
        if not self._accounts[account_id]:
            del self._accounts[account_id]
        self.giving.end(live)
        if self._nursery is not None:
            self._nursery.start_soon(self._forget, live)

    async def _forget(self, live: Live) -> None:
        """Forget all that is left of a queue, in steps, however long that takes."""
        is_left = True
        while is_left:
            try:
                is_left = await self._storage.write(partial(jobbook.remove, queue=live.number))
            except RequestError:
                await trio.sleep(RETRY_SECONDS)

    def _take_in(self, account_id: str) -> None:
        """Let the backlog know which queues an account has by now."""
        lives = self._accounts[account_id].values()
        self._backlog.take_in(account_id, [live.queue.intake(live.number) for live in lives])

    # --- its house

    async def _keep_house(self) -> None:
        """Give up what nobody did in its time, forget what ended long ago, and count, for ever."""
        while True:
            with suppress(RequestError):  # the storage has said why
                await self._keep_house_once()
            await trio.sleep(KEEP_HOUSE_SECONDS)

    async def _keep_house_once(self) -> None:
        for live in self._lives():
            await self._look_after(live)
        while await self._storage.write(partial(jobbook.forget, now=self._backlog.wall_clock())):
            pass
        await self._make_room()
        after: int | None = 0
        while after is not None:
            after = await self._storage.write(partial(jobbook.forget_contents, after=after))
        self._jobs = await self._storage.read(jobs.counts)

    def _lives(self) -> list[Live]:
        return [live for lives in self._accounts.values() for live in lives.values()]

    async def _look_after(self, live: Live) -> None:
        """Let one queue's old jobs and leases be over; tell its account if it stalls."""
        await self.giving.expire(live)
        more = True
        while more:
            now, terms = self._backlog.wall_clock(), live.queue.terms(live.number)
            born_before = now - live.queue.max_age_seconds
            dead, more = await self._storage.write(
                partial(jobbook.give_up, terms=terms, born_before=born_before, now=now)
            )
            self.giving.say_dead(live, dead)
        self.giving.woken(live.number)
        oldest = await self._storage.read(partial(jobbook.oldest_waiting, queue=live.number))
        live.waits_since = oldest
        stalls = oldest is not None and self._backlog.wall_clock() - oldest >= STALLED_SECONDS
        if stalls and not live.said_stalled and oldest is not None:
            payload = {"queue_id": live.queue.queue_id, "waiting_since": time_of(oldest)}
            self.giving.announce(live.queue.account_id, "queue.stalled", payload)
        live.said_stalled = stalls

    async def _make_room(self) -> None:
        """Where the log is as large as it may be, let dead jobs go; then, if it was so before, what waits longest."""
        was_over, self._was_over = self._was_over, await self._is_too_large()
        if not self._was_over:
            return
        gone = 0
        while shed := await self._storage.write(jobbook.shed_dead):
            gone += shed
        oldest = min(
            (live for live in self._lives() if live.waits_since is not None),
            key=lambda live: live.waits_since or 0.0,
            default=None,
        )
        if was_over and not gone and oldest is not None:
            lost = await self._storage.write(partial(jobbook.shed_waiting, queue=oldest.number))
            if lost:
                logger.warning("%d events of queues were given up: the log is as large as it may be", lost)

    async def _is_too_large(self) -> bool:
        return await self._storage.read(used_bytes) > self._max_bytes

    def statistics(self) -> QueuesStatistics:
        """Return what queues there are, and how they do."""
        by_status = dict.fromkeys(("active", "paused"), 0)
        now = self._backlog.wall_clock()
        waiting = 0.0
        for live in self._lives():
            by_status[live.queue.status] += 1
            waiting = max(waiting, 0.0 if live.waits_since is None else now - live.waits_since)
        return QueuesStatistics(by_status, dict(self._jobs), waiting, self.giving.statistics(), self.giving.waiters())


def make_queues(
    config: Config,
    backlog: Backlog,
    keyring: Keyring,
    schedule: Schedule,
    cursor_prefix: Callable[[str], str],
    announce: Announce,
    turns: Turns,
) -> Queues:
    """Return the queues of a broker."""
    giving = Giving(backlog, schedule, cursor_prefix, announce, turns=turns)
    return Queues(backlog, keyring, config.limits, giving, config.storage.max_bytes)


def require_storage_for_queues(config: Config, path: str | None) -> None:
    """Raise `ConfigError` if a configuration has queues and there is no log on disk, which is at ``path``."""
    for number, account in enumerate(config.accounts):
        if account.queues and path is None:
            raise ConfigError(f"queues need a log on disk, `storage.path` - at `$.accounts[{number}].queues`")


def _all(connection: sqlite3.Connection) -> list[tuple[int, bytes]]:
    return connection.execute("SELECT number, record FROM queues ORDER BY number").fetchall()
