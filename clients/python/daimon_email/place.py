"""How far a client has come: what it has received, what its handlers have dealt with, what it knows already. Pure."""

from collections import OrderedDict, deque
from typing import Final

from .events import Event

MAX_KNOWN: Final = 10_000


class Seen:
    """The last events by inbox and id, so that one that comes again is known."""

    def __init__(self, most: int = MAX_KNOWN) -> None:
        self._most = most
        self._ids: OrderedDict[tuple[str | None, str], None] = OrderedDict()

    def is_new(self, event: Event) -> bool:
        """Whether it is the first time that this event comes; from now on it is not."""
        name = (event.inbox_id, event.event_id)
        if name in self._ids:
            self._ids.move_to_end(name)
            return False
        self._ids[name] = None
        if len(self._ids) > self._most:
            self._ids.popitem(last=False)
        return True


class _Step:
    __slots__ = ("cursor", "done", "event_id", "failed")

    def __init__(self, cursor: str, event_id: str | None) -> None:
        self.cursor = cursor
        self.event_id = event_id
        self.done = event_id is None
        self.failed = False


class Place:
    """The cursors of one client.

    ``received`` is of the last frame that came: what came is kept, so a lost connection is opened again there.
    ``handled`` is of the last event before which all is dealt with: a program that starts again begins there.
    ``acknowledged`` lags behind it where a handler failed: from there on single events are acknowledged, until the
    failed one has left the broker's window.
    """

    def __init__(self, cursor: str | None) -> None:
        self.received = cursor
        self.handled = cursor
        self._steps: deque[_Step] = deque()
        self._by_event: dict[Event, _Step] = {}
        self._blocked_until: float | None = None
        self._to_acknowledge: str | None = None
        self._singly: list[str] = []

    def moved(self, cursor: str) -> None:
        """Hear of a cursor that comes with no event."""
        self.received = cursor
        if self._steps:
            self._steps.append(_Step(cursor, None))
        else:
            self.handled = cursor

    def came(self, event: Event) -> None:
        """Hear of an event that will be handled."""
        self.received = event.cursor
        step = _Step(event.cursor, event.event_id)
        self._steps.append(step)
        self._by_event[event] = step

    def dealt_with(self, event: Event, now: float, *, failed: bool, window_seconds: float) -> None:
        """Hear that the handlers of an event have returned, or that one has failed; ``now`` of any steady clock."""
        step = self._by_event.pop(event)
        step.done, step.failed = True, failed
        if self._blocked_until is not None and now >= self._blocked_until:
            self._blocked_until = None
        if failed:
            self._blocked_until = now + window_seconds
        elif self._blocked_until is not None and step.event_id is not None:
            self._singly.append(step.event_id)
        while self._steps and self._steps[0].done:
            passed = self._steps.popleft()
            self.handled = passed.cursor
            if self._blocked_until is None:
                self._to_acknowledge = passed.cursor

    def take_acknowledgement(self) -> tuple[str | None, list[str]]:
        """Return the cursor and the single events that are to be acknowledged now; they count as taken."""
        cursor, self._to_acknowledge = self._to_acknowledge, None
        singly, self._singly = self._singly[:1_000], self._singly[1_000:]
        return cursor, singly

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether something is to be acknowledged."""
        return self._to_acknowledge is not None or bool(self._singly)
