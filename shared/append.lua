-- Appends the events of one command to one feed's log, or changes nothing.
-- KEYS  1 log  2 head  3 entries  4 dirty  5 doorbell  6 touch  7 incarnation  8 witnessed
-- ARGV  1 feed  2 prefix of the command buckets  3 command id  4 fingerprint  5 attempt
--       6 opens ("1": the feed must not exist)  7 version guard  8 pins guard ("" where not guarded)
--       9 change of the live count  10 new status or ""  11 sets version ("1")  12 sets pins ("1")
--       13 number of guards, each: entry, position or "" (must not exist)
--       then number of events, each: envelope, content
--       then number of records, each: entry, "<status> <revision>", event's number from 1, fingerprint
-- Gives {"appended", epoch, last n, recorded_at} | {"known", value} | {"conflict"} | {"stale", what}
--       | {"unadmitted", server}: this server process may have less history than was acknowledged
local KEEP_DAYS = 3
local feed, buckets, command = ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local day = math.floor(tonumber(clock[1]) / 86400)

local info = redis.call('INFO', 'server', 'replication')
local server = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)')
if redis.call('HGET', KEYS[7], 'server') ~= server then return {'unadmitted', server} end

-- The same command again: an answer lost on the way, or a client that tries again.
for back = 0, KEEP_DAYS - 1 do
  local known = redis.call('HGET', buckets .. (day - back), command)
  if known then
    redis.call('SET', KEYS[6], command, 'EX', 60)  -- WAIT confirms nothing on a connection that wrote nothing
    if string.match(known, '^%S+') ~= ARGV[4] then return {'conflict'} end
    return {'known', known}
  end
end

local head = redis.call('HMGET', KEYS[2], 'epoch', 'n', 'recorded_at', 'version', 'pins')
local epoch, n = head[1] or '1', tonumber(head[2] or '0')
if not head[1] then
  -- Readers may hold positions of a feed of this name that was lost: none of them is one of the new feed.
  local seen = redis.call('HGET', KEYS[8], feed)
  if seen then epoch = string.format('%.0f', tonumber(string.match(seen, '^%d+')) + 1) end
end
if ARGV[6] == '1' and head[1] then return {'stale', 'feed'} end
if ARGV[6] ~= '1' and not head[1] then return {'stale', 'feed'} end
if ARGV[7] ~= '' and ARGV[7] ~= head[4] then return {'stale', 'version'} end
if ARGV[8] ~= '' and ARGV[8] ~= head[5] then return {'stale', 'pins'} end
local at = 14
for _ = 1, tonumber(ARGV[13]) do
  local record = redis.call('HGET', KEYS[3], ARGV[at])
  local position = record and string.match(record, '^%S+ %S+ (%S+)') or ''
  if position ~= ARGV[at + 1] then return {'stale', ARGV[at]} end
  at = at + 2
end
-- All checks stand before the first write: a script that fails half way does not roll back.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if head[1] and not (last and last[1] == epoch .. '-' .. head[2]) or not head[1] and last then
  return redis.error_reply('CORRUPTED the head of ' .. feed .. ' is not the last event of its log')
end

local recorded_at = math.floor(tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000)
recorded_at = math.max(recorded_at, tonumber(head[3] or '0'))
local stamp = string.format('%.0f', recorded_at)
local events = tonumber(ARGV[at])
local first = n
at = at + 1
for _ = 1, events do
  n = n + 1
  redis.call('XADD', KEYS[1], epoch .. '-' .. string.format('%.0f', n),
    'envelope', ARGV[at], 'content', ARGV[at + 1], 'recorded_at', stamp)
  at = at + 2
end
local text = string.format('%.0f', n)
if events > 0 then
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'n', text, 'recorded_at', stamp)
  redis.call('HINCRBY', KEYS[2], 'live', ARGV[9])
  if ARGV[10] ~= '' then redis.call('HSET', KEYS[2], 'status', ARGV[10]) end
  if ARGV[11] == '1' then redis.call('HSET', KEYS[2], 'version', text) end
  if ARGV[12] == '1' or not head[1] then redis.call('HSET', KEYS[2], 'pins', text) end
  for record = 1, tonumber(ARGV[at]) do
    local p = at + (record - 1) * 4
    local position = epoch .. '-' .. string.format('%.0f', first + tonumber(ARGV[p + 3]))
    redis.call('HSET', KEYS[3], ARGV[p + 1], ARGV[p + 2] .. ' ' .. position .. ' ' .. ARGV[p + 4])
  end
  redis.call('SADD', KEYS[4], feed)
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', 1000, '*', 'feed', feed, 'position', epoch .. '-' .. text)
end
local bucket = buckets .. day
redis.call('HSET', bucket, command, ARGV[4] .. ' ' .. ARGV[5] .. ' ' .. events .. ' ' .. epoch .. '-' .. text)
redis.call('EXPIRE', bucket, (KEEP_DAYS + 1) * 86400)
return {'appended', epoch, text, stamp}
