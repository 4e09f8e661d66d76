-- Begins a new epoch of one feed with its EpochRaised, or changes nothing.
-- KEYS  1 log  2 head  3 dirty  4 doorbell  5 incarnation  6 witnessed
-- ARGV  1 feed  2 server that it is decided for  3 head that it is decided on  4 new epoch  5 envelope  6 reason  7 because
--       8 settles ("1": once for each incarnation of the server, and not when that is admitted)
-- Gives {"raised", epoch, n} | {"stale"} | {"settled"} | {"moved"}: another server
local feed = ARGV[1]
local info = redis.call('INFO', 'server', 'replication')
local server = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)')
if server ~= ARGV[2] then return {'moved'} end
local head = redis.call('HMGET', KEYS[2], 'epoch', 'n', 'recorded_at', 'settled')
if ARGV[8] == '1' and (redis.call('HGET', KEYS[5], 'server') == server or head[4] == server) then return {'settled'} end
if not head[1] or head[1] .. '-' .. head[2] ~= ARGV[3] then return {'stale'} end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last or last[1] ~= ARGV[3] then
  return redis.error_reply('CORRUPTED the head of ' .. feed .. ' is not the last event of its log')
end
if tonumber(ARGV[4]) <= tonumber(head[1]) then return redis.error_reply('ERR an epoch only grows') end
-- All checks stand before the first write.
local clock = redis.call('TIME')
local recorded_at = math.floor(tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000)
local stamp = string.format('%.0f', math.max(recorded_at, tonumber(head[3])))
local epoch, n = ARGV[4], string.format('%.0f', tonumber(head[2]) + 1)
redis.call('XADD', KEYS[1], epoch .. '-' .. n, 'envelope', ARGV[5], 'content', '', 'recorded_at', stamp)
redis.call('HSET', KEYS[2], 'epoch', epoch, 'n', n, 'recorded_at', stamp,
  'raised_reason', ARGV[6], 'raised_because', ARGV[7], 'raised_at', stamp)
-- What readers of older epochs are told: that history was lost, if that was ever the reason since.
if ARGV[6] == 'epoch' then redis.call('HSET', KEYS[2], 'lost_epoch', epoch) end
if ARGV[8] == '1' then redis.call('HSET', KEYS[2], 'settled', server) end
redis.call('HDEL', KEYS[6], feed)
redis.call('SADD', KEYS[3], feed)
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'feed', feed)
return {'raised', epoch, n}
