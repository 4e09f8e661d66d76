-- How much the active generation holds, of one moment.
-- KEYS  1 active    ARGV  1 prefix of the generations  2… indexes
-- Gives {generation or false, checkpoint or false, documents, names of indexes, {members…}, {1 or 0: index is named…}}
local active = redis.call('GET', KEYS[1])
local base = ARGV[1] .. (active or '') .. ':'
local counts, named = {}, {}
for i = 2, #ARGV do
  counts[i - 1] = redis.call('ZCARD', base .. 'i:' .. ARGV[i])
  named[i - 1] = redis.call('SISMEMBER', base .. 'names', ARGV[i])
end
return {
  active, redis.call('HGET', base .. 'meta', 'checkpoint'), redis.call('HLEN', base .. 'documents'),
  redis.call('SCARD', base .. 'names'), counts, named,
}
