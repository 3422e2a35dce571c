"""The scripts that store, as a node calls them: what goes with each, and what it says."""

from collections.abc import Mapping, Sequence
from typing import Final

import trio

from ....config import ReplayConfig
from ....protocol.messages import ENTRY_OVERHEAD_BYTES, PreparedEvent
from ...replay import cursor_prefix_of
from . import pages_of
from .link import Link
from .storing import APPEND, FINISH, TAKE_BACK, TRIM

PUBLISHED_BYTES: Final = 65_536
"""Up to so much a node hears of events by itself; of more it hears that they are there."""
META_MS: Final = 7 * 86_400_000
KNOWN_MS: Final = 3_900_000
"""How long the index outlives the window."""
LIST_MS: Final = 3_000
"""How long a list lives of which no part comes any more."""
BUSY_SECONDS: Final = 0.01
"""After which it is tried again to store what is for an account of which a list is being written."""
ACCOUNT_WEIGHT: Final = 4
"""What an account costs beside its events, in events."""
_ACCOUNTS: Final = 128
"""Of which some is taken back, or leaves their windows, in one call."""
_LINE_OVERHEAD: Final = ENTRY_OVERHEAD_BYTES - 60
_STEP_BYTES: Final = 65_536
"""That are written out before others have their turn."""
_ACCOUNT_BYTES: Final = 1_024
"""What an account costs beside its events, in bytes of these."""

Mark = tuple[bytes, bytes]
"""Whose a publish is that may be sent again, and what stands for its content."""
MarkOf = tuple[int, int, bytes, bytes]
"""The same, after the first and the last of its events (from 1) among those of an account."""


class BusyError(Exception):
    """Nothing is stored: lists are being written for some accounts."""

    def __init__(self, account_ids: Sequence[str]) -> None:
        super().__init__(", ".join(account_ids))
        self.account_ids = account_ids


class LostError(Exception):
    """A list is not the log's, and lives no more: its node was away for too long, or the server has lost it."""


class ReusedError(Exception):
    """A list came before with other content. What was stored of it is to be taken back."""


class Calls:
    """Of one node. Each call raises `LinkLostError`, and `RefusedError` where nothing was stored."""

    def __init__(self, link: Link, replay: ReplayConfig) -> None:
        self._link = link
        self._window_ms = int(replay.seconds * 1_000)
        self._limits = (self._window_ms, replay.max_events_per_account, replay.max_bytes_per_account)
        self.number = 0
        """Of those that stored something."""
        self.events = 0
        """Events that went with them."""

    def prefix_of(self, account_id: str) -> str:
        """Return what the cursors of an account begin with."""
        return cursor_prefix_of(account_id, self._link.generation.encode())

    async def append(
        self,
        by_account: Mapping[str, Sequence[PreparedEvent]],
        marks: Mapping[str, Sequence[MarkOf]],
        of_list: str = "",
        *,
        begin: bool = False,
    ) -> dict[str, list[bytes]]:
        """Store events of some accounts in one step; or, behind their heads, a part of a list, maybe its first.

        Returns two words of each event, by account: its position, and 1 if it was there before, 2 if its publish came
        before with other content. Raises `BusyError`; of a list also `LostError` and `ReusedError`.
        """
        link, written = self._link, 0
        keys = [link.names.generation]
        arguments: list[str | bytes | int] = [link.generation, link.candidate(), *self._limits]
        arguments += [META_MS, self._window_ms + KNOWN_MS, PUBLISHED_BYTES, _LINE_OVERHEAD]
        arguments += [link.names.long_list(""), of_list, LIST_MS, "begin" if begin else ""]
        for account_id, events in by_account.items():
            keys += [link.names.of_account(kind, account_id) for kind in "msdxqp"]
            of_account = marks.get(account_id, ())
            pages = []
            for page in pages_of(events, self.prefix_of(account_id)):
                pages.append(page)
                written += _ACCOUNT_BYTES + len(page)
                if written > _STEP_BYTES:
                    written = 0
                    await trio.lowlevel.checkpoint()
            words = [word for mark in of_account for word in mark]
            arguments += [link.names.events(account_id), len(pages), len(of_account), *words, *pages]
        answer = await link.run(APPEND, keys, arguments)
        self._require_stored(answer, list(by_account))
        self.number += 1
        self.events += sum(map(len, by_account.values()))
        return {account_id: told.split() for account_id, told in zip(by_account, answer, strict=True)}

    async def finish(self, of_list: str, behind: Mapping[str, int], mark: Mark | None) -> None:
        """Make a list the log's; ``behind``: how many events it has put behind the head of each of its accounts.

        Raises `LostError`.
        """
        link = self._link
        keys = [link.names.generation, link.names.long_list(of_list)]
        arguments: list[str | bytes | int] = [link.generation, link.candidate(), of_list, self._window_ms]
        arguments += mark or ("", "")
        for account_id, number in behind.items():
            keys += [link.names.of_account(kind, account_id) for kind in "msdqp"]
            arguments += [number, link.names.events(account_id)]
        self._require_stored(await link.run(FINISH, keys, arguments), [])

    async def take_back(self, of_list: str, account_ids: Sequence[str]) -> None:
        """End a list, if it is not the log's, and take back what it has put behind the heads of accounts."""
        link = self._link
        for start in range(0, len(account_ids), _ACCOUNTS):
            keys = [link.names.long_list(of_list)]
            for account_id in account_ids[start : start + _ACCOUNTS]:
                keys += [link.names.of_account(kind, account_id) for kind in "msdx"]
            while await link.run(TAKE_BACK, keys, [of_list]):
                pass

    async def trim(self, keep: Mapping[str, int]) -> None:
        """Let what is too much leave the windows of accounts, but for so many of the last events of each."""
        link, account_ids = self._link, list(keep)
        for start in range(0, len(account_ids), _ACCOUNTS):
            some = account_ids[start : start + _ACCOUNTS]
            keys = [link.names.generation]
            for account_id in some:
                keys += [link.names.of_account(kind, account_id) for kind in "msd"]
            arguments = (link.generation, link.candidate(), *self._limits, _LINE_OVERHEAD)
            while await link.run(TRIM, keys, [*arguments, *(keep[account_id] for account_id in some)]):
                pass

    def _require_stored(self, answer: Sequence[bytes], account_ids: Sequence[str]) -> None:
        if answer[0] == b"busy":
            raise BusyError([account_ids[int(number) - 1] for number in answer[1:]])
        if answer[0] == b"lost":
            raise LostError
        if answer[0] == b"reused":
            raise ReusedError
