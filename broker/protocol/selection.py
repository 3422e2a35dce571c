"""What a subscriber wants: which inboxes, which event types.

Pure, and below everything that stores or delivers. Account events (those without an inbox) count as one
more inbox, `ACCOUNT_EVENTS`, so that every rule about inboxes holds for them without a special case.
"""

from collections.abc import Iterable
from typing import Final

ACCOUNT_EVENTS: Final = ""
"""The inbox of events that have none. No `inbox_id` is empty."""

_MAX_REMEMBERED_TYPES: Final = 1_000
"""Publishers choose the types, so a filter's memory of decisions is bounded: it starts anew when full."""


class Selection:
    """A set of inboxes of one account: some (``inboxes``), or all (None) but those ``excluded``.

    Immutable and hashable; its hash is that of the frozensets, which Python computes once.
    """

    __slots__ = ("__weakref__", "_hash", "excluded", "inboxes")

    def __init__(self, inboxes: frozenset[str] | None, excluded: frozenset[str] = frozenset()) -> None:
        self.inboxes = inboxes
        self.excluded = excluded
        self._hash = hash((inboxes, excluded))

    def __contains__(self, inbox: str) -> bool:
        if self.inboxes is not None:
            return inbox in self.inboxes
        return inbox not in self.excluded

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Selection) and self.inboxes == other.inboxes and self.excluded == other.excluded

    def __repr__(self) -> str:
        return f"Selection({self.inboxes!r}, excluded={self.excluded!r})"

    @property
    def names(self) -> frozenset[str]:
        """What it keeps: its inboxes, or those that it excludes."""
        return self.excluded if self.inboxes is None else self.inboxes

    def minus(self, held: "Selection") -> "Selection":
        """Return what is in this selection and not in ``held``."""
        if held is self:
            return NOTHING
        if held.inboxes is None:
            return Selection(frozenset(inbox for inbox in held.excluded if inbox in self))
        if self.inboxes is None:
            return Selection(None, self.excluded | held.inboxes)
        return Selection(self.inboxes - held.inboxes)

    def union(self, other: "Selection") -> "Selection":
        """Return what is in this selection or in ``other``: the one of them that has all, if there is one."""
        if self.inboxes is not None and other.inboxes is not None:
            if other.inboxes <= self.inboxes:
                return self
            return other if self.inboxes <= other.inboxes else Selection(self.inboxes | other.inboxes)
        if self.inboxes is None and other.inboxes is None:
            return Selection(None, self.excluded & other.excluded)
        some, rest = (other, self) if self.inboxes is None else (self, other)
        return Selection(None, frozenset(inbox for inbox in rest.excluded if inbox not in some))


NOTHING: Final = Selection(frozenset())
EVERYTHING: Final = Selection(None)


class TypeFilter:
    """An ``event_types`` filter: exact types, or prefixes with ``.*`` (PROTOCOL section 2).

    Equal filters are interchangeable; each decides a type once and remembers.
    """

    __slots__ = ("_decisions", "_exact", "_prefixes", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = frozenset(patterns)
        self._exact = frozenset(p for p in self.patterns if not p.endswith(".*"))
        self._prefixes = tuple(p[:-1] for p in self.patterns if p.endswith(".*"))
        self._decisions: dict[str, bool] = {}

    def accepts(self, event_type: str) -> bool:
        """Whether events of this type pass."""
        decision = self._decisions.get(event_type)
        if decision is None:
            if len(self._decisions) >= _MAX_REMEMBERED_TYPES:
                self._decisions.clear()
            decision = event_type in self._exact or event_type.startswith(self._prefixes)
            self._decisions[event_type] = decision
        return decision

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TypeFilter) and self.patterns == other.patterns

    def __repr__(self) -> str:
        return f"TypeFilter({sorted(self.patterns)!r})"
