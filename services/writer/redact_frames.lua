-- Empties frames of one feed: whoever still needs one takes the difference from the read models.
-- KEYS  1 frames  2 new frames
-- ARGV  1 feed  2… positions
-- Gives how many frames were emptied
local empty = {}
for i = 2, #ARGV do empty[ARGV[i]] = true end
local emptied = 0
local found = redis.call('XRANGE', KEYS[1], '-', '+')
redis.call('DEL', KEYS[2])
for _, frame in ipairs(found) do
  local fields, values = frame[2], {}
  for i = 1, #fields, 2 do values[fields[i]] = i + 1 end
  if fields[values.f] == ARGV[1] and empty[fields[values.p or 0]] and fields[values.d] ~= '' then
    fields[values.d] = ''
    emptied = emptied + 1
  end
  redis.call('XADD', KEYS[2], frame[1], unpack(fields))
end
-- The same ids: readers of the frames go on where they are.
if emptied > 0 then redis.call('RENAME', KEYS[2], KEYS[1]) else redis.call('DEL', KEYS[2]) end
return emptied
