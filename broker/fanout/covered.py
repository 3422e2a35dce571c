"""The events that an `ack` or a `hold` is for: those of a cursor, and those of ids. And how many these are.

Pure. What is said here does not change, so that another thread may ask it, too.
"""

from collections.abc import Generator, Sequence
from typing import Final

from msgspec import Struct

from ..log.replay import ReplayBuffer
from ..protocol.messages import Entry
from ..protocol.selection import Selection, TypeFilter
from .follower import READ_EVENTS

SLICE_IDS: Final = 256
"""Ids that are looked for in one step, or events of one id."""
_NO_BYTES: Final = 1 << 62

Counting = Generator[None, None, int]
"""The steps of counting, and in the end the number."""


class Stretch(Struct, frozen=True):
    """Events after one position and up to another, of a selection and of some types (None: of all)."""

    after: int
    through: int
    selection: Selection
    types: TypeFilter | None

    def covers(self, position: int, inbox: str, kind: str) -> bool:
        """Whether an event is one of them."""
        return (
            self.after < position <= self.through
            and inbox in self.selection
            and (self.types is None or self.types.accepts(kind))
        )


class Covered(Struct, frozen=True):
    """The events of some stretches, and those of some ids whose inbox is in reach."""

    stretches: Sequence[Stretch]
    event_ids: frozenset[str]
    reach: Selection
    known: str = ""
    """The cursor up to which the log was known when this was asked."""

    def by_cursor(self, position: int, inbox: str, kind: str) -> bool:
        """Whether an event is in one of the stretches."""
        return any(stretch.covers(position, inbox, kind) for stretch in self.stretches)

    @property
    def after(self) -> int:
        """Before the first event of all stretches."""
        return min((stretch.after for stretch in self.stretches), default=0)

    @property
    def through(self) -> int:
        """Where the last stretch ends."""
        return max((stretch.through for stretch in self.stretches), default=0)

    def count(self, buffer: ReplayBuffer) -> Counting:
        """Count the events that the window holds, each once; stretches have none in common."""
        by_cursor = yield from self._count_by_cursor(buffer)
        by_ids = yield from self._count_by_ids(buffer)
        return by_cursor + by_ids

    def _count_by_cursor(self, buffer: ReplayBuffer) -> Counting:
        counted = 0
        for number, stretch in enumerate(self.stretches):
            position = stretch.after
            if number:
                yield
            while position < stretch.through:
                entries, position = buffer.read(
                    stretch.selection, position, stretch.through, max_events=READ_EVENTS, max_bytes=_NO_BYTES
                )
                types = stretch.types
                counted += len(entries) if types is None else sum(types.accepts(entry.type) for entry in entries)
                if position < stretch.through:
                    yield
        return counted

    def _count_by_ids(self, buffer: ReplayBuffer) -> Counting:
        counted = looked_at = 0
        for event_id in self.event_ids:
            looked_at += 1
            for entry in buffer.of_id(event_id):
                looked_at += 1
                counted += self._only_by_id(entry)
                if looked_at >= SLICE_IDS:
                    looked_at = 0
                    yield
        return counted

    def _only_by_id(self, entry: Entry) -> bool:
        return entry.inbox in self.reach and not self.by_cursor(entry.position, entry.inbox, entry.type)
