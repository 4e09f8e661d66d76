-- Entry documents and index members of the active generation, of one moment.
-- KEYS  1 active
-- ARGV  1 prefix of the generations  2 number of entries, then each; then for each index: its name, number of members, each
-- Gives {generation or false, checkpoint or false, {document or false…}, {index, member, score or false… where not 0}}
local active = redis.call('GET', KEYS[1])
local base = ARGV[1] .. (active or '') .. ':'
local checkpoint = redis.call('HGET', base .. 'meta', 'checkpoint')
local documents, wrong = {}, {}
local at = 3
for i = 1, tonumber(ARGV[2]) do
  documents[i] = redis.call('HGET', base .. 'documents', ARGV[at])
  at = at + 1
end
while at <= #ARGV do
  local index, count = ARGV[at], tonumber(ARGV[at + 1])
  for i = at + 2, at + 1 + count do
    local score = redis.call('ZSCORE', base .. 'i:' .. index, ARGV[i])
    if score ~= '0' then
      wrong[#wrong + 1] = index
      wrong[#wrong + 1] = ARGV[i]
      wrong[#wrong + 1] = score
    end
  end
  at = at + 2 + count
end
return {active, checkpoint, documents, wrong}
