-- Makes the feed of what was staged, all at once, or changes nothing. Where readers may hold what did not come back, it goes
-- on in a new epoch from the same act on.
-- KEYS  1 staged log  2 staged head  3 staged entries  4 log  5 head  6 entries  7 quarantine  8 dirty  9 doorbell
--       10 incarnation  11 witnessed
-- ARGV  1 feed  2 last position  3 chain there  4 what witnesses reported, as it was decided on, or ""
--       5 new epoch, "" for none  6 its envelope  7 because  8 number of quarantine records, each: position, JSON
-- Gives "restored" | "moved" (something else is staged) | "exists" | "witnessed" (witnesses reported meanwhile)
--       | "unadmitted": nothing is acknowledged by a server process that may be dismissed
local feed = ARGV[1]
local info = redis.call('INFO', 'server', 'replication')
local server = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)')
if redis.call('HGET', KEYS[10], 'server') ~= server then return 'unadmitted' end
if redis.call('EXISTS', KEYS[5], KEYS[4]) > 0 then return 'exists' end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last or last[1] ~= ARGV[2] then return 'moved' end
local head = redis.call('HMGET', KEYS[2], 'chain', 'n', 'recorded_at')
if head[1] ~= ARGV[3] then return 'moved' end
if (redis.call('HGET', KEYS[11], feed) or '') ~= ARGV[4] then return 'witnessed' end
-- All checks stand before the first write.
redis.call('HDEL', KEYS[2], 'chain')
if ARGV[5] ~= '' then
  local clock = redis.call('TIME')
  local now = math.floor(tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000)
  local stamp = string.format('%.0f', math.max(now, tonumber(head[3])))
  local n = string.format('%.0f', tonumber(head[2]) + 1)
  redis.call('XADD', KEYS[1], ARGV[5] .. '-' .. n, 'envelope', ARGV[6], 'content', '', 'recorded_at', stamp)
  redis.call('HSET', KEYS[2], 'epoch', ARGV[5], 'n', n, 'recorded_at', stamp, 'lost_epoch', ARGV[5],
    'raised_reason', 'epoch', 'raised_because', ARGV[7], 'raised_at', stamp)
  redis.call('HDEL', KEYS[11], feed)
end
redis.call('RENAME', KEYS[1], KEYS[4])
redis.call('RENAME', KEYS[2], KEYS[5])
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('RENAME', KEYS[3], KEYS[6]) end
for record = 1, tonumber(ARGV[8]) do
  redis.call('HSET', KEYS[7], ARGV[7 + 2 * record], ARGV[8 + 2 * record])
end
redis.call('SADD', KEYS[8], feed)
redis.call('XADD', KEYS[9], 'MAXLEN', '~', 1000, '*', 'feed', feed)
return 'restored'
