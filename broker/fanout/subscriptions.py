"""Who listens to what in one account, how far the fan-out is, and where each listener stands to it.

Pure. A listener stands to the fan-out in one of four ways, and only this module moves it from one to another:

| `State` | it is fed by | ends with |
|---|---|---|
| LIVE | the fan-out: `write` | `leave`, or a write that it does not take whole: BEHIND. Both wake its owner |
| BEHIND | its owner, from the log | `join`: LIVE at the fan-out's position, AHEAD beyond it |
| AHEAD | nobody: it waits for the fan-out | the fan-out moves, or `leave`: BEHIND. Both wake its owner |
| CLOSED | nobody, for ever; what is called changes nothing | |

Every position there is, in the order in which an event passes them:

| position | is | moved by |
|---|---|---|
| `ReplayBuffer.head` | the newest event stored | the engine |
| `Subscriptions.position` | the fan-out's: the end of the batch that is written, or was last | `advance` |
| `Subscriptions.settled` | all who are live have all up to here: behind `position` in mid-batch | `settle` |
| `Listener.position` | this one has all up to here; a live one also up to `settled` | live: `write`, else its owner |
| `Listener.told` | of the newest cursor that was written to it | the same |
| `Replays.position` | before `Listener.position`: what was added since has all up to here | its owner |

The rules that make "at most once, none missing" hold:

* `advance` moves the fan-out's position to the batch's end *before* anybody's members are looked at. So who is
  live and not at `position` is still to be written to, and who joins in mid-batch is at `position` and is not.
* `join` compares with the fan-out's position, never the log's head, in the step in which it makes live.
* Who leaves in mid-batch is where it was served to (`position_of`), and has the rest of the batch from the log.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from ..protocol.messages import Entry
from ..protocol.selection import Selection, TypeFilter
from .listeners import NO_GROUP, Group, Groups, Listener, State

MAX_MATCHES: Final = 1_024
"""Events times groups that are joined in one step: about a millisecond."""
STEPS_PER_PAUSE: Final = 32
"""Listeners, or groups without any, that are gone through before the fan-out looks at the clock."""


class Delivery(Struct, frozen=True, gc=False):
    """What a batch is for one group: ``events`` frames joined, up to the one at ``last``, for those live in it."""

    members: tuple[Listener, ...]
    data: bytes
    last: int
    events: int


class Tally(Struct):
    """What a fan-out, and all who follow it, have done since its start."""

    writes: int = 0
    """Writes made to listeners."""
    fell_behind: int = 0
    """Times that a listener did not take all of a write."""
    live: int = 0
    """Listeners that are live now."""
    events: int = 0
    """Events given to listeners, live or from the log: each as often as it was."""
    gaps: int = 0
    """Gaps said."""
    missed: int = 0
    """Events in them, as far as their number is known."""


class Subscriptions:
    """One account's listeners, and the fan-out's ``position`` in what they listen to.

    ``tally`` is that of all accounts together.
    """

    __slots__ = ("_ahead", "groups", "live", "position", "settled", "tally")

    def __init__(self, position: int, tally: Tally | None = None) -> None:
        self.tally = tally or Tally()
        self.position = position
        self.settled = position
        self.live = 0
        self.groups = Groups()
        self._ahead: dict[Listener, None] = {}

    @property
    def in_use(self) -> bool:
        """Whether anybody follows anything here."""
        return len(self.groups) > 0

    # --- where a listener stands

    def enter(self, listener: Listener, selection: Selection, event_filter: TypeFilter | None) -> None:
        """Let a newcomer in. It is behind, at the fan-out's position: a batch that is being written is not for it."""
        listener.group = self.groups.hold(selection, event_filter)
        listener.state = State.BEHIND
        listener.position = listener.told = self.position

    def position_of(self, listener: Listener) -> int:
        """Return up to where a listener has everything."""
        return max(listener.position, self.settled) if listener.state is State.LIVE else listener.position

    def join(self, listener: Listener) -> None:
        """Make a listener that is behind live if it is where the fan-out is; if it is beyond, it is woken later."""
        if listener.state in (State.LIVE, State.CLOSED) or listener.position < self.position:
            return
        if listener.position > self.position:
            listener.state = State.AHEAD
            self._ahead[listener] = None
            return
        listener.state = State.LIVE
        listener.group.add(listener)
        self.live += 1
        self.tally.live += 1

    def leave(self, listener: Listener) -> None:
        """Make a listener that is live or ahead one that is behind, and wake its owner, who is to feed it."""
        if listener.state in (State.LIVE, State.AHEAD):
            self._stop(listener, State.BEHIND)
            listener.wake()

    def move(self, listener: Listener, selection: Selection, event_filter: TypeFilter | None) -> None:
        """Let a listener follow something else from where it is. It stays live, unless it is to be written a batch."""
        held = listener.group
        if listener.state is State.CLOSED or (held.selection, held.event_filter) == (selection, event_filter):
            return
        if listener.state is State.LIVE and self.position_of(listener) != self.position:
            self.leave(listener)
        listener.group = self.groups.change(held, selection, event_filter)
        if listener.state is State.LIVE and listener.group is not held:
            held.discard(listener)
            listener.group.add(listener)

    def close(self, listener: Listener) -> None:
        """Let a listener follow nothing any more, for ever."""
        if listener.state is not State.CLOSED:
            self._stop(listener, State.CLOSED)
            held, listener.group = listener.group, NO_GROUP
            self.groups.release(held)

    def _stop(self, listener: Listener, state: State) -> None:
        if listener.state is State.LIVE:
            listener.position = self.position_of(listener)
            listener.group.discard(listener)
            self.live -= 1
            self.tally.live -= 1
        self._ahead.pop(listener, None)
        listener.state = state

    # --- the fan-out

    def advance(self, batch: list[Entry]) -> Iterable[Delivery | None]:
        """Move the position over a batch, or its first part; return what is to be written to whom.

        `write` it, and `settle` when that is done. The first part is what goes to `MAX_MATCHES` groups: that is
        joined in this step. One event alone is for any number of groups: those are gone through while it is written.
        """
        part = self._cut(batch)
        self.position = part[-1].position
        for listener in list(self._ahead):
            self.leave(listener)
        return self._each(part[0]) if len(part) == 1 else self._joined(part)

    def jump(self, position: int) -> None:
        """Move on over what nobody is written: who is live or ahead falls behind, and finds by itself what is missing.

        It costs what there are listeners, a few microseconds each: it is done where a log elsewhere has lost something.
        """
        for group in self.groups:
            for listener in group.snapshot():
                self.leave(listener)
        for listener in list(self._ahead):
            self.leave(listener)
        self.position = self.settled = position

    def _cut(self, batch: list[Entry]) -> list[Entry]:
        matches = 0
        for number, entry in enumerate(batch):
            matches += self.groups.count(entry)
            if matches > MAX_MATCHES and number:
                return batch[:number]
        return batch

    def _joined(self, batch: list[Entry]) -> list[Delivery]:
        frames: dict[Group, list[bytes]] = {}
        last: dict[Group, int] = {}
        for entry in batch:
            for group in self.groups.of(entry):
                if group.wants(entry):
                    frames.setdefault(group, []).append(entry.frame)
                    last[group] = entry.position
        return [
            Delivery(group.snapshot(), b"".join(joined), last[group], len(joined)) for group, joined in frames.items()
        ]

    def _each(self, entry: Entry) -> Iterator[Delivery | None]:
        """Yield what one event is for each group, with its members of that moment; None now and then, for a pause.

        Groups that come meanwhile hold nobody who is to be written to: who joins in mid-batch is at its end.
        """
        for number, group in enumerate(self.groups.of(entry), start=1):
            if group.wants(entry):
                yield Delivery(group.snapshot(), entry.frame, entry.position, 1)
            elif number % STEPS_PER_PAUSE == 0:
                yield None

    def write(self, deliveries: Iterable[Delivery | None]) -> Iterator[None]:
        """Write to each listener that is still live and was not served; yield now and then, for a pause."""
        end, live, tally = self.position, State.LIVE, self.tally
        seen = skipped = events = 0
        for delivery in deliveries:
            if delivery is None:
                yield
                continue
            members, data, last = delivery.members, delivery.data, delivery.last
            size = len(data)
            events += delivery.events * len(members)
            for listener in members:
                # After a pause it may have left, or have caught up by itself.
                if listener.state is live and listener.position != end:
                    try:
                        taken = listener.send(data)
                    except OSError as error:
                        taken = 0
                        listener.send_failed(error)
                    if taken == size:
                        listener.position = end
                        listener.told = last
                    else:
                        events -= 0 if taken else delivery.events
                        self._not_taken(listener, delivery, taken)
                else:
                    events -= delivery.events
                    skipped += 1
                seen += 1
                if seen == STEPS_PER_PAUSE:
                    tally.writes += seen - skipped
                    seen = skipped = 0
                    yield
        tally.writes += seen - skipped
        tally.events += events

    def _not_taken(self, listener: Listener, delivery: Delivery, taken: int) -> None:
        """Let a listener that took a part of a write, or nothing, fall behind; the rest of a part is its stream's."""
        self.tally.fell_behind += 1
        if taken:
            listener.position, listener.told = self.position, delivery.last
            listener.sent_part(delivery.data, taken)
        self.leave(listener)

    def settle(self) -> None:
        """Say that all that `advance` returned is written: who had nothing to get is served too."""
        self.settled = self.position
