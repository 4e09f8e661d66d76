-- The documents of entries as a generation holds them, as far as they are few bytes: the first one always.
-- KEYS  1 documents    ARGV  1 bytes at most  2… entries
-- Gives {document or false…}, shorter than asked where the bytes did not suffice
local found, bytes = {}, 0
for i = 2, #ARGV do
  local document = redis.call('HGET', KEYS[1], ARGV[i])
  bytes = bytes + (document and #document or 0)
  if i > 2 and bytes > tonumber(ARGV[1]) then break end
  found[i - 1] = document
end
return found
