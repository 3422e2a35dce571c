"""What a script for the server is, and those that read: how far accounts are, and what they hold.

Pure. Each script is one step. `history` opens each that writes (`storing`). It tells whether the server has the history
that the node thinks it has: the id of its replication says so, which is another after each restart and each failover. A
first replica gives it another id, too, though nothing was lost: then its run is the same, and it never was anybody's
replica. A script of another history answers ``{'stale', generation}`` and has written nothing.

What stands behind an account's head is of a list that is being written (`lists`): none of it is read.

Lua's numbers hold positions (16 digits) exactly, but `tostring` does not write them: that is `%.0f`.
"""

from hashlib import sha1
from typing import Final

STALE: Final = b"stale"
FORMAT: Final = b"1"
"""Of all keys and channels. Brokers of another one do not use the server: they would not read what it holds."""

PRELUDE: Final = r"""
local function digits(n) return string.format('%.0f', n) end
local function history(candidate)
  local info = redis.call('INFO', 'replication')
  local replid = string.match(info, 'master_replid:(%x+)')
  local known = redis.call('HMGET', KEYS[1], 'id', 'replid', 'run')
  if known[1] and known[2] == replid then return known[1] end
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  if known[1] and known[3] == run and string.match(info, 'master_replid2:(%x+)') == string.rep('0', 40) then
    redis.call('HSET', KEYS[1], 'replid', replid)
    return known[1]
  end
  redis.call('HSET', KEYS[1], 'id', candidate, 'replid', replid, 'run', run)
  return candidate
end
local function micros()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end
"""
"""What scripts that write begin with. KEYS[1] is the generation's key."""


class Script:
    """A script and its name for the server."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


HELLO: Final = Script(
    PRELUDE
    + r"""
local generation = history(ARGV[1])
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w%-]+)')
if redis.call('HEXISTS', KEYS[1], 'format') == 0 then redis.call('HSET', KEYS[1], 'format', ARGV[2]) end
return {generation, digits(micros()), policy, redis.call('HGET', KEYS[1], 'format')}
"""
)
"""KEYS: generation. ARGV: a generation, if another begins, and the format. Returns the generation, the time, what is
evicted, and the format of what is there."""

HEADS: Final = Script(
    PRELUDE
    + r"""
local id = history(ARGV[2])
if id ~= ARGV[1] then return {'stale', id} end
local us, heads = micros(), {}
for i = 2, #KEYS do
  local meta = redis.call('HMGET', KEYS[i], 'g', 'n', 'b', 'o')
  local floor = tonumber(ARGV[2 + i])
  if meta[1] ~= ARGV[1] or tonumber(meta[2]) < floor then
    local born = digits(math.max(us, (tonumber(meta[2]) or 0) + 1, floor))
    redis.call('HSET', KEYS[i], 'g', ARGV[1], 'n', born, 'b', born)
    if meta[4] then redis.call('HSET', KEYS[i], 'o', '-') end
    meta = {ARGV[1], born, born}
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[3])
  heads[#heads + 1] = meta[2]
  heads[#heads + 1] = meta[3]
end
return heads
"""
)
"""KEYS: generation, then meta of each account. ARGV: the generation, one if another begins, for how many ms meta is
kept; then of each account a position that the node has seen: if it is not that far, it is born again there, for what it
had is not what the node had, and a list that is being written for it has lost its place. Returns of each its head and
its birth."""

_OPEN: Final = r"""
local meta = redis.call('HMGET', KEYS[1], 'g', 'n', 'b', 'u')
if meta[1] ~= ARGV[1] then return {'stale', meta[1] or ''} end
local head, birth, behind = tonumber(meta[2]), tonumber(meta[3]), tonumber(meta[4]) or 0
local function digits(n) return string.format('%.0f', n) end
"""

READ: Final = Script(
    _OPEN
    + r"""
local oldest = math.min(math.max(head + behind - redis.call('LLEN', KEYS[2]), birth), head)
local from = math.max(tonumber(ARGV[2]), oldest)
local most, room, page = math.min(tonumber(ARGV[3]), head - from), tonumber(ARGV[4]), {}
while #page < most and room > 0 do
  local at = -(head - from - #page) - behind
  local lines = redis.call('LRANGE', KEYS[2], at, at + math.min(16, most - #page) - 1)
  if #lines == 0 then break end
  for _, line in ipairs(lines) do
    room = room - #line
    if room < 0 and #page > 0 then break end
    page[#page + 1] = line
  end
end
return {meta[2], meta[3], digits(from), page}
"""
)
"""KEYS: meta, window. ARGV: the generation, after which position, how many events and bytes at most (one event
at least). Returns head, birth, after which position the page begins, and the page: what comes next, as far as it is
held."""

READ_BACK: Final = Script(
    _OPEN
    + r"""
local oldest = math.min(math.max(head + behind - redis.call('LLEN', KEYS[2]), birth), head)
local through = math.min(tonumber(ARGV[2]), head)
local most, room, back = math.min(tonumber(ARGV[3]), through - oldest), tonumber(ARGV[4]), {}
while #back < most and room > 0 do
  local at = -(head - through + #back) - 1 - behind
  local lines = redis.call('LRANGE', KEYS[2], at - math.min(16, most - #back) + 1, at)
  if #lines == 0 then break end
  for j = #lines, 1, -1 do
    room = room - #lines[j]
    if room < 0 and #back > 0 then break end
    back[#back + 1] = lines[j]
  end
end
local page = {}
for j = #back, 1, -1 do page[#page + 1] = back[j] end
return {meta[2], meta[3], digits(oldest), page}
"""
)
"""The same backward. KEYS: meta, window. ARGV: the generation, through which position, how many events and bytes at
most. Returns head, birth, after which position the window begins, and the page that ends there, oldest first."""

INDEX: Final = Script(
    _OPEN
    + r"""
local known = math.min(math.max(head + behind - redis.call('LLEN', KEYS[2]), birth), head)
local through = math.min(tonumber(ARGV[2]), head)
local from = math.max(known, tonumber(ARGV[3]), through - tonumber(ARGV[4]))
local page = {}
if from < through then page = redis.call('LRANGE', KEYS[2], from - head - behind, through - head - behind - 1) end
return {meta[2], meta[3], digits(from), page}
"""
)
"""KEYS: meta, index. ARGV: the generation, through which position, after which, how many at most.
Returns head, birth, after which position the page begins, and the page that ends there, oldest first."""
