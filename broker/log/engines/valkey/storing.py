"""The scripts that store: each one step, none of which stores anything before all its checks are done.

Pure. What does not fit into one step, a long list, is stored part by part *behind* the heads of its accounts, where
nobody reads, and becomes the log's in one last step that moves these heads. Until then the accounts are the list's (`o`
in `m:A`, with how many events and bytes are behind the head, `u` and `v`), and whatever else is for one of them comes
later. A list lives while its key is there, which each of its parts renews; what a dead one has left is taken back by
whoever stores next.

What a script writes before it checks whether the server takes anything in, this lets it write to the end: so the key
is renewed last. No more than a thousand values are unpacked at once.
"""

from typing import Final

from .scripts import PRELUDE, Script

TAKEN_BACK: Final = 512
"""Events that are taken back, or that leave a window, in one step."""

_STORING: Final = (
    PRELUDE
    + rf"""
local taken_back, most_marks = {TAKEN_BACK}, 10000
"""
    + r"""
local function remove_ids(D, lines)
  local gone = {}
  for at = 1, #lines do gone[at] = string.match(lines[at], '^%d+ %d+ ([^ ]+ [^ ]+)') end
  if #gone > 0 then redis.call('HDEL', D, unpack(gone)) end
end
local function take_back(M, S, D, X, behind)
  local some = math.min(behind, taken_back)
  if some > 0 then
    remove_ids(D, redis.call('LRANGE', S, -some, -1))
    redis.call('LTRIM', S, 0, -some - 1)
    redis.call('LTRIM', X, 0, -some - 1)
  end
  if some < behind then redis.call('HSET', M, 'u', digits(behind - some))
  else redis.call('HDEL', M, 'o', 'u', 'v') end
  return some
end
local function note(Q, P, window, ms, noted)
  local begun = redis.call('HGET', Q, '#')
  if begun and (tonumber(begun) < ms - window or redis.call('HLEN', Q) > most_marks) then
    redis.call('RENAME', Q, P)
    begun = false
  end
  if not begun then redis.call('HSET', Q, '#', digits(ms)) end
  for from = 1, #noted, 2 do redis.call('HSET', Q, noted[from], noted[from + 1]) end
  redis.call('PEXPIRE', Q, digits(2 * window + 1))
end
local function trim(S, D, limits, ms, length, keep, bytes, oldest, budget, most_read)
  local window, most, most_bytes, overhead = unpack(limits)
  local function is_over() return oldest < ms - window or length > most or bytes > most_bytes end
  while budget > 0 and length > keep and is_over() do
    local old = redis.call('LRANGE', S, 0, math.min(budget, length - keep, most_read) - 1)
    local gone = {}
    for j = 1, #old do
      oldest = tonumber(string.match(old[j], '^%d+ (%d+) '))
      if not is_over() then break end
      length = length - 1; bytes = bytes - #old[j] - overhead; gone[j] = old[j]
    end
    if #gone == 0 then break end
    redis.call('LTRIM', S, #gone, -1)
    remove_ids(D, gone)
    budget = budget - #gone
  end
  return bytes, oldest, budget
end
"""
)
"""What scripts that store begin with."""

APPEND: Final = Script(
    _STORING
    + r"""
local generation = ARGV[1]
local window, most, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local meta_ms, index_ms = ARGV[6], tonumber(ARGV[7])
local published, overhead, most_known = tonumber(ARGV[8]), tonumber(ARGV[9]), 1000000
local lists, list, list_ms = ARGV[10], ARGV[11], ARGV[12]
local of_list = list ~= ''
local id = history(ARGV[2])
if id ~= generation then return {'stale', id} end
if of_list and ARGV[13] == 'begin' then redis.call('SET', lists .. list, '1', 'PX', list_ms)
elseif of_list and redis.call('EXISTS', lists .. list) == 0 then return {'lost'} end
local metas, busy, freed = {}, {'busy'}, 0
for key = 2, #KEYS, 6 do
  local meta = redis.call('HMGET', KEYS[key], 'g', 'n', 'l', 'o', 'u', 'v')
  local owner = meta[4]
  if owner and owner ~= list then
    local behind = tonumber(meta[5])
    if freed < taken_back and redis.call('EXISTS', lists .. owner) == 0 then
      local some = take_back(KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], behind)
      freed = freed + some + 1; behind = behind - some; owner = behind > 0
      meta[5], meta[6] = false, false
    end
    if owner then busy[#busy + 1] = digits((key + 4) / 6) end
  end
  metas[key] = meta
end
if #busy > 1 then
  if of_list then redis.call('PEXPIRE', lists .. list, list_ms) end
  return busy
end
local us = micros()
local outcome = {}
local a = 14
for key = 2, #KEYS, 6 do
  local M, S, D, X, Q, P = unpack(KEYS, key, key + 5)
  local channel, paged, marked = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  a = a + 3
  local meta = metas[key]
  local head, born = tonumber(meta[2]) or 0, false
  if meta[1] ~= generation then head = math.max(us, head + 1); born = digits(head) end
  local behind, behind_bytes = tonumber(meta[5]) or 0, tonumber(meta[6]) or 0
  head = head + behind
  local ms = math.max(math.floor(us / 1000), tonumber(meta[3]) or 0)
  local reused, noted = {}, {}
  for at = a, a + 4 * (marked - 1), 4 do
    local mark, content = ARGV[at + 2], ARGV[at + 3]
    local kept = redis.call('HGET', Q, mark) or redis.call('HGET', P, mark)
    if kept and tonumber(string.sub(kept, 1, 13)) >= ms - window and string.sub(kept, 15) ~= content then
      if of_list then return {'reused'} end
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
  if #noted > 0 and not of_list then note(Q, P, window, ms, noted) end
  if fresh > 0 then
    local length, indexed
    for from = 1, fresh, 1000 do
      local last = math.min(from + 999, fresh)
      length = redis.call('RPUSH', S, unpack(lines, from, last))
      indexed = redis.call('RPUSH', X, unpack(index, from, last))
      if last < fresh then redis.call('HSET', D, unpack(ids, 2 * from - 1, 2 * last)) end
    end
    local bytes, oldest, touched = tonumber(marks[1]) or 0, tonumber(marks[2]) or ms, tonumber(marks[3]) or 0
    if length == fresh then bytes = 0; oldest = ms; touched = 0 end
    if indexed == fresh then touched = 0 end
    local all = size + overhead * fresh
    if of_list then behind_bytes = behind_bytes + all
    else bytes = bytes + all end
    if not of_list and (oldest < ms - window or length > most or bytes > most_bytes) then
      local limits, some = {window, most, most_bytes, overhead}, math.min(2 * fresh + 1, 128)
      bytes, oldest = trim(S, D, limits, ms, length, fresh, bytes, oldest, 2 * fresh + 64, some)
    end
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
    if not of_list then
      redis.call('HSET', M, 'n', digits(head), 'l', digits(ms))
      if size > published then redis.call('PUBLISH', channel, 'h' .. digits(head))
      else redis.call('PUBLISH', channel, table.concat(lines, '\n')) end
    end
  end
  if of_list then
    redis.call('HSET', M, 'l', digits(ms), 'o', list, 'u', digits(behind + fresh), 'v', digits(behind_bytes))
  end
end
if of_list then redis.call('PEXPIRE', lists .. list, list_ms) end
return outcome
"""
)
"""Store events of some accounts, in one step, and publish what is new; or a part of a list, behind the heads.

KEYS: generation, then meta, window, ids, index and marks, young and old, of each account. ARGV: the generation, one if
another begins; the window in ms, events and bytes; for how many ms meta and index are kept; how many bytes are
published at once; what an event counts beside its line; what keys of lists begin with, the list, or "", and for how
many ms it lives; "begin" with its first part, else ""; then of each account its channel, how many pages of events and
how many marks; of each mark the first and the last event (from 1) of a publish that may be sent again, whose it is and
what stands for its content; then its pages, as `pages_of` makes them. Returns of each account one text, of each event
two words: its position, and 1 if it was there before, 2 if its publish came before with other content and nothing of it
is stored. Or, and then it stored nothing: "busy", and the numbers (from 1) of accounts of which a list is being
written; of a list also "lost", if it lives no more, and "reused", if it came before with other content: then an account
may have been made the list's, and it is to be taken back.
"""

FINISH: Final = Script(
    _STORING
    + r"""
local id = history(ARGV[2])
if id ~= ARGV[1] then return {'stale', id} end
local list, window, mark, content = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
if redis.call('EXISTS', KEYS[2]) == 0 then return {'lost'} end
local metas, a = {}, 7
for key = 3, #KEYS, 5 do
  local meta = redis.call('HMGET', KEYS[key], 'g', 'o', 'u', 'n', 'l', 'v')
  if meta[1] ~= id or meta[2] ~= list or meta[3] ~= ARGV[a] then return {'lost'} end
  if redis.call('LLEN', KEYS[key + 1]) < tonumber(meta[3]) then return {'lost'} end
  metas[key] = meta
  a = a + 2
end
a = 7
for key = 3, #KEYS, 5 do
  local meta = metas[key]
  local head = digits(tonumber(meta[4]) + tonumber(meta[3]))
  redis.call('HSET', KEYS[key], 'n', head)
  redis.call('HDEL', KEYS[key], 'o', 'u', 'v')
  if meta[3] ~= '0' then
    redis.call('HINCRBY', KEYS[key + 2], '#y', meta[6])
    redis.call('PUBLISH', ARGV[a + 1], 'h' .. head)
  end
  local ms, noted = tonumber(meta[5]), {mark, meta[5] .. ' ' .. content}
  if mark ~= '' then note(KEYS[key + 3], KEYS[key + 4], window, ms, noted) end
  a = a + 2
end
redis.call('DEL', KEYS[2])
return {'stored'}
"""
)
"""Make what is behind the heads the log's, of all accounts of a list, in one step, and publish the heads.

KEYS: generation, the list's key, then meta, window, ids and marks, young and old, of each account. ARGV: the
generation, one if another begins; the list; the window in ms; whose it is, or "", and what stands for its content; then
of each account how many events are behind its head, and its channel. Returns "stored"; or "lost", and nothing is, if it
lives no more, or if something of it is not where it was put.
"""

TAKE_BACK: Final = Script(
    _STORING
    + r"""
redis.call('DEL', KEYS[1])
local freed, left = 0, 0
for key = 2, #KEYS, 4 do
  local M, S, D, X = unpack(KEYS, key, key + 3)
  local meta = redis.call('HMGET', M, 'o', 'u')
  if meta[1] == ARGV[1] then
    local behind = tonumber(meta[2])
    if freed < taken_back then
      local some = take_back(M, S, D, X, behind)
      freed = freed + some + 4; behind = behind - some
    else behind = 1 end
    if behind > 0 then left = left + 1 end
  end
end
return left
"""
)
"""End a list that is not the log's, and take back some of what it has left. It needs no memory.

KEYS: the list's key, then meta, window, ids and index of some accounts. ARGV: the list. Returns of how many of them
something is left.
"""

TRIM: Final = Script(
    _STORING
    + r"""
local id = history(ARGV[2])
if id ~= ARGV[1] then return {'stale', id} end
local limits = {tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])}
local budget, left = taken_back, 0
for key = 2, #KEYS, 3 do
  local M, S, D = unpack(KEYS, key, key + 2)
  local meta, counts = redis.call('HMGET', M, 'l', 'u'), redis.call('HMGET', D, '#y', '#o')
  if budget == 0 then left = left + 1
  elseif meta[1] and counts[1] and counts[2] then
    local ms, length = tonumber(meta[1]), redis.call('LLEN', S) - (tonumber(meta[2]) or 0)
    local bytes, oldest, rest = trim(S, D, limits, ms, length, tonumber(ARGV[(key + 19) / 3]), tonumber(counts[1]),
      tonumber(counts[2]), budget, 128)
    if rest < budget then redis.call('HSET', D, '#y', digits(bytes), '#o', digits(oldest)) end
    budget = rest
    if budget == 0 then left = left + 1 end
  end
end
return left
"""
)
"""Let some of what is too much leave the windows of some accounts.

KEYS: generation, then meta, window and ids of each account. ARGV: the generation, one if another begins; the window in
ms, events and bytes; what an event counts beside its line; then of each account how many of its last events stay in any
case. Returns of how many of them there may be more.
"""
