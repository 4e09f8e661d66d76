-- What one shard's projector has not folded yet, of the dirty feeds or as many of them as one look may take.
-- KEYS  1 dirty    ARGV  1 prefix of the feeds' keys  2 feeds at most
-- Gives {events, recorded_at in ms of the oldest or false, now in ms}
local function n_of(position) return tonumber(string.match(position or '', '%-(%d+)$') or '0') end
local clock = redis.call('TIME')
local events, oldest = 0, false
for _, feed in ipairs(redis.call('SRANDMEMBER', KEYS[1], ARGV[2])) do
  local base = ARGV[1] .. feed .. ':'
  local active = redis.call('GET', base .. 'active')
  local checkpoint = active and redis.call('HGET', base .. 'g' .. active .. ':meta', 'checkpoint')
  events = events + tonumber(redis.call('HGET', base .. 'head', 'n') or '0') - n_of(checkpoint)
  local next = redis.call('XRANGE', base .. 'log', checkpoint and '(' .. checkpoint or '-', '+', 'COUNT', 1)[1]
  for i = 1, next and #next[2] or 0, 2 do
    if next[2][i] == 'recorded_at' then
      local at = tonumber(next[2][i + 1])
      if not oldest or at < oldest then oldest = at end
    end
  end
end
return {events, oldest, math.floor(tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000)}
