"""The default engine: the replay buffers of this process are the log. It is as durable as the process."""

from collections.abc import Callable

from ...protocol.messages import PreparedEvent
from ..engines import Stored
from ..retention import ReplayBuffers


class MemoryEngine:
    """Appends straight to the replay buffers. ``clock`` returns monotonic seconds."""

    def __init__(self, buffers: ReplayBuffers, clock: Callable[[], float]) -> None:
        self._buffers = buffers
        self._clock = clock

    async def append(self, account_id: str, events: list[PreparedEvent]) -> list[Stored]:
        """Store events; no checkpoint, so a publisher cancelled here has stored all or nothing."""
        return self.append_nowait(account_id, events)

    def append_nowait(self, account_id: str, events: list[PreparedEvent]) -> list[Stored]:
        """Do the same in one synchronous step."""
        buffer, now = self._buffers.open(account_id), self._clock()
        stored = []
        for event in events:
            entry = buffer.find(event.event_id)
            duplicate = entry is not None
            if entry is None:
                entry = self._buffers.append(buffer, event, buffer.head + 1, now)
            stored.append(Stored(entry.event_id, buffer.cursor_at(entry.position), duplicate))
        return stored
