"""Jobs and their workers: given in turn, held, acknowledged, given back (PROTOCOL section 11).

Who waits is served in the order of coming; what is due is given by the one writer, so nobody else has it. Which leases
are current is known here, too, so that a handler's command is fenced in the step in which it would start. The rows
decide: what is written here follows them, and forgets a lease as soon as it may be over.
"""

import random
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import trio
from msgspec import Raw

from ..errors import BUSY_RETRY_MS, RequestError
from ..log import jobs
from ..log.backlog import Backlog
from ..log.jobs import Fallen, Granted, Lease, Settled, Worker
from ..log.owed import PAGE
from ..protocol.messages import encode_event
from ..schedule import Schedule
from ..turns import Turns
from .asked import (
    AckedLeases,
    AckLeases,
    HeldLeases,
    HoldLeases,
    Leased,
    LeaseParams,
    LeaseResult,
    NackedLeases,
    NackParams,
)
from .live import Announce, Live, Waiter
from .queue import time_of

MAX_WAITERS: Final = 1_000
"""Workers that wait at one queue."""
RETRY_SECONDS: Final = 1.0
LAPSE_SECONDS: Final = 0.2
"""What lies at least between two looks at a queue's leases that are over: many that are over soon share one."""
DELAYS_SECONDS: Final = (5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 28_800.0)
"""What lies between two attempts, unless a worker says otherwise: as webhooks have it."""
SPREAD: Final = 0.2
"""By how much a delay is shortened or lengthened by chance."""
MAX_TOLD: Final = 100
"""Ids of dead events that one `queue.dead` names."""


class Giving:
    """The workers of all queues."""

    def __init__(
        self,
        backlog: Backlog,
        schedule: Schedule,
        cursor_prefix: Callable[[str], str],
        announce: Announce,
        chance: Callable[[], float] = random.random,
        turns: Turns | None = None,
    ) -> None:
        self.outcomes = Counter[str]()
        """Leases since the start: `granted`, and what became of them."""
        self._backlog = backlog
        self._storage = backlog.storage
        self._schedule = schedule
        self._cursor_prefix = cursor_prefix
        self.announce = announce
        self._chance = chance
        self._turns = turns or Turns()
        self._lives: dict[int, Live] = {}
        self._tickets = 0
        self._is_over = False

    # --- which queues there are

    def begin(self, live: Live) -> None:
        """Let a queue's jobs be given."""
        self._lives[live.number] = live
        if live.leases:
            self._watch(live, min(live.leases.values()))

    def end(self, live: Live) -> None:
        """Give no more of a queue's jobs: none of its leases is current."""
        del self._lives[live.number]
        live.close()

    def end_all_waits(self) -> None:
        """Let nobody wait any longer: what they get is what they have."""
        self._is_over = True
        for live in self._lives.values():
            for waiter in live.waiters:
                waiter.until = trio.current_time()
                if not waiter.being_served:
                    waiter.answered.set()

    def is_current(self, account_id: str, lease_id: str) -> bool:
        """Whether a lease is one of an account's, and not over."""
        live = self._live_of(lease_id)
        if live is None or live.queue.account_id != account_id:
            return False
        until = live.leases.get(lease_id)
        return until is not None and until > self._backlog.wall_clock()

    def _live_of(self, lease_id: str) -> Live | None:
        number = lease_id.removeprefix("lse_").partition("_")[0]
        return self._lives.get(int(number)) if number.isdecimal() else None

    def waiters(self) -> int:
        """Return how many workers wait."""
        return sum(len(live.waiters) for live in self._lives.values())

    # --- lease

    async def lease(self, live: Live, asked: LeaseParams, client_id: str) -> tuple[list[Lease], int]:
        """Wait for jobs of a queue; return what there is in time, and how many wait still. Raises `RequestError`.

        Who is cancelled has none.
        """
        if len(live.waiters) >= MAX_WAITERS:
            raise RequestError("rate_limited", "Too many workers wait at this queue", retry_after_ms=BUSY_RETRY_MS)
        self._tickets += 1
        seconds = live.queue.lease_seconds if asked.seconds is None else float(asked.seconds)
        worker = Worker(self._tickets, client_id, asked.max, seconds)
        waiter = Waiter(worker, trio.current_time() + (0 if self._is_over else asked.wait_seconds))
        live.waiters.append(waiter)
        self.look_at(live)
        heard = False
        try:
            with trio.move_on_at(waiter.until):
                await waiter.answered.wait()
            await self._turns.come_in(live.queue.account_id)  # the time of hundreds may be over at once
            if waiter.being_served or not (waiter.was_served or live.queue.status == "paused"):
                await waiter.answered.wait()  # what is being written is known in a moment
            heard = True
        finally:
            waiter.is_gone = True
            _leave(live, waiter)
            if not heard:
                self.free([lease.lease_id for lease in waiter.leases])
        if waiter.error is not None:
            raise waiter.error.again()
        return waiter.leases, waiter.waiting

    def shown(self, live: Live, leases: Iterable[Lease], waiting: int) -> LeaseResult:
        """Return leases as a worker is told of them."""
        prefix = self._cursor_prefix(live.queue.account_id)
        return LeaseResult(
            [
                Leased(
                    lease.lease_id,
                    Raw(encode_event(lease.event, f"{prefix}{lease.position}")),
                    lease.attempt,
                    time_of(lease.until),
                )
                for lease in leases
            ],
            waiting,
        )

    def woken(self, number: int) -> None:
        """Hear that a queue has a new job."""
        live = self._lives.get(number)
        if live is not None:
            self.look_at(live)

    def look_at(self, live: Live) -> None:
        """Give what is due, if somebody waits for it."""
        live.is_new = True
        if live.granting or not live.waiters or live.queue.status != "active" or live.number not in self._lives:
            return
        live.granting, live.is_new = True, False
        served = list(live.waiters)
        for waiter in served:
            waiter.being_served = True
        work = partial(
            jobs.grant,
            terms=live.queue.terms(live.number),
            workers=[waiter.worker for waiter in served],
            now=self._backlog.wall_clock(),
            new_id=_new_id,
        )
        self._storage.begin_write(work, partial(self._granted, live, served))

    def _granted(self, live: Live, served: Sequence[Waiter], granted: Granted | RequestError) -> None:
        """Hand out what was given; what nobody takes is given back."""
        live.granting = False
        given = {} if isinstance(granted, RequestError) else granted.leases
        if isinstance(granted, Granted):
            self._fell(live, granted.fallen)
            self.outcomes["granted"] += sum(map(len, given.values()))
        unwanted: list[str] = []
        now = trio.current_time()
        for waiter in served:
            waiter.being_served, waiter.was_served = False, True
            leases = given.get(waiter.worker.ticket, [])
            if waiter.is_gone or live.number not in self._lives:
                unwanted += [lease.lease_id for lease in leases]
                continue
            live.leases |= {lease.lease_id: lease.until for lease in leases}
            if leases:
                self._watch(live, leases[0].until)
            if isinstance(granted, RequestError):
                waiter.error = granted
            else:
                waiter.leases, waiter.waiting = leases, granted.waiting
            if leases or waiter.error is not None or now >= waiter.until:
                _leave(live, waiter)
                waiter.answered.set()
        self.free(unwanted)
        if live.is_new:
            self.look_at(live)
        elif isinstance(granted, Granted) and granted.next_due is not None and live.waiters:
            seconds = granted.next_due - self._backlog.wall_clock()
            if seconds <= 0 and (given or granted.fallen.lease_ids):
                self.look_at(live)
            else:  # what is due and cannot be given is tried again after a while
                at = trio.current_time() + (seconds if seconds > 0 else RETRY_SECONDS)
                live.alarm.set(self._schedule, at, partial(self.look_at, live))
        self.let_go(live)

    def let_go(self, live: Live) -> None:
        """Answer those whose time is over and who are not to be served first."""
        is_paused = live.queue.status != "active"
        for waiter in list(live.waiters):
            is_through = not waiter.being_served and (waiter.was_served or is_paused)
            if is_through and trio.current_time() >= waiter.until:
                _leave(live, waiter)
                waiter.answered.set()

    def _fell(self, live: Live, fallen: Fallen) -> None:
        """Hear which leases are over, and which events are dead."""
        self.outcomes["expired"] += len(fallen.lease_ids)
        for lease_id in fallen.lease_ids:
            live.leases.pop(lease_id, None)
        self.say_dead(live, fallen.dead)

    def say_dead(self, live: Live, event_ids: Sequence[str]) -> None:
        """Tell an account which events of a queue are dead."""
        if event_ids:
            payload = {"queue_id": live.queue.queue_id, "event_ids": event_ids[:MAX_TOLD], "count": len(event_ids)}
            self.announce(live.queue.account_id, "queue.dead", payload)

    async def expire(self, live: Live) -> None:
        """Let leases be over whose time is, though nobody waits. Raises `RequestError`."""
        more = True
        while more:
            work = partial(jobs.expire, terms=live.queue.terms(live.number), now=self._backlog.wall_clock())
            fallen = await self._storage.write(work)
            self._fell(live, fallen)
            more = len(fallen.lease_ids) == jobs.GRANTS

    def _watch(self, live: Live, until: float, least: float = 0.0) -> None:
        """Look at a queue's leases when one of them is over, ``least`` seconds from now at the earliest."""
        seconds = max(until - self._backlog.wall_clock(), least)
        live.over.set(self._schedule, trio.current_time() + seconds, partial(self._lapse, live))

    def _lapse(self, live: Live) -> None:
        """Let leases be over whose time is: whoever waits for that is told of it, though no worker comes."""
        if live.leases and live.number in self._lives:
            now = self._backlog.wall_clock()
            work = partial(jobs.expire_and_look_on, terms=live.queue.terms(live.number), now=now)
            self._storage.begin_write(work, partial(self._lapsed, live))

    def _lapsed(self, live: Live, outcome: tuple[Fallen, float | None] | RequestError) -> None:
        if live.number not in self._lives:
            return
        if isinstance(outcome, RequestError):
            self._watch(live, 0.0, RETRY_SECONDS)
            return
        fallen, following = outcome
        self._fell(live, fallen)
        if following is not None:
            self._watch(live, following, LAPSE_SECONDS)
        if fallen.lease_ids:
            self.look_at(live)

    # --- what becomes of leases

    async def ack(self, lives: Collection[Live], asked: AckLeases) -> AckedLeases:
        """End the jobs of leases of these queues. Raises `RequestError`."""
        lease_ids = list(dict.fromkeys(asked.lease_ids))
        work = partial(
            jobs.ack, queues={live.number for live in lives}, lease_ids=lease_ids, now=self._backlog.wall_clock()
        )
        settled = await self._storage.write(work)
        self._settled("acked", settled)
        return AckedLeases(len(settled.done), settled.lost)

    async def hold(self, lives: Collection[Live], asked: HoldLeases) -> HeldLeases:
        """Let leases of these queues last longer. Raises `RequestError`."""
        lease_ids, now = list(dict.fromkeys(asked.lease_ids)), self._backlog.wall_clock()
        until = now + asked.seconds
        queues = {live.number for live in lives}
        settled = await self._storage.write(
            partial(jobs.hold, queues=queues, lease_ids=lease_ids, until=until, now=now)
        )
        self.outcomes["lost"] += len(settled.lost)
        for lease_id in settled.done:
            live = self._live_of(lease_id)
            if live is not None and lease_id in live.leases:
                live.leases[lease_id] = until
                self._watch(live, until)
        return HeldLeases(len(settled.done), settled.lost, time_of(until))

    async def nack(self, lives: Collection[Live], asked: NackParams) -> NackedLeases:
        """Give leases of these queues back. Raises `RequestError`."""
        lease_ids, now = list(dict.fromkeys(asked.lease_ids)), self._backlog.wall_clock()
        chance = self._chance()

        def due_at(attempt: int) -> float:
            if asked.retry_after_ms is not None:
                return now + asked.retry_after_ms / 1_000
            delay = DELAYS_SECONDS[min(attempt, len(DELAYS_SECONDS)) - 1]
            return now + delay * (1 - SPREAD + 2 * SPREAD * chance)

        queues = {live.number: live.queue.terms(live.number) for live in lives}
        settled = await self._storage.write(
            partial(
                jobs.nack,
                queues=queues,
                lease_ids=lease_ids,
                due_at=due_at,
                now=now,
                dead=asked.dead,
                reason=asked.reason,
            )
        )
        self._settled("nacked", settled)
        for live in lives:
            self.say_dead(live, settled.dead.get(live.number, []))
        return NackedLeases(len(settled.done), settled.lost)

    def free(self, lease_ids: Iterable[str]) -> None:
        """Give leases back that nobody worked at, as if they had not been given; nobody waits for that."""
        lease_ids = list(lease_ids)
        for lease_id in lease_ids:
            live = self._live_of(lease_id)
            if live is not None:
                live.leases.pop(lease_id, None)
        for start in range(0, len(lease_ids), PAGE):
            some = lease_ids[start : start + PAGE]
            work = partial(jobs.free, lease_ids=some, now=self._backlog.wall_clock())
            self._storage.begin_write(work, self._freed)

    def _freed(self, settled: Settled | RequestError) -> None:
        if isinstance(settled, Settled):  # else they are over in their time
            self._settled("freed", settled)

    def _settled(self, outcome: str, settled: Settled) -> None:
        """Hear which leases were ended, and which were over before."""
        self.outcomes[outcome] += len(settled.done)
        self.outcomes["lost"] += len(settled.lost)
        changed: dict[int, Live] = {}
        for lease_id in settled.done:
            live = self._live_of(lease_id)
            if live is not None:
                live.leases.pop(lease_id, None)
                changed[live.number] = live
        for live in changed.values():
            self.look_at(live)

    def statistics(self) -> Mapping[str, int]:
        """Return what became of leases, since the start."""
        return {name: self.outcomes[name] for name in ("granted", "acked", "nacked", "freed", "expired", "lost")}


def _leave(live: Live, waiter: Waiter) -> None:
    if waiter in live.waiters:
        live.waiters.remove(waiter)


def _new_id(queue: int, attempt: int) -> str:
    """Return the id of a new lease: it says of which queue it is, and nobody guesses it."""
    return f"lse_{queue}_{attempt}_{secrets.token_hex(16)}"
