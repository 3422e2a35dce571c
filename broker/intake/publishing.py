"""The `publish` commands of one connection: each done at once where that is possible, else in their order."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio
from msgspec import Struct

from ..budget import Budget, Held
from ..commands.dispatch import Commands, Lane, Reply, refused
from ..commands.remembered import Outcome, Run
from ..commands.requests import PublishRequest
from ..errors import BUSY_RETRY_MS, RequestError
from ..log.engines import Answer, Stored
from .batch import ANSWER_SLICE, Batch, answer_of
from .intake import Intake, PlacesByAccount

MAX_WAITING_PUBLISHES: Final = 64
"""Publish commands of one connection that wait for their turn; the next one is refused."""


class _Waiting(Struct, frozen=True, eq=False):
    """A publish that waits: for the fan-out, or for those before it."""

    batch: Batch
    run: Run
    held: Held


class Publishing:
    """What one connection publishes. Whoever gets True from `submit` lets `do_waiting` run.

    Publishes begin in the order in which they came, a short one never before a long one; what became of them is told
    when it is known.
    """

    def __init__(self, intake: Intake, bodies: Budget, commands: Commands, lane: Lane) -> None:
        self._intake = intake
        self._bodies = bodies
        self._commands = commands
        self._lane = lane
        self._waiting: deque[_Waiting] = deque()
        self._begun = 0
        """Publishes that are begun, and whose outcome is not told yet."""
        self._told = trio.lowlevel.ParkingLot()

    def submit(self, publish: PublishRequest, reply: Reply) -> bool:
        """Publish, or let it wait; ``reply`` gets the outcome. Returns whether it is the first that waits."""
        try:
            run = self._commands.begin(self._lane, publish.request, reply)
        except RequestError as error:
            reply(refused(error))
            return False
        if run is None:
            return False
        try:
            return self._begin(publish, run)
        except RequestError as error:
            self._finish(run, refused(error))
        except Exception:
            self._finish(run, refused(RequestError("internal", "The publish failed")))
            raise
        return False

    def _begin(self, publish: PublishRequest, run: Run) -> bool:
        """Begin a publish, or let it wait. Returns whether it is the first that waits. Raises `RequestError`."""
        if len(self._waiting) >= MAX_WAITING_PUBLISHES:
            message = f"{MAX_WAITING_PUBLISHES} publish commands are under way"
            raise RequestError("rate_limited", message, retry_after_ms=BUSY_RETRY_MS)
        answer = None if run.identity is None else Answer(run.identity, run.digest)
        request = publish.request
        batch = self._intake.batch(
            request.key, publish.raw, publish.path, self._lane, answer, traceparent=request.traceparent
        )
        if not self._waiting and self._intake.prepare_slice(batch):
            places = self._intake.places_nowait(batch)
            if places is not None:
                self._store(batch, places, run)
                return False
        held = self._bodies.hold(publish.request.key.account_id, len(publish.raw))
        self._waiting.append(_Waiting(batch, run, held))
        return len(self._waiting) == 1

    async def do_waiting(self) -> None:
        """Begin what waits, one after the other, until there is nothing left. Cancelled, it leaves the rest."""
        while self._waiting:
            waiting = self._waiting[0]
            try:
                places = await self._intake.ready(waiting.batch)
                self._store(waiting.batch, places, waiting.run)
            except RequestError as error:
                self._finish(waiting.run, refused(error))
            waiting.held.let_go()
            self._waiting.popleft()
            if self._waiting:  # when nothing waits, the next `submit` is to find this ended
                await trio.lowlevel.checkpoint()

    def _store(self, batch: Batch, places: PlacesByAccount, run: Run) -> None:
        self._begun += 1
        try:
            self._intake.begin(batch, places, partial(self._ended, batch, run))
        except BaseException:
            self._tell()
            raise

    def _ended(self, batch: Batch, run: Run, outcome: Sequence[Stored] | RequestError) -> None:
        """Answer a publish, whether its client is still there or not: it may be sent again."""
        if not isinstance(outcome, RequestError) and len(outcome) > ANSWER_SLICE:
            self._intake.start_soon(self._write_answer, batch, run, outcome)
            return
        self._finish(run, refused(outcome) if isinstance(outcome, RequestError) else Outcome(answer_of(outcome)))
        self._tell()

    async def _write_answer(self, batch: Batch, run: Run, stored: Sequence[Stored]) -> None:
        self._finish(run, Outcome(await self._intake.write_answer(batch, stored)))
        self._tell()

    def _tell(self) -> None:
        self._begun -= 1
        if not self._begun:
            self._told.unpark_all()

    async def all_told(self) -> None:
        """Wait until all that is begun is told: with a log on disk, until it is committed."""
        while self._begun:
            await self._told.park()

    def give_up(self) -> None:
        """Refuse what waits: the connection ends."""
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.held.let_go()
            self._finish(
                waiting.run, refused(RequestError("unavailable", "The connection ended before this was published"))
            )

    def _finish(self, run: Run, outcome: Outcome) -> None:
        self._commands.finish(run, outcome)
