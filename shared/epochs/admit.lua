-- Admits a server process to one shard's appends, or notes why the shard's epochs are being raised before that.
-- Of a process that is admitted already it notes the least durability and the most replicas.
-- KEYS  1 incarnation
-- ARGV  1 server that it is decided for  2 server before or ""  3 why epochs are being raised, "" admits
--       4 durability kept  5 number of replicas
-- Gives "done" | "changed": another process admitted another server | "moved": another server answers
local info = redis.call('INFO', 'server', 'replication')
local server = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)')
if server ~= ARGV[1] then return 'moved' end
local stored = redis.call('HMGET', KEYS[1], 'server', 'replicas', 'raising')
if stored[1] == server then
  if ARGV[4] == 'memory' then redis.call('HSET', KEYS[1], 'kept', 'memory') end
  if tonumber(ARGV[5]) > tonumber(stored[2]) then redis.call('HSET', KEYS[1], 'replicas', ARGV[5]) end
  return 'done'
end
if (stored[1] or '') ~= ARGV[2] then return 'changed' end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'raising', ARGV[3])
  return 'done'
end
local clock = redis.call('TIME')
local now = string.format('%.0f', math.floor(tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000))
if stored[3] then
  redis.call('HSET', KEYS[1], 'raised_because', stored[3], 'raised_at', now)
  redis.call('HDEL', KEYS[1], 'raising')
end
redis.call('HSET', KEYS[1], 'server', server, 'kept', ARGV[4], 'replicas', ARGV[5], 'admitted_at', now)
return 'done'
