-- Gives a build up: the live generation stays as it is, and what the build made is to be removed.
-- KEYS  1 lease  2 build  3 retired    ARGV  1 fence  2 token  3 why
-- Gives "failed" | "fenced" | "dropped"
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 'fenced' end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[2] then return 'dropped' end
-- All checks stand before the first write.
local clock = redis.call('TIME')
local now = string.format('%.0f', tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))
local generation = redis.call('HGET', KEYS[2], 'generation')
if generation then redis.call('SADD', KEYS[3], generation) end
redis.call('HSET', KEYS[2], 'state', 'failed', 'detail', ARGV[3], 'updated_at', now)
return 'failed'
