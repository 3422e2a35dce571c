"""Saying to the broker what is dealt with, and what is being worked on (PROTOCOL sections 4 and 9)."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio

from .errors import CommandError, DaimonError
from .events import Event
from .place import Place

ACK_SECONDS: Final = 1.0
HOLD_AFTER_SECONDS: Final = 10.0
HOLD_SECONDS: Final = 60.0
HOLD_EVERY_SECONDS: Final = 20.0
_NOT_FOR_US: Final = frozenset({"unknown_action", "forbidden"})
"""Of a broker that knows no acknowledgements, or a key that may not."""

Give = Callable[[str, Mapping[str, Any], float], Awaitable[Any]]
"""Gives a command, by its action, its fields and its timeout."""


class Acknowledging:
    """The acknowledgements and holds of one client."""

    def __init__(self, place: Place, give: Give) -> None:
        self._place = place
        self._give = give
        self.possible = True
        """Whether the broker takes them."""

    async def run(self, connected: Callable[[], bool]) -> None:
        """Acknowledge once a second, for ever, while ``connected`` says so."""
        while True:
            await anyio.sleep(ACK_SECONDS)
            if connected():
                await self.acknowledge()

    async def acknowledge(self, timeout: float = HOLD_AFTER_SECONDS) -> None:
        """Acknowledge all that is dealt with. What does not come to anything is tried again with the next."""
        if not (self.possible and self._place.owes_acknowledgement):
            return
        cursor, event_ids = self._place.take_acknowledgement()
        fields: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        if event_ids:
            fields["event_ids"] = event_ids
        if not await self._try("ack", fields, timeout):
            self._place.give_back(cursor, event_ids)

    async def hold(self, event: Event) -> None:
        """Hold an event for as long as it is handled; to be cancelled then."""
        await anyio.sleep(HOLD_AFTER_SECONDS)
        while self.possible:
            fields = {"event_ids": [event.event_id], "seconds": HOLD_SECONDS}
            await self._try("hold", fields, HOLD_EVERY_SECONDS)
            await anyio.sleep(HOLD_EVERY_SECONDS)

    async def _try(self, action: str, fields: Mapping[str, Any], timeout: float) -> bool:
        """Give a command; return whether it was answered, be it with a refusal."""
        try:
            await self._give(action, fields, timeout)
        except CommandError as error:
            self.possible = self._place.acknowledges = error.code not in _NOT_FOR_US
        except DaimonError:
            return False
        return True
