-- Removes what tells of a content beside the log: the fingerprints of its publication and of the commands that brought it.
-- A command stays known: sent again, it is refused as another request and appends nothing.
-- KEYS  1 entries
-- ARGV  1 entry  2 prefix of the command buckets  3… command ids
-- Gives how many fingerprints were removed
local KEEP_DAYS = 4
local NONE = '-'
local removed = 0
local record = redis.call('HGET', KEYS[1], ARGV[1])
local kept, fingerprint = string.match(record or '', '^(%S+ %S+ %S+) (%S+)$')
if kept and fingerprint ~= NONE then
  redis.call('HSET', KEYS[1], ARGV[1], kept .. ' ' .. NONE)
  removed = removed + 1
end
local day = math.floor(tonumber(redis.call('TIME')[1]) / 86400)
for back = 0, KEEP_DAYS - 1 do
  local bucket = ARGV[2] .. (day - back)
  for i = 3, #ARGV do
    local known = redis.call('HGET', bucket, ARGV[i])
    local of, rest = string.match(known or '', '^(%S+) (.*)$')
    if of and of ~= NONE then
      redis.call('HSET', bucket, ARGV[i], NONE .. ' ' .. rest)
      removed = removed + 1
    end
  end
end
return removed
