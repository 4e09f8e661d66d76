-- Removes a bounded part of a generation that nobody reads any more, the whole of it after some calls.
-- KEYS  1 retired  2 active  3 names of the indexes  4 documents  5 feed document  6 meta
-- ARGV  1 generation  2 prefix of the indexes  3 indexes at most
-- Gives 1 when there is more to remove
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('GET', KEYS[2]) == ARGV[1] then return 0 end
-- All checks stand before the first write. UNLINK frees in the background, whatever the size.
for _, index in ipairs(redis.call('SPOP', KEYS[3], ARGV[3])) do redis.call('UNLINK', ARGV[2] .. index) end
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6])
redis.call('SREM', KEYS[1], ARGV[1])
return 0
