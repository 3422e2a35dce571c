"""Slots of accounts whose connections are at many nodes: counted and taken over at the server that these share.

A claim is one connection's place in its account. It is made at the server in one step, whichever node it is of, and is
given back when its slot is released; what a node that is gone had claimed is nobody's, and room for who comes. Between
asking the server and its answer everything may change: who is admitted is judged again afterwards (`admission`).

A claim is ``made`` until it is ``lost`` to another connection of the same name, or for want of room after the server
has forgotten it; or ``over``, when its slot is released.
"""

import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal

import msgspec
import trio
from msgspec import Struct

from ..errors import CloseCode, RequestError
from ..nodes import Wire
from .slots import LOOK, Holder, Name, Slot, Slots

_ROOM: Final = """
local function room(slots, limit, leases)
  if not limit or redis.call('HLEN', slots) < limit then return true end
  local all, lives, gone, held = redis.call('HGETALL', slots), {}, {}, {}
  for i = 1, #all, 2 do
    local node = string.match(all[i + 1], '^%S+')
    if lives[node] == nil then lives[node] = redis.call('EXISTS', leases .. node) end
    if lives[node] == 0 then gone[#gone + 1] = all[i] else held[#held + 1] = all[i + 1] end
  end
  for i = 1, #gone, 1000 do redis.call('HDEL', slots, unpack(gone, i, math.min(i + 999, #gone))) end
  return #held < limit, held
end
"""
"""Whether there is room among an account's slots, after those of nodes that are gone; and if not, who has them.

Of looks there is one, by itself: so there is always room for it."""
TAKE: Final = f"""{_ROOM}
local slots, field, value = KEYS[1], ARGV[4], ARGV[5]
local had = redis.call('HGET', slots, field)
if not had then
  local free, held = room(slots, tonumber(ARGV[3]), ARGV[1])
  if not free then return held end
end
redis.call('HSET', slots, field, value)
redis.call('PEXPIRE', slots, 86400000)
if had and had ~= value then
  local node, token = string.match(had, '^(%S+) (%S+)')
  redis.call('PUBLISH', ARGV[2] .. node, '["replaced","' .. token .. '"]')
  return had
end
return 1
"""
"""KEYS: an account's slots. ARGV: what stands before a node's name in its lease, and in its channel; limit or "";
field and value, which is `NODE TOKEN`.

Returns 1, the value that it has replaced, or who has the slots. Its order is the order of takeovers: of all claims of
one field the last that was taken stays, and each other is told, by its own token, that it has lost the field."""
RELEASE: Final = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
"""
RECLAIM: Final = f"""{_ROOM}
local slots, leases, limit, answers = KEYS[1], ARGV[1], tonumber(ARGV[3]), {{}}
for i = 4, #ARGV, 2 do
  local had, answer = redis.call('HGET', slots, ARGV[i]), 'made'
  if had and had ~= ARGV[i + 1] and redis.call('EXISTS', leases .. string.match(had, '^%S+')) == 1 then
    answer = 'replaced'
  elseif not had and not room(slots, limit, leases) then answer = 'full'
  else redis.call('HSET', slots, ARGV[i], ARGV[i + 1]) end
  answers[#answers + 1] = answer
end
redis.call('PEXPIRE', slots, 86400000)
return answers
"""
"""KEYS: the account's slots. ARGV: as for `TAKE`, but a field and a value for each claim. Returns what became of it."""
QUIETEST_SECONDS: Final = 0.25
"""How long other nodes may take to say which of their connections is the quietest."""
RECLAIMED_AT_ONCE: Final = 256
AGAIN_SECONDS: Final = 0.5
REPLACED: Final = "replaced by a newer connection of the same client_id"
REPLACED_LOOK: Final = "replaced by a newer look at the account"
_NO_ROOM: Final = "the account's other connections have taken its room"


class Claim:
    """One connection's place in its account, among all nodes. `release` it as often as you like."""

    __slots__ = ("_slots", "account_id", "field", "limit", "look", "slot", "state", "token")

    def __init__(self, slots: "NodeSlots", account_id: str, limit: int | None, name: Name | None) -> None:
        self._slots = slots
        self.account_id = account_id
        self.limit = limit
        self.token = secrets.token_hex(8)
        self.look = name is LOOK
        self.field = _field_of(name, self.token)
        self.slot: Slot | None = None
        """Set in the step in which its connection is admitted."""
        self.state: Literal["made", "lost", "over"] = "made"

    @property
    def kind(self) -> str:
        """Of which kind the key is at the server that has the slots among which it is."""
        return "w" if self.look else "k"

    def release(self) -> None:
        """Give the place back, if it is still its own."""
        self._slots.give_back(self)

    def lose(self, code: CloseCode, why: str) -> None:
        """End its connection, if there is one already."""
        self.state = "lost"
        if self.slot is not None and self.slot.holder is not None:
            self.slot.holder.end(code, why)


class Suspect:
    """The quietest of an account's connections, wherever it is: asked for a sign of life."""

    def __init__(self) -> None:
        self.lives = False
        """Whether it has shown one."""
        self.holder: Holder | None = None
        """If it is of this node."""
        self.silent_seconds = -1.0
        self.node = ""
        self.token = ""


class _Quiet(Struct, frozen=True):
    """What a node says of the quietest among some of its connections."""

    token: str
    silent_seconds: float


class NodeSlots(Slots):
    """The slots of this node's connections, with their claims among all nodes.

    ``examine`` asks a connection for life, and ends it if there is none; it returns whether there was.
    """

    def __init__(self, wire: Wire, examine: Callable[[Holder], Awaitable[bool]]) -> None:
        super().__init__()
        self._wire = wire
        self._examine = examine
        self._claims: dict[str, Claim] = {}
        """By their tokens."""
        self._given_back: deque[Claim] = deque()
        self._all_given_back = trio.lowlevel.ParkingLot()
        self._suspects: dict[str, Suspect] = {}
        """By the ids of our questions."""
        self._something = trio.Event()
        """Set when there is something to give back, or all is to be claimed again."""
        self._renewed = False
        self._nursery: trio.Nursery | None = None
        wire.follow(self._hear, self._renew)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give back what was released, claim again what the server has forgotten, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await self._something.wait()
                self._something = trio.Event()
                try:
                    await self._give_back_all()
                    await self._reclaim_all()
                except RequestError:  # it is away: claims are made again when it is back, and so is this
                    await trio.sleep(AGAIN_SECONDS)
                    self._something.set()

    # --- one claim

    async def claim(self, claim: Claim) -> list[str] | None:
        """Make a claim; None: it is made. Else who has the account's slots. Raises `RequestError` (`unavailable`)."""
        limit = "" if claim.limit is None else claim.limit
        arguments = (self._wire.leases, self._wire.channels, limit, claim.field, self._value(claim))
        self._claims[claim.token] = claim
        answer = await self._wire.call(TAKE, [self._key_of(claim)], arguments)
        if isinstance(answer, list):
            return [_text(holder) for holder in answer]
        if answer != 1:
            node, _, token = _text(answer).partition(" ")
            if node == self._wire.node:  # it need not wait for the server's message
                self._replace(token)
        return None

    def admit(self, claim: Claim, slot: Slot) -> None:
        """Let a claim be its connection's; one that was replaced meanwhile is ended as soon as it can be told."""
        slot.claim, claim.slot = claim, slot
        if claim.state == "lost" and self._nursery is not None:
            self._nursery.start_soon(self._end_replaced, claim)

    async def _end_replaced(self, claim: Claim) -> None:
        self._replace(claim.token)

    def give_back(self, claim: Claim) -> None:
        """Let a claim be over; the server is told as soon as it can be."""
        if claim.state == "over":
            return
        lost, claim.state = claim.state == "lost", "over"
        claim.slot = None
        self._claims.pop(claim.token, None)
        if not lost:
            self._given_back.append(claim)
            self._something.set()

    def _key_of(self, claim: Claim) -> str:
        return self._wire.key(claim.kind, claim.account_id)

    def _value(self, claim: Claim) -> str:
        return f"{self._wire.node} {claim.token}"

    async def _give_back_all(self) -> None:
        while self._given_back:
            claim = self._given_back[0]
            await self._wire.call(RELEASE, [self._key_of(claim)], (claim.field, self._value(claim)))
            self._given_back.popleft()
        self._all_given_back.unpark_all()

    async def settled(self) -> None:
        """Wait until the server knows of each claim that was given back."""
        while self._given_back:
            await self._all_given_back.park()

    async def _reclaim_all(self) -> None:
        """Claim again what this node has, after a time in which the server may have given it to others."""
        if not self._renewed:
            return
        self._renewed = False
        by_key: dict[tuple[str, int | None], list[Claim]] = {}
        for claim in self._claims.values():
            if claim.slot is not None and claim.state == "made":
                by_key.setdefault((self._key_of(claim), claim.limit), []).append(claim)
        try:
            for (key, limit), claims in by_key.items():
                for start in range(0, len(claims), RECLAIMED_AT_ONCE):
                    await self._reclaim(key, limit, claims[start : start + RECLAIMED_AT_ONCE])
        except RequestError:
            self._renewed = True
            raise

    async def _reclaim(self, key: str, limit: int | None, claims: Sequence[Claim]) -> None:
        pairs = [part for claim in claims for part in (claim.field, self._value(claim))]
        arguments = (self._wire.leases, self._wire.channels, "" if limit is None else limit, *pairs)
        answers = await self._wire.call(RECLAIM, [key], arguments)
        for claim, answer in zip(claims, map(_text, answers), strict=True):
            if answer == "full":
                claim.lose(CloseCode.HEARTBEAT_MISSED, _NO_ROOM)
            elif answer == "replaced":
                self._replace(claim.token)

    def _replace(self, token: str) -> None:
        """End the connection of a claim that has lost its field to a newer one, if it is still there."""
        claim = self._claims.get(token)
        if claim is not None:
            claim.lose(CloseCode.REPLACED, REPLACED_LOOK if claim.look else REPLACED)

    def _holder_of(self, token: str) -> Holder | None:
        """Return the connection of a claim of this node, if it is there."""
        claim = self._claims.get(token)
        return None if claim is None or claim.slot is None else claim.slot.holder

    # --- ghosts

    async def suspect(self, holders: Sequence[str]) -> Suspect:
        """Return the quietest of those who have an account's slots, after it was asked for life."""
        suspect, question = Suspect(), secrets.token_hex(8)
        by_node: dict[str, list[str]] = {}
        for holder in holders:
            node, _, token = holder.partition(" ")
            by_node.setdefault(node, []).append(token)
        mine = by_node.pop(self._wire.node, [])
        self._suspect(suspect, self._wire.node, self._quietest(mine))
        self._suspects[question] = suspect
        if by_node:
            for node, tokens in by_node.items():
                await self._tell(node, "quietest", question, self._wire.node, tokens)
            await trio.sleep(QUIETEST_SECONDS)
        if suspect.node == self._wire.node:
            suspect.holder = self._holder_of(suspect.token)
        elif suspect.node:
            await self._tell(suspect.node, "examine", question, self._wire.node, suspect.token)
        return suspect

    def forget(self, suspect: Suspect) -> None:
        """Hear nothing more of a suspect."""
        for question in [question for question, asked in self._suspects.items() if asked is suspect]:
            del self._suspects[question]

    def _suspect(self, suspect: Suspect, node: str, quiet: _Quiet | None) -> None:
        if quiet is not None and quiet.silent_seconds > suspect.silent_seconds:
            suspect.node, suspect.token, suspect.silent_seconds = node, quiet.token, quiet.silent_seconds

    def _quietest(self, tokens: Sequence[str]) -> _Quiet | None:
        """Return the quietest of some of this node's connections; None: there is none of them."""
        now, quietest = trio.current_time(), None
        for token in tokens:
            holder = self._holder_of(token)
            if holder is None:
                continue
            silent_seconds = now - holder.last_heard()
            if quietest is None or silent_seconds > quietest.silent_seconds:
                quietest = _Quiet(token, silent_seconds)
        return quietest

    # --- what nodes tell each other

    async def _tell(self, node: str, *message: Any) -> None:
        await self._wire.tell(node, msgspec.json.encode(message))

    def _hear(self, message: bytes) -> None:
        """Take what another node, or the server, says to this one; what is not understood is of a newer version."""
        try:
            kind, *rest = msgspec.json.decode(message, type=list[Any])
            if kind == "replaced":
                self._replace(rest[0])
            elif kind == "quiet":
                question, node, token, silent_seconds = rest
                if question in self._suspects:
                    self._suspect(self._suspects[question], node, _Quiet(token, silent_seconds))
            elif kind == "lives":
                if rest[0] in self._suspects:
                    self._suspects[rest[0]].lives = True
            elif kind in ("quietest", "examine") and self._nursery is not None:
                self._nursery.start_soon(self._answer, kind, *rest)
        except (msgspec.DecodeError, ValueError, TypeError, IndexError):
            return

    async def _answer(self, kind: str, question: str, node: str, asked: Any) -> None:
        try:
            if kind == "quietest":
                quietest = self._quietest(asked)
                if quietest is not None:
                    await self._tell(node, "quiet", question, self._wire.node, quietest.token, quietest.silent_seconds)
                return
            holder = self._holder_of(asked)
            if holder is not None and await self._examine(holder):
                await self._tell(node, "lives", question)
        except RequestError:
            pass  # it asks again, if it still wants to know

    def _renew(self) -> None:
        self._renewed = True
        self._something.set()


def _field_of(name: Name | None, token: str) -> str:
    if isinstance(name, tuple):
        return " ".join(name)
    return "look" if name is LOOK else f"- {token}"


def _text(answer: Any) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)
