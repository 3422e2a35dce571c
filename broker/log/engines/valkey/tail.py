"""The accounts that a node follows: each from its head on, by what is published, in the order of its positions.

An account is *held* while somebody needs it, and for a minute after that. What arrives is stored if it is what comes
next. Whatever else arrives only says that something is there: then it is read from the server, from the head on. So a
message that is lost, or comes while the head is asked for, costs a reading, and nothing else.
"""

from collections.abc import Iterable
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Final

import trio

from ....protocol.messages import Entry
from ...replay import Mark, ReplayBuffer
from ...retention import ReplayBuffers
from .. import Log
from . import FAR, dropped_of, entry_of
from .appending import DEADLINE_SECONDS
from .calls import META_MS
from .link import Link, unavailable
from .scripts import HEADS, INDEX, READ

PAGE_EVENTS: Final = 256
PAGE_BYTES: Final = 1_048_576
"""Of one answer: a client that is subscribed is cut off when 32 MB wait for it."""
INDEX_ITEMS: Final = 512
HEADS_ACCOUNTS: Final = 500
"""In one call."""
LINGER_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 30.0
"""How often the heads of all accounts are looked at: a message that was lost is found so."""
SWEEP_SECONDS: Final = 5.0
MAX_UNDELIVERED: Final = 10_000
"""Events of an account that the fan-out may be behind; more wait on the server."""
_EMPTY_SLICE: Final = 512
_PLACED: Final = 32
"""Accounts that are placed in one step."""


class Standing(Enum):
    """How an account is followed."""

    ASKED = "asked"
    """It is not known yet where it is."""
    HERE = "here"
    """What arrives next is stored."""
    READING = "reading"
    """What comes next is read."""


class Held:
    """One account that is followed."""

    __slots__ = (
        "account_id",
        "generation",
        "here",
        "holders",
        "known",
        "missed",
        "reaching",
        "released_at",
        "standing",
    )

    def __init__(self, account_id: str) -> None:
        self.account_id = account_id
        self.holders = 0
        self.released_at = 0.0
        self.standing = Standing.ASKED
        self.here = trio.Event()
        """Set while it is HERE; another one each time."""
        self.generation = ""
        """Of the history that its log here is of; "": none yet."""
        self.known = trio.Event()
        """Set when its log is here."""
        self.missed = False
        """Whether something arrived that was not stored."""
        self.reaching = trio.Lock()

    def stand(self, standing: Standing) -> None:
        """Be followed so from now on."""
        self.standing = standing
        if standing is Standing.HERE:
            self.here.set()
        elif self.here.is_set():
            self.here = trio.Event()


class Attached:
    """Keeps an account's log in this process while the block lasts. Raises `RequestError` if it cannot be known."""

    __slots__ = ("_account_id", "_held", "_tail")

    def __init__(self, tail: "Tail", account_id: str) -> None:
        self._tail = tail
        self._account_id = account_id
        self._held: Held | None = None

    async def __aenter__(self) -> None:
        self._held = await self._tail.hold(self._account_id)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._tail.release(held)


class Tail:
    """The accounts that are followed. Its `look_after` runs always; it stands on the link's greetings."""

    def __init__(self, link: Link, buffers: ReplayBuffers, log: Log) -> None:
        self._link = link
        self._buffers = buffers
        self._log = log
        self._held: dict[str, Held] = {}
        self._asked: list[Held] = []
        """That nobody looks for yet; the first of them begins that, if there is a link."""
        self.reads = 0
        """Pages that were read because what arrived was not what comes next."""

    def __len__(self) -> int:
        return len(self._held)

    # --- who holds what

    async def hold(self, account_id: str) -> Held:
        """Follow an account until `release`, and return when its log is here. Raises `RequestError`."""
        held = self._held.get(account_id)
        if held is None:
            held = self._held[account_id] = Held(account_id)
            self._link.expect(self._link.names.events(account_id), partial(self._arrived, held))
            self._asked.append(held)
            if len(self._asked) == 1:
                self._link.start_soon(self._ask)
        held.holders += 1
        try:
            if held.known.is_set():
                await trio.lowlevel.checkpoint()
                return held
            with trio.move_on_after(DEADLINE_SECONDS):
                await held.known.wait()
                return held
            raise unavailable()
        except BaseException:
            self.release(held)
            raise

    def release(self, held: Held) -> None:
        """Need an account no longer; it is followed for a while still."""
        held.holders -= 1
        held.released_at = trio.current_time()

    def held(self, account_id: str) -> Held | None:
        """Return an account that is followed."""
        return self._held.get(account_id)

    async def look_after(self) -> None:
        """Let go what nobody needs any more, and look now and then where all are, for ever."""
        looked_at = trio.current_time()
        while True:
            await trio.sleep(SWEEP_SECONDS)
            since = trio.current_time() - LINGER_SECONDS
            for held in [held for held in self._held.values() if not held.holders and held.released_at < since]:
                await self._let_go(held)
            if trio.current_time() - looked_at >= LOOK_SECONDS and self._link.is_greeted:
                looked_at = trio.current_time()
                self._link.start_soon(self._look_at, list(self._held.values()))

    async def _let_go(self, held: Held) -> None:
        buffer = self._buffers.open(held.account_id)
        while held.known.is_set() and len(buffer) and not held.holders:
            if not self._buffers.empty(buffer, trio.current_time(), most=_EMPTY_SLICE):
                return  # the fan-out is not through; the next time
            await trio.lowlevel.checkpoint()
        if held.holders:
            return
        del self._held[held.account_id]
        self._link.leave(self._link.names.events(held.account_id))
        if held.known.is_set():
            epoch = held.generation.encode()
            self._log.restart(held.account_id, Mark(FAR), epoch, fed=False)

    # --- where they are

    async def greet(self) -> None:
        """Find out where all are, with a new connection. Raises `LinkLostError`."""
        for held in self._held.values():
            held.stand(Standing.ASKED)
        self._asked.clear()
        await self._look_at(list(self._held.values()))

    async def _ask(self) -> None:
        """Find out where those are that have come: all that come in the meantime together."""
        await trio.lowlevel.checkpoint()
        while self._asked:
            part = self._asked[:HEADS_ACCOUNTS]
            self._link.listen([self._link.names.events(held.account_id) for held in part])
            await self._look_at(part)
            del self._asked[: len(part)]

    async def _look_at(self, all_held: list[Held]) -> None:
        link = self._link
        for start in range(0, len(all_held), HEADS_ACCOUNTS):
            part = all_held[start : start + HEADS_ACCOUNTS]
            keys = [link.names.generation, *(link.names.of_account("m", held.account_id) for held in part)]
            floors = map(self._floor, part)
            answer = await link.run(HEADS, keys, [link.generation, link.candidate(), META_MS, *floors])
            numbers = iter(map(int, answer))
            for number, (held, head, birth) in enumerate(zip(part, numbers, numbers, strict=True), start=1):
                if self._held.get(held.account_id) is held:
                    self._place(held, head, birth)
                if number % _PLACED == 0:
                    await trio.lowlevel.checkpoint()

    def _floor(self, held: Held) -> int:
        """Return where an account is at least: after all that it had here, if this was of another history."""
        return self._buffer(held).head + (held.generation != self._link.generation) if held.known.is_set() else 0

    def _place(self, held: Held, head: int, birth: int) -> None:
        """Go on from where an account is: where its log here ends, or at its head, or where another history began."""
        buffer = self._buffer(held)
        if not held.known.is_set():
            self._restart(held, head)
            held.known.set()
        elif held.generation != self._link.generation or buffer.head < birth:
            self._restart(held, birth)
        if held.standing is not Standing.READING:
            held.stand(Standing.HERE)
            if held.missed or buffer.head < head:
                self._read(held)

    def _restart(self, held: Held, position: int) -> None:
        """Begin the log here anew after a position, and after all that it had."""
        buffer, link = self._buffer(held), self._link
        if held.known.is_set():
            position = max(position, buffer.head + 1)
        held.generation = link.generation
        now = trio.current_time()
        self._log.restart(held.account_id, Mark(position, now, link.wall(now)), held.generation.encode(), fed=True)

    def _buffer(self, held: Held) -> ReplayBuffer:
        return self._buffers.open(held.account_id)

    # --- what comes

    def _arrived(self, held: Held, message: bytes) -> None:
        """Take what was published: store it if it comes next, else see that it is read."""
        if held.standing is not Standing.HERE:
            held.missed = True
            return
        buffer = self._buffer(held)
        try:
            entries = [] if message.startswith(b"h") else self._entries(message.split(b"\n"), buffer.head)
        except ValueError:
            entries = []  # it is not ours
        else:
            if not entries and not message.startswith(b"h"):
                return  # known already
        if not entries or entries[0].position != buffer.head + 1 or buffer.head - buffer.delivered > MAX_UNDELIVERED:
            self._read(held)
        else:
            self._store(held, entries)

    def _entries(self, lines: Iterable[bytes], after: int) -> list[Entry]:
        """Return the entries of lines, but those up to a position."""
        entries = [entry_of(line, self._link.moment) for line in lines]
        return [entry for entry in entries if entry.position > after] if entries[0].position <= after else entries

    def _store(self, held: Held, entries: list[Entry]) -> None:
        latest = self._buffer(held).latest_at
        for entry in entries:
            latest = entry.stored_at = max(entry.stored_at, latest)
        self._log.store(held.account_id, entries)

    def _read(self, held: Held) -> None:
        held.stand(Standing.READING)
        self._link.start_soon(self._catch_up, held)

    async def caught_up(self, held: Held) -> None:
        """Wait until all is here that there is now after the head."""
        if held.standing is Standing.HERE:
            self._read(held)
        else:
            held.missed = True
        await held.here.wait()

    async def _catch_up(self, held: Held) -> None:
        """Read what comes after the head, page by page, until nothing is missing."""
        link, buffer = self._link, self._buffer(held)
        keys = [link.names.of_account(kind, held.account_id) for kind in "ms"]
        while self._held.get(held.account_id) is held:
            held.missed = False
            await self._log.passed(held.account_id, buffer.head - MAX_UNDELIVERED)
            asked_after = buffer.head
            answer = await link.run(READ, keys, [link.generation, asked_after, PAGE_EVENTS, PAGE_BYTES])
            self.reads += 1
            head, birth, after = map(int, answer[:3])
            if buffer.head != asked_after:
                continue  # it began anew meanwhile
            if asked_after < birth:
                self._restart(held, birth)
            elif after > asked_after:
                await self._skip(held, after)
            elif answer[3]:
                self._store(held, self._entries(answer[3], asked_after))
            if buffer.head >= head and not held.missed:
                held.stand(Standing.HERE)
                return

    async def _skip(self, held: Held, through: int) -> None:
        """Go on after a position, over events that are gone, as they are counted in the index."""
        link, buffer = self._link, self._buffer(held)
        await self._log.passed(held.account_id, buffer.head)
        keys = [link.names.of_account(kind, held.account_id) for kind in "mx"]
        while buffer.head < through:
            end = min(through, buffer.head + INDEX_ITEMS)
            answer = await link.run(INDEX, keys, [link.generation, end, buffer.head, INDEX_ITEMS])
            while len(buffer):
                self._buffers.empty(buffer, trio.current_time(), most=_EMPTY_SLICE)
                await trio.lowlevel.checkpoint()
            after, now = int(answer[2]), trio.current_time()
            if after > buffer.head or not answer[3]:
                end = min(max(after, buffer.head + 1), through)
                self._log.skip(held.account_id, None, Mark(end, now, link.wall(now)))
            else:
                page = [dropped_of(item, after + n, link.moment) for n, item in enumerate(answer[3], start=1)]
                last = page[-1]
                self._log.skip(held.account_id, page, Mark(last.position, last.stored_at, last.wall))
