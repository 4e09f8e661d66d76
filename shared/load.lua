-- What a decision needs of one feed, in one look.
-- KEYS  1 head  2 entries  3 active
-- ARGV  1 prefix of the command buckets  2 command id or ""  3 prefix of the generations  4 wants pins ("1")  5… entries
-- Gives {known or false, {epoch, n, recorded_at, status, version, pins, live} or false, {record…},
--        checkpoint or false, feed document or false, {document…}, {pinned member…}}
local known = false
if ARGV[2] ~= '' then
  local day = math.floor(tonumber(redis.call('TIME')[1]) / 86400)
  for back = 0, 2 do
    known = known or redis.call('HGET', ARGV[1] .. (day - back), ARGV[2])
  end
end
local head = redis.call('HMGET', KEYS[1], 'epoch', 'n', 'recorded_at', 'status', 'version', 'pins', 'live')
if not head[1] then return {known, false, {}, false, false, {}, {}} end
local active = redis.call('GET', KEYS[3])
local base = active and ARGV[3] .. active .. ':'
local checkpoint = active and redis.call('HGET', base .. 'meta', 'checkpoint')
local feed = active and redis.call('GET', base .. 'feed')
local records, documents = {}, {}
for i = 5, #ARGV do
  records[i - 4] = redis.call('HGET', KEYS[2], ARGV[i])
  documents[i - 4] = active and redis.call('HGET', base .. 'documents', ARGV[i])
end
local pinned = {}
if ARGV[4] == '1' and active then pinned = redis.call('ZRANGE', base .. 'i:pinned', 0, -1) end
return {known, head, records, checkpoint, feed, documents, pinned}
