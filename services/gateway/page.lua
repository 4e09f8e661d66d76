-- One page of a feed, all of one moment.
-- KEYS  1 active  2 head
-- ARGV  1 prefix of the generations  2 index  3 order  4 lower bound  5 upper bound  6 key to go on after or ""
--       7 limit  8 wants pins ("1")  9 lower bound of the first published to count, or ""
-- Gives {generation, checkpoint, feed document, total, {document…}, last member if there are more or false,
--        {pinned document…}, unread or false, {epoch, n, lost epoch or false} of the head} or {false}
local SORT_KEY, PIN_KEY = 44, 20
local active = redis.call('GET', KEYS[1])
if not active then return {false} end
local base = ARGV[1] .. active .. ':'
local documents, index = base .. 'documents', base .. 'i:' .. ARGV[2]
local limit = tonumber(ARGV[7])
local lower, upper = ARGV[4], ARGV[5]
local members
if ARGV[3] == 'newest' then
  local from = ARGV[6] ~= '' and '(' .. ARGV[6] or upper
  members = redis.call('ZRANGE', index, from, lower, 'BYLEX', 'REV', 'LIMIT', 0, limit + 1)
else
  local from = ARGV[6] ~= '' and '(' .. ARGV[6] or lower
  members = redis.call('ZRANGE', index, from, upper, 'BYLEX', 'LIMIT', 0, limit + 1)
end
local function fetch(found, skip, count)
  local ids = {}
  for i = 1, math.min(count, #found) do ids[i] = string.sub(found[i], skip + 1) end
  if #ids == 0 then return {} end
  return redis.call('HMGET', documents, unpack(ids))
end
local pinned = {}
if ARGV[8] == '1' then
  local pins = redis.call('ZRANGE', base .. 'i:pinned', '+', '-', 'BYLEX', 'REV')
  pinned = fetch(pins, PIN_KEY, #pins)
end
local unread = false
if ARGV[9] ~= '' then unread = redis.call('ZLEXCOUNT', base .. 'i:first_published', ARGV[9], '+') end
return {
  active, redis.call('HGET', base .. 'meta', 'checkpoint'), redis.call('GET', base .. 'feed'),
  redis.call('ZLEXCOUNT', index, lower, upper), fetch(members, SORT_KEY, limit),
  #members > limit and members[limit], pinned, unread, redis.call('HMGET', KEYS[2], 'epoch', 'n', 'lost_epoch'),
}
