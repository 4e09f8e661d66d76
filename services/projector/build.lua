-- Brings a generation that is being built from one checkpoint to the next, or changes nothing. Nobody is told: no frames.
-- Values are absolute: a slice takes effect exactly once, whoever crashes when.
-- KEYS  1 lease  2 build  3 meta  4 documents  5 feed document  6 names of the indexes
-- ARGV  1 fence  2 token  3 checkpoint before or ""  4 checkpoint after  5 prefix of the indexes  6 feed document or ""
--       7 position of the feed's own last change or ""  8 events
--       then number of arguments and documents: entry, JSON… · number of indexes to add to, each: index, number of members,
--       members… · to remove from, likewise
-- Gives "built" | "fenced" | "dropped" | "moved"
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 'fenced' end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[2] then return 'dropped' end
if (redis.call('HGET', KEYS[3], 'checkpoint') or '') ~= ARGV[3] then return 'moved' end
-- All checks stand before the first write.
local at = 9
local function number()
  at = at + 1
  return tonumber(ARGV[at - 1])
end
local arguments = number()
-- A slice is of 500 events at most: its arguments fit on the stack of `unpack`, at most two for each.
if arguments > 0 then redis.call('HSET', KEYS[4], unpack(ARGV, at, at + arguments - 1)) end
at = at + arguments
for _ = 1, number() do
  local index, members = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  local scored = {}
  for i = 1, members do scored[2 * i - 1], scored[2 * i] = 0, ARGV[at + i - 1] end
  redis.call('ZADD', ARGV[5] .. index, unpack(scored))
  redis.call('SADD', KEYS[6], index)
  at = at + members
end
for _ = 1, number() do
  local index, members = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for i = 1, members do redis.call('ZREM', ARGV[5] .. index, ARGV[at + i - 1]) end
  if redis.call('EXISTS', ARGV[5] .. index) == 0 then redis.call('SREM', KEYS[6], index) end
  at = at + members
end
if ARGV[6] ~= '' then redis.call('SET', KEYS[5], ARGV[6]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[3], 'feed_position', ARGV[7]) end
redis.call('HSET', KEYS[3], 'checkpoint', ARGV[4])
local clock = redis.call('TIME')
local now = string.format('%.0f', tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))
redis.call('HINCRBY', KEYS[2], 'events', ARGV[8])
redis.call('HSET', KEYS[2], 'checkpoint', ARGV[4], 'updated_at', now)
return 'built'
