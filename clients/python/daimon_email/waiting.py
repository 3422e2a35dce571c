"""What a wait for one event came to."""

from collections.abc import Sequence
from dataclasses import dataclass

from .events import Event, Fields


@dataclass(frozen=True)
class Found:
    """The event that a wait found, and what was read out of it.

    ``codes`` and ``links`` are candidates, the likeliest first: a stranger wrote the mail.
    """

    event: Event
    cursor: str
    codes: Sequence[str] = ()
    links: Sequence[Fields] = ()

    @property
    def message(self) -> Fields:
        """What a handler of the event would get: the message, or the payload."""
        return self.event.subject
