"""What clients acknowledge at any node, as the keeper takes it: in its order, written down, and then answered.

Endpoints that wait for clients are posted to only while the keeper has its lease and has taken what was acknowledged
while it was away: so what was answered as acknowledged is not posted from then on.
"""

import logging
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import trio

from ..errors import RequestError
from ..fanout.handed import LIST, WAITED_FOR, Asked
from ..fanout.settling import Settling
from ..log.letters_acked import Acknowledged
from ..log.outbox import Outbox
from ..nodes import Wire
from .following import RETRY_SECONDS, Following

logger = logging.getLogger(__name__)

SAY_WAITED_FOR: Final = """
redis.call('DEL', KEYS[1])
for i = 2, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
"""KEYS: an account's clients that are waited for. ARGV: for how many ms they are kept; these clients."""
FIRST: Final = "return redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)"
DONE: Final = "return redis.call('LTRIM', KEYS[1], ARGV[1], -1)"
KEPT_MS: Final = 7 * 86_400_000
SAY_AGAIN_SECONDS: Final = 3_600.0
_PAGE: Final = 16


class _Client(NamedTuple):
    """A client of any node."""

    account_id: str
    client_id: str


class Taking:
    """Takes what is acknowledged, account by account. `run` runs while this node is the keeper."""

    def __init__(self, outbox: Outbox, wire: Wire, following: Following) -> None:
        self._outbox = outbox
        self._settling = Settling(outbox)
        self._wire = wire
        self._following = following
        self._nursery: trio.Nursery | None = None
        self._taken: set[str] = set()
        """Accounts of which all was taken that was acknowledged while this was away."""
        self._under_way: dict[str, bool] = {}
        """Accounts whose list is being taken, and whether there may be more of it."""
        self._to_say: dict[str, None] = {}
        self._something = trio.Event()
        self._said = trio.lowlevel.ParkingLot()
        wire.follow(self._hear, lambda: None)

    def is_settled(self, account_id: str) -> bool:
        """Whether it is known what clients of an account have acknowledged."""
        return account_id in self._taken

    def changed(self, account_id: str) -> None:
        """Hear that endpoints may wait for other clients of an account."""
        self._to_say[account_id] = None
        self._something.set()

    async def said(self, account_id: str) -> None:
        """Wait until all nodes can know which clients of an account are waited for."""
        while account_id in self._to_say:
            await self._said.park()

    async def run(self) -> None:
        """Say who is waited for, and take what was and is acknowledged, for ever. Cancelled, nothing is settled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    while True:
                        self._to_say |= dict.fromkeys(self._outbox.waiting_accounts())
                        with trio.move_on_after(SAY_AGAIN_SECONDS):
                            await self._say()
                finally:
                    self._nursery = None
        finally:
            self._taken.clear()  # not before the last of its tasks has ended: it may note one yet

    async def _say(self) -> None:
        while True:
            self._something = trio.Event()
            while self._to_say:
                account_id = next(iter(self._to_say))
                clients = tuple(self._outbox.waited_for(account_id))
                try:
                    key = self._wire.key(WAITED_FOR, account_id)
                    await self._wire.call(SAY_WAITED_FOR, [key], (KEPT_MS, *clients))
                except RequestError:
                    await trio.sleep(RETRY_SECONDS)
                    continue
                if clients == tuple(self._outbox.waited_for(account_id)):
                    self._to_say.pop(account_id, None)
                    self._said.unpark_all()
                self._take_soon(account_id)
            await self._something.wait()

    def _hear(self, message: bytes) -> None:
        with suppress(ValueError, msgspec.MsgspecError):
            kind, *rest = msgspec.json.decode(message, type=list[Any])
            if kind == "settle":
                [account_id] = msgspec.convert(rest, tuple[str])
                self._take_soon(account_id)

    def _take_soon(self, account_id: str) -> None:
        if self._nursery is None:
            return
        if account_id in self._under_way:
            self._under_way[account_id] = True
        else:
            self._under_way[account_id] = False
            self._nursery.start_soon(self._take, account_id)

    async def _take(self, account_id: str) -> None:
        key = [self._wire.key(LIST, account_id)]
        try:
            more = True
            while more:
                self._under_way[account_id] = False
                messages = await self._wire.call(FIRST, key, (_PAGE,))
                for message in messages:
                    await self._settle(account_id, message)
                if messages:
                    await self._wire.call(DONE, key, (len(messages),))
                more = bool(messages) or self._under_way[account_id]
        except RequestError:
            return  # the server is away; this begins anew when it is back
        finally:
            self._under_way.pop(account_id, None)
        if account_id not in self._taken:
            self._taken.add(account_id)
            for webhook in {number for each in self._outbox.waited_for(account_id).values() for number in each}:
                self._outbox.woken(webhook, 0.0)

    async def _settle(self, account_id: str, message: bytes) -> None:
        """Write down what one client acknowledged, however long that takes, and answer its node."""
        try:
            asked = msgspec.json.decode(message, type=Asked)
        except (ValueError, msgspec.MsgspecError):
            logger.warning("an acknowledgement of account %s is not understood", account_id)
            return
        await self._following.passed(account_id, asked.known)
        covered, client = asked.covered, _Client(account_id, asked.client_id)
        while True:
            outcomes: list[Acknowledged | RequestError] = []
            ended = trio.Event()
            told = partial(_tell, outcomes, ended)
            if asked.seconds is None:
                self._settling.acknowledge(client, covered, told)
            else:
                self._settling.hold(client, covered, asked.seconds, told)
            await ended.wait()
            [outcome] = outcomes
            if isinstance(outcome, Acknowledged):
                answer = ["settled", asked.number, outcome.acked, outcome.claimed]
                break
            if outcome.code == "too_large":
                answer = ["too_large", asked.number, str(outcome)]
                break
            await trio.sleep(RETRY_SECONDS)  # the disk does not take it now
        with suppress(RequestError):
            await self._wire.tell(asked.node, msgspec.json.encode(answer))


def _tell(outcomes: list[Acknowledged | RequestError], ended: trio.Event, outcome: Acknowledged | RequestError) -> None:
    outcomes.append(outcome)
    ended.set()
