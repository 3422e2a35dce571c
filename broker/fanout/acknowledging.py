"""The `ack` and `hold` commands of one client on one connection (PROTOCOL section 4).

A command is judged and takes effect in one step; what it covers is counted in slices, for the answer. The answers come
in the order in which the commands came.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Final

import trio
from msgspec import Struct

from ..errors import RequestError
from ..log.replay import ReplayBuffer
from ..protocol.messages import Acked, Entry, Held, HoldParams
from ..protocol.selection import Selection, TypeFilter
from ..turns import in_turns
from .acknowledged import AckRequest, Client, Part
from .follower import READ_EVENTS, Follower

MAX_WAITING: Final = 64
"""Commands of one connection whose answer is not known yet; the next one is refused."""
MAX_WAITING_IDS: Final = 2_000
"""Ids that they name together: a quarter of a megabyte."""
_RETRY_MS: Final = 1_000
_SLICE_IDS: Final = 256
"""Ids that are looked for in one step, or events of one id."""
_NO_BYTES: Final = 1 << 62

Reply = Callable[[Acked | Held | RequestError], None]
Counting = Generator[None, None, int]


class Covered(Struct, frozen=True):
    """The events that a command is for: those of a cursor, and those of ids that are in reach."""

    account_id: str
    client_id: str
    parts: Sequence[Part]
    """Of each, what comes after its position and is of the selection, up to ``through``."""
    through: int
    event_filter: TypeFilter | None
    event_ids: frozenset[str]
    reach: Selection
    """Of which inboxes the ids are."""

    def by_cursor(self, entry: Entry) -> bool:
        """Whether the cursor covers an event."""
        if entry.position > self.through or not (self.event_filter is None or self.event_filter.accepts(entry.type)):
            return False
        return any(entry.position > part.after and entry.inbox in part.selection for part in self.parts)

    def count(self, buffer: ReplayBuffer) -> Counting:
        """Count the events that the window holds, in slices."""
        by_cursor = yield from self._count_by_cursor(buffer)
        by_ids = yield from self._count_by_ids(buffer)
        return by_cursor + by_ids

    def _count_by_cursor(self, buffer: ReplayBuffer) -> Counting:
        counted = 0
        for number, part in enumerate(self.parts):
            position = part.after
            if number:
                yield
            while position < self.through:
                entries, position = buffer.read(
                    part.selection, position, self.through, max_events=READ_EVENTS, max_bytes=_NO_BYTES
                )
                accepts = None if self.event_filter is None else self.event_filter.accepts
                counted += len(entries) if accepts is None else sum(accepts(entry.type) for entry in entries)
                if position < self.through:
                    yield
        return counted

    def _count_by_ids(self, buffer: ReplayBuffer) -> Counting:
        counted = looked_at = 0
        for event_id in self.event_ids:
            looked_at += 1
            for entry in buffer.of_id(event_id):
                looked_at += 1
                counted += entry.inbox in self.reach and not self.by_cursor(entry)
                if looked_at >= _SLICE_IDS:
                    looked_at = 0
                    yield
        return counted


class _Waiting(Struct, frozen=True, eq=False):
    """A command that is being counted, or waits for its turn."""

    ids: int
    counting: Counting
    answer: Callable[[int], Acked | Held]
    reply: Reply


class Acknowledging:
    """What one client acknowledges and holds. Whoever gets True from `submit` lets `do_waiting` run."""

    def __init__(self, buffer: ReplayBuffer, follower: Follower) -> None:
        self._buffer = buffer
        self._follower = follower
        self._waiting: deque[_Waiting] = deque()
        self._waiting_ids = 0

    def __len__(self) -> int:
        """Return how many commands have no answer yet."""
        return len(self._waiting)

    async def do(self, request: AckRequest) -> Acked | Held:
        """Do a command and return its outcome. Raises `RequestError`."""
        covered, answer = self._do(request)
        return answer(await in_turns(covered.count(self._buffer)))

    def submit(self, request: AckRequest, reply: Reply) -> bool:
        """Do a command; ``reply`` gets its outcome, at once where that takes one step.

        Returns whether it is the first that waits.
        """
        ids = len(request.params.event_ids or ())
        try:
            if len(self._waiting) >= MAX_WAITING or (self._waiting and self._waiting_ids + ids > MAX_WAITING_IDS):
                message = f"Too many of `ack` and `hold` are under way - at `{request.action}`"
                raise RequestError("rate_limited", message, retry_after_ms=_RETRY_MS)
            covered, answer = self._do(request)
        except RequestError as error:
            reply(error)
            return False
        counting = covered.count(self._buffer)
        if not self._waiting:
            try:
                next(counting)
            except StopIteration as counted:
                reply(answer(counted.value))
                return False
        self._waiting.append(_Waiting(ids, counting, answer, reply))
        self._waiting_ids += ids
        return len(self._waiting) == 1

    async def do_waiting(self) -> None:
        """Count what waits, one after the other, until there is nothing left. Cancelled, it leaves the rest."""
        while self._waiting:
            waiting = self._waiting[0]
            await trio.lowlevel.checkpoint()
            counted = await in_turns(waiting.counting)
            self._waiting.popleft()
            self._waiting_ids -= waiting.ids
            waiting.reply(waiting.answer(counted))

    def _do(self, request: AckRequest) -> tuple[Covered, Callable[[int], Acked | Held]]:
        """Let a command take effect. Returns what it covers, and what makes the answer of the number of that.

        Raises `RequestError`.
        """
        params, follower = request.params, self._follower
        sent = follower.sent
        assert sent is not None, "who has no `client_id` is refused before"
        client = sent.client
        if isinstance(params, HoldParams):
            return self._covered(client, [], 0, request), partial(Held, claimed=[])
        parts, through, position = list[Part](), 0, None
        if params.cursor is not None:
            through = self._through(params.cursor, request.cursor_path)
            parts = sent.acknowledge(through)
            position = client.advance(through)
        elif params.event_ids is None:
            raise RequestError("invalid_params", "A `cursor` or `event_ids` are missing - at `$`")
        cursor = self._buffer.cursor_at(sent.begin() if position is None else position)
        return self._covered(client, parts, through, request), partial(Acked, cursor, claimed=[])

    def _through(self, cursor: str, path: str) -> int:
        """Return up to where a cursor acknowledges: no further than all of the selection was sent."""
        position = self._buffer.position_of(cursor)
        if position is None:
            raise RequestError("invalid_params", f"This cursor is not of this account and this run - at `{path}`")
        if position > self._follower.position:
            raise RequestError("invalid_params", f"The cursor is ahead of what this connection was sent - at `{path}`")
        return min(position, self._follower.sent_through)

    def _covered(self, client: Client, parts: Sequence[Part], through: int, request: AckRequest) -> Covered:
        ids = frozenset(request.params.event_ids or ())
        return Covered(
            client.account_id, client.client_id, parts, through, self._follower.event_filter, ids, request.reach
        )
