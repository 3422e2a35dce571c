"""What stores and orders events: the `Engine` protocol, and the `Log` that engines fill. The engines stand beside this.

An engine promises: events of one account have one order; an event id that its inbox's window still holds is not stored
again; what one `begin` brings is stored whole or not at all, for all its accounts in one step; ``done`` is called once
for each `begin`, in the order in which they were stored, when that is as durable as the engine says; who waits for it
may leave, and loses the answer only, unless he takes back what was not sent yet. The only writer of a log is its
engine. One suite of tests holds this for all.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio
from msgspec import Struct

from ...errors import RequestError
from ...protocol.messages import Entry, PreparedEvent
from ..archive import Archive
from ..dropped import Dropped
from ..replay import Mark


class Stored(Struct, frozen=True, gc=False):
    """Where an event is. ``duplicate``: it was there before, and stays as it was."""

    event_id: str
    position: int
    cursor_prefix: str
    duplicate: bool

    @property
    def cursor(self) -> str:
        """The cursor of its position."""
        return f"{self.cursor_prefix}{self.position}"


class Answer(Struct, frozen=True):
    """Whose publish it is, if its client may send it again: what that gets is to be known for as long as its events."""

    identity: tuple[str, str, str]
    """The key, the `client_id` or "", the `request_id`."""
    digest: bytes
    """Stands for the publish's content."""


EventsByAccount = Mapping[str, Sequence[PreparedEvent]]
StoredByAccount = Mapping[str, Sequence[Stored]]
Done = Callable[[StoredByAccount | RequestError], None]
"""Called with where the events are, in the order in which they came; or with why none of them is stored."""
Withdraw = Callable[[], None]
"""Takes back a publish of which nothing was sent yet: its `Done` hears that it is not stored. Later it does nothing."""


class EngineStatistics(Struct, frozen=True):
    """How an engine stands to the server that it shares with others."""

    away: bool
    full: bool
    """Whether the server takes nothing more in."""
    losses: int
    """Times that the server was lost since the start."""
    attached: int
    """Accounts whose log is kept here, too."""
    waiting: int
    """Publishes that are not told of yet."""
    calls: int
    """Calls that stored something since the start."""
    events: int
    """Events that went with them, those that were there before among them."""
    reads: int
    """Pages that were read because what arrived was not what comes next."""


class Log(Protocol):
    """What an engine fills: the accounts' logs as this process has them. Each call is one step.

    An engine that has the logs elsewhere keeps those of attached accounts here: `restart` begins that, and ends it.
    """

    def store(self, account_id: str, entries: list[Entry]) -> None:
        """Store events after the head of an account's log, and wake the fan-out."""
        ...

    def prepend(self, account_id: str, entries: list[Entry], before: Mark) -> None:
        """Store older events, which end where the log's window begins, for whoever asks for them.

        ``before``: the last event that is still not here, with times that it was stored at, or before.
        """
        ...

    def remember(self, account_id: str, dropped: Sequence[Dropped], before: Mark) -> None:
        """Know of events that are gone, which are older than all that is known; ``before`` is the last unknown one."""
        ...

    def skip(self, account_id: str, dropped: Sequence[Dropped] | None, end: Mark) -> None:
        """Go on after ``end``, over events that this process did not get; its window must be empty.

        Each listener finds a gap: counted, if ``dropped`` are all of them; None: nobody knows how many.
        """
        ...

    async def passed(self, account_id: str, position: int) -> None:
        """Wait until the fan-out has passed a position."""
        ...

    def restart(self, account_id: str, start: Mark, epoch: bytes, *, fed: bool) -> None:
        """Begin another history (``epoch``), empty and after ``start``: no older cursor is known any more.

        Each listener finds a gap without a count, if ``start`` lies after all that there was. ``fed``: whether the log
        is kept here from now on; if not, ``start`` lies beyond all positions.
        """
        ...


class Engine(Protocol):
    """What every engine does."""

    @property
    def away(self) -> bool:
        """Whether it cannot be reached: then nobody can open a stream."""
        ...

    @property
    def archive(self) -> Archive | None:
        """What it keeps beyond memory; None: nothing, and what memory drops is gone."""
        ...

    @property
    def refusal(self) -> RequestError | None:
        """Why nothing can be stored now, though it is there; None: it can."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run its tasks, for ever. Never raises because what it stores to is away."""
        ...

    def begin(self, by_account: EventsByAccount, done: Done, answer: Answer | None = None) -> Withdraw | None:
        """Store events, each account's in their order; ``done`` says what became of them, at once where that can be.

        An engine that outlives the process remembers ``answer`` with them, in the same step. Returns what takes the
        publish back while it waits for a server; None: it is as good as stored.
        """
        ...

    def statistics(self) -> EngineStatistics | None:
        """Return how it stands to the server that it shares; None: it shares none."""
        ...

    def attach(self, account_id: str) -> AbstractAsyncContextManager[None]:
        """Keep an account's log in this process while the block lasts."""
        ...

    async def reach(self, account_id: str, since: str | int) -> None:
        """Let the log of an account that is attached hold what came after ``since``, as far as there is any.

        ``since``: a cursor, a duration, a time, or a position. Raises `RequestError` (`unavailable`).
        """
        ...
