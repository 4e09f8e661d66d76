-- A slice of everything that stands in one key of the active generation, of one moment.
-- KEYS  1 active    ARGV  1 prefix of the generations  2 the key's name in the generation  3 cursor  4 at most (about)
-- Gives {generation or false, checkpoint or false, next cursor ("0": the end), {field or member…}}
local SCANS = {hash = {'HSCAN', 2}, zset = {'ZSCAN', 2}, set = {'SSCAN', 1}, none = {'SSCAN', 1}}
local active = redis.call('GET', KEYS[1])
local base = ARGV[1] .. (active or '') .. ':'
local key = base .. ARGV[2]
local scan = SCANS[redis.call('TYPE', key).ok]
local found = redis.call(scan[1], key, ARGV[3], 'COUNT', ARGV[4])
local names = {}
for i = 1, #found[2], scan[2] do names[#names + 1] = found[2][i] end
return {active, redis.call('HGET', base .. 'meta', 'checkpoint'), found[1], names}
