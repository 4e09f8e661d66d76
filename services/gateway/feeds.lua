-- Feeds of one shard, most recently active first, with their documents.
-- KEYS  1 feeds    ARGV  1 prefix of the feeds' keys  2 activity to go on below, or "+inf"  3 feed to go on after
--       4 how many
-- Gives {{feed, activity, document or false}…}
local found = {}
local start = 0
local wanted = tonumber(ARGV[4])
repeat
  local pairs_ = redis.call('ZRANGE', KEYS[1], ARGV[2], '-inf', 'BYSCORE', 'REV', 'LIMIT', start, wanted, 'WITHSCORES')
  for i = 1, #pairs_, 2 do
    local feed, activity = pairs_[i], pairs_[i + 1]
    -- Feeds of equal activity stand in reverse order of their ids.
    if activity ~= ARGV[2] or feed < ARGV[3] then
      local base = ARGV[1] .. feed .. ':'
      local active = redis.call('GET', base .. 'active')
      found[#found + 1] = {feed, activity, active and redis.call('GET', base .. 'g' .. active .. ':feed')}
    end
  end
  start = start + wanted
until #found >= wanted or #pairs_ < 2 * wanted
return found
