"""Sent twice to two nodes, done once: what is under way and what was answered, at the server that the nodes share.

A command is begun there before its handler is called, and finished after. Whoever begins one that is under way waits
for what it comes to; if its node is gone, he does it again, under the same message id. Where the server cannot be
reached, a command that may be sent again is refused: nobody could say whether it was done.
"""

import secrets
from collections import deque
from typing import Any, Final

import msgspec
import trio
from msgspec import Struct

from ..errors import RequestError, request_id_reused
from ..nodes import Wire
from .remembered import MAX_ANSWERS, MAX_BYTES, ONCE_SECONDS, Outcome, Run

BEGIN: Final = """
local had = redis.call('HGET', KEYS[1], ARGV[2])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if had then
  local digest, owner = string.match(had, '^r (%S+) (%S+ %S+)')
  local ended, of, outcome
  if not digest then
    ended, of, outcome = string.match(had, '^d (%d+) (%S+) (.*)$')
    if tonumber(ended) < now - tonumber(ARGV[5]) then had = false end
  end
  if had then
    if (digest or of) ~= ARGV[3] then return 'reused' end
    if outcome then return {outcome} end
    local alive = redis.call('EXISTS', ARGV[1] .. string.match(owner, '^%S+')) == 1
    if alive and owner ~= ARGV[4] then return 'wait' end
  end
end
redis.call('HSET', KEYS[1], ARGV[2], 'r ' .. ARGV[3] .. ' ' .. ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 'new'
"""
"""KEYS: an account's commands, and their order. ARGV: what stands before a node's name in its lease; identity, digest,
`NODE RUN`; for how many ms outcomes are kept. Returns `new`, `wait`, `reused`, or a list with the outcome."""
FINISH: Final = """
local mine = 'r ' .. ARGV[2] .. ' ' .. ARGV[3]
if redis.call('HGET', KEYS[1], ARGV[1]) ~= mine then return 0 end
if ARGV[4] == '' then redis.call('HDEL', KEYS[1], ARGV[1]); return 1 end
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local item = #ARGV[1] + #ARGV[4] .. ' ' .. now .. ' ' .. ARGV[1]
redis.call('HSET', KEYS[1], ARGV[1], 'd ' .. now .. ' ' .. ARGV[2] .. ' ' .. ARGV[4])
local number = redis.call('RPUSH', KEYS[2], item)
local bytes = redis.call('HINCRBY', KEYS[1], '#', #ARGV[1] + #ARGV[4])
local budget = 64
while budget > 0 and number > 1 do
  local size, ended, field = string.match(redis.call('LINDEX', KEYS[2], 0), '^(%d+) (%d+) (.*)$')
  local old = tonumber(ended) < tonumber(now) - tonumber(ARGV[5])
  if not old and number <= tonumber(ARGV[6]) and bytes <= tonumber(ARGV[7]) then break end
  redis.call('LPOP', KEYS[2])
  local kept = redis.call('HGET', KEYS[1], field)
  if kept and string.match(kept, '^d (%d+) ') == ended then redis.call('HDEL', KEYS[1], field) end
  number = number - 1; budget = budget - 1
  bytes = redis.call('HINCRBY', KEYS[1], '#', -tonumber(size))
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 1
"""
"""KEYS: the account's commands, and their order. ARGV: identity, digest, `NODE RUN`, outcome, or "" if it is not kept;
for how many ms outcomes are kept, how many, and how many bytes."""
FIRST_LOOK_SECONDS: Final = 0.02
LONGEST_LOOK_SECONDS: Final = 0.25
PATIENCE_SECONDS: Final = 5.0
"""How long a command waits for a server that is away."""
AGAIN_SECONDS: Final = 0.5
MOST_LATE: Final = 10_000
"""Outcomes that wait for the server to be back."""


class _Kept(Struct, array_like=True):
    """An outcome at the server."""

    result: str
    code: str | None = None
    message: str = ""
    retry_after_ms: int | None = None


class SharedAnswers:
    """What nodes know of each other's commands. ``seconds`` is how long an outcome is told again."""

    def __init__(self, wire: Wire, seconds: float) -> None:
        self._wire = wire
        self._seconds = seconds
        self._owners: dict[Run, str] = {}
        """Of runs that were begun and are not finished: `NODE RUN`."""
        self._late = deque[tuple[list[str], tuple[Any, ...]]](maxlen=MOST_LATE)
        self._something = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell the server outcomes that it could not be told at once, for ever."""
        task_status.started()
        while True:
            await self._something.wait()
            self._something = trio.Event()
            while self._late:
                late = self._late.popleft()  # before the call: who comes meanwhile may push the first one out
                try:
                    await self._wire.call(FINISH, *late)
                except RequestError:
                    if len(self._late) < MOST_LATE:
                        self._late.appendleft(late)
                    await trio.sleep(AGAIN_SECONDS)

    async def begin(self, run: Run) -> Outcome | None:
        """Begin a run among all nodes; None: it is to be done here, and finished. Else what it came to elsewhere.

        Waits while another node does it. Raises `RequestError`: `request_id_reused`, `unavailable`.
        """
        if run.identity is None:
            return None
        owner = self._owners[run] = f"{self._wire.node} {secrets.token_hex(8)}"
        arguments = (self._wire.leases, _field_of(run), _digest_of(run), owner, self._kept_ms(run))
        pause = FIRST_LOOK_SECONDS
        while True:
            answer = await self._patiently(BEGIN, self._keys_of(run), arguments)
            if isinstance(answer, list):
                del self._owners[run]
                return _outcome_of(answer[0], duplicate=run.remembered.owner[1] != "")
            said = answer if isinstance(answer, str) else answer.decode()
            if said == "new":
                return None
            if said == "reused":
                del self._owners[run]
                raise request_id_reused()
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)

    async def _patiently(self, *asked: Any) -> Any:
        """Ask the server, again and again for a while if it is away. Raises `RequestError` (`unavailable`)."""
        deadline = trio.current_time() + PATIENCE_SECONDS
        while True:
            try:
                return await self._wire.call(*asked)
            except RequestError:
                if trio.current_time() + LONGEST_LOOK_SECONDS > deadline:
                    raise
                await trio.sleep(LONGEST_LOOK_SECONDS)

    async def finish(self, run: Run, outcome: Outcome) -> None:
        """Say what a run of `begin` came to. What the server cannot be told now, it is told when it is back."""
        owner = self._owners.pop(run, None)
        if owner is None:
            return
        kept = _kept_of(outcome) if outcome.lasting else b""
        arguments = (
            _field_of(run),
            _digest_of(run),
            owner,
            kept,
            self._kept_ms(run),
            MAX_ANSWERS,
            MAX_BYTES,
        )
        keys = self._keys_of(run)
        try:
            await self._wire.call(FINISH, keys, arguments)
        except RequestError:
            self._late.append((keys, arguments))
            self._something.set()

    def _keys_of(self, run: Run) -> list[str]:
        account_id, kind = run.remembered.owner
        kinds = ("c", "o") if kind == "" else ("C", "O")
        return [self._wire.key(each, account_id) for each in kinds]

    def _kept_ms(self, run: Run) -> int:
        return int(1_000 * (self._seconds if run.remembered.owner[1] == "" else ONCE_SECONDS))


def _field_of(run: Run) -> str:
    assert run.identity is not None
    return " ".join(run.identity)


def _digest_of(run: Run) -> str:
    return run.digest.hex() or "-"


def _kept_of(outcome: Outcome) -> bytes:
    error = outcome.error
    if error is None:
        return msgspec.json.encode(_Kept(outcome.result.decode()))
    return msgspec.json.encode(_Kept("", error.code, error.message, error.retry_after_ms))


def _outcome_of(text: bytes, *, duplicate: bool) -> Outcome:
    kept = msgspec.json.decode(text, type=_Kept)
    error = None if kept.code is None else RequestError(kept.code, kept.message, retry_after_ms=kept.retry_after_ms)
    return Outcome(kept.result.encode(), error, duplicate=duplicate)
