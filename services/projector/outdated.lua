-- Feeds of one shard whose active generation an older release folded.
-- KEYS  1 feeds    ARGV  1 prefix of the feeds' keys  2 rank to begin at  3 feeds at most  4 fold version of this release
-- Gives {number of feeds looked at, {feed…}}
local feeds = redis.call('ZRANGE', KEYS[1], ARGV[2], tonumber(ARGV[2]) + tonumber(ARGV[3]) - 1)
local found = {}
for _, feed in ipairs(feeds) do
  local base = ARGV[1] .. feed .. ':'
  local active = redis.call('GET', base .. 'active')
  local fold = active and redis.call('HGET', base .. 'g' .. active .. ':meta', 'fold')
  if fold and tonumber(fold) < tonumber(ARGV[4]) then found[#found + 1] = feed end
end
return {#feeds, found}
