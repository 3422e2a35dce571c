"""Which of the work that waits is in the next commit: in its order, but none waits for all that others have brought.

Pure. A list of ten thousand events is one piece of work, and takes as long as a hundred commits of others: who writes
it does so in parts, with others' work beside. An account that had more than its share lately lets others go first, for
as many commits as that was worth; while nobody else is there it costs nothing. What is for one account is never done
in another order than it came.
"""

from collections.abc import Collection, Sequence
from typing import Final, Protocol, TypeVar

GROUP_WEIGHT: Final = 1_024
"""Rows that one commit has, about; a single piece of work may have more. Who had as many lets others go first."""
SHARE: Final = 512
"""Rows of one account after which it is others' turn: they are looked for then, and have a commit with them."""
ALONE: Final = 2_048
"""Rows of one that is of one account, about: it goes on while nobody else comes."""
LONG: Final = 512
"""A piece of work of so many rows is the last one of its commit, or alone in it, and one at a time is written."""


class Weighed(Protocol):
    """A piece of work: how many rows it is, about, and of which accounts; none: it waits for nobody."""

    @property
    def weight(self) -> int:
        """Rows."""
        ...

    @property
    def owners(self) -> Sequence[str]:
        """Accounts."""
        ...


W = TypeVar("W", bound=Weighed)


class Shares:
    """What accounts had of the commits so far, as far as it was more than their share."""

    def __init__(self, group_weight: int = GROUP_WEIGHT, share: int = SHARE, *, long_alone: bool = False) -> None:
        self._group_weight = group_weight
        self._share = share
        self._long_alone = long_alone
        self._debts: dict[str, int] = {}

    def choose(
        self, waiting: Sequence[W], beside: Collection[str] = (), *, short: bool = False
    ) -> tuple[list[W], list[W]]:
        """Return what is next, at least one piece if any may be, and what goes on waiting, in its order.

        ``beside``: accounts for which nothing may be done now. ``short``: nothing long is next.
        """
        others = frozenset(beside)
        chosen, rest = self._of_whose_turn_it_is(waiting, others, short)
        if not chosen and any(_may_go(work, others, short) for work in rest):
            # All that wait have had more than their share: then nobody is kept waiting by them.
            self._debts.clear()
            chosen, rest = self._of_whose_turn_it_is(waiting, others, short)
        self._note(chosen)
        return chosen, rest

    def _of_whose_turn_it_is(
        self, waiting: Sequence[W], beside: frozenset[str], short: bool
    ) -> tuple[list[W], list[W]]:
        """Return the work of those who have no debts, up to each one's share, and the rest."""
        chosen: list[W] = []
        rest: list[W] = []
        total = 0
        spent: dict[str, int] = {}
        stopped = set(self._debts)
        for work in waiting:
            is_full = total >= self._group_weight or (bool(chosen) and chosen[-1].weight >= LONG)
            is_late = self._long_alone and bool(chosen) and work.weight >= LONG
            if is_full or is_late or not stopped.isdisjoint(work.owners) or not _may_go(work, beside, short):
                stopped.update(work.owners)  # what is for these, too, comes after it
                rest.append(work)
                continue
            chosen.append(work)
            total += work.weight
            for owner in work.owners:
                spent[owner] = spent.get(owner, 0) + work.weight
                if spent[owner] >= self._share:
                    stopped.add(owner)
        return chosen, rest

    def _note(self, chosen: Sequence[Weighed]) -> None:
        """Let debts be paid by a commit, and note those that it makes."""
        spent = {owner: debt - self._group_weight for owner, debt in self._debts.items()}
        for work in chosen:
            for owner in work.owners:
                spent[owner] = max(spent.get(owner, 0), 0) + work.weight
        self._debts = {owner: debt for owner, debt in spent.items() if debt >= self._group_weight}


def goes_on(chosen: Sequence[Weighed]) -> bool:
    """Whether all that is chosen is of one account, and its commit has room for more."""
    owners = {tuple(work.owners) for work in chosen}
    return len(owners) == 1 and owners != {()} and sum(work.weight for work in chosen) < ALONE


def _may_go(work: Weighed, beside: frozenset[str], short: bool) -> bool:
    """Whether work may be done now, but for debts."""
    return not (short and work.weight >= LONG) and beside.isdisjoint(work.owners)
