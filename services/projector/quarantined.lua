-- Counts the open quarantine of some of one shard's feeds.
-- KEYS  1 feeds    ARGV  1 prefix of the feeds' keys  2 rank to begin at  3 feeds at most
-- Gives {number of feeds looked at, events in quarantine that nobody discarded}
local feeds = redis.call('ZRANGE', KEYS[1], ARGV[2], tonumber(ARGV[2]) + tonumber(ARGV[3]) - 1)
local open = 0
for _, feed in ipairs(feeds) do
  for _, record in ipairs(redis.call('HVALS', ARGV[1] .. feed .. ':quarantine')) do
    local _, found = pcall(cjson.decode, record)
    if not (type(found) == 'table' and type(found.discarded) == 'table') then open = open + 1 end
  end
end
return {#feeds, open}
