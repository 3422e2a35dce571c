"""Which inboxes a client follows, and how that differs from what a connection was opened with. Pure."""

from collections.abc import Iterable
from typing import Final

from .errors import CommandError

ALL: Final = "*"


class Selection:
    """The inboxes that are wanted; not said yet means all that the key reaches."""

    def __init__(self, inbox_ids: str | Iterable[str] | None) -> None:
        self._inbox_ids: frozenset[str] | None = None if inbox_ids is None else frozenset(names_of(inbox_ids))

    @property
    def names(self) -> list[str]:
        """What to ask the broker for: names in order, `*` alone for all, nothing for none."""
        if self._inbox_ids is None or ALL in self._inbox_ids:
            return [ALL]
        return sorted(self._inbox_ids)

    def add(self, names: Iterable[str]) -> None:
        """Want these, too; the first that are named are wanted instead of all."""
        self._inbox_ids = (self._inbox_ids or frozenset()) | frozenset(names)

    def remove(self, names: Iterable[str]) -> None:
        """Want these no longer. Raises `CommandError` where all are wanted, as the broker would."""
        names = frozenset(names)
        if ALL not in names and self.names == [ALL]:
            raise CommandError("invalid_params", "Under `*` single inboxes cannot be unsubscribed")
        self._inbox_ids = frozenset() if ALL in names else frozenset(self.names) - names

    def hold(self, names: Iterable[str]) -> None:
        """Hear from the broker what is followed now."""
        self._inbox_ids = frozenset(names)

    def narrow(self, names: Iterable[str]) -> None:
        """Hear from the broker that the key reaches less now: what is left of the connection's inboxes."""
        if self.names != [ALL]:
            self._inbox_ids = frozenset(names)

    def since(self, opened_with: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return what is wanted beyond what a connection was opened with, and what is wanted no longer."""
        now, then = frozenset(self.names), frozenset(opened_with)
        if ALL in now:
            return [] if ALL in then else [ALL], []
        if ALL in then:
            return sorted(now), [ALL]
        return sorted(now - then), sorted(then - now)


def names_of(inbox_ids: str | Iterable[str]) -> list[str]:
    """Return one name, or several, as a list."""
    return [inbox_ids] if isinstance(inbox_ids, str) else list(inbox_ids)


def chunks(names: Iterable[str], most_characters: int) -> list[list[str]]:
    """Return names in lists that stay below so many characters each, quotes and commas counted."""
    found: list[list[str]] = []
    size = most_characters
    for name in names:
        size += len(name) + 4
        if size > most_characters:
            found.append([])
            size = len(name) + 4
        found[-1].append(name)
    return found
