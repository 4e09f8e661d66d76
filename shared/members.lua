-- Announces one process of a kind, or takes it off, and counts those alive.
-- KEYS  1 members    ARGV  1 name  2 time to live in ms; 0 leaves
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
-- Those whose time is over, and one that leaves: its time is over now.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZCARD', KEYS[1])
