-- A feed's document and, if named, one entry's, of one moment.
-- KEYS  1 active  2 head    ARGV  1 prefix of the generations  2 entry or ""
-- Gives {generation, checkpoint, feed document, entry document or false, {epoch, n, lost epoch or false} of the head} or {false}
local active = redis.call('GET', KEYS[1])
if not active then return {false} end
local base = ARGV[1] .. active .. ':'
return {
  active, redis.call('HGET', base .. 'meta', 'checkpoint'), redis.call('GET', base .. 'feed'),
  redis.call('HGET', base .. 'documents', ARGV[2]), redis.call('HMGET', KEYS[2], 'epoch', 'n', 'lost_epoch'),
}
