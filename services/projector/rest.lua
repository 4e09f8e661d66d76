-- Takes a feed that has nothing left to build or to remove off the shard's list.
-- KEYS  1 build  2 retired  3 builds    ARGV  1 feed
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'asked' or state == 'building' then return 0 end
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('SREM', KEYS[3], ARGV[1])
return 1
