-- Makes the feed of what was staged, all at once, or changes nothing.
-- KEYS  1 staged log  2 staged head  3 staged entries  4 log  5 head  6 entries  7 quarantine  8 dirty  9 doorbell
--       10 incarnation
-- ARGV  1 feed  2 last position  3 chain there  4 number of quarantine records, each: position, JSON
-- Gives "restored" | "moved" (something else is staged) | "exists" | "unadmitted": nothing is acknowledged by a server
--       process that may be dismissed
local info = redis.call('INFO', 'server', 'replication')
local server = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)')
if redis.call('HGET', KEYS[10], 'server') ~= server then return 'unadmitted' end
if redis.call('EXISTS', KEYS[5], KEYS[4]) > 0 then return 'exists' end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last or last[1] ~= ARGV[2] then return 'moved' end
if redis.call('HGET', KEYS[2], 'chain') ~= ARGV[3] then return 'moved' end
-- All checks stand before the first write.
redis.call('HDEL', KEYS[2], 'chain')
redis.call('RENAME', KEYS[1], KEYS[4])
redis.call('RENAME', KEYS[2], KEYS[5])
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('RENAME', KEYS[3], KEYS[6]) end
for record = 1, tonumber(ARGV[4]) do
  redis.call('HSET', KEYS[7], ARGV[3 + 2 * record], ARGV[4 + 2 * record])
end
redis.call('SADD', KEYS[8], ARGV[1])
redis.call('XADD', KEYS[9], 'MAXLEN', '~', 1000, '*', 'feed', ARGV[1])
return 'restored'
