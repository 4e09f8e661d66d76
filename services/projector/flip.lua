-- Gives readers a generation that was built beside the live one, or changes nothing. A repair takes its records out of
-- quarantine and raises the epoch in the same act, so that whoever holds the old state learns of it.
-- KEYS  1 lease  2 active  3 meta of the active generation  4 meta of the built one  5 build  6 retired  7 frames
--       8 quarantine  9 log  10 head  11 dirty  12 doorbell  13 incarnation
-- ARGV  1 fence  2 feed  3 token  4 active generation  5 built generation  6 checkpoint of both
--       7 envelope of the raised epoch, "" for no repair  8 because  9… positions taken out of quarantine
-- Gives "flipped" | "fenced" | "dropped" | "moved" | "unadmitted": no repair of a log that may have lost something
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 'fenced' end
if redis.call('HGET', KEYS[5], 'token') ~= ARGV[3] then return 'dropped' end
if redis.call('HGET', KEYS[5], 'state') ~= 'building' then return 'dropped' end
if redis.call('GET', KEYS[2]) ~= ARGV[4] then return 'moved' end
if redis.call('HGET', KEYS[3], 'checkpoint') ~= ARGV[6] then return 'moved' end
if redis.call('HGET', KEYS[4], 'checkpoint') ~= ARGV[6] then return 'moved' end
local info = redis.call('INFO', 'server', 'replication')
local server = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)')
if ARGV[7] ~= '' and redis.call('HGET', KEYS[13], 'server') ~= server then return 'unadmitted' end
local head = redis.call('HMGET', KEYS[10], 'epoch', 'n', 'recorded_at')
local last = redis.call('XREVRANGE', KEYS[9], '+', '-', 'COUNT', 1)[1]
if ARGV[7] ~= '' and (not last or last[1] ~= (head[1] or '') .. '-' .. (head[2] or '')) then
  return redis.error_reply('CORRUPTED the head of ' .. ARGV[2] .. ' is not the last event of its log')
end
-- All checks stand before the first write.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local stamp = string.format('%.0f', now)
redis.call('SET', KEYS[2], ARGV[5])
redis.call('SADD', KEYS[6], ARGV[4])
redis.call('HSET', KEYS[5], 'state', 'flipped', 'updated_at', stamp)
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'f', ARGV[2], 'p', ARGV[6], 'k', 'flip', 'd', ARGV[5])
if ARGV[7] ~= '' then
  redis.call('HDEL', KEYS[8], unpack(ARGV, 9))
  local epoch = string.format('%.0f', tonumber(head[1]) + 1)
  local n = string.format('%.0f', tonumber(head[2]) + 1)
  stamp = string.format('%.0f', math.max(now, tonumber(head[3])))
  redis.call('XADD', KEYS[9], epoch .. '-' .. n, 'envelope', ARGV[7], 'content', '', 'recorded_at', stamp)
  redis.call('HSET', KEYS[10], 'epoch', epoch, 'n', n, 'recorded_at', stamp,
    'raised_reason', 'repaired', 'raised_because', ARGV[8], 'raised_at', stamp)
  redis.call('SADD', KEYS[11], ARGV[2])
  redis.call('XADD', KEYS[12], 'MAXLEN', '~', 1000, '*', 'feed', ARGV[2])
end
return 'flipped'
