"""The default engine: the replay buffers of this process are the log. It is as durable as the process."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

import trio

from ...protocol.messages import Entry, PreparedEvent
from ...protocol.selection import ACCOUNT_EVENTS
from ..engines import Answer, Done, EngineStatistics, EventsByAccount, Log, Stored
from ..replay import ReplayBuffer
from ..retention import ReplayBuffers

_ATTACHED: Final = nullcontext()
_LONG: Final = 64
"""Events from which on it pays to look whether all are new: then the one step that stores them takes half as long."""


class MemoryEngine:
    """Does everything at once. ``clock`` returns monotonic seconds, ``wall_clock`` seconds since 1970."""

    away: Final = False
    refusal: Final = None
    archive: Final = None

    def __init__(
        self, buffers: ReplayBuffers, log: Log, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._buffers = buffers
        self._log = log
        self._clock = clock
        self._wall_clock = wall_clock

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing, for ever: there is nothing that could not be done at once."""
        task_status.started()
        await trio.sleep_forever()

    def begin(self, by_account: EventsByAccount, done: Done, answer: Answer | None = None) -> None:
        """Store events, and say so, in one step. ``answer`` lives as long as the events: the process remembers it."""
        now, wall = self._clock(), self._wall_clock()
        done({account_id: self._store(account_id, events, now, wall) for account_id, events in by_account.items()})

    def _store(self, account_id: str, events: Sequence[PreparedEvent], now: float, wall: float) -> list[Stored]:
        buffer = self._buffers.open(account_id)
        if len(events) >= _LONG and buffer.has_none_of([event.event_id for event in events]):
            prefix, numbered = buffer.cursor_prefix, list(enumerate(events, start=buffer.head + 1))
            entries = [
                Entry(position, now, event.type, event.inbox_id or ACCOUNT_EVENTS, event.event_id, b"", wall, event)
                for position, event in numbered
            ]
            stored = [Stored(event.event_id, position, prefix, False) for position, event in numbered]
        else:
            entries, stored = _new_among(events, buffer, now, wall)
        if entries:
            self._log.store(account_id, entries)
        return stored

    def statistics(self) -> EngineStatistics | None:
        """It shares nothing."""
        return None

    def attach(self, account_id: str) -> AbstractAsyncContextManager[None]:
        """Every account's log is kept here."""
        return _ATTACHED

    async def reach(self, account_id: str, since: str | int) -> None:
        """All that there is of a log is in it."""


def _new_among(
    events: Sequence[PreparedEvent], buffer: ReplayBuffer, now: float, wall: float
) -> tuple[list[Entry], list[Stored]]:
    """Return entries for those events that are not there yet, and where all of them are."""
    prefix, position = buffer.cursor_prefix, buffer.head
    stored: list[Stored] = []
    fresh: dict[tuple[str, str], Entry] = {}
    for event in events:
        inbox, event_id = event.inbox_id or ACCOUNT_EVENTS, event.event_id
        entry = buffer.find(inbox, event_id) or fresh.get((inbox, event_id))
        duplicate = entry is not None
        if entry is None:
            position += 1
            entry = Entry(position, now, event.type, inbox, event_id, b"", wall, event)
            fresh[inbox, event_id] = entry
        stored.append(Stored(event_id, entry.position, prefix, duplicate))
    return list(fresh.values()), stored
