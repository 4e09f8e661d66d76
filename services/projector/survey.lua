-- How far one feed's build and its live generation are, of one moment.
-- KEYS  1 build  2 active  3 quarantine  4 retired    ARGV  1 prefix of the generations
-- Gives {{field, value…} of the build, active generation or false, its checkpoint or false,
--        {checkpoint, fold version, read models} of the generation being built or {}, its feed document or false,
--        {quarantined position…}, {retired generation…}}
local build = redis.call('HGETALL', KEYS[1])
local generation = redis.call('HGET', KEYS[1], 'generation')
local active = redis.call('GET', KEYS[2])
local meta, feed = {}, false
if generation then
  meta = redis.call('HMGET', ARGV[1] .. generation .. ':meta', 'checkpoint', 'fold', 'read_models')
  feed = redis.call('GET', ARGV[1] .. generation .. ':feed')
end
return {
  build, active, active and redis.call('HGET', ARGV[1] .. active .. ':meta', 'checkpoint'), meta, feed,
  redis.call('HKEYS', KEYS[3]), redis.call('SMEMBERS', KEYS[4]),
}
