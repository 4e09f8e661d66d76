-- Brings a generation that is being built from one checkpoint to the next, or changes nothing. Nobody is told: no frames.
-- Values are absolute: a slice takes effect exactly once, whoever crashes when.
-- KEYS  1 lease  2 build  3 meta  4 documents  5 feed document  6 names of the indexes
-- ARGV  1 fence  2 token  3 checkpoint before or ""  4 checkpoint after  5 prefix of the indexes  6 feed document or ""
--       7 position of the feed's own last change or ""  8 events
--       9 packed: {{entry, JSON…} · to add to indexes: {{index, {member…}}…} · to remove from them, likewise}
-- Gives "built" | "fenced" | "dropped" | "moved"
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 'fenced' end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[2] then return 'dropped' end
if (redis.call('HGET', KEYS[3], 'checkpoint') or '') ~= ARGV[3] then return 'moved' end
-- All checks stand before the first write.
local documents, added, removed = unpack(cmsgpack.unpack(ARGV[9]))
-- A slice is of 500 events at most: its arguments fit on the stack of `unpack`, at most two for each.
if #documents > 0 then redis.call('HSET', KEYS[4], unpack(documents)) end
for _, of_index in ipairs(added) do
  local index, members, scored = of_index[1], of_index[2], {}
  for i, member in ipairs(members) do scored[2 * i - 1], scored[2 * i] = '0', member end
  redis.call('ZADD', ARGV[5] .. index, unpack(scored))
  redis.call('SADD', KEYS[6], index)
end
for _, of_index in ipairs(removed) do
  local index, members = of_index[1], of_index[2]
  redis.call('ZREM', ARGV[5] .. index, unpack(members))
  if redis.call('EXISTS', ARGV[5] .. index) == 0 then redis.call('SREM', KEYS[6], index) end
end
if ARGV[6] ~= '' then redis.call('SET', KEYS[5], ARGV[6]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[3], 'feed_position', ARGV[7]) end
redis.call('HSET', KEYS[3], 'checkpoint', ARGV[4])
local clock = redis.call('TIME')
local now = string.format('%.0f', tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))
redis.call('HINCRBY', KEYS[2], 'events', ARGV[8])
redis.call('HSET', KEYS[2], 'checkpoint', ARGV[4], 'updated_at', now)
return 'built'
