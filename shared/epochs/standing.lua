-- Where one feed's log stands, and whether it holds the position that a witness reported.
-- KEYS  1 log  2 head  3 witnessed    ARGV  1 feed
-- Gives {epoch or false, n, reported position or false, true if it may be held by readers and is none of the log's}
local head = redis.call('HMGET', KEYS[2], 'epoch', 'n')
local seen = redis.call('HGET', KEYS[3], ARGV[1])
if not head[1] then return {false, false, seen, false} end
local lost = false
if seen then
  local epoch, n = string.match(seen, '^(%d+)-(%d+)$')
  epoch, n = tonumber(epoch), tonumber(n)
  -- Readers of an older epoch are reset in any case.
  if epoch > tonumber(head[1]) or epoch == tonumber(head[1]) and n > tonumber(head[2]) then
    lost = true
  elseif epoch == tonumber(head[1]) and #redis.call('XRANGE', KEYS[1], seen, seen) == 0 then
    -- Trimmed history is not there either; but what begins before this position and lacks it is another history.
    local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    lost = first ~= nil and tonumber(string.match(first[1], '%d+$')) <= n
  end
end
return {head[1], head[2], seen, lost}
