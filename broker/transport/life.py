"""The life of a connection, whatever carries it: its slot, its state, its key, why it ends, and how it is drained.

A connection is handed over as what was `Admitted`. It has one `Life`, which holds its `Session` and says whether
anything may still be done for it. To end it, from anywhere: `Life.end`. From that step on its slot is free, nothing is
begun for it, and no event is written to it; what is left to do then, and to say, is its carrier's.
"""

import logging
import secrets
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import trio
from msgspec import Struct

from ..access.keys import Key
from ..access.opening import Opening
from ..access.slots import Holder, Slot
from ..access.watched import Watch
from ..broker import Broker
from ..budget import Held
from ..errors import CloseCode, RequestError
from ..fanout.hub import Account
from ..fanout.listeners import Listener
from ..holding import Hold
from ..log.archive import Older, Reach, Reached
from ..observe.connections import ConnectionDetails, ConnectionStatistics, Ended
from .ending import CANCELLED, Ending, closed_by_broker
from .session import Session, count_nothing

logger = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 2.0
"""How long a client may take to see that its connection ends."""
OPENING_SECONDS: Final = 30.0
"""How long an opening may wait to know what there is of the past."""


class Admitted(Struct, frozen=True):
    """Who may open a stream: by which key, what for, its slot, and the address that it comes from.

    ``account`` is held until ``hold`` is closed, and room for what it names until ``named`` is let go, by whoever takes
    this over.
    """

    key: Key
    opening: Opening
    slot: Slot
    account: Account
    hold: Hold
    named: Held
    remote: str | None
    agent: str | None = None


class State(Enum):
    """Where a connection is in its life. It only goes on, and may leave out what lies between."""

    HANDSHAKING = auto()
    """Its opening is not answered yet: nothing is said."""
    OPEN = auto()
    """The only state in which a task is begun for it, a message is obeyed and an event is written."""
    ENDING = auto()
    """Its slot is free; the client may still get its last answers, and be told of the end."""
    ENDED = auto()
    """Nothing is left of it."""


class Carrier(Holder, Protocol):
    """What carries a connection: its tasks, and how it is written."""

    def hush(self) -> None:
        """Store nothing more for the client, from this step on: it has begun to end."""
        ...

    def stop(self) -> None:
        """Stop all that runs for the client: it was ended by somebody else, and now it is its turn."""
        ...


class Life:
    """One connection's life.

    ``count`` is told of each command that is answered, as `Session` is.
    """

    __slots__ = (
        "_account",
        "_carrier",
        "_changed",
        "_opening",
        "_past",
        "_slot",
        "_turns",
        "_watch",
        "account_id",
        "ending",
        "feeding",
        "id",
        "session",
        "state",
    )

    def __init__(
        self,
        broker: Broker,
        admitted: Admitted,
        listener: Listener,
        carrier: Carrier,
        count: Callable[[str, RequestError | None], None] = count_nothing,
    ) -> None:
        self.id = f"conn_{secrets.token_hex(12)}"
        self.account_id = str(admitted.key.account_id)
        self.state = State.HANDSHAKING
        self.ending = CANCELLED
        """Why it has ended, once it has."""
        self._account = account = admitted.account
        self._past = broker.past
        self._opening: trio.CancelScope | None = None
        """Ends the wait to know what there is of the past."""
        self.feeding = False
        """Whether older events are being read for it."""
        self._slot = admitted.slot
        self._slot.holder = self._carrier = carrier
        self._turns = broker.turns
        self._changed = trio.lowlevel.ParkingLot()
        """Where those wait who need the state, the writer or a command to get further."""
        self.session = Session(
            admitted.key,
            broker.settings,
            account.buffer,
            account.subscriptions,
            listener,
            admitted.opening,
            self.id,
            broker.acknowledged,
            admitted.named,
            count,
        )

    # --- its states

    @property
    def is_open(self) -> bool:
        """Whether something may be begun, obeyed or written for it."""
        return self.state is State.OPEN

    @property
    def is_over(self) -> bool:
        """Whether it has begun to end."""
        return self.state in (State.ENDING, State.ENDED)

    def begin(self, watch: Watch) -> None:
        """Go by this watched key from now on."""
        self._watch = watch

    async def open(self) -> None:
        """Let the session say its first words: the opening is answered. What was ended meanwhile stays so."""
        self._watch.settle()
        reach = self.session.open(trio.current_time())
        if reach is not None and not await self._reach_back(reach):
            return
        if self.state is State.HANDSHAKING:
            self.state = State.OPEN
            self.changed()

    async def _reach_back(self, reach: Reach) -> bool:
        """Ask the archive what the session is to know first, and let it say its first words; False: it cannot."""
        with trio.move_on_after(OPENING_SECONDS) as self._opening:
            asked: Reach | None = reach
            while asked is not None:
                try:
                    reached = await self.reach(asked)
                except RequestError as error:
                    self.end(CloseCode.INTERNAL_ERROR, error.message)
                    return False
                self._watch.settle()
                asked = self.session.open(trio.current_time(), reached)
            return True
        self.end(CloseCode.INTERNAL_ERROR, "the past could not be read in time")
        return False

    def end(self, code: CloseCode, why: str) -> None:
        """End it with a close code, from anywhere. The first call counts."""
        self.end_for(closed_by_broker(code, why))

    def end_for(self, ending: Ending) -> None:
        """End it for this reason. Its tasks are stopped in its turn: of a thousand that are ended at once, one."""
        if not self.is_over:
            self.leave(ending)
            self._turns.later(self.account_id, self._carrier.stop)
            if self._opening is not None:
                self._turns.later(self.account_id, self._opening.cancel)

    def fail(self) -> None:
        """Log what is being handled, and end it by that."""
        logger.exception("connection %s failed", self.id)
        self.end(CloseCode.INTERNAL_ERROR, "internal error")

    def leave(self, ending: Ending) -> None:
        """End it for this reason; what runs for it is the caller's to stop. The first call counts."""
        if self.is_over:
            return
        self.state = State.ENDING
        self.ending = ending
        self._carrier.hush()
        self._slot.release()
        self.session.follower.pause()
        self.changed()

    def finish(self) -> None:
        """Say that nothing is left of it."""
        self.leave(CANCELLED)
        self.state = State.ENDED
        self.session.close()
        # Neither is asked for anything any more; what refers to each other would be freed late.
        del self._carrier, self._watch

    # --- what memory does not hold

    async def reach(self, reach: Reach) -> Reached:
        """Return what is to be known of the past. Raises `RequestError`."""
        return await self._past.reach(self._account.buffer, reach)

    def feed(self, nursery: trio.Nursery, wake: Callable[[], None]) -> None:
        """Begin to read what its session wants to go on with, if there is such and it is not read yet; then wake."""
        if self.session.wanted is not None and not self.feeding and self.is_open:
            self.feeding = True
            nursery.start_soon(self._feed, self.session.wanted, wake)

    async def _feed(self, older: Older, wake: Callable[[], None]) -> None:
        try:
            self.session.take_in(older, await self._past.read(self._account.buffer, older))
        except RequestError as error:
            self.end(CloseCode.INTERNAL_ERROR, error.message)
        finally:
            self.feeding = False
        wake()

    # --- its key

    def settled(self) -> bool:
        """Learn what the key reaches by now, before it is used; return whether the connection is still open."""
        self._watch.settle()
        return self.is_open

    def change_key(self, key: Key | None, adapt: Callable[[Key], None]) -> None:
        """Let ``adapt`` go on with what the key reaches now; end if the key is gone (PROTOCOL section 8)."""
        if self.is_over:
            return
        if key is None or key.account_id != self.account_id:
            self.end(CloseCode.REVOKED, "the key was revoked")
            return
        try:
            adapt(key)
        except Exception:
            self.fail()

    # --- those who wait

    def in_turn(self, wake: Callable[[], None]) -> None:
        """Wake one of its tasks at once, or when it is its turn, if many are woken."""
        self._turns.wake(self.account_id, wake)

    def changed(self) -> None:
        """Let those who wait look again: a state, a writer or a command has got further."""
        self._changed.unpark_all()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until this is true, or the connection is not open any more."""
        while self.is_open and not true():
            await self._changed.park()

    async def drain(
        self, reconnect_after_ms: int, deadline: float, say: Callable[[], None], written: Callable[[], bool]
    ) -> None:
        """Say that the server goes, wait until the client has all up to the head, and end; until ``deadline``.

        ``say`` writes what waits to be said; ``written`` says whether nothing is left to be.
        """
        with trio.move_on_at(deadline):
            while self.state is State.HANDSHAKING:
                await self._changed.park()
            if self.is_open:
                self.session.drain(reconnect_after_ms)
                say()
                await self.until(written)
                await self._account.passed(self._account.buffer.head)
                await self.until(written)
        self.end(CloseCode.RESTART, "restart")

    # --- what is to be seen

    def statistics(self, waiting_commands: int, remainder_bytes: int) -> ConnectionStatistics:
        """Return what the connection is and holds; what is its carrier's is given."""
        follower = self.session.follower
        return ConnectionStatistics(
            follower.selection,
            follower.live,
            self._account.buffer.head - follower.position,
            waiting_commands,
            remainder_bytes + follower.held_bytes,
            self.ending.code,
            follower.position,
            None if follower.live else self._account.buffer.stored_after(follower.position),
            self.ending.said,
        )

    def details(self, request_ids: list[str]) -> ConnectionDetails:
        """Return what is told of it alone; what is its carrier's is given."""
        event_filter = self.session.follower.event_filter
        return ConnectionDetails(None if event_filter is None else sorted(event_filter.patterns), request_ids)

    def ended(self) -> Ended:
        """Return what it had done by its end."""
        session = self.session
        return Ended(self.ending.close_code, session.answered, session.gaps, session.follower.cursor)
