-- Takes or confirms the lease of one shard and raises its fence, or lets it go: one act, safe to send twice.
-- KEYS  1 lease
-- ARGV  1 owner  2 fence held (0: none)  3 time to live in ms; 0 lets the lease go
-- Gives the fence now held, or 0 when another projector owns the shard.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local lease = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'expires')
local fence = tonumber(lease[2] or '0')
local mine = lease[1] == ARGV[1]
local ttl = tonumber(ARGV[3])
if ttl == 0 then
  if mine and fence == tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'owner', '', 'expires', '0') end
  return 0
end
if not mine and lease[1] and lease[1] ~= '' and tonumber(lease[3]) > now then return 0 end
-- A reply lost on the way leaves the owner with an older fence: the lease is taken anew, never refused to its owner.
if not (mine and fence == tonumber(ARGV[2])) then fence = fence + 1 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'fence', fence, 'expires', string.format('%.0f', now + ttl))
return fence
