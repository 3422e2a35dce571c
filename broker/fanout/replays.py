"""The replays of one subscriber that are under way, woven into one walk through the log.

Pure. A replay is a selection, and the position up to which its events have been brought; each goes as far as the
subscriber itself is. The one furthest behind goes on alone until it meets the next, and from there they are one. So
everything comes in the log's order: whatever was sent last, resuming from its cursor misses nothing.

To begin one costs a search among those under way, to meet one union: a thousand of them cost what they send.
"""

from bisect import bisect_left
from typing import NamedTuple

from ..protocol.selection import Selection


class Stretch(NamedTuple):
    """Events of a selection that are still to be brought: after one position and up to another."""

    after: int
    through: int
    selection: Selection


class Replays:
    """Replays under way; no two of them bring the same inbox. ``through`` is how far they all go."""

    __slots__ = ("_stretches", "through")

    def __init__(self) -> None:
        self.through = 0
        self._stretches: list[Stretch] = []
        """Each up to ``through``, no two after the same position, the one furthest behind last."""

    def __len__(self) -> int:
        return len(self._stretches)

    @property
    def position(self) -> int:
        """Up to where everything has been brought. Raises IndexError if there are none."""
        return self._stretches[-1].after

    @property
    def selections(self) -> list[Selection]:
        """What they bring."""
        return [stretch.selection for stretch in self._stretches]

    def next(self) -> Stretch:
        """Return what is to be brought next: of the one furthest behind, up to where it meets another.

        Raises IndexError if there are none.
        """
        furthest = self._stretches[-1]
        return furthest if len(self) == 1 else furthest._replace(through=self._stretches[-2].after)

    def behind(self, position: int) -> list[Stretch]:
        """Return all that is to be brought up to a position."""
        return [stretch._replace(through=position) for stretch in self._stretches if stretch.after < position]

    def begin(self, selection: Selection, after: int, through: int) -> None:
        """Begin to bring a selection after one position and up to another, which is that of those under way."""
        self.through = through
        place = bisect_left(self._stretches, -after, key=lambda stretch: -stretch.after)
        if place < len(self) and self._stretches[place].after == after:
            selection = selection.union(self._stretches.pop(place).selection)
        self._stretches.insert(place, Stretch(after, through, selection))

    def advance(self, position: int) -> None:
        """Say that all up to a position was brought: those that were behind it are one, or at their end."""
        selection = self._stretches.pop().selection
        while self._stretches and self._stretches[-1].after <= position:
            selection = selection.union(self._stretches.pop().selection)
        if position < self.through:
            self._stretches.append(Stretch(position, self.through, selection))

    def remove(self, selection: Selection) -> None:
        """Bring nothing of a selection any more. The positions stay: nothing of it was brought beyond them."""
        self._stretches = [
            stretch._replace(selection=stretch.selection.minus(selection)) for stretch in self._stretches
        ]
