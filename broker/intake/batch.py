"""What one publish brings: its events on their way in, and the answer to it on its way out."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Final

from ..access.keys import Key
from ..commands.dispatch import Lane
from ..log.engines import Answer, Stored, StoredByAccount
from ..protocol.events import ProvedJson
from ..protocol.messages import ENTRY_OVERHEAD_BYTES, PreparedEvent, Published, encode
from ..tracing import Span

ANSWER_SLICE: Final = 512
"""Events whose answers are written before others have their turn."""

Turn = Callable[[], Awaitable[None]]
"""A checkpoint that lets all others have their turn."""


class Batch:
    """One publish on its way in. ``key`` None: it is the library's; ``account_id`` None: each event names its own.

    ``now`` is the time, ``traceparent`` the trace of events that say none, ``lane`` the connection that it came over,
    if it did, and ``answer`` whose it is, if it may be sent again.
    """

    __slots__ = (
        "account_id",
        "answer",
        "by_account",
        "count",
        "items",
        "key",
        "lane",
        "now",
        "order",
        "sizes",
        "span",
        "traceparent",
    )

    def __init__(
        self,
        items: Iterator[tuple[str, ProvedJson] | None],
        now: str,
        account_id: str | None,
        *,
        key: Key | None = None,
        lane: Lane | None = None,
        answer: Answer | None = None,
        traceparent: str | None = None,
    ) -> None:
        self.items = items
        self.key = key
        self.account_id = account_id
        self.lane = lane
        self.answer = answer
        self.now = now
        self.traceparent = traceparent
        self.span: Span | None = None
        self.by_account: dict[str, list[PreparedEvent]] = {}
        self.sizes: dict[str, int] = {}
        """What the events of each account will take in the log, in bytes."""
        self.count = 0
        """Events that were checked."""
        self.order: list[str] = []
        """The account of each event, as they came, if each names its own."""

    def add(self, account_id: str, event: PreparedEvent, size: int) -> None:
        """Take an event that was checked."""
        events = self.by_account.get(account_id)
        if events is None:
            events = self.by_account[account_id] = []
            self.sizes[account_id] = 0
        events.append(event)
        self.sizes[account_id] += size + ENTRY_OVERHEAD_BYTES
        self.count += 1
        if self.account_id is None:
            self.order.append(account_id)

    def forget_events(self) -> None:
        """Keep none of them any more: the log has them, or nobody; a long answer may wait to be written."""
        self.by_account = {}

    def in_order(self, stored: StoredByAccount) -> Sequence[Stored]:
        """Return where the events are in the order in which they came."""
        if len(stored) == 1:
            [of_account] = stored.values()
            return of_account
        streams = {account_id: iter(of_account) for account_id, of_account in stored.items()}
        return [next(streams[account_id]) for account_id in self.order]


async def in_slices(stored: Sequence[Stored], turn: Turn) -> AsyncIterator[list[Published]]:
    """Yield what became of events, as their publisher is told, some at once; ``turn`` comes between."""
    for start in range(0, len(stored), ANSWER_SLICE):
        if start:
            await turn()
        yield _published(stored[start : start + ANSWER_SLICE])


async def write_answer(stored: Sequence[Stored], turn: Turn) -> bytes:
    """Return the JSON of the answer to a publish (PROTOCOL section 6); ``turn`` comes between two slices of it."""
    parts = [encode(part)[1:-1] async for part in in_slices(stored, turn)]
    return b'{"events":[%b]}' % b",".join(parts)


def answer_of(stored: Sequence[Stored]) -> bytes:
    """Return the same in one step, for no more than `ANSWER_SLICE` events."""
    return b'{"events":%b}' % encode(_published(stored))


def _published(stored: Sequence[Stored]) -> list[Published]:
    return [Published(item.event_id, item.cursor, item.duplicate) for item in stored]
