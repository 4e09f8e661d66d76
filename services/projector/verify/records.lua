-- Records of the write side and where the log ends, of one moment.
-- KEYS  1 log  2 entries    ARGV  1… entries
-- Gives {last id of the log or false, {record or false…}}
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local records = {}
for i = 1, #ARGV do records[i] = redis.call('HGET', KEYS[2], ARGV[i]) end
return {last and last[1] or false, records}
