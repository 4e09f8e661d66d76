-- Stages recorded events of a feed that is being brought back, verbatim, behind those staged before, or changes nothing.
-- What is staged is no feed yet: nobody reads it, nobody appends to it.
-- KEYS  1 staged log  2 staged head  3 staged entries  4 head
-- ARGV  1 position staged last or ""  2 anew ("1": what is staged goes first)
--       3 number of events, each: id, envelope, content, recorded_at
--       then number of fields of the staged head, each: name, value · of records, each: entry, record
-- Gives "staged" | "moved" (something else is staged by now) | "exists"
if redis.call('EXISTS', KEYS[4]) == 1 then return 'exists' end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if (last and last[1] or '') ~= ARGV[1] then return 'moved' end
-- All checks stand before the first write.
if ARGV[2] == '1' then redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) end
local at = 3
local function each(width, act)
  local count = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, count do
    act(at)
    at = at + width
  end
end
each(4, function(i)
  redis.call('XADD', KEYS[1], ARGV[i], 'envelope', ARGV[i + 1], 'content', ARGV[i + 2], 'recorded_at', ARGV[i + 3])
end)
each(2, function(i) redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end)
each(2, function(i) redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end)
return 'staged'
