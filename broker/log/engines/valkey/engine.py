"""The engine of many nodes: their logs are in one Valkey or Redis 7, and each node has those here that it needs.

An event is stored when the server has it, and everybody who listens hears of it by the server, on the node that took it
in, too. While the server is away, publishes wait for a few seconds, and openings are refused. Where it has lost what it
had, another history begins (`scripts`): that is said to everybody, as a gap without a count.
"""

from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from ....address import Address
from ....config import ReplayConfig
from ....nodes import Wire
from ...retention import ReplayBuffers
from .. import Answer, Done, EngineStatistics, EventsByAccount, Log, Withdraw
from . import FAR
from .appending import Appending
from .link import Link
from .reaching import Reaching
from .tail import Attached, Tail
from .wire import LinkWire

START_SECONDS: Final = 3.0
"""How long a start waits for the server; then it goes on without."""


class ValkeyEngine:
    """Stores to a server that many nodes share; ``node`` is this one's name, and no other's."""

    archive: Final = None
    refusal: Final = None

    def __init__(
        self, buffers: ReplayBuffers, log: Log, address: Address, node: str, replay: ReplayConfig, replicas: int = 0
    ) -> None:
        buffers.begin_elsewhere(FAR)
        self.link = Link(address, node, replicas)
        self.wire: Wire = LinkWire(self.link)
        """For those who share more than logs."""
        self.tail = Tail(self.link, buffers, log)
        self.appending = Appending(self.link, replay)
        self._reaching = Reaching(self.link, buffers, log, self.tail, replay)
        self.link.greetings.append(self.tail.greet)
        self.link.tasks.append(self.appending.write)

    @property
    def away(self) -> bool:
        """Whether the server cannot be reached."""
        return self.link.away

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run its tasks, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.link.keep)
            nursery.start_soon(self.appending.refuse_late)
            nursery.start_soon(self.tail.look_after)
            with trio.move_on_after(START_SECONDS):
                await self.link.ready.wait()
            task_status.started()

    def begin(self, by_account: EventsByAccount, done: Done, answer: Answer | None = None) -> Withdraw | None:
        """Have events stored, with those that wait beside them. Of ``answer`` is kept what stands for the content.

        If the same publish came with other content, at whichever node, it is `request_id_reused`.
        """
        return self.appending.begin(by_account, done, answer)

    def statistics(self) -> EngineStatistics | None:
        """Return how it stands to its server."""
        link, appending, tail = self.link, self.appending, self.tail
        return EngineStatistics(
            link.away,
            link.full,
            link.losses,
            len(tail),
            appending.under_way,
            appending.calls,
            appending.events,
            tail.reads,
        )

    def attach(self, account_id: str) -> AbstractAsyncContextManager[None]:
        """Follow an account's log, from its head on. Raises `RequestError` if that cannot be known."""
        return Attached(self.tail, account_id)

    async def reach(self, account_id: str, since: str | int) -> None:
        """Read back what came after ``since``. Raises `RequestError`."""
        await self._reaching.reach(account_id, since)
