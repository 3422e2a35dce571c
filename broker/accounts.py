"""What is kept of each account: made when it is asked for, gone when it is idle. One life for all that is kept so.

Pure. Whoever keeps something of accounts (their logs and listeners, what they have under way) keeps it in an
`Accounts`, and lets it `forget` from time to time: a round over all of them, in bounded steps.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Kept(Protocol):
    """What may be kept of an account."""

    def forget(self, now: float, most: int) -> int:
        """Forget what is past its time, at most so many things. Returns how many these were."""
        ...

    def idle(self, now: float) -> bool:
        """Whether nothing of it must be kept."""
        ...


K = TypeVar("K", bound=Kept)


class Accounts(Generic[K]):
    """What is kept, by account. ``make`` makes it of an account's id; ``gone`` hears what is kept no more."""

    def __init__(self, make: Callable[[str], K], gone: Callable[[K], None] | None = None) -> None:
        self._make = make
        self._gone = gone
        self._by_id: dict[str, K] = {}
        self._order: deque[str] = deque()
        self._left = 0
        """How many accounts are still to be looked at in this round."""

    def open(self, account_id: str) -> K:
        """Return what is kept of an account; make it if there is nothing."""
        kept = self._by_id.get(account_id)
        if kept is None:
            kept = self._by_id[account_id] = self._make(account_id)
            self._order.append(account_id)
        return kept

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[K]:
        return iter(self._by_id.values())

    def forget(self, now: float, *, most: int) -> bool:
        """Go on with the round over all accounts: at most so many of them, and of what is forgotten.

        Returns whether the round is still under way; when it is not, the next call begins another.
        """
        if not self._left:
            self._left = len(self._order)
        while self._left:
            account_id = self._order[0]
            kept = self._by_id[account_id]
            if most > 0:
                most -= kept.forget(now, most)
            if most <= 0:
                return True
            most -= 1
            self._left -= 1
            self._order.popleft()
            if not kept.idle(now):
                self._order.append(account_id)
                continue
            del self._by_id[account_id]
            if self._gone is not None:
                self._gone(kept)
        return False
