-- One feed's small things, of one moment.
-- KEYS  1 log  2 head  3 entries  4 active  5 generations  6 quarantine  7 feeds  8 dirty
-- ARGV  1 feed  2 prefix of the generations
-- Gives {{key, type, type that it must have or none}… of those that are something else}, or
--       {{}, generation or false, {checkpoint, read models, fold version, position of the feed's own last change},
--        feed document or false, highest generation, {epoch, n, recorded_at, status, version, pins, live},
--        last id of the log or false, its first id or false, activity or false, dirty (1 or 0), records, quarantined}
local wrong = {}
local function check(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then wrong[#wrong + 1] = {key, found, kind} end
end
for i, kind in ipairs({'stream', 'hash', 'hash', 'string', 'string', 'hash', 'zset', 'set'}) do check(KEYS[i], kind) end
if #wrong > 0 then return {wrong} end
local active = redis.call('GET', KEYS[4])
local meta, feed = {false, false, false, false}, false
if active then
  local base = ARGV[2] .. active .. ':'
  check(base .. 'meta', 'hash')
  check(base .. 'documents', 'hash')
  check(base .. 'feed', 'string')
  check(base .. 'names', 'set')
  if #wrong > 0 then return {wrong} end
  meta = redis.call('HMGET', base .. 'meta', 'checkpoint', 'read_models', 'fold', 'feed_position')
  feed = redis.call('GET', base .. 'feed')
end
local first, last = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1], redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return {
  wrong, active, meta, feed, redis.call('GET', KEYS[5]),
  redis.call('HMGET', KEYS[2], 'epoch', 'n', 'recorded_at', 'status', 'version', 'pins', 'live'),
  last and last[1] or false, first and first[1] or false, redis.call('ZSCORE', KEYS[7], ARGV[1]), redis.call('SISMEMBER', KEYS[8], ARGV[1]),
  redis.call('HLEN', KEYS[3]), redis.call('HLEN', KEYS[6]),
}
