-- Puts the rewritten log in the log's place if it holds the same events, and only then.
-- KEYS  1 log  2 new log  3 who rewrites    ARGV  1 token
-- Gives "swapped" | "taken" | "behind" (events came meanwhile) | "differs"
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 'taken' end
local function ends(key)
  local first, last = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1], redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  return first and first[1], last and last[1]
end
local first, last = ends(KEYS[1])
local _, copied = ends(KEYS[2])
if last ~= copied then return 'behind' end
-- The log may have been trimmed since; of the copy that part goes too.
redis.call('XTRIM', KEYS[2], 'MINID', first)
if ends(KEYS[2]) ~= first or redis.call('XLEN', KEYS[1]) ~= redis.call('XLEN', KEYS[2]) then return 'differs' end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('DEL', KEYS[3])
return 'swapped'
