-- Adds what one process saw of feeds' logs to what witnesses reported: the highest position of each feed stays.
-- KEYS  1 witnessed    ARGV  pairs: feed, position
local function parts(position)
  local epoch, n = string.match(position, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(n)
end
for i = 1, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  local epoch, n = parts(ARGV[i + 1])
  local known_epoch, known_n = 0, 0
  if known then known_epoch, known_n = parts(known) end
  if epoch > known_epoch or epoch == known_epoch and n > known_n then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return 1
