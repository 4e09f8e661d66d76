-- Puts the rewritten log in the log's place if it holds the same events, and only then; what came meanwhile is copied here.
-- KEYS  1 log  2 new log  3 who rewrites    ARGV  1 token  2 events to copy at most
-- Gives "swapped" | "taken" | "behind" (more events came meanwhile) | "differs"
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 'taken' end
local function ends(key)
  local first, last = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1], redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  return first and first[1], last and last[1]
end
local first, last = ends(KEYS[1])
local _, copied = ends(KEYS[2])
-- A copy that is gone is made again where contents are left out, never here.
if not copied then return 'behind' end
local came = redis.call('XRANGE', KEYS[1], '(' .. copied, '+', 'COUNT', ARGV[2])
-- Appended after the copy was begun, they are of no entry that is redacted: that takes no more events.
for _, event in ipairs(came) do
  redis.call('XADD', KEYS[2], event[1], unpack(event[2]))
  copied = event[1]
end
if last ~= copied then return 'behind' end
-- The log may have been trimmed since; of the copy that part goes too.
redis.call('XTRIM', KEYS[2], 'MINID', first)
if ends(KEYS[2]) ~= first or redis.call('XLEN', KEYS[1]) ~= redis.call('XLEN', KEYS[2]) then return 'differs' end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('DEL', KEYS[3])
return 'swapped'
