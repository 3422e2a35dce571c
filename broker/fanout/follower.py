"""How one subscriber follows its account's log: live, behind, or in a replay. The heart of the one idea.

Pure. *Send what lies between the position and the fan-out* is `next`; when nothing does, the follower becomes
live in the same step. Sockets and in-process subscribers follow alike; what differs is how they write.

Where an archive keeps what memory drops, `next` says which page of it comes next, and goes on when it is given that;
and `reach` says what is to be known of it before a start in the past. Whoever owns the follower asks.
"""

from datetime import datetime
from typing import Final

from msgspec.structs import replace

from ..log.archive import Older, Page, Reach, Reached
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

    __slots__ = ("_buffer", "_listener", "_page", "_replays", "_subscriptions", "sent")

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
        self._page: tuple[Older, Page] | None = None
        """What the archive has answered, and to what; not taken yet."""
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

    @property
    def archive_seconds(self) -> float | None:
        """How far back an archive reaches; None: there is none, and what memory drops is gone."""
        return self._buffer.archive_seconds

    def names_beside(self, selection: Selection) -> list[frozenset[str]]:
        """Return the names that are kept for it beside those of this selection, where that is followed.

        What replays bring and cursors acknowledge is parts of the selection, and only where that is all they have names
        of their own. But what is just being acknowledged may have been followed before.
        """
        sent = self.sent
        beside = [] if sent is None else [acknowledged.names for acknowledged in sent.acknowledged]
        if selection.inboxes is None:
            parts = [*self._replays.selections, *(() if sent is None else sent.selections)]
            beside.append(frozenset[str]().union(*(part.names for part in parts)))
        return beside

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

    def reach(self, added: Selection, since: str, now: float, reached: Reached | None = None) -> Reach | None:
        """Return what is to be asked of the archive before a `start` or a `replay` of ``added`` from ``since``.

        None: nothing, or ``reached``, which was answered before, still tells enough; then to be given it in this step.
        What replays under way have missed is to be said first, by `gap_of_replay`: ``reached`` may have that, too.
        """
        buffer, position = self._buffer, self.position
        if added == NOTHING or (buffer.archive_seconds is None and (reached is not None or not buffer.elsewhere)):
            return None
        if reached is not None and self._tells(reached, added, position) is not None:
            ahead = self._replays and self._replays.position < reached.gap_through
            return replace(reached.reach, before=self._next_older()) if ahead else None
        through = min(buffer.dropped_through, position)
        start = self.resolve(since, now)
        if start is not None and buffer.missed(added, start, through) == 0:
            return None
        meaning = parse_since(since)
        return Reach(added, start, None if start is not None or isinstance(meaning, str) else meaning, through, since)

    def start(self, since: int | None, reached: Reached | None = None) -> tuple[Replay, Gap | None]:
        """Start at a position (None: an unknown one) instead of the fan-out's; what came after it follows.

        To be called before the first `next`. ``reached`` is what `reach` asked for; then it says where to start.
        Returns what the replay will bring, and the gap that goes before it.
        """
        selection, through = self.selection, self._listener.position
        gap, position, count = self._begin(selection, since, self._buffer.dropped_through, through, reached)
        self._listener.position = self._listener.told = position
        if self.sent is not None:
            self.sent.start(selection, position)
        return Replay(gap is None, count + self._buffer.count(selection, position, max(through, position))), gap

    def replay(self, added: Selection, since: int | None, reached: Reached | None = None) -> tuple[Replay, Gap | None]:
        """Replay only ``added``, which is part of the selection, up to where this subscriber is.

        ``reached`` is what `reach` asked for; then it says where to start. Returns what the replay will bring, and the
        gap that goes before it.
        """
        if added == NOTHING:
            return Replay(since is not None, 0), None if since is not None else self._gap(None, self.cursor, None)
        through = self.position
        dropped_through = min(self._buffer.dropped_through, through)
        gap, position, count = self._begin(added, since, dropped_through, through, reached)
        if position < through:
            self._subscriptions.leave(self._listener)
            self._replays.begin(added, position, through)
        self._listener.told = min(self._listener.told, position)
        if self.sent is not None:
            self.sent.replay(added, min(position, through))
        return Replay(gap is None, count + self._buffer.count(added, position, through)), gap

    def join_replay(self, added: Selection) -> None:
        """Let a replay under way bring ``added`` too, from where it is: so that takes effect at `cursor`."""
        if self._replays and added != NOTHING:
            if self.sent is not None:
                self.sent.replay(added, self._replays.position)
            self._replays.begin(added, self._replays.position, self._listener.position)

    def _begin(
        self, selection: Selection, since: int | None, dropped_through: int, through: int, reached: Reached | None
    ) -> tuple[Gap | None, int, int]:
        """Return the gap after a start, if there is one, where to begin, and how many events are to be read elsewhere.

        The archive was asked about what memory had dropped by then; what that dropped since, it still knows.
        """
        count = None if reached is None else self._tells(reached, selection, through)
        if reached is None or reached.kept is None or count is None:
            return *self._look_back(selection, since, dropped_through), 0
        kept, since = reached.kept, reached.position
        if since is None:
            return self._gap(None, self._buffer.cursor_at(kept.gone_through), None), kept.gone_through, count
        gap, position = self._gap_between(since, kept.gone_through, kept.missed)
        return gap, position, count

    def _tells(self, reached: Reached, selection: Selection, through: int) -> int | None:
        """Return how many events the archive has that memory does not; None if that is not what it was asked."""
        if reached.kept is None:
            return None
        dropped = self._buffer.missed(selection, reached.reach.through, through)
        return None if dropped is None or reached.reach.selection != selection else reached.kept.count + dropped

    def _gap_between(self, after: int, through: int, missed: int | None) -> tuple[Gap | None, int]:
        """Return the gap that events which are gone have left, and the position behind it; none of them: there."""
        if through <= after or missed == 0:
            return None, after
        cursor_at = self._buffer.cursor_at
        return self._gap(cursor_at(after), cursor_at(through), missed), through

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
        self._page = None
        self._subscriptions.close(self._listener)
        self._listener.let_go()

    # --- following

    def next(self) -> list[Entry] | Gap | Older | None:
        """Return what comes next: events (none: just call again), a gap, or None, and then nothing is left to send.

        `Older`: that is to be asked of the archive, and handed in by `take_in`; the same again until it is. With None
        the follower is live, from this very step on if it was not, or is ahead of the fan-out: it will be woken. Or it
        is closed.
        """
        if self.live or self.closed:
            return None
        if self._replays:
            return self._next_of_replay()
        listener, through = self._listener, self._subscriptions.position
        if listener.position >= through:
            self._subscriptions.join(listener)
            return None
        selection, buffer = self.selection, self._buffer
        if listener.position < buffer.dropped_through:
            following: list[Entry] | Gap | Older | None
            if buffer.archive_seconds is not None:
                following, listener.position = self._older(Older(selection, listener.position, buffer.dropped_through))
                if isinstance(following, list):
                    return self._filtered(following)
            else:
                following, listener.position = self._look_back(selection, listener.position, buffer.dropped_through)
            if isinstance(following, Gap):
                listener.told = listener.position
                self._skip(listener.position)
            if following is not None:
                return following
        entries, listener.position = buffer.read(
            selection, listener.position, through, max_events=READ_EVENTS, max_bytes=READ_BYTES
        )
        return self._filtered(entries)

    def take_in(self, older: Older, page: Page) -> None:
        """Take what the archive answers; `next` brings it, unless something else is wanted by then."""
        if not self.closed:
            self._page = older, page

    @property
    def held_bytes(self) -> int:
        """Of events that were read elsewhere, and wait to be taken."""
        return 0 if self._page is None else sum(len(entry.frame) for entry in self._page[1].entries)

    def _older(self, asked: Older) -> tuple[list[Entry] | Gap | Older, int]:
        """Return what comes of the events that memory does not hold, and the position that this reaches."""
        gap, position = self._pass_gone(asked)
        if gap is not None or asked.selection == NOTHING:
            return gap or [], position
        held, self._page = self._page, None
        if held is None or not _answers(held[0], replace(asked, after=position)):
            return asked, asked.after
        return held[1].entries, held[1].reached

    def _pass_gone(self, asked: Older) -> tuple[Gap | None, int]:
        """Pass what the archive has let go, as its answer says: return the gap, if there is one, and its end."""
        if asked.selection == NOTHING:
            return None, asked.through
        if self._page is None or not _answers(self._page[0], asked):
            return None, asked.after
        answered, page = self._page
        if page.gone_through <= asked.after:
            return None, asked.after
        self._page = replace(answered, after=page.gone_through), page
        return self._gap_between(asked.after, page.gone_through, page.missed)[0], page.gone_through

    def _next_older(self) -> Older:
        """Return what the replays under way are to bring next of what memory does not hold."""
        after, through, selection = self._replays.next()
        return Older(selection, after, min(self._buffer.dropped_through, through))

    def gap_of_replay(self) -> Gap | None:
        """Return the gap in the replays under way, if events that they were to bring are gone; it counts as sent."""
        replays, to = self._replays, min(self._buffer.dropped_through, self._replays.through)
        if not replays or to <= replays.position:
            return None
        if self._buffer.archive_seconds is not None:
            gap, position = self._pass_gone(self._next_older())
            if position > replays.position:
                replays.advance(position)
            if gap is not None:
                self._skip(position)
            return gap
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

    def _next_of_replay(self) -> list[Entry] | Gap | Older:
        gap = self.gap_of_replay()
        if gap is not None:
            return gap
        if not self._replays:
            return []
        after, through, selection = self._replays.next()
        buffer = self._buffer
        if after < buffer.dropped_through and buffer.archive_seconds is not None:
            following, position = self._older(self._next_older())
            if position > after:
                self._replays.advance(position)
            return following if isinstance(following, Gap | Older) else self._filtered(following)
        entries, position = buffer.read(selection, after, through, max_events=READ_EVENTS, max_bytes=READ_BYTES)
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


def _answers(answered: Older, asked: Older) -> bool:
    """Whether what was answered is of use still: what was begun meanwhile may be something else, or end sooner."""
    same = answered.selection == asked.selection and answered.after == asked.after
    return same and answered.through <= asked.through
