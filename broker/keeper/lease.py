"""Who of the nodes that share a server is the keeper: the one that has the lease there, for as long as it lives.

A node that is there later stands by: it has the lease as soon as the other's node is gone, at the latest when that does
not renew its own lease any more (some seconds).
"""

import logging
from contextlib import suppress
from typing import Final

import trio

from ..errors import BUSY_RETRY_MS, RequestError
from ..nodes import KEEPER, Wire

logger = logging.getLogger(__name__)

TAKE: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and redis.call('EXISTS', ARGV[2] .. holder) == 1 then return {holder, 0} end
redis.call('SET', KEYS[1], ARGV[1])
return {ARGV[1], holder and 0 or 1}
"""
"""KEYS: the keeper's. ARGV: a node, what stands before the keys of nodes' leases. Returns who is the keeper then, and 1
if there never was one."""
GIVE_BACK: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], '') end return 1"
NEW_SECONDS: Final = 1.0
"""How long the first keeper of all waits: other nodes may think for a moment that there is none (`fanout.handed`)."""
RENEW_SECONDS: Final = 1.0


class Lease:
    """This node's claim to be the keeper."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._keys = [wire.key(KEEPER, "")]
        self.taken = trio.Event()
        """Set while this node has it; another one each time."""
        self.lost = trio.Event()
        """The same while it has not."""
        self.lost.set()
        self.ended = trio.Event()
        """Set when this node has left, and others may have it."""
        self._other: str | None = None
        self._renewed = trio.Event()
        wire.follow(lambda _: None, self._again)

    @property
    def held(self) -> bool:
        """Whether this node is the keeper."""
        return self.taken.is_set()

    @property
    def is_others(self) -> bool:
        """Whether another node is."""
        return self._other is not None

    def require(self) -> None:
        """Raise `RequestError` (`unavailable`) if another node is the keeper."""
        if self._other is not None:
            message = "Another node of this cluster keeps its webhooks and queues"
            raise RequestError("unavailable", message, retry_after_ms=BUSY_RETRY_MS)

    def _again(self) -> None:
        """The server is back: who is the keeper there?"""
        self._lose()
        self._renewed.set()

    async def run(self, leaving: trio.Event) -> None:
        """Take the lease and keep it, until this node is leaving; then give it back."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            await leaving.wait()
            nursery.cancel_scope.cancel()
        if self.held:
            self._lose()
            with suppress(RequestError):  # then it ends with the node
                await self._wire.call(GIVE_BACK, self._keys, (self._wire.node,))
        self.ended.set()

    async def _keep(self) -> None:
        while True:
            try:
                holder, is_first = await self._wire.call(TAKE, self._keys, (self._wire.node, self._wire.leases))
            except RequestError:
                self._lose()
            else:
                if is_first:
                    await trio.sleep(NEW_SECONDS)
                    continue
                self._hear(holder.decode())
            self._renewed = trio.Event()
            with trio.move_on_after(RENEW_SECONDS):
                await self._renewed.wait()

    def _hear(self, holder: str) -> None:
        if holder != self._wire.node:
            self._lose()
            if self._other is None:
                logger.warning("another node (%s) keeps this cluster's webhooks and queues: this one stands by", holder)
            self._other = holder
        elif not self.held:
            if self._other is not None:
                logger.warning("this node keeps the cluster's webhooks and queues now")
            self._other = None
            self.lost = trio.Event()
            self.taken.set()

    def _lose(self) -> None:
        if self.held:
            self.taken = trio.Event()
            self.lost.set()
