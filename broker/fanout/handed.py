"""Acknowledgements of any node, handed to the keeper by the server that nodes share, and what that says of them.

Where an endpoint waits for a client, what this acknowledges is put into a list of its account at the server, and stays
there until the keeper has written it down: so it holds although the keeper is away, which posts nothing then. While the
keeper lives, its answer is waited for: it says which events it had begun to post before.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from typing import Any, Final

import msgspec
import trio
from msgspec import Struct

from ..errors import BUSY_RETRY_MS, RequestError, part_from_frames
from ..log.letters_acked import Acknowledged as Settled
from ..nodes import KEEPER, Wire
from ..protocol.selection import Selection, TypeFilter
from .acknowledged import Client
from .covered import Covered, Stretch

logger = logging.getLogger(__name__)

HAND_OVER: Final = """
local keeper = redis.call('GET', KEYS[1])
if not keeper then return {} end
local there = redis.call('EXISTS', ARGV[1] .. keeper) == 1
local outcome = {}
for i = 1, (#KEYS - 1) / 2 do
  local waited_for, list, at = KEYS[2 * i], KEYS[2 * i + 1], 5 + 3 * (i - 1)
  local message = ARGV[at + 2]
  if redis.call('SISMEMBER', waited_for, ARGV[at + 1]) == 0 then
    outcome[i] = 0
  elseif redis.call('LLEN', list) >= tonumber(ARGV[4]) or (not there and #message > tonumber(ARGV[5])) then
    outcome[i] = 3
  else
    redis.call('RPUSH', list, message)
    redis.call('PEXPIRE', list, ARGV[3])
    outcome[i] = there and 1 or 2
    if there then redis.call('PUBLISH', ARGV[2] .. keeper, ARGV[at + 3]) end
  end
end
return outcome
"""
"""KEYS: the keeper's; of each acknowledgement its account's clients that are waited for, and its list. ARGV: what
stands before nodes in leases and in channels; for how many ms a list is kept, how many it has, how long one may be
while the keeper is away; of each its client, itself, and what the keeper is told. Returns of each what became of it;
nothing, if there never was a keeper.
"""
NOBODY_WAITS, HANDED, KEPT, REFUSED = 0, 1, 2, 3

WAITED_FOR: Final = "f"
"""The kind of key that has the clients of an account for whom an endpoint waits."""
LIST: Final = "l"
"""That of an account's list."""
KEPT_MS: Final = 86_400_000
MAX_LISTED: Final = 1_000
MAX_BYTES_KEPT: Final = 16_384
AT_ONCE: Final = 32
NO_KEEPER_SECONDS: Final = 0.5
"""For so long after the server said that there never was a keeper it is not asked: the first one waits for longer."""
ANSWER_SECONDS: Final = 3.0
"""How long the keeper may take."""

Told = Callable[[Settled | RequestError], None]
_Which = tuple[list[str] | None, list[str]]


class Asked(Struct, frozen=True, array_like=True):
    """An acknowledgement on its way. ``known``: up to where the log was known where it was given."""

    node: str
    number: int
    client_id: str
    known: str
    seconds: float | None
    """Of a `hold`; None: it is an `ack`."""
    stretches: list[tuple[int, int, _Which, list[str] | None]]
    event_ids: list[str]
    reach: _Which

    @property
    def covered(self) -> Covered:
        """The events that it is for."""
        stretches = [
            Stretch(after, through, _selection(which), None if types is None else TypeFilter(types))
            for after, through, which, types in self.stretches
        ]
        return Covered(stretches, frozenset(self.event_ids), _selection(self.reach), self.known)


def _which(selection: Selection) -> _Which:
    return None if selection.inboxes is None else list(selection.inboxes), list(selection.excluded)


def _selection(which: _Which) -> Selection:
    return Selection(None if which[0] is None else frozenset(which[0]), frozenset(which[1]))


class Handing:
    """The acknowledgements of this node. As `settling.Settling` has it; `run` runs always."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._numbers = count(1)
        self._waiting: list[tuple[str, Asked]] = []
        self._something = trio.Event()
        self._no_keeper_until = -inf
        self._under_way: OrderedDict[int, tuple[float, Told]] = OrderedDict()
        """By their numbers: until when an answer is waited for, and who is told."""
        wire.follow(self._hear, _nothing)

    def waits_for(self, client: Client) -> int:
        """Return whether an endpoint may wait for this client: the server knows."""
        return int(trio.current_time() >= self._no_keeper_until)

    def acknowledge(self, client: Client, covered: Covered, told: Told) -> None:
        """Have endpoints that wait for a client hear what it acknowledges: ``told`` hears which had begun before."""
        self._ask(client, covered, None, told)

    def hold(self, client: Client, covered: Covered, seconds: float, told: Told) -> None:
        """Have endpoints wait longer for the ids; ``told`` as for `acknowledge`."""
        self._ask(client, covered, seconds, told)

    def _ask(self, client: Client, covered: Covered, seconds: float | None, told: Told) -> None:
        number = next(self._numbers)
        stretches = [
            (
                each.after,
                each.through,
                _which(each.selection),
                None if each.types is None else list(each.types.patterns),
            )
            for each in covered.stretches
        ]
        ids, reach = list(covered.event_ids), _which(covered.reach)
        asked = Asked(self._wire.node, number, client.client_id, covered.known, seconds, stretches, ids, reach)
        self._under_way[number] = (trio.current_time() + ANSWER_SECONDS, told)
        self._waiting.append((client.account_id, asked))
        self._something.set()

    def _tell(self, number: int, outcome: Settled | RequestError) -> None:
        _, told = self._under_way.pop(number, (0.0, None))
        if told is not None:
            told(outcome)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand over what waits, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up)
            task_status.started()
            while True:
                await self._something.wait()
                self._something = trio.Event()
                while self._waiting:
                    part = self._waiting[:AT_ONCE]
                    del self._waiting[:AT_ONCE]
                    await self._hand_over(part)

    async def _hand_over(self, part: Sequence[tuple[str, Asked]]) -> None:
        keys = [self._wire.key(KEEPER, "")]
        arguments: list[Any] = [self._wire.leases, self._wire.channels, KEPT_MS, MAX_LISTED, MAX_BYTES_KEPT]
        for account_id, asked in part:
            keys += [self._wire.key(WAITED_FOR, account_id), self._wire.key(LIST, account_id)]
            arguments += [asked.client_id, msgspec.json.encode(asked), msgspec.json.encode(["settle", account_id])]
        began = trio.current_time()
        try:
            outcome = await self._wire.call(HAND_OVER, keys, arguments)
        except RequestError as error:
            outcome = [part_from_frames(error)] * len(part)
        if not outcome:
            self._no_keeper_until = began + NO_KEEPER_SECONDS
            outcome = [NOBODY_WAITS] * len(part)
        for (_, asked), became in zip(part, outcome, strict=True):
            if isinstance(became, RequestError):
                self._tell(asked.number, became)
            elif became == REFUSED:
                self._tell(asked.number, _unavailable())
            elif became != HANDED:
                self._tell(asked.number, Settled(0, [], 0))

    async def _give_up(self) -> None:
        """Tell those who have waited for long enough, for ever."""
        while True:
            now = trio.current_time()
            while self._under_way:
                number, (until, _) = next(iter(self._under_way.items()))
                if until > now:
                    break
                self._tell(number, _unavailable())
            await trio.sleep(ANSWER_SECONDS / 10)

    def _hear(self, message: bytes) -> None:
        try:
            kind, *rest = msgspec.json.decode(message, type=list[Any])
            if kind == "settled":
                number, acked, claimed = msgspec.convert(rest, tuple[int, int, list[str]])
                self._tell(number, Settled(acked, claimed, 0))
            elif kind == "too_large":
                number, why = msgspec.convert(rest, tuple[int, str])
                self._tell(number, RequestError("too_large", why))
        except (ValueError, msgspec.MsgspecError):
            logger.debug("a message that is not understood: %r", message[:100])


def _nothing() -> None:
    """What is under way is waited for until its time is over."""


def _unavailable() -> RequestError:
    message = "The node that keeps webhooks did not answer in time"
    return RequestError("unavailable", message, retry_after_ms=BUSY_RETRY_MS)
