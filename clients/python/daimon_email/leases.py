"""Work from a queue that many share: each event to one worker at a time (PROTOCOL section 11)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Final

import anyio

from .errors import CommandError, ConnectionEndedError, DaimonError, TimedOutError
from .events import Event, Fields
from .handling import Handling, handling

WAIT_SECONDS: Final = 50.0
"""That the broker waits for an event in one go."""
LEASE_SECONDS: Final = 60.0
HOLD_EVERY_SECONDS: Final = 20.0
MAX_REASON: Final = 256
_LATER: Final = frozenset({"rate_limited", "draining", "unavailable"})

Ask = Callable[[str, Mapping[str, Any], float], Awaitable[Fields]]
"""Gives a command, by its action, its fields and its timeout, and returns the result."""
Report = Callable[[str, Exception], Awaitable[None]]


class Lease(AbstractAsyncContextManager[Fields]):
    """An event that this worker has. ``async with`` it: held meanwhile, acknowledged at the end, or given back.

    What the block raises is reported like what a handler raises, and does not come out of it. Commands in the block are
    done once for the event, and not at all when the lease is over: then the block is cancelled.
    """

    def __init__(self, given: Mapping[str, Any], ask: Ask, report: Report) -> None:
        self.lease_id: str = given["lease_id"]
        self.event = Event(given["event"])
        self.attempt: int = given["attempt"]
        """Which one this is, from 1."""
        self.expires_at: str = given["expires_at"]
        self._ask = ask
        self._report = report
        self._lost = False
        self._block: AbstractAsyncContextManager[Fields] | None = None

    @property
    def message(self) -> Fields:
        """What a handler of the event would get: the message, or the payload."""
        return self.event.subject

    async def __aenter__(self) -> Fields:
        self._block = self._at_work()
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._block is not None
        return await self._block.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _at_work(self) -> AsyncIterator[Fields]:
        failed: Exception | None = None
        before = handling.set(Handling(self.event, self.lease_id))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hold, tasks.cancel_scope)
                try:
                    yield self.message
                except Exception as error:
                    failed = error
                tasks.cancel_scope.cancel()
        finally:
            handling.reset(before)
        if failed is None and not self._lost:
            await self._say("ack")
        if failed is not None:
            await self._report(f"work on {self.event.event_id}", failed)
            await self._say("nack", reason=repr(failed)[:MAX_REASON])
        if self._lost:
            lost = CommandError("lease_lost", f"{self.event.event_id} is another worker's by now")
            await self._report(f"work on {self.event.event_id}", lost)

    async def _hold(self, block: anyio.CancelScope) -> None:
        while not self._lost:
            await anyio.sleep(HOLD_EVERY_SECONDS)
            await self._say("hold", seconds=LEASE_SECONDS)
        block.cancel()

    async def _say(self, action: str, **fields: Any) -> None:
        try:
            result = await self._ask(action, {"lease_ids": [self.lease_id], **fields}, HOLD_EVERY_SECONDS)
            self._lost = self._lost or self.lease_id in result["lost"]
        except DaimonError as error:
            await self._report(f"{action} of {self.event.event_id}", error)


class Leases(AsyncIterator[Lease]):
    """The events of a queue, one after another, as they are given to this worker. Ends when the client is closed."""

    def __init__(self, queue_id: str, turn: anyio.Lock, ask: Ask, report: Report) -> None:
        self._queue_id = queue_id
        self._turn = turn
        self._ask = ask
        self._report = report

    async def __anext__(self) -> Lease:
        told = ""
        fields = {"queue_id": self._queue_id, "max": 1, "wait_seconds": WAIT_SECONDS, "seconds": LEASE_SECONDS}
        while True:
            try:
                async with self._turn:  # a connection waits once at a queue
                    result = await self._ask("lease", fields, WAIT_SECONDS + HOLD_EVERY_SECONDS)
            except TimedOutError:
                continue
            except CommandError as error:
                if error.code not in _LATER:
                    raise
                if str(error) != told:  # once: it may be long until there is an event
                    told = str(error)
                    await self._report(f"lease from {self._queue_id}", error)
                await anyio.sleep((error.retry_after_ms or 1_000) / 1_000)
                continue
            except ConnectionEndedError as error:
                if error.code == 1000:
                    raise StopAsyncIteration from None
                raise
            for given in result["leases"]:
                return Lease(given, self._ask, self._report)
