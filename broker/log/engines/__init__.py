"""What stores and orders events: the `Engine` protocol. Its implementations are the modules beside this one.

An engine promises: events of one account have one order; an event id that its window still holds is not stored
again; `append` returns when the events are stored as durably as the engine says it does; a cancelled or failed
`append` has stored all of its events or none.
"""

from typing import Protocol

from msgspec import Struct

from ...protocol.messages import PreparedEvent


class Stored(Struct, frozen=True, gc=False):
    """Where an event is. ``duplicate``: it was there before, and stays as it was."""

    event_id: str
    cursor: str
    duplicate: bool


class Engine(Protocol):
    """What every engine does."""

    async def append(self, account_id: str, events: list[PreparedEvent]) -> list[Stored]:
        """Store events of one account in one step, in their order; say where each is."""
        ...

    def append_nowait(self, account_id: str, events: list[PreparedEvent]) -> list[Stored] | None:
        """Do the same in one synchronous step; None, and nothing is stored, if this engine must wait for it."""
        ...
