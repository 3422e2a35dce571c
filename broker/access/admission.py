"""Who gets a slot, and who loses one: takeover by `client_id`, looks, and ghosts (PROTOCOL sections 1 and 2)."""

from collections.abc import Callable
from typing import Final

import trio

from ..budget import Budget, Held
from ..errors import CloseCode, RequestError
from .claims import REPLACED, REPLACED_LOOK, Claim, NodeSlots
from .keys import MAX_CONNECTIONS, Key
from .opening import Opening
from .slots import LOOK, Holder, Name, Slot, Slots

GHOST_SECONDS: Final = 5.0
"""How long the quietest connection may take to show that its client is there."""
SILENT_SECONDS: Final = 40.0
"""Nothing read for so long: only the client itself can show that it is there. Its TCP may be that of a proxy."""
NODE_SECONDS: Final = 1.0
"""How much longer another node may take to end one of its own."""
RETRY_MS: Final = 5_000
_NO_LIFE: Final = "no sign of life while another connection waited"
_FIRST_LOOK_SECONDS: Final = 0.02
_LONGEST_LOOK_SECONDS: Final = 0.25

Judge = Callable[[], tuple[Key, Opening]]
"""Says what a client's credential and query are worth in this very step. Raises `RequestError`."""


async def admit(slots: Slots, names: Budget, judge: Judge) -> tuple[Key, Opening, Slot, Held]:
    """Judge a client, take a slot for it and hold what it names, in one step.

    No checkpoint lies between that and the return. A connection of the same key and `client_id` is ended, and by
    a look the account's other one. Where no slot is free, the account's quietest connection is pinged, and ended if its
    client shows no life. Raises `RequestError`: `connection_limit`, `unavailable` where slots are shared by nodes or
    ``names`` have no room, and what ``judge`` raises.
    """

    def has_room() -> tuple[Key, Opening]:
        key, opening = judge()
        names.require(key.account_id, opening.named_bytes)  # who is refused replaces nobody
        return key, opening

    key, opening, slot = await _admit(slots, has_room)
    return key, opening, slot, names.hold(key.account_id, opening.named_bytes)


async def _admit(slots: Slots, judge: Judge) -> tuple[Key, Opening, Slot]:
    key, opening = judge()
    is_counted = MAX_CONNECTIONS[key.tier] is not None or _name_of(key, opening) is not None
    if isinstance(slots, NodeSlots) and is_counted:
        return await _admit_among_nodes(slots, judge, key, opening)
    slot = _take(slots, key, opening)
    if slot is not None:
        return key, opening, slot
    quietest = min(slots.holders(str(key.account_id)), key=lambda holder: holder.last_heard())
    asked_at, pause = trio.current_time(), _FIRST_LOOK_SECONDS
    quietest.ask_for_life()
    while True:
        pause = await _rest(pause, asked_at + GHOST_SECONDS)
        key, opening = judge()
        lives, at_last = _lives(quietest, asked_at), trio.current_time() >= asked_at + GHOST_SECONDS
        if at_last and not lives:
            quietest.end(CloseCode.HEARTBEAT_MISSED, _NO_LIFE)
        slot = _take(slots, key, opening)
        if slot is not None:
            return key, opening, slot
        if at_last or lives:
            raise _full(key)


async def _admit_among_nodes(slots: NodeSlots, judge: Judge, key: Key, opening: Opening) -> tuple[Key, Opening, Slot]:
    """Do the same where the account's connections are at many nodes, which share what they count."""
    claim = Claim(slots, str(key.account_id), MAX_CONNECTIONS[key.tier], _name_of(key, opening))
    try:
        full = await slots.claim(claim)
        if full is not None:
            full = await _after_a_ghost(slots, judge, claim, full)
        key, opening = judge()  # it may have been revoked meanwhile
        if full is not None:
            raise _full(key)
    except BaseException:
        claim.release()
        raise
    # No name: the server alone knows who came last. Its answers come in any order, so that none of this node's
    # connections may be ended for another of them but by its word.
    slot, _ = slots.take(claim.account_id, None)
    assert slot is not None
    slots.admit(claim, slot)
    return key, opening, slot


async def _after_a_ghost(slots: NodeSlots, judge: Judge, claim: Claim, full: list[str]) -> list[str] | None:
    """Have the quietest connection examined, wherever it is; make the claim if that ends. Returns who has the slots."""
    suspect = await slots.suspect(full)
    try:
        asked_at, pause = trio.current_time(), _FIRST_LOOK_SECONDS
        local = suspect.holder
        if local is not None:
            local.ask_for_life()
        while True:
            pause = await _rest(pause, asked_at + GHOST_SECONDS + NODE_SECONDS)
            judge()
            passed = trio.current_time() - asked_at
            lives = suspect.lives if local is None else _lives(local, asked_at)
            if local is not None and passed >= GHOST_SECONDS and not lives:
                local.end(CloseCode.HEARTBEAT_MISSED, _NO_LIFE)
            still = await slots.claim(claim)
            if still is None or lives or passed >= GHOST_SECONDS + NODE_SECONDS:
                return still
    finally:
        slots.forget(suspect)


async def examine(holder: Holder) -> bool:
    """Ask a connection's client for life, and end it if there is none in 5 s. Returns whether there was."""
    asked_at, pause = trio.current_time(), _FIRST_LOOK_SECONDS
    holder.ask_for_life()
    while trio.current_time() < asked_at + GHOST_SECONDS:
        pause = await _rest(pause, asked_at + GHOST_SECONDS)
        if _lives(holder, asked_at):
            return True
    holder.end(CloseCode.HEARTBEAT_MISSED, _NO_LIFE)
    return False


async def _rest(pause: float, until: float) -> float:
    """Let so much time pass before the next look, at most until then; return how much it is after that."""
    await trio.sleep_until(min(trio.current_time() + pause, until))
    return min(2 * pause, _LONGEST_LOOK_SECONDS)


def _lives(holder: Holder, asked_at: float) -> bool:
    return trio.current_time() - holder.last_heard() < SILENT_SECONDS and holder.lived_since(asked_at)


def _take(slots: Slots, key: Key, opening: Opening) -> Slot | None:
    """Take a slot of this process, if its tier has one left."""
    slot, replaced = slots.take(str(key.account_id), MAX_CONNECTIONS[key.tier], _name_of(key, opening))
    if replaced is not None and replaced.holder is not None:
        replaced.holder.end(CloseCode.REPLACED, REPLACED_LOOK if opening.watch else REPLACED)
    return slot


def _name_of(key: Key, opening: Opening) -> Name | None:
    """Return what a connection's slot is known by; None: by nothing."""
    if opening.watch:
        return LOOK
    return None if opening.client_id is None else (key.identity, opening.client_id)


def _full(key: Key) -> RequestError:
    message = f"The account has all the {MAX_CONNECTIONS[key.tier]} connections of its tier `{key.tier}`"
    return RequestError("connection_limit", message, retry_after_ms=RETRY_MS)
