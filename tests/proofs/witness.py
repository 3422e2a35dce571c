"""What was published, and a client that believes nothing: it holds each frame against PROTOCOL section 3.

A `Witness` is one client over all of its connections. For each inbox that it holds, `reached` is the position up to
which it has everything, or was told that it missed it. So "in order, at most once, none missing" is one rule: when
something at a position comes, nothing of what it holds may be left out before it.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OWN = ""
"""The inbox of an account's own events."""
EVERYTHING = "*"
REMEMBERED_SECONDS = 3_600
"""How long it is known what was dropped."""


@dataclass(frozen=True)
class Published:
    """An event that the broker has stored."""

    position: int
    inbox: str
    event_id: str
    type: str


def accepts(patterns: tuple[str, ...] | None, kind: str) -> bool:
    """Whether a filter lets a type through: exact types, or a prefix with `.*`; None: all."""
    return patterns is None or any(
        kind.startswith(pattern[:-1]) if pattern.endswith(".*") else kind == pattern for pattern in patterns
    )


@dataclass
class History:
    """All events of an account, in order, and what memory no longer holds."""

    window: int | None
    """How many events stay; None: all, on disk."""
    shared: bool = False
    """Whether nodes share it: then the window may be longer."""
    lags: bool = False
    """Whether clients may hear of an event later than its publisher."""
    events: list[Published] = field(default_factory=list)
    by_id: dict[tuple[str, str], str] = field(default_factory=dict)
    """Inbox and id -> the cursor that was answered."""
    expired_through: int = 0
    forgotten_through: int = 0
    """Up to where nobody need know any more what there was: it was dropped an hour ago."""
    drops: list[tuple[float, int]] = field(default_factory=list)
    """Since when something may be dropped, by a clock in seconds, and up to where."""
    prefix: str | None = None
    """What all cursors of this account, since the broker began, begin with."""

    def position_of(self, cursor: str) -> int:
        prefix, _, digits = cursor.rpartition(".")
        assert self.prefix in (None, prefix), "a cursor of another account, or of another time"
        self.prefix = prefix
        return int(digits)

    @property
    def head(self) -> int:
        return self.events[-1].position if self.events else 0

    @property
    def dropped_through(self) -> int:
        if self.window is None or len(self.events) <= self.window:
            return self.expired_through
        return max(self.expired_through, self.events[-self.window - 1].position)

    @property
    def is_longer(self) -> bool:
        """Whether the window may hold more: of other nodes, or since nothing leaves it that is not delivered yet."""
        return self.shared or self.lags

    def expire(self, now: float) -> None:
        """All that is there is too old, at this time in seconds of a clock."""
        since = self.drops[-1][0] if self.drops else 0.0
        self.drops += (since, self.dropped_through), (now, self.head)
        self.forgotten_through = max(
            (through for at, through in self.drops if at + REMEMBERED_SECONDS <= now), default=0
        )
        self.expired_through = self.head

    def begin_again(self) -> None:
        """Nothing is left of it: the broker has begun anew without a log on disk."""
        self.events, self.by_id, self.expired_through, self.prefix = [], {}, 0, None
        self.forgotten_through, self.drops = 0, []

    def between(self, after: int, through: int) -> list[Published]:
        start = bisect_right(self.events, after, key=lambda event: event.position)
        end = bisect_right(self.events, through, key=lambda event: event.position)
        return self.events[start : max(start, end)]

    def answered(self, inbox: str, event_id: str, kind: str, answer: dict[str, Any]) -> Published | None:
        """Take what the broker says of an event that was published; return it if it is new."""
        assert answer["event_id"] == event_id
        first = self.by_id.get((inbox, event_id))
        known = first is not None and (self.window is None or self.position_of(first) > self.dropped_through)
        told = answer.get("duplicate", False)
        assert told is known or (self.is_longer and first is not None and told), f"{event_id} is there already: {known}"
        if told:
            assert answer["cursor"] == first, "the first wins"
            return None
        return self.stored(inbox, event_id, kind, answer["cursor"])

    def stored(self, inbox: str, event_id: str, kind: str, cursor: str) -> Published:
        """Take an event that is there, and none before it that is not here yet."""
        position = self.position_of(cursor)
        assert position > self.head, "the order is not that of the answers"
        event = Published(position, inbox, event_id, kind)
        self.events.append(event)
        self.by_id[inbox, event_id] = cursor
        return event


@dataclass(frozen=True)
class _Asked:
    """What holds when a command is answered that changes what is held."""

    holds: frozenset[str]
    types: tuple[str, ...] | None
    since: str | None


class Witness:
    """One client. ``everything``: all inboxes that it may hold; ``own``: whether account events are for it."""

    def __init__(self, history: History, everything: frozenset[str], own: bool) -> None:
        self.history = history
        self.everything, self.own = everything, own
        self.reach = everything
        """What its key reaches by now."""
        self.reached: dict[str, int] = {}
        self.types: tuple[str, ...] | None = None
        """The filter of its connection."""
        self.last: str | None = None
        """The last cursor that it was told."""
        self.seen: set[int] = set()
        """Positions of events that came."""
        self.seen_through = 0
        self.missed = 0
        self.closed: int | None = None
        self.drained = False
        self.answers: dict[str, dict[str, Any]] = {}
        self._gap_follows: dict[str, Any] | None = None
        self._since: str | None = None
        self._asked: dict[str, _Asked] = {}
        self._may_come: set[int] = set()
        """Positions of events that need not come."""
        self._holds: frozenset[str] = frozenset()
        """What it asked for and was not refused: the broker is to name just that."""

    # --- what it does

    def opens(self, names: Iterable[str], types: tuple[str, ...] | None, since: str | None) -> None:
        """A new connection begins, to these inboxes, with this filter and this ``since``."""
        self.reached, self.closed, self.drained, self._gap_follows = {}, None, False, None
        self._holds, self.types, self._may_come = frozenset(names), types, set()
        self._since, self._asked = since, {}
        self._waits_for_ready = True

    def asks(
        self, request_id: str, action: str, names: Iterable[str], types: tuple[str, ...] | None, since: str | None
    ) -> None:
        """A subscribe or an unsubscribe was sent. ``types`` None: the filter stays."""
        named, holds = frozenset(names), self._holds
        if action == "unsubscribe":
            holds = holds - named
        else:
            holds = frozenset({EVERYTHING}) if EVERYTHING in holds | named else holds | named
        self._asked[request_id] = _Asked(holds, self.types if types is None else types, since)

    @property
    def owed(self) -> list[Published]:
        """What of all that was published is still to come, or to be told as missed."""
        if not self.reached:
            return []
        return [
            event
            for event in self.history.between(min(self.reached.values()), self.history.head)
            if self._is_owed(event)
        ]

    def _is_owed(self, event: Published) -> bool:
        return self._is_next(event) and accepts(self.types, event.type) and event.position not in self._may_come

    def _is_next(self, event: Published) -> bool:
        """Whether an event is of what it holds, and comes after what it has, whatever its type."""
        return event.inbox in self.reached and event.position > self.reached[event.inbox]

    # --- what it hears

    def hears(self, text: bytes) -> None:
        """Take a frame. Raises AssertionError if it breaks a promise."""
        frame = json.loads(text)
        kind = frame["type"]
        assert self._gap_follows is None or kind == "replay.gap", f"a gap is the very next frame, not {kind}"
        if self._waits_for_ready:
            assert kind == "connection.ready"
            self._waits_for_ready = False
            self._ready(frame)
        elif kind == "replay.gap":
            self._gap(frame)
        elif kind == "connection.cursor":
            self._told(frame["cursor"])
        elif kind == "connection.updated":
            self._holds &= self.reach
            for name in self.reached.keys() - self._names(frame["inbox_ids"]):
                del self.reached[name]
        elif kind == "server.draining":
            self.drained = True
        elif kind == "response":
            self.answers[frame["request_id"]] = frame
            if frame["action"] in ("subscribe", "unsubscribe") and "result" in frame:
                self._changed(frame)
        elif "event_id" in frame:
            self._event(frame)

    def _names(self, inbox_ids: list[str]) -> frozenset[str]:
        assert inbox_ids == sorted(self._holds), f"held is {sorted(self._holds)}, told is {inbox_ids}"
        named = self.everything if inbox_ids == [EVERYTHING] else frozenset(inbox_ids)
        return named | {OWN} if self.own else named

    def _ready(self, frame: dict[str, Any]) -> None:
        names, cursor = self._names(frame["inbox_ids"]), self.history.position_of(frame["cursor"])
        assert ("replay" in frame) is (self._since is not None)
        if self._since is None:
            is_earlier = cursor < self.history.head or not self.history.events
            assert cursor == self.history.head or (self.history.lags and is_earlier)
            self.reached = dict.fromkeys(names, cursor)
        else:
            self._replays(names, self._since, frame["replay"], self.history.head)
        self.last = frame["cursor"]

    def _replays(self, names: frozenset[str], since: str, replay: dict[str, Any], through: int) -> None:
        """``since`` is a cursor; what is held of ``names`` begins there."""
        known = since.rpartition(".")[0] == self.history.prefix
        position = self.history.position_of(since) if known else 0
        self.reached |= dict.fromkeys(names, position)
        dropped = [
            event for event in self.history.between(position, self.history.dropped_through) if event.inbox in names
        ]
        recovered = replay["recovered"]
        may_reach = known and (not dropped or (self.history.is_longer and recovered))
        assert recovered is may_reach, f"from {since}, {self.history.dropped_through} are dropped"
        missing = [event for event in self.history.between(position, through) if event.inbox in names]
        if recovered:
            assert replay["count"] == len(missing) or (self.history.lags and replay["count"] < len(missing))
        else:
            self._gap_follows = {"from": since if known else None, "names": names}

    def _changed(self, frame: dict[str, Any]) -> None:
        result, request_id = frame["result"], frame["request_id"]
        asked = self._asked.pop(request_id)
        if asked.types != self.types:
            self._filter_ends(self.history.position_of(result["cursor"]))
        self._holds, self.types, since = asked.holds, asked.types, asked.since
        names, cursor = self._names(result["inbox_ids"]), self.history.position_of(result["cursor"])
        if frame["action"] == "unsubscribe":
            for name in self.reached.keys() - names:
                del self.reached[name]
        added = names - self.reached.keys()
        if since is None:
            assert "replay" not in result
            self.reached |= dict.fromkeys(added, cursor)
        elif added or "replay" in result:
            self._replays(added, since, result["replay"], self.history.head)
            # Where its broker may hear of an event late, ``since`` may lie before it: then it begins where that is.
            before = {name: min(self.reached[name], cursor) for name in added} if self.history.lags else {}
            self._may_come |= {
                event.position
                for event in self.history.between(cursor, self.history.head)
                if event.inbox in added and event.position <= self.reached[event.inbox]
            }
            self.reached |= before
            # It asked for them: what it saw before it unsubscribed comes again.
            again = self.history.between(min((self.reached[name] for name in added), default=0), self.history.head)
            self.seen -= {event.position for event in again if event.inbox in added}
        self.last = result["cursor"]

    def _filter_ends(self, through: int) -> None:
        """What its filter kept away up to there is not owed under the next: it had all else before.

        What it kept away after that may come: its broker is there or further.
        """
        kept_away = self.history.between(through, self.history.head)
        self._may_come |= {event.position for event in kept_away if not accepts(self.types, event.type)}
        self.reached = {name: max(reached, through) for name, reached in self.reached.items()}

    def _gap(self, frame: dict[str, Any]) -> None:
        to = self.history.position_of(frame["to"])
        assert to <= self.history.dropped_through, "a gap over what is still there"
        expected, self._gap_follows = self._gap_follows, None
        names = frozenset(self.reached)
        if expected is not None:
            names = expected["names"]
            assert frame["from"] == expected["from"]
        else:
            self._nothing_left_out(self.history.position_of(frame["from"]))
        after = 0 if frame["from"] is None else self.history.position_of(frame["from"])
        if frame["count"] is None:
            assert frame["from"] is None or after < self.history.forgotten_through, "not counted"
        else:
            assert frame["from"] is not None
            missing = [e for e in self.history.between(after, to) if e.inbox in names and self._is_next(e)]
            least = len(missing)
            if self.types is not None and expected is None and after < max(self.reached.values()):
                # Inside of a replay nobody says how far the other inboxes were when nothing of them was sent.
                least = sum(map(self._is_owed, missing))
            assert least <= frame["count"] <= len(missing), f"a gap is counted: {frame}, {least} to {len(missing)}"
            assert missing or expected is not None, "a gap in which nothing was missed"
            self.missed += frame["count"]
        for name in names:
            self.reached[name] = max(self.reached[name], to)
        self._nothing_left_out(to)
        self.last = frame["to"]

    def _event(self, frame: dict[str, Any]) -> None:
        position, inbox = self.history.position_of(frame["cursor"]), frame.get("inbox_id", OWN)
        [event] = self.history.between(position - 1, position)
        assert (event.event_id, event.inbox, event.type) == (frame["event_id"], inbox, frame["type"])
        assert inbox in self.reached, f"of an inbox that is not held: {inbox!r}"
        assert accepts(self.types, event.type), f"{event.type} does not pass {self.types}"
        assert position > self.reached[inbox], f"twice, or out of order: {frame['event_id']}"
        assert position not in self.seen or position <= self.seen_through, "twice, over a reconnect"
        self.seen.add(position)
        self._nothing_left_out(position - 1)
        self.reached[inbox] = position
        self._told(frame["cursor"])

    def _told(self, cursor: str) -> None:
        """All up to a cursor was sent, or is not for it."""
        position = self.history.position_of(cursor)
        self._nothing_left_out(position)
        self.reached = {name: max(reached, position) for name, reached in self.reached.items()}
        self.last = cursor

    def _nothing_left_out(self, through: int) -> None:
        for event in self.history.between(min(self.reached.values(), default=through), through):
            assert not self._is_owed(event), f"lost: {event.event_id} of {event.inbox!r}"

    def cut(self) -> None:
        """The connection is gone: what it saw beyond its last cursor, inside of a replay, may come again."""
        last = self.history.position_of(self.last) if self.last is not None and self._is_known(self.last) else 0
        seen_through = max(self.seen, default=0)
        self.seen_through = seen_through if last < seen_through else 0

    def _is_known(self, cursor: str) -> bool:
        return cursor.rpartition(".")[0] == self.history.prefix
