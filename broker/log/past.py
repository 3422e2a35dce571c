"""The one way to events that memory no longer holds: `Past` asks the engine's archive, in fair shares.

Where an engine has the logs elsewhere it is asked to put what it has into memory, which then tells.

Few questions are under way at once, whoever has many of them, and who asks what is being asked already shares the
answer. An answer is a page: so nobody who reads a day of old events keeps anybody else waiting, or much in memory.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Generic, TypeVar

import trio
from msgspec import Struct

from ..errors import BUSY_RETRY_MS, RequestError
from ..fairness import FairLimiter
from ..protocol.names import Duration
from .archive import Archive, Older, Page, Reach, Reached
from .replay import ReplayBuffer

PAGE_EVENTS: Final = 256
PAGE_BYTES: Final = 65_536
QUESTIONS_AT_ONCE: Final = 4
"""Of the last one an account that has others gets none: whoever comes finds a place."""
ANSWER_SECONDS: Final = 30.0
"""How long an archive may take for one answer."""

Q = TypeVar("Q")
A = TypeVar("A")


class PastStatistics(Struct, frozen=True):
    """What was read of what memory no longer holds."""

    questions: int
    """Asked of the archive since the start: pages, and starts."""
    shared: int
    """Answers that came to more than the first who asked."""
    events: int
    """Events in pages since the start."""
    asking: int
    """Questions under way, or waiting for their turn."""


class _Question(Generic[A]):
    """One that is under way, and what came of it; neither of both: who asked it has left."""

    __slots__ = ("answer", "answered", "error")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: A | None = None
        self.error: RequestError | None = None


class Past:
    """What an engine's archive has, for all accounts. ``wall_clock`` returns seconds since 1970.

    ``reach``: asked where there is no archive; see `Engine.reach`.
    """

    def __init__(
        self,
        archive: Archive | None,
        wall_clock: Callable[[], float],
        reach: Callable[[str, str | int], Awaitable[None]] | None = None,
    ) -> None:
        self._archive = archive
        self._reach = reach
        self._wall_clock = wall_clock
        self._limiter = FairLimiter(QUESTIONS_AT_ONCE)
        self._pages: dict[tuple[str, Older], _Question[Page]] = {}
        self._starts: dict[tuple[str, Reach], _Question[Reached]] = {}
        self._questions = 0
        self._shared = 0
        self._events = 0

    async def read(self, buffer: ReplayBuffer, older: Older) -> Page:
        """Return a page of older events of an account, framed. Raises `RequestError` (`unavailable`)."""

        return await self._ask(self._pages, (buffer.account_id, older), partial(self._read, buffer, older))

    async def _read(self, buffer: ReplayBuffer, older: Older, archive: Archive) -> Page:
        page = await archive.read(buffer.account_id, older, max_events=PAGE_EVENTS, max_bytes=PAGE_BYTES)
        buffer.frame(page.entries)
        self._events += len(page.entries)
        return page

    async def reach(self, buffer: ReplayBuffer, reach: Reach) -> Reached:
        """Return what is to be known for a start in the past. Raises `RequestError` (`unavailable`)."""

        if self._archive is None and self._reach is not None:
            await self._reach(buffer.account_id, reach.since if reach.position is None else reach.position)
            return Reached(reach, None, None)
        return await self._ask(self._starts, (buffer.account_id, reach), partial(self._look, buffer, reach))

    async def _look(self, buffer: ReplayBuffer, reach: Reach, archive: Archive) -> Reached:
        account_id, position, moment = buffer.account_id, reach.position, reach.moment
        if position is None and moment is not None:
            wall = self._wall_clock() - moment.seconds if isinstance(moment, Duration) else moment.timestamp()
            position = await archive.position_before(account_id, wall)
        kept = await archive.count(account_id, reach.selection, position, reach.through)
        page = None if reach.before is None else await self._read(buffer, reach.before, archive)
        return Reached(reach, position, kept, page)

    async def _ask(
        self,
        asked: dict[tuple[str, Q], _Question[A]],
        key: tuple[str, Q],
        ask: Callable[[Archive], Awaitable[A]],
    ) -> A:
        while (question := asked.get(key)) is not None:
            await question.answered.wait()
            if question.error is not None:
                raise question.error.again()
            if question.answer is not None:
                self._shared += 1
                return question.answer
        asked[key] = question = _Question()
        try:
            async with self._limiter.place(key[0]):
                self._questions += 1
                question.answer = await self._answer(ask)
            return question.answer
        except RequestError as error:
            question.error = error.again()
            raise
        finally:
            del asked[key]
            question.answered.set()

    async def _answer(self, ask: Callable[[Archive], Awaitable[A]]) -> A:
        assert self._archive is not None
        with trio.move_on_after(ANSWER_SECONDS):
            return await ask(self._archive)
        raise RequestError("unavailable", "The broker's storage does not answer", retry_after_ms=BUSY_RETRY_MS)

    def statistics(self) -> PastStatistics | None:
        """Return what was read, and what is being asked; None: there is no archive."""
        if self._archive is None:
            return None
        return PastStatistics(self._questions, self._shared, self._events, len(self._pages) + len(self._starts))
