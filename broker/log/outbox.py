"""What is owed to webhook endpoints, for the loop: who gets what, what clients acknowledge, who is to be woken.

`letters` has the rows and their states; an event is a letter by the routes that stand here. What a client acknowledges
is a compare-and-set in the one writer, against the post that may begin at the same time: `Outbox.acknowledge` and
`Outbox.hold` say what it won.
"""

import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from ..errors import RequestError
from ..protocol.messages import Entry
from ..protocol.selection import Selection
from . import letters, letters_acked
from .letters import Route
from .letters_acked import Acknowledged
from .owing import Due, Owing
from .storage import Storage

Covers = Callable[[int, str, str], bool]
"""Position, inbox (`""` for the account's own events) and type of an event → whether it is acknowledged."""
Told = Callable[[Acknowledged | RequestError], None]
"""Called in the loop, after the commit, or with why nothing is changed."""
Woken = Callable[[int, float], None]
"""Called in the loop with an endpoint's number, and when one of its letters may be due (seconds since 1970)."""


def _nobody(webhook: int, due_at: float) -> None:
    """Wake nobody."""


class Outbox(Owing[Route]):
    """The letters of all accounts."""

    def __init__(self, storage: Storage, wall_clock: Callable[[], float] = time.time) -> None:
        super().__init__(letters.KIND, storage, wall_clock)
        self.woken: Woken = _nobody
        self.acknowledged = 0
        """Letters that clients took before they were posted, since the start."""
        self._fallbacks: dict[str, dict[str, tuple[int, ...]]] = {}
        """By account and `client_id`: the endpoints that wait for this client."""

    def route(self, account_id: str, routes: Sequence[Route], fallbacks: dict[str, tuple[int, ...]]) -> None:
        """Let these be all routes of an account, and the endpoints that wait for each of its clients."""
        self._fallbacks[account_id] = fallbacks
        if not fallbacks:
            del self._fallbacks[account_id]
        self._let_get(account_id, routes)

    def waiting_accounts(self) -> list[str]:
        """Return the accounts that have an endpoint which waits for clients."""
        return list(self._fallbacks)

    def waited_for(self, account_id: str) -> dict[str, tuple[int, ...]]:
        """Return for which clients of an account endpoints wait, and which these are."""
        return self._fallbacks.get(account_id, {})

    def _add(self, connection: sqlite3.Connection, wanting: Sequence[Route], entries: Sequence[Entry]) -> Due:
        return letters.add(connection, wanting, entries, self.wall_clock())

    def _wake(self, due: Due) -> None:
        for webhook, due_at in due.items():
            self.woken(webhook, due_at)

    # --- what clients acknowledge

    def waits_for(self, account_id: str, client_id: str) -> int:
        """Return how many endpoints wait for this client to acknowledge: if none, there is nothing to be told here."""
        return len(self._webhooks(account_id, client_id))

    def acknowledge(
        self,
        account_id: str,
        client_id: str,
        told: Told,
        *,
        covers: Covers | None = None,
        after: int = 0,
        through: int = 0,
        event_ids: Collection[str] = (),
        reach: Selection,
    ) -> None:
        """Acknowledge for a client what ``covers`` says of the events after a position and up to another, and ids.

        Of each event that waited for it, no post is begun from then on. ``told`` hears once, how many of these there
        were, and the ids of those that a webhook had begun with first (``claimed``): these the endpoint may have.
        ``event_ids`` (1000 at most) are of inboxes of ``reach``. ``covers`` is called in the writer's thread, once for
        an event and endpoint: it may only look at what does not change. Long ranges are done in pages.
        """
        webhooks = self._webhooks(account_id, client_id)
        if not webhooks:
            told(Acknowledged(0, [], through))
            return
        _Acknowledging(self, webhooks, client_id, told, covers, through, event_ids, reach).go_on(after)

    def hold(
        self,
        account_id: str,
        client_id: str,
        told: Told,
        *,
        event_ids: Collection[str],
        seconds: float,
        reach: Selection,
    ) -> None:
        """Let events (1000 at most) wait for a client so long at least; ``told`` as for `acknowledge`."""
        webhooks = self._webhooks(account_id, client_id)
        if not webhooks:
            told(Acknowledged(0, [], 0))
            return
        work = partial(
            letters_acked.hold_ids,
            webhooks=webhooks,
            event_ids=event_ids,
            reach=reach,
            until=self.wall_clock() + seconds,
        )
        self.storage.begin_write(work, told)

    def _webhooks(self, account_id: str, client_id: str) -> tuple[int, ...]:
        return self._fallbacks.get(account_id, {}).get(client_id, ())


class _Acknowledging:
    """One acknowledgement, page by page."""

    def __init__(
        self,
        outbox: Outbox,
        webhooks: Collection[int],
        client_id: str,
        told: Told,
        covers: Covers | None,
        through: int,
        event_ids: Collection[str],
        reach: Selection,
    ) -> None:
        self._outbox = outbox
        self._webhooks = webhooks
        self._client_id = client_id
        self._told = told
        self._covers = covers
        self._through = through
        self._event_ids = event_ids
        self._reach = reach
        self._acked = 0
        self._claimed: dict[str, None] = {}

    def go_on(self, after: int) -> None:
        self._outbox.storage.begin_write(partial(self._work, after=after), self._done)

    def _work(self, connection: sqlite3.Connection, after: int) -> Acknowledged:
        now = self._outbox.wall_clock()
        acked, claimed, reached = 0, [], self._through
        if self._event_ids:
            by_ids = letters_acked.acknowledge_ids(
                connection, self._webhooks, self._client_id, self._event_ids, self._reach, now
            )
            acked, claimed = by_ids.acked, by_ids.claimed
        if self._covers is not None and after < self._through:
            page = letters_acked.acknowledge_range(
                connection, self._webhooks, self._client_id, self._covers, after, self._through, now
            )
            acked, claimed, reached = acked + page.acked, claimed + page.claimed, page.reached
        return Acknowledged(acked, claimed, reached)

    def _done(self, outcome: Acknowledged | RequestError) -> None:
        if isinstance(outcome, RequestError):
            self._told(outcome)
            return
        self._event_ids = ()
        self._acked += outcome.acked
        self._outbox.acknowledged += outcome.acked
        self._claimed |= dict.fromkeys(outcome.claimed)
        if outcome.acked:
            for webhook in self._webhooks:  # whoever stood behind what was acknowledged may have moved up
                self._outbox.woken(webhook, 0.0)
        if outcome.reached < self._through:
            self.go_on(outcome.reached)
        else:
            self._told(Acknowledged(self._acked, list(self._claimed), self._through))
