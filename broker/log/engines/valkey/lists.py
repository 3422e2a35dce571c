"""A long list on its way to the server: part by part, behind the heads of its accounts, and the log's with the last.

One step that stores ten thousand events keeps everybody at the server waiting, so it is many; `storing` says why a list
is stored whole or not at all even so. Accounts are taken in one order by all nodes, so of two lists that want the same
ones none waits for the other for ever.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import trio

from ....protocol.messages import PreparedEvent
from .calls import ACCOUNT_WEIGHT, BUSY_SECONDS, BusyError, Calls, LostError, Mark, MarkOf, ReusedError
from .link import RefusedError

PART: Final = 512
"""Events of one step, an account counting as some: some milliseconds of the server."""
PART_BYTES: Final = 262_144
"""Of their payloads, about."""
_STORED: Final = b"0"


class LongList:
    """One publish that brings much."""

    def __init__(
        self,
        calls: Calls,
        by_account: Mapping[str, Sequence[PreparedEvent]],
        mark: Mark | None,
        node: str,
        deadline: float,
    ) -> None:
        self._calls = calls
        self._by_account = {account_id: by_account[account_id] for account_id in sorted(by_account)}
        self._mark = mark
        self._deadline = deadline
        self._behind: dict[str, int] = {}
        """How many events stand behind the heads of its accounts."""
        self._begun: dict[str, None] = {}
        """Accounts that may be its own."""
        self.name = f"{node}:{secrets.token_hex(8)}"

    async def store(self) -> dict[str, list[bytes]]:
        """Store it; return what `Calls.append` does.

        Raises `BusyError`, if it is tried later; `LostError`, if it is to be stored anew; `ReusedError`; and as calls
        do. Then nothing of it is left, but if the link is lost.
        """
        places: dict[str, list[bytes]] = {}
        try:
            for part in _parts_of(self._by_account):
                for account_id, told in (await self._append(part)).items():
                    places.setdefault(account_id, []).extend(told)
                    behind = self._behind.get(account_id, 0)
                    self._behind[account_id] = behind + told[1::2].count(_STORED)
            await self._calls.finish(self.name, self._behind, self._mark)
        except (BusyError, LostError, ReusedError, RefusedError):
            await self._calls.take_back(self.name, list(self._begun))
            raise
        return places

    async def _append(self, part: Mapping[str, Sequence[PreparedEvent]]) -> dict[str, list[bytes]]:
        """Store a part; if that is another list's account, wait for it. Holding nothing, let others go on."""
        marks: dict[str, list[MarkOf]] = {}
        if self._mark is not None:
            marks = {account_id: [(1, len(events), *self._mark)] for account_id, events in part.items()}
        self._begun.update(dict.fromkeys(part))
        while True:
            try:
                return await self._calls.append(part, marks, self.name, begin=not self._behind)
            except BusyError:
                if not self._behind or trio.current_time() > self._deadline:
                    raise
                await trio.sleep(BUSY_SECONDS)

    async def trim(self) -> None:
        """Let what is too much since then leave the windows of its accounts."""
        await self._calls.trim(self._behind)


def _parts_of(by_account: Mapping[str, Sequence[PreparedEvent]]) -> Iterator[dict[str, Sequence[PreparedEvent]]]:
    """Yield a list in parts that each take about as long."""
    part: dict[str, list[PreparedEvent]] = {}
    weight = size = 0
    for account_id, events in by_account.items():
        weight += ACCOUNT_WEIGHT
        for event in events:
            if part and (weight >= PART or size >= PART_BYTES):
                yield dict(part)
                part, weight, size = {}, ACCOUNT_WEIGHT, 0
            part.setdefault(account_id, []).append(event)
            weight += 1
            size += len(event.payload)
    if part:
        yield dict(part)
