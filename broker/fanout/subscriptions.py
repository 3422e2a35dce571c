"""Who listens to what, in one account, and how far the fan-out is.

Pure. Subscribers with the same selection and filter form a `Group`: what is for one is for all, so a batch of
frames is joined once for each group. Sets are copied when they are read after a change, never while they are
iterated.

The two rules that make "at most once, none missing" hold:

* `advance` moves the fan-out's position to the batch's last event *before* it takes the snapshot of subscribers.
* A live listener has no position: it is where the fan-out is (`position_of`). It gets one when it falls behind,
  and gives it up in `join`, when that equals the fan-out's.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from ..protocol.messages import Entry
from ..protocol.selection import Selection, TypeFilter

MAX_MATCHES: Final = 1_024
"""Events times groups in one step: well under a millisecond."""


class Listener:
    """One subscriber's end, as the fan-out sees it.

    ``write_nowait(data)`` takes whole frames and returns how many bytes it took, without ever blocking or raising;
    ``wake()`` says, without content, that the listener fell behind or may go on.

    The fan-out calls ``send``, which is ``write_nowait`` unless a stream has put its socket's own there. That may take
    a part, or raise `OSError`; the stream hears of it by ``sent_part`` and ``send_failed``.
    """

    __slots__ = (
        "group",
        "position",
        "send",
        "send_failed",
        "sent_part",
        "served_through",
        "told_through",
        "wake",
    )

    def __init__(self, write_nowait: Callable[[bytes], int], wake: Callable[[], None]) -> None:
        self.send = write_nowait
        self.sent_part: Callable[[bytes, int], None] = _ignore
        self.send_failed: Callable[[OSError], None] = _ignore
        self.wake = wake
        self.group: Group | None = None
        """Set while it is live."""
        self.position = 0
        """How far it was fed, while it is not live."""
        self.served_through = 0
        """While it is live: the end of the last batch that was written to it, or where it became live."""
        self.told_through = 0
        """The position of the last cursor that was written to it."""


def _ignore(*_: object) -> None:
    """Hear nothing of it: `write_nowait` has seen to it."""


class Group:
    """The live listeners of one selection and filter."""

    __slots__ = ("_snapshot", "event_filter", "holders", "members", "selection")

    def __init__(self, selection: Selection, event_filter: TypeFilter | None) -> None:
        self.selection = selection
        self.event_filter = event_filter
        self.members: dict[Listener, None] = {}
        self.holders = 0
        self._snapshot: tuple[Listener, ...] | None = None

    def add(self, listener: Listener) -> None:
        """Make a listener a member."""
        self.members[listener] = None
        self._snapshot = None

    def discard(self, listener: Listener) -> None:
        """Let a member go."""
        self.members.pop(listener, None)
        self._snapshot = None

    def snapshot(self) -> tuple[Listener, ...]:
        """Return the members as they are now."""
        if self._snapshot is None:
            self._snapshot = tuple(self.members)
        return self._snapshot


class Delivery(Struct, frozen=True, gc=False):
    """A batch's frames for one group: ``data`` joined, up to the event at ``last``; who was live at its start."""

    group: Group
    members: tuple[Listener, ...]
    data: bytes
    last: int


class Subscriptions:
    """One account's listeners by inbox. ``position`` is the fan-out's, ``turn_start`` where its last batch began."""

    __slots__ = ("_by_inbox", "_groups", "_of_all", "_waiting", "live", "position", "turn_start")

    def __init__(self, position: int) -> None:
        self.position = position
        self.turn_start = position
        self.live = 0
        self._groups: dict[tuple[Selection, TypeFilter | None], Group] = {}
        self._by_inbox: dict[str, dict[Group, None]] = {}
        self._of_all: dict[Group, None] = {}
        self._waiting: list[Listener] = []

    # --- groups: held by whoever may go live in them

    def hold(self, selection: Selection, event_filter: TypeFilter | None) -> Group:
        """Return the group of a selection that excludes nothing; `release` it in the end."""
        key = (selection, event_filter)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(selection, event_filter)
            for groups in self._indexes(selection, create=True):
                groups[group] = None
        group.holders += 1
        return group

    def release(self, group: Group) -> None:
        """Give back what `hold` gave; a group that nobody holds is forgotten."""
        group.holders -= 1
        if group.holders:
            return
        del self._groups[group.selection, group.event_filter]
        for groups in self._indexes(group.selection, create=False):
            del groups[group]
        for inbox in group.selection.inboxes or ():
            if not self._by_inbox[inbox]:
                del self._by_inbox[inbox]

    @property
    def in_use(self) -> bool:
        """Whether anybody holds a group here."""
        return bool(self._groups)

    def _indexes(self, selection: Selection, *, create: bool) -> Iterable[dict[Group, None]]:
        if selection.inboxes is None:
            return [self._of_all]
        if create:
            return [self._by_inbox.setdefault(inbox, {}) for inbox in selection.inboxes]
        return [self._by_inbox[inbox] for inbox in selection.inboxes]

    # --- live or behind

    def position_of(self, listener: Listener) -> int:
        """Return how far a live listener was served, inside an unfinished batch too."""
        return self.position if listener.served_through == self.position else self.turn_start

    def join(self, listener: Listener, group: Group) -> bool:
        """Make a listener live if its position is the fan-out's. If it is ahead, it is woken when that moves."""
        if listener.position != self.position:
            if listener.position > self.position:
                self._waiting.append(listener)
            return False
        listener.served_through = self.position
        listener.group = group
        group.add(listener)
        self.live += 1
        return True

    def leave(self, listener: Listener) -> None:
        """Make a live listener one with a position of its own: where it was served to."""
        if listener.group is not None:
            self.fall_behind(listener, self.position_of(listener))

    def fall_behind(self, listener: Listener, position: int) -> None:
        """Make a live listener one with this position."""
        if listener.group is not None:
            listener.group.discard(listener)
            listener.group = None
            listener.position = position
            self.live -= 1

    # --- the fan-out

    def advance(self, batch: list[Entry]) -> list[Delivery]:
        """Move the position over a batch, or its first part; return what is to be written to whom.

        `settle` when that is done. The batch is cut where it has gone to `MAX_MATCHES` groups: one step is short,
        however many groups an account has.
        """
        frames: dict[Group, list[bytes]] = {}
        last: dict[Group, int] = {}
        matches = 0
        reached = batch[-1].position
        for entry in batch:
            for group in (*self._by_inbox.get(entry.inbox, ()), *self._of_all):
                matches += 1
                if group.members and (group.event_filter is None or group.event_filter.accepts(entry.type)):
                    frames.setdefault(group, []).append(entry.frame)
                    last[group] = entry.position
            if matches >= MAX_MATCHES:
                reached = entry.position
                break
        self.turn_start, self.position = self.position, reached
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for listener in waiting:
                listener.wake()
        return [Delivery(group, group.snapshot(), b"".join(joined), last[group]) for group, joined in frames.items()]

    def settle(self) -> None:
        """Say that all that `advance` returned is written: who had nothing to get is served too."""
        self.turn_start = self.position
