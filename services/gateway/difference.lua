-- What changed in a feed since a position: each document once, in its latest state, in order of position.
-- KEYS  1 active  2 head
-- ARGV  1 prefix of the generations  2 key of the position ("" from the start)  3 documents at most  4 bytes at most
-- Gives {generation, checkpoint, feed document, position of the feed's own last change, {document…},
--        1 if there are more or false, number of entries changed since, {epoch, n, lost epoch or false} of the head} or {false}
local POSITION_KEY = 20
local active = redis.call('GET', KEYS[1])
if not active then return {false} end
local base = ARGV[1] .. active .. ':'
-- Every member that begins with the key itself sorts before this bound: '~' sorts after all that an entry id may hold.
local after = ARGV[2] == '' and '-' or '(' .. ARGV[2] .. '~'
local limit = tonumber(ARGV[3])
local members = redis.call('ZRANGE', base .. 'i:changed', after, '+', 'BYLEX', 'LIMIT', 0, limit + 1)
local found, bytes = {}, 0
for i = 1, math.min(limit, #members) do
  local document = redis.call('HGET', base .. 'documents', string.sub(members[i], POSITION_KEY + 1))
  if not document then return redis.error_reply('CORRUPTED the changes name an entry that has no document') end
  bytes = bytes + #document
  if i > 1 and bytes > tonumber(ARGV[4]) then break end
  found[i] = document
end
local meta = redis.call('HMGET', base .. 'meta', 'checkpoint', 'feed_position')
return {
  active, meta[1], redis.call('GET', base .. 'feed'), meta[2], found, #found < #members,
  redis.call('ZLEXCOUNT', base .. 'i:changed', after, '+'), redis.call('HMGET', KEYS[2], 'epoch', 'n', 'lost_epoch'),
}
