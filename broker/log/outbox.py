"""What is owed to webhook endpoints, for the loop: who gets what, what clients acknowledge, who is to be woken.

`letters` has the rows and their states. The engine adds letters in its events' own transaction (`Outbox.write`), by the
routes that stand here; without routes that costs nothing. What a client acknowledges is a compare-and-set in the one
writer, against the post that may begin at the same time: `Outbox.acknowledge` and `Outbox.hold` say what it won.
"""

import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial

import trio

from ..errors import RequestError
from ..protocol.messages import Entry
from ..protocol.selection import Selection
from . import letterbook, letters, letters_acked
from .kept import Followed
from .letters import Due, Route
from .letters_acked import Acknowledged
from .storage import Storage

Covers = Callable[[int, str, str], bool]
"""Position, inbox (`""` for the account's own events) and type of an event → whether it is acknowledged."""
Told = Callable[[Acknowledged | RequestError], None]
"""Called in the loop, after the commit, or with why nothing is changed."""
Woken = Callable[[int, float], None]
"""Called in the loop with an endpoint's number, and when one of its letters may be due (seconds since 1970)."""


def _nobody(webhook: int, due_at: float) -> None:
    """Wake nobody."""


class Outbox:
    """The letters of all accounts. ``wall_clock`` returns seconds since 1970."""

    def __init__(self, storage: Storage, wall_clock: Callable[[], float] = time.time) -> None:
        self.storage = storage
        self.wall_clock = wall_clock
        self.woken: Woken = _nobody
        self.acknowledged = 0
        """Letters that clients took before they were posted, since the start."""
        self._routes: dict[str, tuple[Route, ...]] = {}
        """By account. Read in the writer's thread: an account's routes are replaced whole."""
        self._fallbacks: dict[str, dict[str, tuple[int, ...]]] = {}
        """By account and `client_id`: the endpoints that wait for this client."""
        self._loop: trio.lowlevel.TrioToken | None = None
        self._due: dict[str, Due] = {}
        """By account, of letters that nobody is woken for yet. For the writer's thread."""
        self.followed = Followed()
        """Who has the events of accounts that have routes."""

    def route(self, account_id: str, routes: Sequence[Route], fallbacks: dict[str, tuple[int, ...]]) -> None:
        """Let these be all routes of an account, and the endpoints that wait for each of its clients."""
        self._loop = trio.lowlevel.current_trio_token()
        self._routes[account_id] = tuple(routes)
        self._fallbacks[account_id] = fallbacks
        if not routes:
            del self._routes[account_id]
        if not fallbacks:
            del self._fallbacks[account_id]
        self.followed.changed(account_id)

    def waiting_accounts(self) -> list[str]:
        """Return the accounts that have an endpoint which waits for clients."""
        return list(self._fallbacks)

    def waited_for(self, account_id: str) -> dict[str, tuple[int, ...]]:
        """Return for which clients of an account endpoints wait, and which these are."""
        return self._fallbacks.get(account_id, {})

    def wants(self, account_id: str, entry: Entry) -> bool:
        """Whether an event of an account is for any of its endpoints. For any thread."""
        return any(route.wants(entry) for route in self._routes.get(account_id, ()))

    def has(self, account_id: str) -> bool:
        """Whether an account has an endpoint that gets anything."""
        return account_id in self._routes

    def rows_of(self, account_id: str) -> int:
        """Return how many letters an event of an account may be."""
        return len(self._routes.get(account_id, ()))

    # --- in the events' transaction, in the writer's thread

    def add(self, connection: sqlite3.Connection, account_id: str, entries: Sequence[Entry]) -> None:
        """Add the letters of events that an account has just got, in their own transaction, and wake for them."""
        self.write(connection, account_id, entries)
        self.finish(account_id)

    def write(self, connection: sqlite3.Connection, account_id: str, entries: Sequence[Entry]) -> None:
        """Add the letters, in the transaction of their events: these may be a part of a list, and not the log's yet."""
        routes = self._routes.get(account_id)
        if routes:
            due = self._due.setdefault(account_id, {})
            for webhook, due_at in letters.add(connection, routes, entries, self.wall_clock()).items():
                due[webhook] = min(due_at, due.get(webhook, due_at))

    def finish(self, account_id: str) -> None:
        """Wake for the letters that were added, in the transaction after which their events are the log's."""
        due = self._due.pop(account_id, None)
        if due and self._loop is not None:
            # Whoever is woken asks the same writer, whose turn for that comes after this commit.
            with suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(self._wake, due)

    def take_back(self, connection: sqlite3.Connection, account_id: str, first: int) -> None:
        """Forget the letters of an account's events from a position on, which did not become the log's."""
        self._due[account_id] = dict.fromkeys(letterbook.take_back(connection, account_id, first), 0.0)
        self.finish(account_id)

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
