-- Marks one record of a feed's quarantine as discarded, if it is still as the operator saw it.
-- KEYS  1 quarantine    ARGV  1 position  2 record as it was seen  3 record as it becomes
-- Gives 1, or 0 when the record is another meanwhile, or gone
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
