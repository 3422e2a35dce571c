"""The scripts that the server runs: each one step, none of which writes before all its checks are done.

Pure. `history` opens each script that writes. It tells whether the server has the history that the node thinks it has:
the id of its replication says so, which is another after each restart and each failover. A first replica gives it
another id, too, though nothing was lost: then its run is the same, and it never was anybody's replica. A script of
another history answers ``{'stale', generation}`` and has written nothing.

Lua's numbers hold positions (16 digits) exactly, but `tostring` does not write them: that is `%.0f`. No more than a
thousand values are unpacked at once.
"""

from hashlib import sha1
from typing import Final

STALE: Final = b"stale"

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
return {generation, digits(micros()), policy}
"""
)
"""KEYS: generation. ARGV: a generation, if another begins. Returns the generation, the time, and what is evicted."""

APPEND: Final = Script(
    PRELUDE
    + r"""
local generation = ARGV[1]
local window, most, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local meta_ms, index_ms = ARGV[6], tonumber(ARGV[7])
local published, overhead, most_known = tonumber(ARGV[8]), tonumber(ARGV[9]), 1000000
local most_marks = 10000
local id = history(ARGV[2])
if id ~= generation then return {'stale', id} end
local us = micros()
local outcome = {}
local a = 10
for key = 2, #KEYS, 6 do
  local M, S, D, X, Q, P = unpack(KEYS, key, key + 5)
  local channel, paged, marked = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  a = a + 3
  local meta = redis.call('HMGET', M, 'g', 'n', 'l')
  local head, born = tonumber(meta[2]) or 0, false
  if meta[1] ~= generation then head = math.max(us, head + 1); born = digits(head) end
  local ms = math.max(math.floor(us / 1000), tonumber(meta[3]) or 0)
  local reused, noted = {}, {}
  for at = a, a + 4 * (marked - 1), 4 do
    local mark, content = ARGV[at + 2], ARGV[at + 3]
    local kept = redis.call('HGET', Q, mark) or redis.call('HGET', P, mark)
    if kept and tonumber(string.sub(kept, 1, 13)) >= ms - window and string.sub(kept, 15) ~= content then
      for i = tonumber(ARGV[at]), tonumber(ARGV[at + 1]) do reused[i] = true end
    else
      noted[#noted + 1] = mark; noted[#noted + 1] = digits(ms) .. ' ' .. content
    end
  end
  a = a + 4 * marked
  local lines, ids, index, results, here, marks = {}, {}, {}, {}, {}, nil
  local stamp, i, fresh, size = digits(ms) .. ' ', 0, 0, 0
  local stamped = ' ' .. stamp
  for from = a, a + paged - 1 do
    local page, asked = cmsgpack.unpack(ARGV[from]), {'#y', '#o', '#t'}
    for at = 1, #page, 4 do asked[(at + 3) / 4 + 3] = page[at] end
    local seen = redis.call('HMGET', D, unpack(asked))
    marks = marks or seen
    for at = 1, #page, 4 do
      i = i + 1
      local identity = page[at]
      local before = here[identity] or seen[(at + 3) / 4 + 3]
      if reused[i] then
        results[2 * i - 1] = '0'; results[2 * i] = 2
      elseif before then
        results[2 * i - 1] = before; results[2 * i] = 1
      else
        head = head + 1; fresh = fresh + 1
        local position = digits(head)
        local line = position .. stamped .. identity .. ' ' .. page[at + 2] .. position .. page[at + 3]
        lines[fresh] = line; size = size + #line; here[identity] = position
        ids[2 * fresh - 1] = identity; ids[2 * fresh] = position
        index[fresh] = stamp .. page[at + 1]
        results[2 * i - 1] = position; results[2 * i] = 0
      end
    end
  end
  a = a + paged
  outcome[#outcome + 1] = table.concat(results, ' ')
  if born then redis.call('HSET', M, 'g', generation, 'b', born, 'n', born); redis.call('PEXPIRE', M, meta_ms) end
  if #noted > 0 then
    local begun = redis.call('HGET', Q, '#')
    if begun and (tonumber(begun) < ms - window or redis.call('HLEN', Q) > most_marks) then
      redis.call('RENAME', Q, P)
      begun = false
    end
    if not begun then redis.call('HSET', Q, '#', digits(ms)) end
    for from = 1, #noted, 2 do redis.call('HSET', Q, noted[from], noted[from + 1]) end
    redis.call('PEXPIRE', Q, digits(2 * window + 1))
  end
  if fresh > 0 then
    local length
    for from = 1, fresh, 1000 do
      local last = math.min(from + 999, fresh)
      length = redis.call('RPUSH', S, unpack(lines, from, last))
      redis.call('RPUSH', X, unpack(index, from, last))
      if last < fresh then redis.call('HSET', D, unpack(ids, 2 * from - 1, 2 * last)) end
    end
    local bytes, oldest, touched = tonumber(marks[1]) or 0, tonumber(marks[2]) or ms, tonumber(marks[3]) or 0
    if length == fresh then bytes = 0; oldest = ms end
    bytes = bytes + size + overhead * fresh
    local budget = 2 * fresh + 64
    while budget > 0 and length > fresh and (oldest < ms - window or length > most or bytes > most_bytes) do
      local old = redis.call('LRANGE', S, 0, math.min(budget, length - fresh, 2 * fresh + 1, 128) - 1)
      local gone = {}
      for j = 1, #old do
        local stored, identity = string.match(old[j], '^%d+ (%d+) ([^ ]+ [^ ]+)')
        oldest = tonumber(stored)
        if not (oldest < ms - window or length > most or bytes > most_bytes) then break end
        length = length - 1; bytes = bytes - #old[j] - overhead; gone[#gone + 1] = identity
      end
      if #gone == 0 then break end
      redis.call('LTRIM', S, #gone, -1)
      redis.call('HDEL', D, unpack(gone))
      budget = budget - #gone
    end
    redis.call('HSET', M, 'n', digits(head), 'l', digits(ms))
    local renew = ms - touched > 10000
    if renew then touched = ms end
    if renew or fresh > 16 then
      local first, old = redis.call('LRANGE', X, 0, math.min(2 * fresh + 500, 999)), 0
      for _, item in ipairs(first) do
        if tonumber(string.match(item, '^%d+')) < ms - index_ms then old = old + 1 else break end
      end
      if old > 0 then redis.call('LTRIM', X, old, -1) end
      redis.call('LTRIM', X, -most_known, -1)
    end
    local counts = {'#y', digits(bytes), '#o', digits(oldest), '#t', digits(touched)}
    for _, word in ipairs(counts) do ids[#ids + 1] = word end
    redis.call('HSET', D, unpack(ids, 2 * (fresh - (fresh - 1) % 1000) - 1))
    if renew then
      redis.call('PEXPIRE', M, meta_ms)
      redis.call('PEXPIRE', S, digits(window + 60000))
      redis.call('PEXPIRE', D, digits(window + 60000))
      redis.call('PEXPIRE', X, digits(index_ms))
    end
    if size > published then redis.call('PUBLISH', channel, 'h' .. digits(head))
    else redis.call('PUBLISH', channel, table.concat(lines, '\n')) end
  end
end
return outcome
"""
)
"""Store events of some accounts, in one step, and publish what is new.

KEYS: generation, then meta, window, ids, index and marks, young and old, of each account. ARGV: the generation, one if
another begins; the window in ms, events and bytes; for how many ms meta and index are kept; how many bytes are
published at once; what an event counts beside its line; then of each account its channel, how many pages of events and
how many marks; of each mark the first and the last event (from 1) of a publish that may be sent again, whose it is and
what stands for its content; then its pages, as `pages_of` makes them. Returns of each account one text, of each event
two words: its position, and 1 if it was there before, 2 if its publish came before with other content and nothing of it
is stored.
"""

HEADS: Final = Script(
    PRELUDE
    + r"""
local id = history(ARGV[2])
if id ~= ARGV[1] then return {'stale', id} end
local us, heads = micros(), {}
for i = 2, #KEYS do
  local meta = redis.call('HMGET', KEYS[i], 'g', 'n', 'b')
  local floor = tonumber(ARGV[2 + i])
  if meta[1] ~= ARGV[1] or tonumber(meta[2]) < floor then
    local born = digits(math.max(us, (tonumber(meta[2]) or 0) + 1, floor))
    redis.call('HSET', KEYS[i], 'g', ARGV[1], 'n', born, 'b', born)
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
had is not what the node had. Returns of each its head and its birth."""

_OPEN: Final = r"""
local meta = redis.call('HMGET', KEYS[1], 'g', 'n', 'b')
if meta[1] ~= ARGV[1] then return {'stale', meta[1] or ''} end
local head, birth = tonumber(meta[2]), tonumber(meta[3])
local function digits(n) return string.format('%.0f', n) end
"""

READ: Final = Script(
    _OPEN
    + r"""
local oldest = math.max(head - redis.call('LLEN', KEYS[2]), birth)
local from = math.max(tonumber(ARGV[2]), oldest)
local most, room, page = math.min(tonumber(ARGV[3]), head - from), tonumber(ARGV[4]), {}
while #page < most and room > 0 do
  local at = -(head - from - #page)
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
local oldest = math.max(head - redis.call('LLEN', KEYS[2]), birth)
local through = math.min(tonumber(ARGV[2]), head)
local most, room, back = math.min(tonumber(ARGV[3]), through - oldest), tonumber(ARGV[4]), {}
while #back < most and room > 0 do
  local at = -(head - through + #back) - 1
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
local known = math.max(head - redis.call('LLEN', KEYS[2]), birth)
local through = math.min(tonumber(ARGV[2]), head)
local from = math.max(known, tonumber(ARGV[3]), through - tonumber(ARGV[4]))
local page = {}
if from < through then page = redis.call('LRANGE', KEYS[2], -(head - from), -(head - through) - 1) end
return {meta[2], meta[3], digits(from), page}
"""
)
"""KEYS: meta, index. ARGV: the generation, through which position, after which, how many at most.
Returns head, birth, after which position the page begins, and the page that ends there, oldest first."""
