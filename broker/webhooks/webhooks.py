"""Webhooks as a whole: the endpoints, their letters, and what accounts may ask about them.

They follow the log on disk: without one there are none.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Final

import trio
from msgspec import Struct, UnsetType

from ..access.keyring import Keyring
from ..access.keys import Key
from ..config import AccountConfig, Config
from ..errors import ConfigError, RequestError
from ..log import letterbook
from ..log.engines.rows import used_bytes
from ..log.letters import STATES, Seen, State
from ..log.outbox import Outbox
from ..log.owed import Of
from ..protocol.messages import encode, time_ordered_id
from ..protocol.names import Duration, check_identifier, parse_since
from ..protocol.wording import any_of
from .apart import Posts, open_apart
from .attempts import GRACE_SECONDS, LIFETIME_SECONDS
from .endpoint import Checks, Resend, time_of
from .endpoints import Endpoints
from .guard import Guard
from .live import Announce, Live
from .posting import Posting, PostingStatistics
from .sender import open_sender

logger = logging.getLogger(__name__)

KEEP_HOUSE_SECONDS: Final = 60.0
MAKE_ROOM_SECONDS: Final = 5.0
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1_000
_NO_ID: Final = "Expected the `next` of the last page - at `before`"


class Tested(Struct, frozen=True):
    """What came of the test event: `status` of the answer, if there was one; `error` null: it was taken."""

    status: int | None
    error: str | None
    duration_ms: int


class Attempt(Struct, frozen=True):
    """The last attempt to deliver an event."""

    at: str
    status: int | None
    error: str | None
    duration_ms: int | None


class Delivery(Struct, frozen=True):
    """What became of one event at one endpoint."""

    event_id: str
    type: str
    state: State
    attempts: int
    due_at: str | None
    """When it is posted next, if it waits."""
    last: Attempt | None
    acked_by: str | None
    """The `client_id` that acknowledged it."""


class DeliveriesPage(Struct, frozen=True):
    """Some deliveries, the newest event first, and the `before` of the next page, if there may be one."""

    deliveries: list[Delivery]
    next: str | None


class WebhooksStatistics(Struct, frozen=True):
    """What webhooks are there, and how they do."""

    posting: PostingStatistics
    endpoints: Mapping[str, int]
    """By their status; `failing`: of the active ones those that fail."""
    letters: Mapping[State, int]
    """By state, when that was looked at last."""
    oldest_waiting_seconds: float
    """Of the letter that waits longest, then."""
    acknowledged: int
    """Events that clients took from an endpoint before it was posted to, since the start."""


class Webhooks:
    """The webhooks of all accounts. `run` is to run while they are used."""

    def __init__(
        self,
        outbox: Outbox,
        keyring: Keyring,
        checks: Checks,
        opened: Callable[[], AbstractAsyncContextManager[Posts]],
        cursor_prefix: Callable[[str], str],
        announce: Announce,
        draining: trio.Event,
        chance: Callable[[], float] = random.random,
        max_bytes: float = math.inf,
    ) -> None:
        self.outbox = outbox
        self._storage = outbox.storage
        self._opened = opened
        """Opens what posts."""
        self._posting = Posting(outbox, cursor_prefix, announce, self._disable, self._noted, draining, chance)
        self.endpoints = Endpoints(outbox, keyring, checks, self._posting.look_at, announce)
        self._letters: dict[State, int] = {}
        self._oldest_waiting: float | None = None
        self._nursery: trio.Nursery | None = None
        self._max_bytes = max_bytes
        self._is_over = False
        """Whether the log was as large as it may be when that was looked at last."""

    async def run(
        self, accounts: Iterable[AccountConfig], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take back what was kept, follow the configuration, and post, for ever. Raises `RequestError`."""
        while await self._storage.write(partial(letterbook.recover, now=self.outbox.wall_clock())):
            pass
        async with self._opened() as posts, trio.open_nursery() as nursery:
            await nursery.start(self._posting.run, posts)
            await nursery.start(self.endpoints.run)
            await self.endpoints.follow(accounts)
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self._make_room)
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def settled(self) -> None:
        """Wait until no post is under way. While the broker drains none begins."""
        await self._posting.settled()

    def reload(self, accounts: Iterable[AccountConfig]) -> None:
        """Follow another configuration from now on."""
        if self._nursery is not None:
            self._nursery.start_soon(self._follow, tuple(accounts))

    async def _follow(self, accounts: tuple[AccountConfig, ...]) -> None:
        try:
            await self.endpoints.follow(accounts)
        except RequestError as error:
            logger.warning("the webhooks of the new configuration are not all there: %s", error)

    def _disable(self, live: Live, because: Any) -> None:
        self.endpoints.disable(live, because)

    def _noted(self, live: Live) -> None:
        self.endpoints.noted(live)

    # --- for accounts

    async def try_out(self, key: Key, webhook_id: str) -> Tested:
        """Post a test event to an endpoint, once; it is not stored.

        Raises `RequestError`: `not_found`, `rate_limited`.
        """
        live = self.endpoints.find(key, webhook_id)
        now = trio.current_time()
        wait_seconds = live.tests.wait_seconds(1, now)
        if wait_seconds:
            raise RequestError("rate_limited", "Too many tests", retry_after_ms=math.ceil(wait_seconds * 1_000))
        live.tests.take(1)
        event_id = time_ordered_id("evt_", time.time_ns(), random.getrandbits(64))
        event = {
            "type": "webhook.test",
            "event_id": event_id,
            "created_at": time_of(self.outbox.wall_clock()),
            "payload": {"webhook_id": webhook_id},
        }
        outcome = await self._posting.try_out(live, event_id, encode(event))
        return Tested(outcome.status, outcome.error, round(outcome.duration_seconds * 1_000))

    async def deliveries(self, key: Key, webhook_id: str, query: Mapping[str, str]) -> DeliveriesPage:
        """Return what became of events at an endpoint (PROTOCOL section 9). Raises `RequestError`."""
        live = self.endpoints.find(key, webhook_id)
        state, limit, before = query.get("state"), query.get("limit", str(DEFAULT_LIMIT)), query.get("before")
        if state is not None and state not in STATES:
            raise RequestError("bad_request", f"Expected {any_of(State)} - at `state`")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIMIT):
            raise RequestError("bad_request", f"Expected a number from 1 to {MAX_LIMIT} - at `limit`")
        if before is not None and not (before.isascii() and before.isdigit() and len(before) <= 18):
            raise RequestError("bad_request", _NO_ID)
        event_id = query.get("event_id")
        if event_id is not None:
            check_identifier(event_id, "event_id", code="bad_request")
        found, following = await self._storage.read(
            lambda connection: letterbook.look_up(
                connection,
                live.number,
                state=state,
                event_id=event_id,
                before=None if before is None else int(before),
                limit=int(limit),
            )
        )
        return DeliveriesPage([_shown(each) for each in found], None if following is None else str(following))

    async def resend(self, key: Key, webhook_id: str, asked: Resend) -> int:
        """Let events be posted again: those named, or what is dead; return how many. Raises `RequestError`."""
        live = self.endpoints.find(key, webhook_id)
        by_ids, by_state = (not isinstance(given, UnsetType) for given in (asked.event_ids, asked.state))
        if by_ids == by_state:
            message = "Expected `event_ids`, or `state` and maybe `since` - at `$`"
            raise RequestError("invalid_params", message)
        in_order = live.route.in_order
        if not isinstance(asked.event_ids, UnsetType):
            sent = await self.outbox.again(
                Of(live.number, tuple(dict.fromkeys(asked.event_ids))),
                lambda of, now: partial(letterbook.send_again, of=of, now=now, in_order=in_order),
            )
        else:
            dead_again = partial(
                letterbook.send_dead_again, webhook=live.number, since=self._since(asked.since), in_order=in_order
            )
            sent = await self.outbox.again(0, lambda after, now: partial(dead_again, after=after, now=now))
        self.endpoints.woken(live.number, 0.0)
        return sent

    def _since(self, since: str | UnsetType) -> float:
        if isinstance(since, UnsetType):
            return 0.0
        moment = parse_since(since)
        if isinstance(moment, str):
            raise RequestError("invalid_params", "Expected a time, or a duration before now - at `$.since`")
        if isinstance(moment, Duration):
            return self.outbox.wall_clock() - moment.seconds
        return moment.timestamp()

    # --- its house

    async def _keep_house(self) -> None:
        """Give up what nobody took in its time, forget what ended long ago, and count, for ever."""
        while True:
            with suppress(RequestError):  # the storage has said why
                await self._keep_house_once()
            await trio.sleep(KEEP_HOUSE_SECONDS)

    async def _keep_house_once(self) -> None:
        more, given_up = True, 0
        while more:
            now = self.outbox.wall_clock()
            born_before = now - LIFETIME_SECONDS - GRACE_SECONDS
            count, more = await self._storage.write(partial(letterbook.expire, born_before=born_before, now=now))
            given_up += count
        if given_up:
            logger.info("%d letters to webhooks were given up: nobody took them in three days", given_up)
            for live in list(self.endpoints.lives()):
                self.endpoints.woken(live.number, 0.0)
        while await self._storage.write(partial(letterbook.forget, now=self.outbox.wall_clock())):
            pass
        await self._forget_contents()
        self._letters, self._oldest_waiting = await self._storage.read(
            lambda connection: (letterbook.counts(connection), letterbook.oldest_waiting(connection))
        )

    async def _forget_contents(self) -> None:
        if self._is_over:
            await self.outbox.followed.make_room()
        after: int | None = 0
        while after is not None:
            after = await self._storage.write(partial(letterbook.forget_contents, after=after))

    async def _make_room(self) -> None:
        """Where the log is as large as it may be, let go what is owed, for ever."""
        while True:
            with suppress(RequestError):
                await self._make_room_once()
            await trio.sleep(MAKE_ROOM_SECONDS)

    async def _make_room_once(self) -> None:
        """Let dead letters go while there is too much; if there are none, what waits longest, if it was so before.

        In between events that are old enough have had the time to leave.
        """
        was_over, self._is_over = self._is_over, await self._is_too_large()
        if self._is_over:
            await self.outbox.followed.make_room()
            self._is_over = await self._is_too_large()
        gone = 0
        while self._is_over and (shed := await self._storage.write(letterbook.shed_dead)):
            gone += shed
            await self._forget_contents()
            self._is_over = await self._is_too_large()
        if self._is_over and was_over and not gone:
            lost = await self._storage.write(letterbook.shed_waiting)
            if lost:
                logger.warning("%d letters to webhooks were given up: the log is as large as it may be", lost)
                await self._forget_contents()

    async def _is_too_large(self) -> bool:
        return await self._storage.read(used_bytes) > self._max_bytes

    def statistics(self) -> WebhooksStatistics:
        """Return what webhooks are there, and how they do."""
        oldest = self._oldest_waiting
        waiting_seconds = 0.0 if oldest is None else max(0.0, self.outbox.wall_clock() - oldest)
        return WebhooksStatistics(
            self._posting.statistics(),
            self.endpoints.counted(),
            dict(self._letters),
            waiting_seconds,
            self.outbox.acknowledged,
        )


def make_webhooks(
    config: Config,
    outbox: Outbox,
    keyring: Keyring,
    cursor_prefix: Callable[[str], str],
    announce: Announce,
    draining: trio.Event,
) -> Webhooks:
    """Return the webhooks of a broker; they are posted from a thread of their own, none any more when it drains."""
    section = config.webhooks
    guard = Guard(section.allow_networks, section.deny_networks)
    return Webhooks(
        outbox,
        keyring,
        Checks(config.limits, guard, section.allow_http),
        lambda: open_apart(lambda: open_sender(section)),
        cursor_prefix,
        announce,
        draining,
        max_bytes=config.storage.max_bytes,
    )


def require_storage(config: Config, path: str | None) -> None:
    """Raise `ConfigError` if a configuration has webhooks and there is no log on disk, which is at ``path``."""
    for number, account in enumerate(config.accounts):
        if account.webhooks and path is None:
            raise ConfigError(f"webhooks need a log on disk, `storage.path` - at `$.accounts[{number}].webhooks`")


def _shown(letter: Seen) -> Delivery:
    last = None
    if letter.tried_at is not None:
        last = Attempt(time_of(letter.tried_at), letter.status, letter.error, letter.duration_ms)
    due_at = time_of(letter.due_at) if letter.state == "waiting" else None
    return Delivery(letter.event_id, letter.type, letter.state, letter.attempts, due_at, last, letter.acked_by)
