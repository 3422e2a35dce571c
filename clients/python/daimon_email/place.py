"""How far a client has come: what it has received, what is dealt with, what it knows already. Pure."""

from collections import OrderedDict, deque
from typing import Final

from .events import Event

MAX_KNOWN: Final = 10_000
MAX_SINGLY: Final = 1_000
"""Events of one acknowledgement (PROTOCOL section 4)."""


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

    def forget(self, event: Event) -> None:
        """Take it for new when it comes again."""
        self._ids.pop((event.inbox_id, event.event_id), None)


class _Step:
    __slots__ = ("covered", "cursor", "done", "event_id")

    def __init__(self, cursor: str, event_id: str | None) -> None:
        self.cursor = cursor
        self.event_id = event_id
        self.done = event_id is None
        self.covered = False
        """Whether the acknowledgement of a cursor is for it, too."""


class Place:
    """The cursors of one client.

    ``received`` is of the last frame that came: what came is kept, so a lost connection is opened again there.
    ``handled`` is of the last event before which all is dealt with: a program that starts again begins there.
    Acknowledged is a cursor as far as all before it is dealt with, and beyond it single events: those whose handlers
    have returned before an earlier one's, and all of the window after one that failed.
    """

    def __init__(self, cursor: str | None, *, acknowledges: bool = True) -> None:
        self.received = cursor
        self.handled = cursor
        self.acknowledges = acknowledges
        """Whether what is to be acknowledged is kept until it is taken."""
        self._steps: deque[_Step] = deque()
        self._by_event: dict[Event, _Step] = {}
        self._blocked_until: float | None = None
        self._to_acknowledge: str | None = None
        self._singly: list[_Step] = []
        self._given_back: list[str] = []

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

    def begin_again(self) -> list[Event]:
        """Go on from what is handled; return what had come beyond it and was not: it will come again."""
        undone = list(self._by_event)
        self._by_event.clear()
        self._steps.clear()
        self.received = self.handled
        return undone

    def dealt_with(self, event: Event, now: float, *, failed: bool, window_seconds: float) -> None:
        """Hear that the handlers of an event have returned, or that one has failed; ``now`` of any steady clock."""
        step = self._by_event.pop(event)
        step.done = True
        if self._blocked_until is not None and now >= self._blocked_until:
            self._blocked_until = None
        if failed:
            self._blocked_until = now + window_seconds
        elif self.acknowledges:
            self._singly.append(step)
        while self._steps and self._steps[0].done:
            passed = self._steps.popleft()
            self.handled = passed.cursor
            if self.acknowledges and self._blocked_until is None:
                self._to_acknowledge = passed.cursor
                passed.covered = True

    def take_acknowledgement(self) -> tuple[str | None, list[str]]:
        """Return the cursor and the single events that are to be acknowledged now; they count as taken."""
        cursor, self._to_acknowledge = self._to_acknowledge, None
        ids = self._given_back + [s.event_id for s in self._singly if not s.covered and s.event_id is not None]
        self._singly = []
        singly, self._given_back = ids[:MAX_SINGLY], ids[MAX_SINGLY:]
        return cursor, singly

    def give_back(self, cursor: str | None, event_ids: list[str]) -> None:
        """Owe again what was taken, and did not come to anything."""
        self._to_acknowledge = self._to_acknowledge or cursor
        self._given_back = event_ids + self._given_back

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether something is to be acknowledged."""
        return self._to_acknowledge is not None or bool(self._singly) or bool(self._given_back)
