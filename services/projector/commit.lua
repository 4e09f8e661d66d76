-- Brings one generation from one checkpoint to the next, with the frames of every position between, or changes nothing.
-- Values are absolute: a batch takes effect exactly once, whoever crashes when.
-- KEYS  1 lease  2 active  3 meta  4 documents  5 feed document  6 dirty  7 frames  8 quarantine  9 feeds  10 head
--       11 names of the indexes
-- ARGV  1 fence  2 feed  3 generation  4 first ("1": the feed has no generation yet)  5 checkpoint before
--       6 checkpoint after  7 read models  8 fold version  9 prefix of the indexes  10 activity in ms or ""
--       11 feed document or ""  12 position of the feed's own last change or ""
--       then number of entries that must have no document, each: entry · of positions that must not be in quarantine, likewise
--       · of documents, each: entry, JSON · of index members to add, each: index, member · to remove, likewise
--       · of quarantine records, each: position, JSON · of frames, each: position, kind, JSON, recorded_at in ms or ""
-- Gives "committed" | "fenced" | "moved"
local FRAMES_MAX = 1000
local FRAME_BYTES_MAX = 16 * 1024
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 'fenced' end
local active = redis.call('GET', KEYS[2])
if ARGV[4] == '1' then
  if active then return 'moved' end
else
  if active ~= ARGV[3] then return 'moved' end
  if redis.call('HGET', KEYS[3], 'checkpoint') ~= ARGV[5] then return 'moved' end
end
local at = 13
local function each(width, act)
  local count = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, count do
    act(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
    at = at + width
  end
end
local found = false
each(1, function(entry) found = found or redis.call('HEXISTS', KEYS[4], entry) == 1 end)
each(1, function(position) found = found or redis.call('HEXISTS', KEYS[8], position) == 1 end)
if found then return 'moved' end
-- All checks stand before the first write.
each(2, function(entry, json) redis.call('HSET', KEYS[4], entry, json) end)
each(2, function(index, member)
  redis.call('ZADD', ARGV[9] .. index, 0, member)
  redis.call('SADD', KEYS[11], index)
end)
each(2, function(index, member)
  redis.call('ZREM', ARGV[9] .. index, member)
  if redis.call('EXISTS', ARGV[9] .. index) == 0 then redis.call('SREM', KEYS[11], index) end
end)
each(2, function(position, json) redis.call('HSET', KEYS[8], position, json) end)
each(4, function(position, kind, json, recorded_at)
  -- A large frame goes as a hint: whoever needs it fetches a difference of one.
  if #json > FRAME_BYTES_MAX then json = '' end
  local frame = { 'f', ARGV[2], 'p', position, 'k', kind, 'd', json }
  if recorded_at ~= '' then frame[9], frame[10] = 'r', recorded_at end
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', FRAMES_MAX, '*', unpack(frame))
end)
if ARGV[11] ~= '' then redis.call('SET', KEYS[5], ARGV[11]) end
if ARGV[12] ~= '' then redis.call('HSET', KEYS[3], 'feed_position', ARGV[12]) end
if ARGV[10] ~= '' then redis.call('ZADD', KEYS[9], ARGV[10], ARGV[2]) end
redis.call('HSET', KEYS[3], 'checkpoint', ARGV[6])
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[3], 'read_models', ARGV[7], 'fold', ARGV[8])
  redis.call('SET', KEYS[2], ARGV[3])
end
local head = redis.call('HMGET', KEYS[10], 'epoch', 'n')
if head[1] and head[1] .. '-' .. head[2] == ARGV[6] then redis.call('SREM', KEYS[6], ARGV[2]) end
return 'committed'
