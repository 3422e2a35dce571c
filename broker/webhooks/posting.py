"""Letters on their way: claimed when they are due, posted, and what follows from that.

Every endpoint has its own turn: at most eight posts under way to it, as its breaker allows, 64 in all, of which one
account leaves some to the others, and 200 a second. A letter is claimed in the writer before its post begins, so a
client's acknowledgement is before that or after it; what came of the post is written down before the next.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, get_args

import trio
from msgspec import Struct

from ..durations import Durations, DurationsStatistics
from ..errors import BUSY_RETRY_MS, RequestError
from ..fairness import FairLimiter
from ..log import letters
from ..log.letters import Claimed, Letter, Tried
from ..log.outbox import Outbox
from ..protocol.messages import encode_event
from ..schedule import Schedule
from .apart import Posts
from .attempts import after_failure
from .live import Announce, Health, Live
from .sender import Failure, Outcome, Post

logger = logging.getLogger(__name__)

AT_ONCE: Final = 64
PER_SECOND: Final = 200.0
FAILING_SECONDS: Final = 3_600.0
"""How long an endpoint fails before its account is told."""
DISABLED_SECONDS: Final = 5 * 86_400.0
"""How long it fails before it is disabled."""
RETRY_SECONDS: Final = 1.0
"""When what could not be written is tried again."""
GONE: Final = 410
OUTCOMES: Final = ("delivered", *get_args(Failure))
"""What may come of a post."""


class PostingStatistics(Struct, frozen=True):
    """What was posted, and is."""

    attempts: Mapping[str, int]
    """By what came of them: `delivered`, or the kind of failure."""
    seconds: DurationsStatistics
    """How long they took."""
    under_way: int
    claimed: int
    """Letters that were claimed to be posted, since the start."""


class Posting:
    """Posts the letters of all endpoints.

    ``disable`` is called with one that is gone, and why; ``noted`` with one that does otherwise than it did.
    Once ``draining`` is set nothing more is begun: what is under way has the time that is left.
    """

    def __init__(
        self,
        outbox: Outbox,
        cursor_prefix: Callable[[str], str],
        announce: Announce,
        disable: Callable[[Live, str], None],
        noted: Callable[[Live], None],
        draining: trio.Event,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._storage = outbox.storage
        self._posts: Posts | None = None
        self._cursor_prefix = cursor_prefix
        self._announce = announce
        self._disable = disable
        self._noted = noted
        self._draining = draining
        self._chance = chance
        self._schedule = Schedule()
        self._places = FairLimiter(AT_ONCE)
        self._next_at = 0.0
        """When the next post may begin, by their rate."""
        self._nursery: trio.Nursery | None = None
        self._under_way = 0
        self._serving = 0
        """How many endpoints have a turn: what they claim is posted, too."""
        self._changed = trio.lowlevel.ParkingLot()
        self._claimed = 0
        self._attempts = Counter[str](dict.fromkeys(OUTCOMES, 0))
        self._seconds = Durations()

    async def run(self, posts: Posts, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Post by ``posts``, for ever. What is under way when this is cancelled is posted again after a restart."""
        async with trio.open_nursery() as nursery:
            self._posts, self._nursery = posts, nursery
            nursery.start_soon(self._schedule.run)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # whoever is woken from here on begins nothing

    async def settled(self) -> None:
        """Wait until nothing is under way, and what came of it is written down. Drained, no more begins."""
        while self._under_way or self._serving:
            await self._changed.park()

    def look_at(self, live: Live) -> None:
        """See whether letters of an endpoint can be posted now, or when that is to be seen again."""
        if (
            self._nursery is None
            or self._draining.is_set()
            or live.serving
            or not self._may_post(live)
            or live.next_due is None
        ):
            return
        now = trio.current_time()
        wait_seconds = live.next_due - self._outbox.wall_clock()
        begin_at = max(now + wait_seconds if wait_seconds > 0 else now, live.breaker.opens_at())
        if begin_at > now:
            live.alarm.set(self._schedule, begin_at, partial(self.look_at, live))
        elif live.breaker.room(live.under_way, now):
            live.serving = True
            self._nursery.start_soon(self._serve, live)
        # Else it is looked at when what is under way is through.

    def _may_post(self, live: Live) -> bool:
        """Whether letters of an endpoint are posted: not where it is unknown whether its clients took them."""
        endpoint = live.endpoint
        return live.may_post and (endpoint.mode == "always" or self._outbox.followed.is_settled(endpoint.account_id))

    async def _serve(self, live: Live) -> None:
        """Claim letters of an endpoint, as many as may be posted now, and begin with them."""
        account_id = live.endpoint.account_id
        self._serving += 1
        places = 0
        try:
            await self._places.take(account_id)
            places = 1
            while places < self._room(live) and self._places.take_nowait(account_id):
                places += 1
            await self._pace(places)
            claimed = await self._claim(live, min(places, self._room(live)))
            for letter in claimed.letters:
                if self._nursery is None:
                    return  # it is being sent, and is posted after the next start
                places -= 1
                live.under_way += 1
                self._under_way += 1
                live.breaker.begun()
                self._nursery.start_soon(self._deliver, live, letter)
        finally:
            for _ in range(places):
                self._places.give_back(account_id)
            live.serving = False
            self._serving -= 1
            self._changed.unpark_all()
        self.look_at(live)

    def _room(self, live: Live) -> int:
        if self._draining.is_set() or not self._may_post(live):
            return 0
        return live.breaker.room(live.under_way, trio.current_time())

    async def _pace(self, count: int) -> None:
        """Wait until so many posts may begin, by their rate."""
        begin_at = max(trio.current_time(), self._next_at)
        self._next_at = begin_at + count / PER_SECOND
        await trio.sleep_until(begin_at)

    async def _claim(self, live: Live, most: int) -> Claimed:
        """Claim letters. Whoever is woken meanwhile is not forgotten: what it may be due for is heard after this."""
        if most <= 0:
            return Claimed([], live.next_due)
        before, live.next_due = live.next_due, None
        now = self._outbox.wall_clock()
        try:
            claimed = await self._storage.write(partial(letters.claim, webhook=live.number, now=now, most=most))
        except RequestError:
            live.due(before)
            await trio.sleep(RETRY_SECONDS)
            return Claimed([], before)
        live.due(claimed.next_due)
        self._claimed += len(claimed.letters)
        return claimed

    async def _deliver(self, live: Live, letter: Letter) -> None:
        """Post a letter, and write down what came of it."""
        has_place = True
        try:
            if (letter.event.inbox_id or "") not in live.route.selection:
                # Its key reached more when the event came.
                await self._write(
                    partial(letters.drop, webhook=live.number, position=letter.position, now=self._outbox.wall_clock())
                )
                live.breaker.given_up(trio.current_time())
                return
            outcome = await self._post(live, letter)
            self._places.give_back(live.endpoint.account_id)
            has_place = False
            await self._settle(live, letter, outcome)
        finally:
            if has_place:
                self._places.give_back(live.endpoint.account_id)
            self._under_way -= 1
            live.under_way -= 1
            self._changed.unpark_all()
        self.look_at(live)

    async def _post(self, live: Live, letter: Letter) -> Outcome:
        endpoint, event = live.endpoint, letter.event
        body = encode_event(event, f"{self._cursor_prefix(letter.account_id)}{letter.position}")
        secrets = endpoint.secrets(self._outbox.wall_clock())
        post = Post(live.name, letter.account_id, endpoint.url, secrets, event.event_id, body, attempt=letter.attempts)
        assert self._posts is not None
        outcome = await self._posts.post(post)
        self._attempts[outcome.error or "delivered"] += 1
        self._seconds.add(outcome.duration_seconds)
        return outcome

    async def _settle(self, live: Live, letter: Letter, outcome: Outcome) -> None:
        now, wall = trio.current_time(), self._outbox.wall_clock()
        due_at = None
        if outcome.error is None:
            live.breaker.succeeded()
        else:
            live.breaker.failed(now)
            verdict = after_failure(letter.attempts, wall, letter.born_at, self._chance(), outcome.retry_after_seconds)
            live.breaker.hold(verdict.hold_seconds, now)
            due_at = None if outcome.status == GONE else verdict.due_at
        tried = Tried(outcome.status, outcome.error, round(outcome.duration_seconds * 1_000), due_at)
        health = self._judge(live, outcome, wall)
        await self._write(partial(_settled, live.number, letter.position, tried, wall, health))
        live.due(0.0 if live.route.in_order else due_at)

    async def _write(self, work: Callable[..., Any]) -> None:
        """Write something down, however long that takes."""
        while True:
            try:
                await self._storage.write(work)
            except RequestError:
                await trio.sleep(RETRY_SECONDS)
            else:
                return

    def _judge(self, live: Live, outcome: Outcome, wall: float) -> Health | None:
        """Hear how an endpoint is doing, and tell its account; return that if it is to be written down."""
        before = live.health
        if outcome.error is None:
            if before.said:
                self._tell(live, "webhook.recovered")
            live.health = Health()
        elif outcome.status == GONE:
            self._disable(live, "gone")
        elif before.failing_since is None:
            live.health = Health(wall)
        elif wall - before.failing_since >= DISABLED_SECONDS:
            self._disable(live, "failing")
        elif wall - before.failing_since >= FAILING_SECONDS and not before.said:
            self._tell(live, "webhook.failing", outcome)
            live.health = Health(before.failing_since, said=True)
        if live.health == before:
            return None
        self._noted(live)
        return live.health

    def _tell(self, live: Live, kind: str, outcome: Outcome | None = None) -> None:
        payload: dict[str, Any] = {"webhook_id": live.endpoint.webhook_id, "url": live.endpoint.shown_url}
        if outcome is not None:
            payload |= {"status": outcome.status, "error": outcome.error}
        logger.info("%s %s of account %s", kind, live.endpoint.webhook_id, live.endpoint.account_id)
        self._announce(live.endpoint.account_id, kind, payload)

    async def try_out(self, live: Live, event_id: str, body: bytes) -> Outcome:
        """Post an event that is not stored, once. Raises `RequestError` (`rate_limited`)."""
        account_id = live.endpoint.account_id
        if not self._places.take_nowait(account_id):
            raise RequestError("rate_limited", "Too many posts are under way", retry_after_ms=BUSY_RETRY_MS)
        try:
            secrets = live.endpoint.secrets(self._outbox.wall_clock())
            assert self._posts is not None
            return await self._posts.post(Post(live.name, account_id, live.endpoint.url, secrets, event_id, body))
        finally:
            self._places.give_back(account_id)

    def statistics(self) -> PostingStatistics:
        """Return what was posted, and is."""
        return PostingStatistics(dict(self._attempts), self._seconds.statistics(), self._under_way, self._claimed)


def _settled(webhook: int, position: int, tried: Tried, wall: float, health: Health | None, connection: Any) -> None:
    letters.settle(connection, webhook, position, tried, wall)
    if health is not None:
        connection.execute(
            "UPDATE webhooks SET failing_since = ?, said_failing = ? WHERE number = ?",
            (health.failing_since, health.said, webhook),
        )
