-- Takes archived and verified events from the beginning of one feed's stream, or changes nothing.
-- KEYS  1 log  2 head  3 active  4 build  5 archive
-- ARGV  1 prefix of the generations  2 last position to go  3 place of the archive that was read back
-- Gives {"trimmed", events} | {"kept", why}
local function n_of(position) return tonumber(string.match(position or '', '%-(%d+)$') or '0') end
local to = n_of(ARGV[2])
local archive = redis.call('HMGET', KEYS[5], 'url', 'archived_to')
if archive[1] ~= ARGV[3] then return {'kept', 'the archive is in another place'} end
if n_of(archive[2]) < to then return {'kept', 'the archive does not reach so far'} end
local head = redis.call('HMGET', KEYS[2], 'epoch', 'n')
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not head[1] or not last or last[1] ~= head[1] .. '-' .. head[2] then
  return redis.error_reply('CORRUPTED the head of ' .. KEYS[1] .. ' is not the last event of its log')
end
-- The append script checks the head against the stream's last event: that one always stays.
if to >= tonumber(head[2]) then return {'kept', 'the last event stays'} end
local active = redis.call('GET', KEYS[3])
local checkpoint = active and redis.call('HGET', ARGV[1] .. active .. ':meta', 'checkpoint')
if n_of(checkpoint) < to then return {'kept', 'the live generation is not so far'} end
local build = redis.call('HMGET', KEYS[4], 'state', 'checkpoint')
local under_way = build[1] == 'asked' or build[1] == 'building'
if under_way and n_of(build[2]) < to then
  return {'kept', 'a generation that is being built is not so far'}
end
-- All checks stand before the first write.
local epoch = string.match(ARGV[2], '^(%d+)%-')
local gone = redis.call('XTRIM', KEYS[1], 'MINID', '=', epoch .. '-' .. string.format('%.0f', to + 1))
if n_of(redis.call('HGET', KEYS[5], 'trimmed_to')) < to then redis.call('HSET', KEYS[5], 'trimmed_to', ARGV[2]) end
return {'trimmed', gone}
