"""How many bytes of what clients send are held at once, for each account and in all.

Pure. There are two: of requests under way (`limits.max_bodies_bytes`), and of what connections name
(`limits.max_names_bytes`). Bytes are held from before they are read, or kept, until they are let go: a request's body
until there is an answer, an answer until the client has taken it, a publish or a wait until it is over. A reader of a
body holds what comes, as it comes, not what its head announces, so that who announces much and sends nothing takes room
from nobody:

    with bodies.hold(key.account_id) as held:
        held.require(announced)
        while data := await read_some():
            held.grow(len(data))  # raises RequestError: it is the answer, and no further byte is read
            body += data
        answer = ...
        held.settle(len(answer))
        ...  # send it
"""

from typing import Final

from .errors import BUSY_RETRY_MS, RequestError

SHARES: Final = 4
"""An account may have one of so many equal parts of the whole."""


class Held:
    """Bytes that are held for one request, or one connection. Leaving the block lets them go."""

    __slots__ = ("_account_id", "_budget", "size")

    def __init__(self, budget: "Budget", account_id: str | None) -> None:
        self._budget = budget
        self._account_id = account_id
        self.size = 0

    def grow(self, size: int) -> None:
        """Hold so many bytes more. Raises `RequestError` (`unavailable`) if there is no room; then nothing changes."""
        self._budget.take(self._account_id, size)
        self.size += size

    def become(self, size: int) -> None:
        """Hold ``size`` bytes from now on. Raises `RequestError` (`unavailable`) if there is no room for what is more.

        Then nothing changes.
        """
        if size > self.size:
            self.grow(size - self.size)
        elif size < self.size:
            self.settle(size)

    def require(self, size: int) -> None:
        """Raise `RequestError` (`unavailable`) if there is no room for so many bytes more now; nothing is held."""
        self._budget.require(self._account_id, size)

    def settle(self, size: int) -> None:
        """Hold ``size`` bytes from now on, be there room or not: an answer that is there already, instead of a body.

        What is more than the account's part takes no room from others; the account itself finds none until it is gone.
        """
        self._budget.give_back(self._account_id, self.size - size)
        self.size = size

    def let_go(self) -> None:
        """Hold nothing any more. May be called again."""
        self.settle(0)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()


class Budget:
    """All bytes of one kind that are held. ``most`` is for all together, a quarter of it for each account.

    The account None is the operators'. Nothing is kept of one that holds nothing. ``too_much`` and ``setting`` are what
    a client is told who finds no room: what is too much together, and which setting says so.
    """

    def __init__(self, most: int, too_much: str, setting: str) -> None:
        self._most = most
        self._too_much = too_much
        self._setting = setting
        self._most_of_account = most // SHARES
        self._taken = 0
        """Of the whole: what is held, of each account no more than its part."""
        self._of_accounts: dict[str | None, int] = {}

    @property
    def bytes(self) -> int:
        """What is held now, in all."""
        return sum(self._of_accounts.values())

    def hold(self, account_id: str | None, size: int = 0) -> Held:
        """Hold ``size`` bytes for an account. Raises `RequestError` (`unavailable`) if there is no room."""
        held = Held(self, account_id)
        held.grow(size)
        return held

    def take(self, account_id: str | None, size: int) -> None:
        """Count bytes, or raise `RequestError`; `Held` does this."""
        self.require(account_id, size)
        self._set(account_id, self._of_accounts.get(account_id, 0) + size)

    def require(self, account_id: str | None, size: int) -> None:
        """Raise `RequestError` (`unavailable`, with when to come back) if there is no room for so many bytes more."""
        of_account = self._of_accounts.get(account_id, 0) + size
        if of_account > self._most_of_account or self._taken + size > self._most:
            whose = "account's " if of_account > self._most_of_account else ""
            message = f"The {whose}{self._too_much} together ({self._setting})"
            raise RequestError("unavailable", message, retry_after_ms=BUSY_RETRY_MS)

    def give_back(self, account_id: str | None, size: int) -> None:
        """Count bytes no more (below 0: so many more); `Held` does this."""
        self._set(account_id, self._of_accounts.get(account_id, 0) - size)

    def _set(self, account_id: str | None, of_account: int) -> None:
        before = self._of_accounts.pop(account_id, 0)
        self._taken += min(of_account, self._most_of_account) - min(before, self._most_of_account)
        if of_account:
            self._of_accounts[account_id] = of_account


def of_bodies(most: int) -> Budget:
    """Return the budget of requests under way."""
    return Budget(most, "requests under way are too large", "limits.max_bodies_bytes")


def of_names(most: int) -> Budget:
    """Return the budget of what connections name."""
    return Budget(most, "subscriptions name too much", "limits.max_names_bytes")
