"""Who gets a slot, and who loses one: takeover by `client_id`, and ghosts (PROTOCOL sections 1 and 2)."""

from typing import Final

from .access import MAX_CONNECTIONS, Key
from .errors import CloseCode, RequestError
from .slots import Slot, Slots

GHOST_SECONDS: Final = 5.0
"""How long the quietest connection may take to show that its client is there."""
RETRY_MS: Final = 5_000


async def admit(slots: Slots, key: Key, client_id: str | None) -> Slot:
    """Take a slot for a new connection; no checkpoint lies between that and the return.

    A connection of the same key and `client_id` is ended, and where no slot is free, the account's quietest connection
    if its client shows no life. Raises `RequestError` (`connection_limit`).
    """
    slot = _take(slots, key, client_id)
    if slot is None:
        await _end_ghost(slots, str(key.account_id))
        slot = _take(slots, key, client_id)
    if slot is None:
        message = f"The account has all the {MAX_CONNECTIONS[key.tier]} connections of its tier `{key.tier}`"
        raise RequestError("connection_limit", message, retry_after_ms=RETRY_MS)
    return slot


def _take(slots: Slots, key: Key, client_id: str | None) -> Slot | None:
    name = None if client_id is None else (key.sha256, client_id)
    slot, replaced = slots.take(str(key.account_id), MAX_CONNECTIONS[key.tier], name)
    if replaced is not None and replaced.holder is not None:
        replaced.holder.end(CloseCode.REPLACED, "replaced by a newer connection of the same client_id")
    return slot


async def _end_ghost(slots: Slots, account_id: str) -> None:
    """End the quietest connection of an account if its client shows no life."""
    quietest = min(slots.holders(account_id), key=lambda holder: holder.last_sign_of_life(), default=None)
    if quietest is not None and not await quietest.shows_life(GHOST_SECONDS):
        quietest.end(CloseCode.HEARTBEAT_MISSED, "no sign of life while another connection waited")
