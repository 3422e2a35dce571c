"""Listeners, and the groups of those who want the same, found by inbox.

Pure. Subscribers with the same selection and filter form a `Group`: what is for one is for all. How listeners stand to
the fan-out, and who moves them, is in `subscriptions`.
"""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

from ..protocol.messages import Entry
from ..protocol.selection import NOTHING, Selection, TypeFilter


class State(Enum):
    """How a listener stands to the fan-out; the table is in `subscriptions`."""

    LIVE = "live"
    BEHIND = "behind"
    AHEAD = "ahead"
    CLOSED = "closed"


class Listener:
    """One subscriber's end, as the fan-out sees it.

    ``write_nowait(data)`` takes whole frames and returns how many bytes it took, without ever blocking or raising;
    ``wake()`` says, without content, that the listener is behind and is to be fed by its owner.

    The fan-out calls ``send``, which is ``write_nowait`` unless a stream has put its socket's own there. That may take
    a part, or raise `OSError`; the stream hears of it by ``sent_part`` and ``send_failed``.
    """

    __slots__ = ("group", "position", "send", "send_failed", "sent_part", "state", "told", "wake")

    def __init__(self, write_nowait: Callable[[bytes], int], wake: Callable[[], None]) -> None:
        self.send = write_nowait
        self.sent_part: Callable[[bytes, int], None] = _ignore
        self.send_failed: Callable[[OSError], None] = _ignore
        self.wake = wake
        self.state = State.CLOSED
        self.group = NO_GROUP
        self.position = 0
        self.told = 0

    def let_go(self) -> None:
        """Call nobody any more: its owner and it refer to each other no longer."""
        self.send, self.wake, self.sent_part, self.send_failed = take_nothing, _ignore, _ignore, _ignore


def take_nothing(_: bytes) -> int:
    """Be the ``write_nowait`` of a listener that reads everything from the log."""
    return 0


def _ignore(*_: object) -> None:
    """Hear nothing of it: `write_nowait` has seen to it."""


class Group:
    """One selection and filter: how many hold it, and the live listeners among them.

    Members are copied when they are read after a change, never while they are iterated.
    """

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

    def wants(self, entry: Entry) -> bool:
        """Whether an event of its inboxes is for anybody in it."""
        return bool(self.members) and (self.event_filter is None or self.event_filter.accepts(entry.type))

    def snapshot(self) -> tuple[Listener, ...]:
        """Return the members as they are now."""
        if self._snapshot is None:
            self._snapshot = tuple(self.members)
        return self._snapshot


NO_GROUP: Final = Group(NOTHING, None)
"""Of a listener that is closed, or that has not entered yet."""


class Groups:
    """The groups of one account; each is held by all who may go live in it."""

    __slots__ = ("_by_inbox", "_by_key", "_of_all")

    def __init__(self) -> None:
        self._by_key: dict[tuple[Selection, TypeFilter | None], Group] = {}
        self._by_inbox: dict[str, Group | dict[Group, None]] = {}
        """Most inboxes are in one group alone."""
        self._of_all: dict[Group, None] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._by_key.values())

    def of(self, entry: Entry) -> tuple[Group, ...]:
        """Return the groups whose selection has an event's inbox."""
        groups = self._by_inbox.get(entry.inbox, ())
        return (groups, *self._of_all) if isinstance(groups, Group) else (*groups, *self._of_all)

    def count(self, entry: Entry) -> int:
        """Return how many these are."""
        groups = self._by_inbox.get(entry.inbox, ())
        return (1 if isinstance(groups, Group) else len(groups)) + len(self._of_all)

    def hold(self, selection: Selection, event_filter: TypeFilter | None) -> Group:
        """Return the group of a selection that excludes nothing; `release` it in the end."""
        group = self._by_key.get((selection, event_filter))
        if group is None:
            group = self._by_key[selection, event_filter] = Group(selection, event_filter)
            self._enlist(group, selection)
        group.holders += 1
        return group

    def release(self, group: Group) -> None:
        """Give back what `hold` gave; a group that nobody holds is forgotten. Raises ValueError if it is already."""
        if self._by_key.get((group.selection, group.event_filter)) is not group:
            raise ValueError(f"nobody holds the group of {group.selection}")
        group.holders -= 1
        if not group.holders:
            del self._by_key[group.selection, group.event_filter]
            self._strike(group, group.selection)

    def change(self, group: Group, selection: Selection, event_filter: TypeFilter | None) -> Group:
        """Give a group back for another. Where nobody else holds either it is changed, at the cost of what differs."""
        key = (selection, event_filter)
        if group.holders > 1 or key in self._by_key:
            changed = self.hold(selection, event_filter)
            self.release(group)
            return changed
        del self._by_key[group.selection, group.event_filter]
        before, group.selection, group.event_filter = group.selection, selection, event_filter
        self._by_key[key] = group
        if before.inboxes is None or selection.inboxes is None:
            self._strike(group, before)
            self._enlist(group, selection)
        else:
            self._strike(group, before.minus(selection))
            self._enlist(group, selection.minus(before))
        return group

    def _enlist(self, group: Group, selection: Selection) -> None:
        if selection.inboxes is None:
            self._of_all[group] = None
            return
        # Thousands at once, most of them nobody's: all that can be is done in C.
        by_inbox, inboxes = self._by_inbox, selection.inboxes
        shared = () if by_inbox.keys().isdisjoint(inboxes) else by_inbox.keys() & inboxes
        for inbox in shared:
            groups = by_inbox[inbox]
            if isinstance(groups, Group):
                groups = by_inbox[inbox] = {groups: None}
            groups[group] = None
        by_inbox.update(dict.fromkeys(inboxes - shared if shared else inboxes, group))

    def _strike(self, group: Group, selection: Selection) -> None:
        if selection.inboxes is None:
            del self._of_all[group]
        for inbox in selection.inboxes or ():
            groups = self._by_inbox[inbox]
            if isinstance(groups, dict):
                del groups[group]
            if not groups or groups is group:
                del self._by_inbox[inbox]
