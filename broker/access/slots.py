"""Slots: how many connections an account has, and who has the slot of a `client_id` (PROTOCOL sections 1 and 2).

Pure. A slot has one holder. `Slots.take` counts and takes in one step; a takeover gives the name to a new slot in the
same step, and from then on the release of the old one does nothing. Beside the slots that its tier counts, an account
has one for a look (`watch=1`), which is taken over in the same way.
"""

from enum import Enum
from typing import Final, Literal, Protocol

from msgspec import Struct

from ..errors import CloseCode

SlotName = tuple[str, str]
"""Who the client is (`Key.identity`), and its `client_id`."""


class _Look(Enum):
    """The name of an account's one look."""

    LOOK = "look"


LOOK: Final = _Look.LOOK
"""Takes the slot that no tier counts, from whoever has it."""
Name = SlotName | Literal[_Look.LOOK]


class Holder(Protocol):
    """What has a slot: a connection."""

    def last_heard(self) -> float:
        """Return when something was last read from the client, by trio's clock (seconds)."""
        ...

    def ask_for_life(self) -> None:
        """Ping the client."""
        ...

    def lived_since(self, moment: float) -> bool:
        """Whether the client, or its TCP, has shown life since it was asked to, at this moment."""
        ...

    def end(self, code: CloseCode, why: str) -> None:
        """End it, and release its slot."""
        ...


class Elsewhere(Protocol):
    """What goes with a slot elsewhere: its claim among nodes."""

    def release(self) -> None:
        """Give it back."""
        ...


class Slot:
    """One connection's place in its account. `release` it in the end, as often as you like."""

    __slots__ = ("_of_account", "claim", "holder", "key")

    def __init__(self, of_account: "_AccountSlots", name: Name | None) -> None:
        self._of_account = of_account
        self.key: object = name or object()
        self.holder: Holder | None = None
        """Set as soon as there is a connection, with no checkpoint since the slot was taken, until the release."""
        self.claim: Elsewhere | None = None

    def release(self) -> None:
        """Give the place back, unless it was given back or taken over."""
        self._of_account.release(self)
        self.holder = None
        if self.claim is not None:
            self.claim.release()


class _AllSlots(dict[str, "_AccountSlots"]):
    """The slots of all accounts that have any, and how many these are."""

    taken = 0


class _AccountSlots(dict[object, Slot]):
    """The slots of one account by their keys: a name, or an object of its own."""

    def __init__(self, account_id: str, accounts: _AllSlots) -> None:
        self._account_id = account_id
        self._accounts = accounts

    def release(self, slot: Slot) -> None:
        if self.get(slot.key) is slot:
            del self[slot.key]
            self._accounts.taken -= 1
            if not self:
                del self._accounts[self._account_id]

    @property
    def counted(self) -> int:
        """How many its tier counts."""
        return len(self) - (LOOK in self)


class SlotsStatistics(Struct, frozen=True):
    """How many slots are taken."""

    accounts: int
    """Accounts that have at least one."""
    connections: int
    """All slots that are taken."""


class Slots:
    """The slots of all accounts. Nothing is kept of an account that has none."""

    def __init__(self) -> None:
        self._accounts = _AllSlots()

    def take(self, account_id: str, limit: int | None, name: Name | None = None) -> tuple[Slot | None, Slot | None]:
        """Take a slot of an account that may have ``limit`` (None: any number); a name's own slot is always free to it.

        Returns the slot, or None if none is free; and the slot that has lost this name, whose holder is to be ended.
        """
        of_account = self._accounts.get(account_id) or _AccountSlots(account_id, self._accounts)
        replaced = None if name is None else of_account.get(name)
        if replaced is None and name is not LOOK and limit is not None and of_account.counted >= limit:
            return None, None
        slot = Slot(of_account, name)
        of_account[slot.key] = slot
        self._accounts.taken += replaced is None
        self._accounts[account_id] = of_account
        return slot, replaced

    async def settled(self) -> None:
        """Wait until what was released is free for whoever comes, wherever that is."""

    def holders(self, account_id: str) -> list[Holder]:
        """Return who has the slots of an account that its tier counts."""
        slots = self._accounts.get(account_id, {}).values()
        return [slot.holder for slot in slots if slot.holder is not None and slot.key is not LOOK]

    def statistics(self) -> SlotsStatistics:
        """Return how many are taken."""
        return SlotsStatistics(len(self._accounts), self._accounts.taken)
