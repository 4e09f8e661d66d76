-- Entry documents and index members of the active generation, of one moment.
-- KEYS  1 active
-- ARGV  1 prefix of the generations  2 entries, then for each index: its name, members (each list a line apiece)
-- Gives {generation or false, checkpoint or false, {document or false…}, {index, member, score or false… where not 0}}
local active = redis.call('GET', KEYS[1])
local base = ARGV[1] .. (active or '') .. ':'
local checkpoint = redis.call('HGET', base .. 'meta', 'checkpoint')
local documents, wrong = {}, {}
for entry in string.gmatch(ARGV[2], '[^\n]+') do
  documents[#documents + 1] = redis.call('HGET', base .. 'documents', entry)
end
for at = 3, #ARGV, 2 do
  local key = base .. 'i:' .. ARGV[at]
  for member in string.gmatch(ARGV[at + 1], '[^\n]+') do
    local score = redis.call('ZSCORE', key, member)
    if score ~= '0' then
      wrong[#wrong + 1] = ARGV[at]
      wrong[#wrong + 1] = member
      wrong[#wrong + 1] = score
    end
  end
end
return {active, checkpoint, documents, wrong}
