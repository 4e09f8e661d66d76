-- Begins a build that was asked for: gives it a generation of its own, which nobody reads yet.
-- KEYS  1 lease  2 build  3 generations
-- ARGV  1 fence  2 token  3 fold version  4 read models  5 prefix of the generations
-- Gives "begun" | "fenced" | "dropped"
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 'fenced' end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[2] then return 'dropped' end
if redis.call('HGET', KEYS[2], 'state') ~= 'asked' then return 'dropped' end
-- All checks stand before the first write.
local clock = redis.call('TIME')
local now = string.format('%.0f', tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))
local generation = redis.call('INCR', KEYS[3])
redis.call('HSET', ARGV[5] .. generation .. ':meta', 'fold', ARGV[3], 'read_models', ARGV[4])
redis.call('HSET', KEYS[2], 'state', 'building', 'generation', generation, 'started_at', now, 'updated_at', now)
return 'begun'
