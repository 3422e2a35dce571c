"""What an engine may keep beyond memory: the `Archive` of older events, and what it is asked and answers.

Pure: what is said here is said in positions. Memory holds the newest events of an account, those after its log's
`dropped_through`; an archive has those too, and older ones. What memory no longer holds is read from there in pages,
and only what the archive itself has let go is a gap.
"""

from datetime import datetime
from typing import Protocol

from msgspec import Struct

from ..protocol.messages import Entry
from ..protocol.names import Duration
from ..protocol.selection import Selection


class Older(Struct, frozen=True):
    """Events that memory does not hold: those of a selection after one position and up to another."""

    selection: Selection
    after: int
    through: int


class Page(Struct, frozen=True):
    """The next of these, in order: nothing of the selection lies between ``after`` and ``reached`` that is not here.

    What lies up to ``gone_through`` (0: nothing was ever let go), of which ``missed`` events were of the selection
    (None: the archive does not know any more how many), is not here either: that is a gap.
    """

    entries: list[Entry]
    reached: int
    gone_through: int = 0
    missed: int | None = 0


class Kept(Struct, frozen=True):
    """How many events of a selection an archive has after one position and up to another: ``count``.

    Those up to ``gone_through`` it has let go; ``missed`` were of the selection (None: that is not known).
    """

    count: int
    gone_through: int = 0
    missed: int | None = 0


class Reach(Struct, frozen=True):
    """A start in the past that memory alone cannot tell of: what is to be known of the archive before it.

    Where there is none, but an engine that has the logs elsewhere: what that is to put into this one, if it has it.
    """

    selection: Selection
    """What is to be brought."""
    position: int | None
    """After which position; None: ``moment`` says that, or if it does not, nobody knows the cursor."""
    moment: Duration | datetime | None
    through: int
    """Up to where memory knows nothing."""
    since: str
    """What the client said."""
    before: Older | None = None
    """Of what is under way already: if it is known that some of this is gone, that is to be said first."""


class Reached(Struct, frozen=True):
    """The answer to a `Reach`."""

    reach: Reach
    position: int | None
    """Where to start; None: that is forgotten, or was never known."""
    kept: Kept | None
    """None: there is no archive, and memory has all there is."""
    page: Page | None = None
    """Of ``reach.before``, read after the rest."""

    @property
    def gap_through(self) -> int:
        """Up to where there is a gap to be said; 0: there is none."""
        kept, position = self.kept, self.position
        if kept is None:
            return 0
        missed = position is None or (kept.gone_through > position and kept.missed != 0)
        return kept.gone_through if missed else 0


class Archive(Protocol):
    """What an engine keeps of the accounts' events, the oldest of an account let go first.

    Whatever memory holds or has dropped is in it, until it lets that go by itself; so it lets nothing go that a log in
    memory holds. Each answer is of one moment. Raises `RequestError` (`unavailable`) where it cannot be read.
    """

    @property
    def keep_seconds(self) -> float:
        """How long it keeps an event, if there is room: how far back a ``since`` may reach."""
        ...

    async def position_before(self, account_id: str, moment: float) -> int | None:
        """Return the position of the last event that was stored before a moment (seconds since 1970).

        0: there was none ever. None: there may have been one, and events that were stored since then are let go, so
        that nobody knows. Where the clock stepped back, what was stored after the first event of ``moment`` or later
        counts as later.
        """
        ...

    async def count(self, account_id: str, selection: Selection, after: int | None, through: int) -> Kept:
        """Count events of a selection after one position (None: the oldest that is kept) and up to another.

        `Kept.gone_through` is at most ``through``; with ``after`` None, ``missed`` is None.
        """
        ...

    async def read(self, account_id: str, older: Older, *, max_events: int, max_bytes: int) -> Page:
        """Read the next events of a selection, at least one if there is any, and a bounded number at once.

        ``max_bytes`` bounds their payloads; entries have an ``event``, or their frame. Each call makes progress: it
        reaches further than ``older.after``, where it finds nothing more up to ``older.through``. It may stop short of
        that after a long walk without a match. ``gone_through`` is at most ``older.through``, too.
        """
        ...
