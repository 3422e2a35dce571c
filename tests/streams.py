"""Fakes of what stands between a session and its client, and a client that believes nothing.

`FakeStream` stands for `ClientStream` over a kernel that takes any number of bytes, `FakeConnection` for
`Connection`; their tasks are generators that a test steps in any order. `Client` reads the wire and holds every frame
against what the protocol promises and what was really published.
"""

import json
import math
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from logs import ListArchive, wall_at

from broker import budget
from broker.access.keys import Key
from broker.access.opening import Opening
from broker.commands.requests import PublishRequest
from broker.config import Config
from broker.errors import CloseCode
from broker.fanout.acknowledged import Acknowledged
from broker.fanout.hub import Account
from broker.fanout.listeners import Listener
from broker.log.archive import Older, Reach, Reached
from broker.protocol.framing import is_close
from broker.protocol.messages import Entry
from broker.protocol.names import Duration
from broker.protocol.selection import TypeFilter
from broker.transport.session import Session, SubscribeRequest

Task = Generator[None, None, None]

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
PONG_FRAME = b"\x8a\x02hi"


def take_frames(wire: bytearray) -> list[tuple[int, bytes]]:
    """Take the whole frames off the start of a wire; fail on anything that no server of ours may send."""
    frames = []
    while len(wire) >= 2:
        opcode, length, start = wire[0], wire[1], 2
        assert opcode in (TEXT, CLOSE, PING, PONG), f"torn or interleaved frames: {bytes(wire[:40])!r}"
        assert length < 128, "a server masks nothing"
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(wire) < start:
                break
            (length,) = struct.unpack("!H" if start == 4 else "!Q", wire[2:start])
        if len(wire) < start + length:
            break
        frames.append((opcode, bytes(wire[start : start + length])))
        del wire[: start + length]
    return frames


def room() -> budget.Held:
    """Room for whatever a connection names."""
    return budget.of_names(1 << 40).hold(None)


class StreamClosedError(Exception):
    """What `trio.ClosedResourceError` and `trio.BrokenResourceError` are to the real one."""


class FakeStream:
    """Bytes go to ``wire`` while there is ``room``, as to a kernel's buffer; the rules are `ClientStream`'s.

    What is async there is a generator here: each step is what happens between two checkpoints.
    """

    def __init__(self, room: float = math.inf) -> None:
        self.room = room
        self.wire = bytearray()
        self.remainder = b""
        self.closing = False
        self.broken = False
        self._lock: deque[object] = deque()

    def _take(self, data: bytes) -> int:
        taken = int(min(self.room, len(data)))
        self.room -= taken
        self.wire += data[:taken]
        return taken

    def write_nowait(self, data: bytes) -> int:
        if self.closing or self.broken or self.remainder or self._lock:
            return 0
        taken = self._take(data)
        if 0 < taken < len(data):
            self.remainder = data[taken:]
        return taken

    def send_frames(self, frames: bytes) -> Task:
        yield from self._send(frames, closing=False)

    def send_all(self, data: bytes) -> Task:
        yield from self._send(data, closing=is_close(data))

    def write_from(self, take: Callable[[], bytes | None]) -> Generator[None, None, bool]:
        return (yield from self._write(take, closing=False))

    def _send(self, data: bytes, *, closing: bool) -> Task:
        yield from self._write(lambda: data, closing=closing)

    def _write(self, take: Callable[[], bytes | None], *, closing: bool) -> Generator[None, None, bool]:
        # trio.Lock is fair: first come, first served, and a checkpoint even for the first.
        ticket = object()
        self._lock.append(ticket)
        try:
            yield
            while self._lock[0] is not ticket:
                yield
            if self.closing or self.broken:
                raise StreamClosedError
            self.closing = closing
            yield from self._write_out(b"")
            data = take()
            yield from self._write_out(data or b"")
            return data is not None
        finally:
            self._lock.remove(ticket)

    def _write_out(self, data: bytes) -> Task:
        self.remainder += data
        while self.remainder:
            self.remainder = self.remainder[self._take(self.remainder) :]
            yield


Publish = Callable[[PublishRequest], object]


class FakeConnection:
    """What `Connection` does with a session and a stream, without a nursery: a test steps its ``tasks``."""

    def __init__(
        self,
        key: Key,
        config: Config,
        opening: Opening,
        account: Account,
        connection_id: str,
        stream: FakeStream,
        publish: Publish,
        archive: ListArchive | None = None,
    ) -> None:
        self.stream = stream
        self.account = account
        self.archive = archive
        self.alive = False
        self.ended = False
        self.tasks: list[Task] = []
        self.close_code: CloseCode | None = None
        self._publish = publish
        self._writing = False
        self._feeding = False
        self.listener = Listener(stream.write_nowait, self.wake)
        self.session = Session(
            key,
            config,
            account.buffer,
            account.subscriptions,
            self.listener,
            opening,
            connection_id,
            Acknowledged(),
            room(),
        )
        account.uses += 1

    def open(self, now: float) -> None:
        reach = self.session.open(now)
        while reach is not None:
            reach = self.session.open(now, self._reached(reach, now))
        self.alive = True
        self.wake()

    def receive(self, message: str | bytes, now: float) -> None:
        action = self.session.receive(message, now, wall_at(now))
        while isinstance(action, SubscribeRequest):
            action = self.session.obey(action.command, now, wall_at(now), self._reached(action.reach, now))
        if isinstance(action, PublishRequest):
            self.session.answer(action.request.request_id, "publish", self._publish(action))
        self._flush()
        if isinstance(action, CloseCode):
            self.end(action)

    def _reached(self, reach: Reach, now: float) -> Reached:
        """What the archive answers, at once: what happens meanwhile is for `test_reaching_back`."""
        account_id, position, moment = self.account.buffer.account_id, reach.position, reach.moment
        if moment is not None:
            wall = wall_at(now - moment.seconds) if isinstance(moment, Duration) else moment
            position = self.archive.position_before_now(account_id, wall.timestamp())
        kept = self.archive.count_now(account_id, reach.selection, position, reach.through)
        page = None if reach.before is None else self.archive.read_now(account_id, reach.before, 3, 500)
        if page is not None:
            self.account.buffer.frame(page.entries)
        return Reached(reach, position, kept, page)

    def beat(self) -> None:
        self.session.heartbeat()
        self._flush()

    def change_key(self, key: Key | None) -> None:
        """Do what `Connection.change_key` does; one that is gone leaves it to its session to do nothing."""
        if self.close_code is not None:
            return
        if key is None or key.account_id != self.account.buffer.account_id:
            self.end(CloseCode.REVOKED)
            return
        self.session.change_key(key)
        self._flush()

    def pong(self) -> None:
        self.tasks.append(self.stream.send_all(PONG_FRAME))

    def wake(self) -> None:
        if not self._writing and self.alive and self.close_code is None:
            self._writing = True
            self.tasks.append(self._catch_up())

    def _catch_up(self) -> Task:
        try:
            yield
            while (yield from self.stream.write_from(lambda: self.session.take() if self.alive else None)):
                pass
        finally:
            self._writing = False
        if self.session.wanted is not None and not self._feeding and self.alive:
            self._feeding = True
            self.tasks.append(self._feed(self.session.wanted))

    def _feed(self, older: Older) -> Task:
        yield
        page = self.archive.read_now(self.account.buffer.account_id, older, 3, 500)
        self.account.buffer.frame(page.entries)
        yield
        self.session.take_in(older, page)
        self._feeding = False
        self.wake()

    def _flush(self) -> None:
        if not self._writing and self.session.waiting_bytes:
            self.session.flush(self.stream.write_nowait)
            if self.session.waiting_bytes:
                self.wake()

    def step(self, number: int) -> None:
        """Let one of the tasks run to its next checkpoint."""
        task = self.tasks[number % len(self.tasks)]
        try:
            next(task)
        except StopIteration:
            if not self.ended:
                self.tasks.remove(task)
        except StreamClosedError:
            self.kill()

    def end(self, code: CloseCode) -> None:
        """Close as `Connection.end` does: nothing more is taken, what waits is still said, then a Close frame."""
        if self.close_code is None and not self.ended:
            self.close_code = code
            self.alive = False
            self.session.follower.pause()
            self.tasks.append(self._close(code))

    def _close(self, code: CloseCode) -> Task:
        yield
        yield from self.stream.send_frames(self.session.take_answers())
        yield from self.stream.send_all(struct.pack("!BBH", CLOSE, 2, code))
        self.kill()

    def kill(self) -> None:
        """The client is gone, or the deadline of a close has passed."""
        if not self.ended:
            self.ended = True
            self.alive = False
            self.tasks.clear()
            self.stream.broken = True
            self.session.close()
            self.account.uses -= 1


# --- the client's side -------------------------------------------------------

ACCOUNT = ""
"""The inbox of account events, as in `broker.selection`."""


@dataclass
class History:
    """Everything that was ever published to an account, and what the broker has dropped of it, by time."""

    account_id: str
    universe: tuple[str, ...]
    """All inboxes that anything is ever published to."""
    entries: list[Entry] = field(default_factory=list)
    forgotten_through: int = 0
    """Nothing after this was dropped more than an hour ago."""
    dropped_through: int = 0
    _prefix: str = ""
    _drops: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, entry: Entry, cursor: str) -> None:
        self.entries.append(entry)
        self._prefix = cursor[: cursor.rindex(".") + 1]

    def note_drops(self, now: float, dropped_through: int) -> None:
        self.dropped_through = dropped_through
        self._drops.append((now, dropped_through))
        while self._drops[0][0] < now - 3600:
            self.forgotten_through = self._drops.popleft()[1]

    def position_of(self, cursor: str) -> int:
        prefix, _, digits = cursor.rpartition(".")
        assert not self._prefix or f"{prefix}." == self._prefix, "a cursor of another account"
        return int(digits)

    def between(self, after: int, through: int) -> list[Entry]:
        start = bisect_right(self.entries, after, key=lambda entry: entry.position)
        end = bisect_right(self.entries, through, key=lambda entry: entry.position)
        return self.entries[start : max(start, end)]

    def position_before(self, stored_at: float) -> int:
        before = [entry.position for entry in self.entries if entry.stored_at < stored_at]
        return before[-1] if before else 0


@dataclass
class Held:
    """What a client holds from some step on without a word: of ``inboxes`` all after ``progress``.

    Up to ``through`` it comes with replays that were under way.
    """

    inboxes: frozenset[str]
    progress: int
    through: int


@dataclass
class Asked:
    """What a client asked for, and how far it had been served when the broker took it."""

    action: str
    inboxes: frozenset[str]
    """Of the universe; already what ``*`` means for this key."""
    event_filter: TypeFilter | None
    keeps_filter: bool
    since: int | None
    """A position; None: unknown."""
    has_since: bool
    through: int
    """The connection's position then: all that it holds and that is not being replayed was served up to here."""
    progress: int
    """How far its replays were then; the same as ``through`` if there were none."""
    answer: list[str] | None
    """The `inbox_ids` of the answer; None: it must be refused."""
    then: list["Held"] = field(default_factory=list)
    """What it holds, after that and before anything else was asked, without a word."""


@dataclass
class Narrowed:
    """What `connection.updated` must say, and what is held after it."""

    answer: list[str]
    inboxes: frozenset[str]
    then: list[Held] = field(default_factory=list)


class Client:
    """Reads a wire, and fails at the first frame that breaks a promise of PROTOCOL sections 2 to 4.

    For each inbox it holds, ``reached`` is the position up to which it has, or was told that it missed,
    everything. So "at most once, in order, none missing" is one rule: with a frame at position p nothing may be left
    out below p. ``last`` is the last cursor it saw: where it would resume. Events up to ``again_through`` may come
    again after a resume from inside a replay; ``seen`` are those that came.
    """

    def __init__(self, history: History, opening: Asked, seen: set[str], again_through: int) -> None:
        self.history = history
        self.asked: dict[str, Asked] = {}
        self.reached: dict[str, int] = {}
        self.replaying: dict[str, int] = {}
        self.filter: TypeFilter | None = None
        self.last = 0
        self.seen = seen
        self.again_through = again_through
        self.missed = 0
        self.other_frames: list[dict] = []
        self.close_code: int | None = None
        self._opening: Asked | None = opening
        self._narrowed: deque[Narrowed] = deque()
        self._awaited: Asked | Narrowed | None = opening
        """What it was said last that it must be told, unless it was told by now."""
        self._announced: tuple[frozenset[str], int | None, int, dict] | None = None

    def read(self, wire: bytearray) -> None:
        """Read all whole frames of a wire."""
        for opcode, payload in take_frames(wire):
            assert self.close_code is None, "a frame after the Close"
            if opcode == CLOSE:
                (self.close_code,) = struct.unpack("!H", payload)
            elif opcode == TEXT:
                self._frame(json.loads(payload))

    def ask(self, request_id: str, asked: Asked) -> None:
        """It has asked for something."""
        self.asked[request_id] = self._awaited = asked

    def key_changed(self, narrowed: Narrowed | None, more: Held) -> None:
        """Its key reaches something else: less, and then it is told; ``more`` of what it reaches now it is not told."""
        if narrowed is not None:
            self._narrowed.append(narrowed)
            self._awaited = narrowed
        if self._awaited is not None:
            self._awaited.then.append(more)
        else:
            self._hold(more)

    def _told(self, awaited: Asked | Narrowed) -> None:
        if self._awaited is awaited:
            self._awaited = None
        for more in awaited.then:
            self._hold(more)

    def _hold(self, more: Held) -> None:
        new = more.inboxes - self.reached.keys()
        self.reached |= dict.fromkeys(new, more.progress)
        if new and more.progress < more.through:
            self.replaying |= dict.fromkeys(new, more.through)
            self.again_through = max(self.again_through, more.through)

    def _updated(self, frame: dict) -> None:
        narrowed = self._narrowed.popleft()
        assert frame["inbox_ids"] == narrowed.answer
        for name in self.reached.keys() - narrowed.inboxes:
            del self.reached[name]
            self.replaying.pop(name, None)
        self._told(narrowed)

    def _frame(self, frame: dict) -> None:
        kind = frame["type"]
        if self._announced is not None:
            assert kind == "replay.gap", f"a replay that is not whole is followed by its gap, not by {kind}"
        if self._opening is not None:
            assert kind == "connection.ready"
            self._ready(frame)
        elif kind == "replay.gap":
            self._gap(frame)
        elif kind == "connection.cursor":
            position = self.history.position_of(frame["cursor"])
            self._nothing_left_out(position)
            self.last = position
            self.replaying.clear()
        elif kind == "response" and frame["action"] in ("subscribe", "unsubscribe"):
            self._answer(frame)
        elif kind == "connection.updated":
            self._updated(frame)
        elif "event_id" in frame:
            self._event(frame)
        else:
            self.other_frames.append(frame)

    @property
    def waits_for_ready(self) -> bool:
        """Whether it has not been told anything yet."""
        return self._opening is not None

    def has_everything(self, head: int) -> None:
        """Fail if anything up to ``head`` is still to come, or if an answer is."""
        assert not self.asked, "an answer is missing"
        assert not self._narrowed, "it was not told that it reaches less"
        assert not self.waits_for_ready
        self._nothing_left_out(head)

    def _accepts(self, entry: Entry) -> bool:
        return self.filter is None or self.filter.accepts(entry.type)

    def _nothing_left_out(self, through: int, *, inbox: str | None = None) -> None:
        """Everything up to a position is here: nothing that was for this client lies unsent before it."""
        for entry in self.history.between(min(self.reached.values(), default=through), through):
            if inbox in (None, entry.inbox) and entry.position > self.reached.get(entry.inbox, math.inf):
                assert not self._accepts(entry), f"lost: {entry.position} of {entry.inbox!r}"
        for name in self.reached if inbox is None else (inbox,):
            self.reached[name] = max(self.reached[name], through)

    def _ready(self, frame: dict) -> None:
        opening, self._opening = self._opening, None
        assert opening is not None
        assert frame["inbox_ids"] == opening.answer
        assert frame["account_id"] == self.history.account_id
        cursor = self.history.position_of(frame["cursor"])
        self.filter = opening.event_filter
        assert ("replay" in frame) is opening.has_since
        if opening.has_since:
            self._begin_replay(opening.inboxes, opening.since, opening.through, frame["replay"], cursor)
            assert cursor == self.last or self._announced
        else:
            assert cursor == opening.through
            self.reached = dict.fromkeys(opening.inboxes, cursor)
        self.last = cursor
        self._told(opening)

    def _begin_replay(self, added: frozenset[str], since: int | None, through: int, replay: dict, cursor: int) -> None:
        """``replay`` was promised for some inboxes, from a position (None: an unknown one) on."""
        self.reached |= dict.fromkeys(added, since or 0)
        if not replay["recovered"]:
            self._announced = (added, since, through, replay)
            return
        assert since is not None, "an unknown cursor is never recovered"
        assert replay["count"] == self._count(added, since, through)
        self.last = since

    def _count(self, inboxes: frozenset[str], after: int, through: int) -> int:
        return sum(entry.inbox in inboxes for entry in self.history.between(after, through))

    def _answer(self, frame: dict) -> None:
        asked = self.asked.pop(frame["request_id"])
        assert asked.action == frame["action"]
        if asked.answer is None:
            assert "error" in frame
            self._told(asked)
            return
        result = frame["result"]
        assert result["inbox_ids"] == asked.answer
        for name in list(self.reached):
            done = name not in self.replaying or asked.progress >= self.replaying[name]
            self._nothing_left_out(asked.through if done else asked.progress, inbox=name)
        cursor = self.history.position_of(result["cursor"])
        assert cursor <= asked.through
        self._nothing_left_out(cursor)
        if not asked.keeps_filter:
            self.filter = asked.event_filter
        if asked.action == "unsubscribe":
            for name in asked.inboxes:
                self.reached.pop(name, None)
                self.replaying.pop(name, None)
        else:
            self._subscribed(asked, result, cursor)
        self.last = cursor
        self._told(asked)

    def _subscribed(self, asked: Asked, result: dict, cursor: int) -> None:
        added = asked.inboxes - self.reached.keys()
        assert ("replay" in result) is asked.has_since
        if asked.has_since:
            since = None if asked.since is None else min(asked.since, asked.through)
            self._begin_replay(added, since, asked.through, result["replay"], cursor)
        else:
            self.reached |= dict.fromkeys(added, cursor)
        if cursor < asked.through:
            self.replaying |= dict.fromkeys(added, asked.through)
            self.again_through = max(self.again_through, asked.through)

    def _gap(self, frame: dict) -> None:
        to = self.history.position_of(frame["to"])
        from_ = None if frame["from"] is None else self.history.position_of(frame["from"])
        announced, self._announced = self._announced, None
        nothing = announced is not None and not announced[0]
        assert nothing or to <= self.history.dropped_through, "a gap over what is still there"
        names = frozenset(self.reached)
        if announced is not None:
            names, since, through, replay = announced
            assert from_ == since
            assert replay["count"] == self._count(names, to, through)
        else:
            assert from_ is not None
            assert from_ >= self.last, "a gap over what was said before"
            self._nothing_left_out(from_)
        if from_ is None:
            assert frame["count"] is None
        else:
            missing = [
                e for e in self.history.between(from_, to) if e.inbox in names and e.position > self.reached[e.inbox]
            ]
            self._check_count(frame["count"], len(missing), from_)
            self.missed += len(missing)
        for name in names:
            self.reached[name] = max(self.reached[name], to)
        self._nothing_left_out(to)
        self.last = to

    def _check_count(self, count: int | None, missing: int, from_: int) -> None:
        if count is None:
            assert from_ < self.history.forgotten_through, "the broker must remember positions for an hour"
        else:
            assert count == missing
            assert count > 0, "a gap in which nothing was missed"

    def _event(self, frame: dict) -> None:
        position, inbox = self.history.position_of(frame["cursor"]), frame.get("inbox_id", ACCOUNT)
        (entry,) = self.history.between(position - 1, position)
        assert (entry.event_id, entry.inbox, entry.type) == (frame["event_id"], inbox, frame["type"])
        assert inbox in self.reached, f"an event of an inbox that is not subscribed: {inbox!r}"
        assert self._accepts(entry), "an event of a type that was filtered out"
        assert position > self.reached[inbox], f"twice, or out of order: {position} of {inbox!r}"
        assert position > self.last, "out of order, or before a cursor that was told"
        assert entry.event_id not in self.seen or position <= self.again_through, "twice, over a reconnect"
        self.seen.add(entry.event_id)
        self.reached[inbox] = position
        self._nothing_left_out(position)
        self.last = position
