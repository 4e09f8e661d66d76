-- Entry documents and index members of the active generation, of one moment.
-- KEYS  1 active
-- ARGV  1 prefix of the generations  2 packed: {{entry…}, of one at least, {index, {member…}}…}
-- Gives {generation or false, checkpoint or false, {document or false…}, {index, member, score or false… where not 0}}
local active = redis.call('GET', KEYS[1])
local base = ARGV[1] .. (active or '') .. ':'
local checkpoint = redis.call('HGET', base .. 'meta', 'checkpoint')
local asked, wrong = cmsgpack.unpack(ARGV[2]), {}
-- A slice is of 250 entries: each list fits on the stack of `unpack`.
local documents = redis.call('HMGET', base .. 'documents', unpack(asked[1]))
for at = 2, #asked do
  local index, members = asked[at][1], asked[at][2]
  for i, score in ipairs(redis.call('ZMSCORE', base .. 'i:' .. index, unpack(members))) do
    if score ~= '0' then
      wrong[#wrong + 1] = index
      wrong[#wrong + 1] = members[i]
      wrong[#wrong + 1] = score
    end
  end
end
return {active, checkpoint, documents, wrong}
