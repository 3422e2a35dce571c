"""How one subscriber follows its account's log: live, behind, or in a replay. The heart of the one idea.

Pure. *Send what lies between the position and the fan-out* is `next`; when nothing does, the follower becomes
live in the same step. Sockets and in-process subscribers follow alike; what differs is how they write.
"""

from datetime import datetime
from typing import Final

from ..log.replay import ReplayBuffer
from ..protocol.messages import Entry, Gap, Replay
from ..protocol.names import ACKED, Duration, parse_since
from ..protocol.selection import NOTHING, Selection, TypeFilter
from .acknowledged import Client, Sent
from .listeners import Listener, State
from .replays import Replays
from .subscriptions import Subscriptions

READ_EVENTS: Final = 256
READ_BYTES: Final = 65_536


class Follower:
    """One subscriber's place in one account. Ended by `close`. ``client``: whose it is, if that may acknowledge."""

    __slots__ = ("_buffer", "_listener", "_replays", "_subscriptions", "sent")

    def __init__(
        self,
        buffer: ReplayBuffer,
        subscriptions: Subscriptions,
        listener: Listener,
        selection: Selection,
        event_filter: TypeFilter | None,
        client: Client | None = None,
    ) -> None:
        self._buffer = buffer
        self._subscriptions = subscriptions
        self._listener = listener
        self._replays = Replays()
        subscriptions.enter(listener, selection, event_filter)
        self.sent = None if client is None else Sent(client, selection, listener.position)
        """What a cursor can acknowledge; None: nothing."""

    @property
    def selection(self) -> Selection:
        """What is followed now."""
        return self._listener.group.selection

    @property
    def event_filter(self) -> TypeFilter | None:
        """The types that are followed now; None: all."""
        return self._listener.group.event_filter

    @property
    def live(self) -> bool:
        """Whether the fan-out writes to this subscriber by itself."""
        return self._listener.state is State.LIVE

    @property
    def replays(self) -> int:
        """How many replays are under way."""
        return len(self._replays)

    @property
    def closed(self) -> bool:
        """Whether nothing is followed any more."""
        return self._listener.state is State.CLOSED

    @property
    def position(self) -> int:
        """How far this subscriber was fed."""
        return self._subscriptions.position_of(self._listener)

    @property
    def sent_through(self) -> int:
        """Up to where everything of the selection was sent: `position`, or how far a replay under way has come."""
        return self._replays.position if self._replays else self.position

    @property
    def cursor(self) -> str:
        """The cursor to resume from: of `sent_through`."""
        return self._buffer.cursor_at(self.sent_through)

    # --- where to start

    def resolve(self, since: str, now: float) -> int | None:
        """Return the position that a ``since`` means (PROTOCOL section 2); None if it is unknown.

        ``now`` is of the monotonic clock that events are stored by, as their wall time is. `acked` means something to
        clients only.
        """
        if since == ACKED and self.sent is not None:
            return self.sent.resume()
        meaning = parse_since(since)
        if isinstance(meaning, Duration):
            return self._buffer.position_before(now - meaning.seconds)
        if isinstance(meaning, datetime):
            return self._buffer.position_before(meaning.timestamp(), by_wall=True)
        return self._buffer.position_of(meaning)

    def start(self, since: int | None) -> tuple[Replay, Gap | None]:
        """Start at a position (None: an unknown one) instead of the fan-out's; what came after it follows.

        To be called before the first `next`. Returns what the replay will bring, and the gap that goes before it.
        """
        through = self._listener.position
        gap, position = self._look_back(self.selection, since, self._buffer.dropped_through)
        self._listener.position = self._listener.told = position
        if self.sent is not None:
            self.sent.start(self.selection, position)
        count = self._buffer.count(self.selection, position, max(through, position))
        return Replay(gap is None, count), gap

    def replay(self, added: Selection, since: int | None) -> tuple[Replay, Gap | None]:
        """Replay only ``added``, which is part of the selection, up to where this subscriber is.

        Returns what that will bring, and the gap that goes before it.
        """
        through = self.position
        gap, position = self._look_back(added, since, min(self._buffer.dropped_through, through))
        if position < through and added != NOTHING:
            self._subscriptions.leave(self._listener)
            self._replays.begin(added, position, through)
        self._listener.told = min(self._listener.told, position)
        if self.sent is not None:
            self.sent.replay(added, min(position, through))
        return Replay(gap is None, self._buffer.count(added, position, through)), gap

    def join_replay(self, added: Selection) -> None:
        """Let a replay under way bring ``added`` too, from where it is: so that takes effect at `cursor`."""
        if self._replays and added != NOTHING:
            if self.sent is not None:
                self.sent.replay(added, self._replays.position)
            self._replays.begin(added, self._replays.position, self._listener.position)

    def _look_back(self, selection: Selection, since: int | None, dropped_through: int) -> tuple[Gap | None, int]:
        """Return the gap after a position, if there is one, and the position from which the window is whole."""
        if since is not None and dropped_through <= since:
            return None, since
        to = self._buffer.cursor_at(dropped_through)
        if since is None:
            return self._gap(None, to, None), dropped_through
        missed = self._buffer.missed(selection, since, dropped_through)
        gap = None if missed == 0 else self._gap(self._buffer.cursor_at(since), to, missed)
        return gap, since if gap is None else dropped_through

    # --- changing what is followed

    def change(self, selection: Selection, event_filter: TypeFilter | None) -> None:
        """Follow another selection or other types from `position` on. Live stays live where that is possible."""
        if self.sent is not None:
            same_types = event_filter == self.event_filter
            self.sent.change(self.selection, selection, self.position, same_types=same_types)
        self._subscriptions.move(self._listener, selection, event_filter)

    def drop_from_replays(self, removed: Selection) -> None:
        """Let no pending replay bring events of ``removed`` any more."""
        self._replays.remove(removed)

    def pause(self) -> None:
        """Be fed by `next` from `position` on, until that returns None again."""
        self._subscriptions.leave(self._listener)

    def close(self) -> None:
        """Follow nothing any more, for ever; what is called after that changes nothing."""
        self._subscriptions.close(self._listener)
        self._listener.let_go()

    # --- following

    def next(self) -> list[Entry] | Gap | None:
        """Return what comes next: events (none: just call again), a gap, or None, and then nothing is left to send.

        With None the follower is live, from this very step on if it was not, or is ahead of the fan-out: it will be
        woken. Or it is closed.
        """
        if self.live or self.closed:
            return None
        if self._replays:
            return self._next_of_replay()
        listener, through = self._listener, self._subscriptions.position
        if listener.position >= through:
            self._subscriptions.join(listener)
            return None
        gap, listener.position = self._look_back(self.selection, listener.position, self._buffer.dropped_through)
        if gap is not None:
            listener.told = listener.position
            self._skip(listener.position)
            return gap
        entries, listener.position = self._buffer.read(
            self.selection, listener.position, through, max_events=READ_EVENTS, max_bytes=READ_BYTES
        )
        return self._filtered(entries)

    def gap_of_replay(self) -> Gap | None:
        """Return the gap in the replays under way, if events that they were to bring are gone; it counts as sent."""
        replays, to = self._replays, min(self._buffer.dropped_through, self._replays.through)
        if not replays or to <= replays.position:
            return None
        from_ = replays.position
        missed = [self._buffer.missed(stretch.selection, stretch.after, to) for stretch in replays.behind(to)]
        replays.advance(to)
        count = None if None in missed else sum(filter(None, missed))
        if count == 0:
            return None
        self._skip(to)
        return self._gap(self._buffer.cursor_at(from_), self._buffer.cursor_at(to), count)

    def _skip(self, through: int) -> None:
        if self.sent is not None:
            self.sent.skip(through)

    def _gap(self, from_: str | None, to: str, count: int | None) -> Gap:
        """Return a gap, which counts as said."""
        tally = self._subscriptions.tally
        tally.gaps += 1
        tally.missed += count or 0
        return Gap(from_, to, count)

    def _next_of_replay(self) -> list[Entry] | Gap:
        gap = self.gap_of_replay()
        if gap is not None:
            return gap
        if not self._replays:
            return []
        after, through, selection = self._replays.next()
        entries, position = self._buffer.read(selection, after, through, max_events=READ_EVENTS, max_bytes=READ_BYTES)
        self._replays.advance(position)
        return self._filtered(entries)

    def _filtered(self, entries: list[Entry]) -> list[Entry]:
        event_filter = self.event_filter
        if event_filter is not None:
            entries = [entry for entry in entries if event_filter.accepts(entry.type)]
        if entries:
            self._subscriptions.tally.events += len(entries)
            self._listener.told = entries[-1].position
        return entries

    def news(self) -> str | None:
        """Return the cursor to tell a live subscriber for whom no event was lately; None if it knows it."""
        if not self.live or self._listener.told >= self.position:
            return None
        self._listener.told = self.position
        return self._buffer.cursor_at(self.position)
