"""An in-process subscriber: the account's log as an async iterator of events and gaps.

It follows as a socket does: a slow reader keeps nothing but its position, and is fed from the replay buffer.
"""

from collections import deque

import trio

from ..protocol.framing import payload_of
from ..protocol.messages import Event, Gap, Replay, decode_event
from ..protocol.selection import Selection, TypeFilter
from .follower import Follower
from .hub import Account
from .subscriptions import Listener


class Subscriber:
    """Iterate over it to get `Event` and `Gap`, for ever. One task at a time may iterate."""

    def __init__(self, account: Account, selection: Selection, event_filter: TypeFilter | None) -> None:
        self._woken = trio.Event()
        self._ready: deque[Event | Gap] = deque()
        listener = Listener(_take_nothing, self._wake)
        self.follower = Follower(account.buffer, account.subscriptions, listener, selection, event_filter)
        self.replay: Replay | None = None
        """What the replay brings, if ``since`` was given."""
        self.cursor = self.follower.cursor
        """Where to subscribe again: the cursor of the last event or gap that was read, or of the start."""

    def start(self, since: int | None) -> None:
        """Start at a position, or None for an unknown one, instead of now."""
        self.replay, gap = self.follower.start(since)
        if gap is not None:
            self._ready.append(gap)
        else:
            self.cursor = self.follower.cursor

    def _wake(self) -> None:
        self._woken.set()

    def __aiter__(self) -> "Subscriber":
        return self

    async def __anext__(self) -> Event | Gap:
        await trio.lowlevel.checkpoint()
        while not self._ready:
            self._woken = trio.Event()
            following = self.follower.next()
            if following is None:
                await self._woken.wait()
            elif isinstance(following, Gap):
                self._ready.append(following)
            else:
                self._ready.extend(decode_event(payload_of(entry.frame)) for entry in following)
                await trio.lowlevel.checkpoint()
        item = self._ready.popleft()
        self.cursor = item.to if isinstance(item, Gap) else item.cursor
        return item


def _take_nothing(_: bytes) -> int:
    return 0
