"""What acknowledgements ask of the outbox, in slices and in fair shares of the one writer.

Each id is looked up for each endpoint that waits for the client, in the thread that writes for all accounts. So an
account has only so much under way there, and the rest waits here: whoever publishes meanwhile waits for a few
milliseconds of it, and not for all.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ..errors import RequestError
from ..log.letters_acked import Acknowledged as Settled
from ..log.outbox import Outbox
from .covered import Covered

SHARE: Final = 128
"""Letters of an account that are looked for in one commit: some milliseconds."""
SLICE: Final = 64
"""Of one command."""
CURSOR: Final = 8
"""What a cursor counts as: it may be for a page of letters, but is for few as a rule."""

Told = Callable[[Settled | RequestError], None]


class Named(Protocol):
    """A client, as it is called."""

    @property
    def account_id(self) -> str:
        """Its account."""
        ...

    @property
    def client_id(self) -> str:
        """Its name in that."""
        ...


class Shares:
    """What each account has under way: at most ``most``, or one thing. What waits has its turn in its order."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, Callable[[], None]]]] = {}

    def take(self, account_id: str, cost: int, begin: Callable[[], None]) -> None:
        """Begin something, now or when there is room; `give_back` in the end."""
        self._waiting.setdefault(account_id, deque()).append((cost, begin))
        self._go_on(account_id)

    def give_back(self, account_id: str, cost: int) -> None:
        """Say that something has ended."""
        self._used[account_id] -= cost
        self._go_on(account_id)

    def _go_on(self, account_id: str) -> None:
        waiting = self._waiting[account_id]
        while waiting:
            used, (cost, begin) = self._used.get(account_id, 0), waiting[0]
            if used and used + cost > self._most:
                return
            waiting.popleft()
            self._used[account_id] = used + cost
            begin()
        if not waiting and not self._used.get(account_id):
            self._waiting.pop(account_id, None)
            self._used.pop(account_id, None)


class Settling:
    """The acknowledgements of all accounts, on their way to an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.shares = Shares(SHARE)

    def waits_for(self, client: Named) -> int:
        """Return how many endpoints wait for this client: if none, there is nothing to be settled."""
        return self.outbox.waits_for(client.account_id, client.client_id)

    def acknowledge(self, client: Named, covered: Covered, told: Told) -> None:
        """Settle for a client with all webhooks that wait for it: ``told`` hears which had begun (``claimed``)."""
        _Settlement(self, client, covered, None, told).go_on()

    def hold(self, client: Named, covered: Covered, seconds: float, told: Told) -> None:
        """Let webhooks wait longer for the ids; ``told`` as for `acknowledge`."""
        _Settlement(self, client, covered, seconds, told).go_on()


class _Settlement:
    """One command's, slice by slice. What fails ends it."""

    def __init__(self, settling: Settling, client: Named, covered: Covered, seconds: float | None, told: Told) -> None:
        self._settling = settling
        self._client = client
        self._covered = covered
        self._seconds = seconds
        self._told = told
        self._endpoints = settling.waits_for(client)
        self._cursor_left = bool(covered.stretches)
        self._ids = list(covered.event_ids)
        self._slice: Sequence[str] = ()
        self._cost = 0
        self._acked = 0
        self._claimed: dict[str, None] = {}

    def go_on(self) -> None:
        """Have the next slice settled, or tell what came of all."""
        if self._cursor_left:
            self._cursor_left, self._cost = False, CURSOR
            self._settling.shares.take(self._client.account_id, self._cost, self._settle_cursor)
        elif self._ids:
            most = max(1, SLICE // max(1, self._endpoints))
            self._slice, self._ids = self._ids[:most], self._ids[most:]
            self._cost = len(self._slice) * self._endpoints
            self._settling.shares.take(self._client.account_id, self._cost, self._settle_ids)
        else:
            self._told(Settled(self._acked, list(self._claimed), 0))

    def _settle_cursor(self) -> None:
        covered, client = self._covered, self._client
        self._settling.outbox.acknowledge(
            client.account_id,
            client.client_id,
            self._settled,
            covers=covered.by_cursor,
            after=covered.after,
            through=covered.through,
            reach=covered.reach,
        )

    def _settle_ids(self) -> None:
        outbox, client, ids, reach = self._settling.outbox, self._client, self._slice, self._covered.reach
        if self._seconds is None:
            outbox.acknowledge(client.account_id, client.client_id, self._settled, event_ids=ids, reach=reach)
        else:
            outbox.hold(
                client.account_id, client.client_id, self._settled, event_ids=ids, seconds=self._seconds, reach=reach
            )

    def _settled(self, outcome: Settled | RequestError) -> None:
        self._settling.shares.give_back(self._client.account_id, self._cost)
        if isinstance(outcome, RequestError):
            self._told(outcome)
        else:
            self._acked += outcome.acked
            self._claimed |= dict.fromkeys(outcome.claimed)
            self.go_on()
