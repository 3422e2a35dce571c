"""Those who wait, found by what they ask: an event costs what it may be for, not how many wait.

Pure. Who asks for the same is one `Ask`, looked at once for all. Asks are filed by what tells most of them (`sought`):
those for a whole text, as an address is, are found by looking it up; those for a part of a text by one search each.

`Filed.fitting` is a generator, since a thousand searches in a long mail are more than one step bears: it counts its
work, and yields None when that is as much as was given to it. Who comes or leaves meanwhile does no harm.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from ..protocol.messages import Entry
from ..protocol.selection import Selection, TypeFilter
from .conditions import PARTS, WHOLE, Mail, Sought, Where, condition, sought

CHECK_WORK: Final = 4
"""What one look at all conditions of an ask is counted as, in searches of a short text."""
CHUNK: Final = 64
"""Searches in one go."""
_CHARACTERS: Final = 2_048
"""So many more to search are counted as one more search."""

T = TypeVar("T")


class Work:
    """What one step may still do; ``spend`` says whether that was all."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, amount: int) -> bool:
        """Count what is done. Returns whether it is time for a pause, after which there is more."""
        self.left -= amount
        return self.left <= 0


class Waiter:
    """One who waits for an event after a position. ``wake()`` is called when ``entry`` is found, or it is to go on."""

    __slots__ = ("after", "ask", "entry", "event_filter", "selection", "wake", "where")

    def __init__(
        self, selection: Selection, event_filter: TypeFilter, where: Where | None, after: int, wake: Callable[[], None]
    ) -> None:
        self.selection = selection
        self.event_filter = event_filter
        self.where = where
        self.after = after
        """All up to here was looked at, or is not for it."""
        self.wake = wake
        self.entry: Entry | None = None
        """What was found."""
        self.ask: Ask | None = None
        """None: it is not filed."""


class Ask:
    """Conditions, and all who have them."""

    __slots__ = ("fits", "sought", "waiters", "where")

    def __init__(self, where: Where | None) -> None:
        self.where = where
        self.fits = condition(where)
        self.sought: Sought | None = None if where is None else sought(where)
        self.waiters: dict[Waiter, None] = {}


class _Place:
    """The asks of one place, by the text that is sought there."""

    __slots__ = ("_texts", "asks")

    def __init__(self) -> None:
        self.asks: dict[str, dict[Ask, None]] = {}
        self._texts: tuple[str, ...] | None = None

    def add(self, text: str, ask: Ask) -> None:
        self.asks.setdefault(text, {})[ask] = None
        self._texts = None

    def discard(self, text: str, ask: Ask) -> None:
        of_text = self.asks[text]
        del of_text[ask]
        if not of_text:
            del self.asks[text]
            self._texts = None

    def of(self, text: str) -> tuple[Ask, ...]:
        """Return the asks for a text, as they are now."""
        return tuple(self.asks.get(text, ()))

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is sought, as it is now."""
        if self._texts is None:
            self._texts = tuple(self.asks)
        return self._texts


class Filed:
    """Those who want events of the same inboxes and types."""

    __slots__ = ("_anything", "_asks", "_others", "_places")

    def __init__(self) -> None:
        self._asks: dict[Where | None, Ask] = {}
        self._anything: Ask | None = None
        """Of those who have no conditions."""
        self._places: dict[str, _Place] = {}
        self._others: dict[Ask, None] = {}
        """Those that are looked at one by one."""

    def add(self, waiter: Waiter) -> None:
        """File one who waits."""
        where = None if waiter.where == Where() else waiter.where
        ask = self._asks.get(where)
        if ask is None:
            ask = self._asks[where] = Ask(where)
            if where is None:
                self._anything = ask
            elif ask.sought is None:
                self._others[ask] = None
            else:
                self._places.setdefault(ask.sought.place, _Place()).add(ask.sought.text, ask)
        ask.waiters[waiter] = None
        waiter.ask = ask

    def discard(self, waiter: Waiter) -> None:
        """File one no longer."""
        ask, waiter.ask = waiter.ask, None
        assert ask is not None
        del ask.waiters[waiter]
        if ask.waiters:
            return
        del self._asks[ask.where]
        if ask.where is None:
            self._anything = None
        elif ask.sought is None:
            del self._others[ask]
        else:
            place = self._places[ask.sought.place]
            place.discard(ask.sought.text, ask)
            if not place.asks:
                del self._places[ask.sought.place]

    def fitting(self, mail_of: Callable[[], Mail], work: Work) -> Iterator[Ask | None]:
        """Yield the asks that a mail fits, read by ``mail_of`` if it is looked at; None: time for a pause."""
        if self._anything is not None:
            yield self._anything
        if not (self._places or self._others):
            return
        mail = mail_of()
        for name, texts_of in WHOLE.items():
            place = self._places.get(name)
            if place is not None:
                texts = texts_of(mail)
                if work.spend(1 + len(texts) // 8):
                    yield None
                for text in texts:
                    yield from _those_that_fit(place.of(text), mail, work)
        for name, texts_of in PARTS.items():
            place = self._places.get(name)
            if place is not None:
                for part in _found(place.texts, tuple(texts_of(mail)), work):
                    if part is None:
                        yield None
                    else:
                        yield from _those_that_fit(place.of(part), mail, work)
        yield from _those_that_fit(tuple(self._others), mail, work)


def _those_that_fit(asks: Sequence[Ask], mail: Mail, work: Work) -> Iterator[Ask | None]:
    for ask in asks:
        if work.spend(CHECK_WORK):
            yield None
        if ask.fits is None or ask.fits(mail):
            yield ask


def _found(sought: Sequence[str], texts: tuple[str, ...], work: Work) -> Iterator[str | None]:
    """Yield what is sought and is a part of one of the texts; None: time for a pause."""
    each = len(texts) + sum(map(len, texts)) // _CHARACTERS
    for chunk in _chunks(sought, max(1, CHUNK // max(1, each))):
        if work.spend(each * len(chunk)):
            yield None
        yield from dict.fromkeys([part for part in chunk for text in texts if part in text])


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
