"""The `ack` and `hold` commands of one client on one connection (PROTOCOL section 4).

A command is judged, and moves the client's position, in one step. It is answered when it is known how many events it
is for, which is counted in slices, and, where there is a log on disk, when that has the position, and has said which of
the events a webhook had begun with before.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from ..errors import BUSY_RETRY_MS, RequestError
from ..log.letters_acked import Acknowledged as Settled
from ..log.replay import ReplayBuffer
from ..protocol.messages import Acked, Held, HoldParams
from ..turns import in_turns
from .acknowledged import MAX_PARTS, AckRequest, Client
from .covered import Counting, Covered, Stretch
from .follower import Follower
from .handed import Handing
from .recorded import Recorded
from .settling import Settling
from .shared import SharedPositions

MAX_WAITING: Final = 64
"""Commands of one connection whose answer is not known yet; the next one is refused."""
MAX_WAITING_IDS: Final = 2_000
"""Ids that they name together: a quarter of a megabyte."""

Answer = Callable[[int, Sequence[str]], Acked | Held]
"""Of how many events there are, and the ids of those that a webhook had begun with before."""
Reply = Callable[[Acked | Held | RequestError], None]


class OnDisk:
    """Where acknowledgements are kept beyond the process, and how they settle with webhooks that wait for them."""

    def __init__(self, recorded: Recorded | SharedPositions, settling: Settling | Handing | None = None) -> None:
        self.recorded = recorded
        self.settling = settling
        """None: there are no webhooks."""


async def come(client: Client, head: int, on_disk: OnDisk | None) -> None:
    """Let a client that comes back be known; one that is new is at the head, and on disk when this returns.

    Raises `RequestError` if that cannot be written: then it is as if the client had not come.
    """
    is_new = client.position is None
    client.come(head)
    if is_new and on_disk is not None:
        await on_disk.recorded.until_recorded_or_forgotten(client)


class _Command:
    """A command under way. It is answered when it was counted, recorded and settled."""

    def __init__(self, covered: Covered, answer: Answer) -> None:
        self.covered = covered
        self.reply: Reply | None = None
        """None: nobody waits for the answer any more."""
        self._answer = answer
        self._number = 0
        self._claimed: Sequence[str] = ()
        self._error: RequestError | None = None
        self._left = 3

    def counted(self, number: int) -> None:
        """Hear how many events it is for."""
        self._number = number
        self._go_on(None)

    def recorded(self, error: RequestError | None) -> None:
        """Hear that the position is on disk, or where it need not be; or why it is not."""
        self._go_on(error)

    def settled(self, outcome: Settled | RequestError) -> None:
        """Hear which events webhooks had begun with."""
        if isinstance(outcome, RequestError):
            self._go_on(outcome)
        else:
            self._claimed = outcome.claimed
            self._go_on(None)

    def _go_on(self, error: RequestError | None) -> None:
        self._error = self._error or error
        self._left -= 1
        reply = self.reply
        if not self._left and reply is not None:
            self.reply = None  # which refers to this
            reply(self._error or self._answer(self._number, self._claimed))


_NOTHING_SETTLED: Final = Settled(0, [], 0)


class Acknowledging:
    """What one client acknowledges and holds. Whoever gets True from `submit` lets `do_waiting` run."""

    def __init__(self, buffer: ReplayBuffer, follower: Follower, on_disk: OnDisk | None = None) -> None:
        self._buffer = buffer
        self._follower = follower
        self._on_disk = on_disk
        self._under_way: dict[_Command, None] = {}
        self._ids = 0
        """That those under way name together."""
        self._counting: list[tuple[_Command, Counting]] = []
        self._unsettled: list[Stretch] = []
        """What cursors acknowledged that the log on disk could not take: the next one takes it along."""

    def __len__(self) -> int:
        """Return how many commands have no answer yet."""
        return len(self._under_way)

    async def do(self, request: AckRequest) -> Acked | Held:
        """Do a command and return its outcome. Raises `RequestError`."""
        outcomes: list[Acked | Held | RequestError] = []
        ended = trio.Event()

        def reply(outcome: Acked | Held | RequestError) -> None:
            outcomes.append(outcome)
            ended.set()

        if self.submit(request, reply):
            await self.do_waiting()
        await ended.wait()
        [outcome] = outcomes
        if isinstance(outcome, RequestError):
            raise outcome.again()
        return outcome

    def submit(self, request: AckRequest, reply: Reply) -> bool:
        """Do a command; ``reply`` gets its outcome, at once where that takes one step.

        Returns whether it is the first that is still to be counted.
        """
        ids = len(request.params.event_ids or ())
        try:
            if len(self) >= MAX_WAITING or (ids and self._ids and self._ids + ids > MAX_WAITING_IDS):
                message = f"Too many of `ack` and `hold` are under way - at `{request.action}`"
                raise RequestError("rate_limited", message, retry_after_ms=BUSY_RETRY_MS)
            command = self._begin(request)
        except RequestError as error:
            reply(error)
            return False
        command.reply = partial(self._answer, command, ids, reply)
        self._under_way[command] = None
        self._ids += ids
        self._record(command, request)
        counting = command.covered.count(self._buffer)
        if not self._counting:
            try:
                next(counting)
            except StopIteration as counted:
                command.counted(counted.value)
                return False
        self._counting.append((command, counting))
        return len(self._counting) == 1

    def _answer(self, command: _Command, ids: int, reply: Reply, outcome: Acked | Held | RequestError) -> None:
        del self._under_way[command]
        self._ids -= ids
        reply(outcome)

    async def do_waiting(self) -> None:
        """Count what waits, one after the other, until there is nothing left. Cancelled, it leaves the rest."""
        while self._counting:
            command, counting = self._counting[0]
            await trio.lowlevel.checkpoint()
            number = await in_turns(counting)
            self._counting.pop(0)
            command.counted(number)

    def give_up(self) -> None:
        """Answer nothing any more; what was begun takes effect."""
        for command in self._under_way:
            command.reply = None

    # --- what a command does

    def _begin(self, request: AckRequest) -> _Command:
        """Move the client's position. Raises `RequestError`, and then nothing has changed."""
        params, sent = request.params, self._follower.sent
        assert sent is not None, "who has no `client_id` is refused before"
        event_ids = frozenset(params.event_ids or ())
        if isinstance(params, HoldParams):
            return _Command(Covered([], event_ids, request.reach, self._known), _held)
        stretches = list[Stretch]()
        if params.cursor is not None:
            through = self._through(params.cursor, request.cursor_path)
            parts, types = sent.acknowledge(through), self._follower.event_filter
            stretches = [*self._unsettled, *(Stretch(after, through, which, types) for after, which in parts)]
            self._unsettled = []
            position = sent.client.advance(through)
        elif params.event_ids is None:
            raise RequestError("invalid_params", "A `cursor`, `event_ids` or `lease_ids` are missing - at `$`")
        else:
            position = sent.begin()
        covered = Covered(stretches, event_ids, request.reach, self._known)
        return _Command(covered, partial(_acked, self._buffer.cursor_at(position)))

    @property
    def _known(self) -> str:
        return self._buffer.cursor_at(self._buffer.head)

    def _through(self, cursor: str, path: str) -> int:
        """Return up to where a cursor acknowledges: no further than all of the selection was sent."""
        position = self._buffer.position_of(cursor)
        if position is None:
            raise RequestError("invalid_params", f"This cursor is not of this account and this run - at `{path}`")
        if position > self._follower.position:
            raise RequestError("invalid_params", f"The cursor is ahead of what this connection was sent - at `{path}`")
        return min(position, self._follower.sent_through)

    def _record(self, command: _Command, request: AckRequest) -> None:
        """Have the log on disk take what a command does, if there is one."""
        on_disk, sent, covered = self._on_disk, self._follower.sent, command.covered
        if on_disk is None or sent is None:
            command.recorded(None)
            command.settled(_NOTHING_SETTLED)
            return
        client, settling, params = sent.client, on_disk.settling, request.params
        if settling is None or not settling.waits_for(client):
            command.settled(_NOTHING_SETTLED)
        elif isinstance(params, HoldParams):
            settling.hold(client, covered, params.seconds, command.settled)
        else:
            settling.acknowledge(client, covered, partial(self._settled, command))
        if isinstance(params, HoldParams):
            command.recorded(None)
        else:
            on_disk.recorded.when_recorded(client, command.recorded)

    def _settled(self, command: _Command, outcome: Settled | RequestError) -> None:
        if isinstance(outcome, RequestError):
            self._unsettled = [*self._unsettled, *command.covered.stretches][-MAX_PARTS:]
        command.settled(outcome)


def _acked(cursor: str, number: int, claimed: Sequence[str]) -> Acked:
    return Acked(cursor, number, list(claimed))


def _held(number: int, claimed: Sequence[str]) -> Held:
    return Held(number, list(claimed))
