-- Asks for a build of a feed, in the place of what is known of an earlier one; what that one made is to be removed.
-- KEYS  1 build  2 builds  3 retired  4 doorbell
-- ARGV  1 feed  2 token of the build that the caller saw, or ""  3… fields and values of the new build
-- Gives 1, or 0 when another build was asked for meanwhile
local before = redis.call('HMGET', KEYS[1], 'token', 'state', 'generation')
if (before[1] or '') ~= ARGV[2] then return 0 end
-- All checks stand before the first write.
if before[2] == 'building' then redis.call('SADD', KEYS[3], before[3]) end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'state', 'asked', unpack(ARGV, 3))
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'feed', ARGV[1], 'build', '1')
return 1
