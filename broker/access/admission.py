"""Who gets a slot, and who loses one: takeover by `client_id`, looks, and ghosts (PROTOCOL sections 1 and 2)."""

from collections.abc import Callable
from typing import Final

import trio

from ..errors import CloseCode, RequestError
from .keys import MAX_CONNECTIONS, Key
from .opening import Opening
from .slots import LOOK, Holder, Slot, Slots

GHOST_SECONDS: Final = 5.0
"""How long the quietest connection may take to show that its client is there."""
SILENT_SECONDS: Final = 40.0
"""Nothing read for so long: only the client itself can show that it is there. Its TCP may be that of a proxy."""
RETRY_MS: Final = 5_000
_FIRST_LOOK_SECONDS: Final = 0.02
_LONGEST_LOOK_SECONDS: Final = 0.25

Judge = Callable[[], tuple[Key, Opening]]
"""Says what a client's credential and query are worth in this very step. Raises `RequestError`."""


async def admit(slots: Slots, judge: Judge) -> tuple[Key, Opening, Slot]:
    """Judge a client and take a slot for it in one step; no checkpoint lies between that and the return.

    A connection of the same key and `client_id` is ended, and by a look the account's other one. Where no slot is free,
    the account's quietest connection is pinged, and ended if its client shows no life. Raises `RequestError`:
    `connection_limit`, and what ``judge`` raises.
    """
    key, opening = judge()
    slot = _take(slots, key, opening)
    if slot is not None:
        return key, opening, slot
    quietest = min(slots.holders(str(key.account_id)), key=lambda holder: holder.last_heard())
    asked_at, pause = trio.current_time(), _FIRST_LOOK_SECONDS
    quietest.ask_for_life()
    while True:
        await trio.sleep_until(min(trio.current_time() + pause, asked_at + GHOST_SECONDS))
        pause = min(2 * pause, _LONGEST_LOOK_SECONDS)
        key, opening = judge()
        lives, at_last = _lives(quietest, asked_at), trio.current_time() >= asked_at + GHOST_SECONDS
        if at_last and not lives:
            quietest.end(CloseCode.HEARTBEAT_MISSED, "no sign of life while another connection waited")
        slot = _take(slots, key, opening)
        if slot is not None:
            return key, opening, slot
        if at_last or lives:
            raise _full(key)


def _lives(holder: Holder, asked_at: float) -> bool:
    return trio.current_time() - holder.last_heard() < SILENT_SECONDS and holder.lived_since(asked_at)


def _take(slots: Slots, key: Key, opening: Opening) -> Slot | None:
    account_id, limit = str(key.account_id), MAX_CONNECTIONS[key.tier]
    if opening.watch:
        slot, replaced = slots.take(account_id, limit, LOOK)
        why = "replaced by a newer look at the account"
    else:
        name = None if opening.client_id is None else (key.identity, opening.client_id)
        slot, replaced = slots.take(account_id, limit, name)
        why = "replaced by a newer connection of the same client_id"
    if replaced is not None and replaced.holder is not None:
        replaced.holder.end(CloseCode.REPLACED, why)
    return slot


def _full(key: Key) -> RequestError:
    message = f"The account has all the {MAX_CONNECTIONS[key.tier]} connections of its tier `{key.tier}`"
    return RequestError("connection_limit", message, retry_after_ms=RETRY_MS)
