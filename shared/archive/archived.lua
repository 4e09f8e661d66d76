-- Notes that a feed's archive reaches further, or stands in another place now; an older note changes nothing. The place that
-- it leaves stays known: its objects are still there, and a redaction has to reach them.
-- KEYS  1 archive    ARGV  1 place  2 archived to  3 chain there  4 place that was known when the run began or ""
--       5 bytes in it
-- Gives 1, or 0 when another run moved the archive meanwhile.
local function n_of(position) return tonumber(string.match(position or '', '%-(%d+)$') or '0') end
local known = redis.call('HMGET', KEYS[1], 'url', 'archived_to')
if (known[1] or '') ~= ARGV[4] and known[1] ~= ARGV[1] then return 0 end
if known[1] == ARGV[1] and n_of(known[2]) >= n_of(ARGV[2]) then return 1 end
if known[1] then redis.call('HSET', KEYS[1], 'former:' .. known[1], '1') end
redis.call('HSET', KEYS[1], 'url', ARGV[1], 'archived_to', ARGV[2], 'chain', ARGV[3], 'bytes', ARGV[5])
redis.call('HDEL', KEYS[1], 'moving_to', 'former:' .. ARGV[1])
return 1
