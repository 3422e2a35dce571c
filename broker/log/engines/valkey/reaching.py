"""What a node reads back of an account because somebody starts in the past: older events, and where others were.

It is read backward, in pages, from where the log here begins: as far as is asked for and the server holds it; what the
window here would drop at once is not read. Of one account one reading is under way at a time.
"""

from datetime import datetime
from typing import Final

import trio

from ....config import ReplayConfig
from ....protocol.names import Duration, parse_since
from ...dropped import Dropped
from ...replay import Mark, ReplayBuffer
from ...retention import ReplayBuffers
from .. import Log
from . import dropped_of, entry_of
from .appending import DEADLINE_SECONDS
from .link import Link, LinkLostError, unavailable
from .scripts import INDEX, READ_BACK
from .tail import INDEX_ITEMS, PAGE_BYTES, PAGE_EVENTS, Held, Tail

_MARGIN_SECONDS: Final = 5.0
"""So much more than a duration says is looked back: who asked has looked at his clock before."""


class Reaching:
    """Reads back into the logs of accounts that are followed."""

    def __init__(self, link: Link, buffers: ReplayBuffers, log: Log, tail: Tail, replay: ReplayConfig) -> None:
        self._link = link
        self._buffers = buffers
        self._log = log
        self._tail = tail
        self._seconds = replay.seconds

    async def reach(self, account_id: str, since: str | int) -> None:
        """Let the log of an account hold what came after ``since``, as far as there is any. Raises `RequestError`."""
        held = self._tail.held(account_id)
        if held is None:
            return
        try:
            async with held.reaching:
                await self._reach(held, since)
        except LinkLostError:
            raise unavailable("The broker has just lost its engine") from None

    async def _reach(self, held: Held, since: str | int) -> None:
        buffer = self._buffers.open(held.account_id)
        position: int | None = since if isinstance(since, int) else None
        moment: float | None = None
        if isinstance(since, str):
            meaning = parse_since(since)
            if isinstance(meaning, Duration):
                moment = trio.current_time() - meaning.seconds - _MARGIN_SECONDS
            elif isinstance(meaning, datetime):
                moment = self._link.moment(meaning.timestamp()) - _MARGIN_SECONDS
            else:
                position = buffer.position_said(meaning)
        if position is not None and position > buffer.head:
            with trio.move_on_after(DEADLINE_SECONDS):
                await self._tail.caught_up(held)
            return
        await self._read_back(held, buffer, position, moment)
        if position is not None or moment is not None:
            await self._read_index(held, buffer, position, moment)

    async def _read_back(self, held: Held, buffer: ReplayBuffer, position: int | None, moment: float | None) -> None:
        """Read older events, down to a position or to before a moment (neither: all that the server holds)."""
        link, prefix = self._link, buffer.cursor_prefix
        keys = [link.names.of_account(kind, held.account_id) for kind in "ms"]
        while position is None or buffer.dropped_through > position:
            through = buffer.dropped_through
            answer = await link.run(READ_BACK, keys, [link.generation, through, PAGE_EVENTS, PAGE_BYTES])
            if buffer.cursor_prefix != prefix or buffer.dropped_through != through:
                return  # it is another log, or drops more than is read
            cut = trio.current_time() - self._seconds
            entries = [entry_of(line, link.moment) for line in answer[3]]
            young = [entry for entry in entries if entry.stored_at >= cut]
            if not young or young[-1].position != through:
                return
            first = young[0]
            self._log.prepend(held.account_id, young, Mark(first.position - 1, first.stored_at, first.wall))
            if len(young) < len(entries) or buffer.dropped_through >= first.position:
                return
            if moment is not None and first.stored_at < moment:
                return

    async def _read_index(self, held: Held, buffer: ReplayBuffer, position: int | None, moment: float | None) -> None:
        """Read where events were that are not held any more, down to a position, or to before a moment."""
        link, prefix = self._link, buffer.cursor_prefix
        keys = [link.names.of_account(kind, held.account_id) for kind in "mx"]
        while True:
            through = buffer.known_after
            enough = position is not None and through <= position
            if enough or (moment is not None and buffer.position_before(moment) is not None):
                return
            answer = await link.run(INDEX, keys, [link.generation, through, position or 0, INDEX_ITEMS])
            birth, after = int(answer[1]), int(answer[2])
            if buffer.cursor_prefix != prefix or buffer.known_after != through:
                return
            page = [dropped_of(item, after + n, link.moment) for n, item in enumerate(answer[3], start=1)]
            if not page and through > birth:
                return
            self._log.remember(held.account_id, page, _before(page, after, birth))
            if after <= birth or buffer.known_after >= through:
                return


def _before(page: list[Dropped], after: int, birth: int) -> Mark:
    """Return what is known of the event before a page: nothing was there before the account was born."""
    if after <= birth or not page:
        return Mark(after)
    return Mark(after, page[0].stored_at, page[0].wall)
