-- One feed as it stands, of one moment: no lag below zero, no half of a flip.
-- KEYS  1 head  2 log  3 active  4 quarantine  5 build  6 archive    ARGV  1 prefix of the generations
-- Gives {now in ms, head, events in the stream, its bytes, first id in it or false, generation or false,
--        what is kept of the generation, recorded_at of the oldest event that is not folded or false,
--        events in quarantine, discarded ones of those, build, archive}, hashes as lists of fields and values
local head = redis.call('HGETALL', KEYS[1])
local clock = redis.call('TIME')
local now = string.format('%.0f', math.floor(tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000))
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local active = redis.call('GET', KEYS[3])
local meta = active and redis.call('HGETALL', ARGV[1] .. active .. ':meta') or {}
local checkpoint = active and redis.call('HGET', ARGV[1] .. active .. ':meta', 'checkpoint')
local oldest = redis.call('XRANGE', KEYS[2], checkpoint and '(' .. checkpoint or '-', '+', 'COUNT', 1)[1]
local waiting = false
for i = 1, oldest and #oldest[2] or 0, 2 do
  if oldest[2][i] == 'recorded_at' then waiting = oldest[2][i + 1] end
end
local quarantined, discarded = 0, 0
for _, record in ipairs(redis.call('HVALS', KEYS[4])) do
  local _, found = pcall(cjson.decode, record)
  quarantined = quarantined + 1
  if type(found) == 'table' and type(found.discarded) == 'table' then discarded = discarded + 1 end
end
-- A list ends for redis at the first nil: a log that is not there has no size.
return {now, head, redis.call('XLEN', KEYS[2]), redis.call('MEMORY', 'USAGE', KEYS[2]) or 0, (first or {false})[1],
  active, meta, waiting, quarantined, discarded, redis.call('HGETALL', KEYS[5]), redis.call('HGETALL', KEYS[6])}
