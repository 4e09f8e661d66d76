-- Copies the log's next events into the log that is to take its place, the content of some of them left out.
-- KEYS  1 log  2 new log  3 who rewrites
-- ARGV  1 token  2 position to go on after, or "" to begin  3 events at most  4 bytes at most  5… positions to empty
-- Gives "taken" | {last position copied or "", 1 if there are more}
local EXPIRES_SECONDS = 60
local holder = redis.call('GET', KEYS[3])
if holder and holder ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[3], ARGV[1], 'EX', EXPIRES_SECONDS)
if ARGV[2] == '' then redis.call('DEL', KEYS[2]) end
local empty = {}
for i = 5, #ARGV do empty[ARGV[i]] = true end
local last, bytes = ARGV[2], 0
local found = redis.call('XRANGE', KEYS[1], last == '' and '-' or '(' .. last, '+', 'COUNT', ARGV[3])
local copied = 0
for _, event in ipairs(found) do
  local fields = event[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'content' and empty[event[1]] then fields[i + 1] = '' end
    bytes = bytes + #fields[i + 1]
  end
  redis.call('XADD', KEYS[2], event[1], unpack(fields))
  last, copied = event[1], copied + 1
  if bytes > tonumber(ARGV[4]) then break end
end
return {last, copied < #found or #found == tonumber(ARGV[3])}
