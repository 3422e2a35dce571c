"""What one connection names, counted in its account's budget (`limits.max_names_bytes`).

Pure. Room is held before anything is followed. What is followed no more is given back when it is kept no more: at once,
as a rule. But replays under way and cursors tell apart what was named before all was followed, and what was just
acknowledged is kept until that is settled. Then it is counted again at a heartbeat.
"""

from weakref import ref

from ..access.keys import Key
from ..access.opening import bytes_of, unusual
from ..budget import Held
from ..fanout.follower import Follower
from ..protocol.selection import NOTHING, Selection


class Naming:
    """The names of one follower, as ``held`` counts them: those of its opening are held already."""

    __slots__ = ("_bytes", "_follower", "_held", "_may_be_less", "_of")

    def __init__(self, held: Held, follower: Follower) -> None:
        self._held = held
        self._follower = follower
        self._may_be_less = False
        """Whether more is held than what is followed costs."""
        self._of = ref(NOTHING)
        """What was counted last; it is not kept for that."""
        self._bytes = 0
        """What its names cost."""

    def hold(self, key: Key, wanted: Selection, differs: Selection) -> None:
        """Hold what it costs to follow ``wanted``, which has more or less than what is followed by ``differs``.

        Raises `RequestError` if there is no room; then nothing changes. To follow all never costs more than what was
        followed before: that is to be counted again when it is done.
        """
        if wanted.inboxes is None:
            return
        followed = self._follower.selection
        if self._of() is not followed:
            self._bytes = bytes_of(wanted.names)
        elif len(wanted.names) > len(followed.names):
            self._bytes += bytes_of(differs.names)
        else:
            self._bytes -= bytes_of(differs.names)
        self._of = ref(wanted)
        self._held.become(self._cost(key, wanted))

    def recount(self, key: Key) -> None:
        """Hold what is kept by now, if that is less."""
        if self._held.size:
            followed = self._follower.selection
            self._of, self._bytes = ref(followed), bytes_of(followed.names)
            self._held.become(min(self._held.size, self._cost(key, followed)))

    def recount_late(self, key: Key) -> None:
        """Do so if something was kept on for a while."""
        if self._may_be_less:
            self.recount(key)

    def _cost(self, key: Key, selection: Selection) -> int:
        """Return what is kept where ``selection``, which is counted, is followed, beyond what is usual."""
        beside = self._follower.names_beside(selection)
        if key.narrowed_inbox_ids is not None:
            named = bytes_of(key.narrowed_inbox_ids)
        else:
            is_own = selection.inboxes is None or selection.inboxes == key.inbox_ids
            named = 0 if is_own else self._bytes
        cost = unusual(named + sum(map(bytes_of, beside)))
        self._may_be_less = cost > 0 and len(beside) > 0
        return cost
