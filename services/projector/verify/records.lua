-- Records of the write side and where the log ends, of one moment.
-- KEYS  1 log  2 entries    ARGV  1 entries, packed
-- Gives {last id of the log or false, {record or false…}}
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local entries = cmsgpack.unpack(ARGV[1])
return {last and last[1] or false, #entries > 0 and redis.call('HMGET', KEYS[2], unpack(entries)) or {}}
