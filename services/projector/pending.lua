-- What one feed's next commit works on, of one moment.
-- KEYS  1 log  2 active  3 quarantine    ARGV  1 prefix of the generations  2 events at most  3 bytes at most
-- Gives {generation or false, checkpoint or false, read models or false, fold version or false, feed document or false,
--        {{id, fields}…} after the checkpoint, {quarantined id…} of those, 1 if there are more or false,
--        {entry…} that they are about, {document or false…} of those}
local active = redis.call('GET', KEYS[2])
local checkpoint, models, fold, feed = false, false, false, false
if active then
  local meta = redis.call('HMGET', ARGV[1] .. active .. ':meta', 'checkpoint', 'read_models', 'fold')
  checkpoint, models, fold = meta[1], meta[2], meta[3]
  feed = redis.call('GET', ARGV[1] .. active .. ':feed')
end
local found = redis.call('XRANGE', KEYS[1], checkpoint and '(' .. checkpoint or '-', '+', 'COUNT', ARGV[2])
local entries, quarantined, bytes = {}, {}, 0
for i, entry in ipairs(found) do
  for _, field in ipairs(entry[2]) do bytes = bytes + #field end
  if i > 1 and bytes > tonumber(ARGV[3]) then break end
  entries[i] = entry
  if redis.call('HEXISTS', KEYS[3], entry[1]) == 1 then quarantined[#quarantined + 1] = entry[1] end
end
local touched, documents, seen = {}, {}, {}
for _, entry in ipairs(entries) do
  for i = 1, #entry[2], 2 do
    local envelope
    -- What cannot be read is about nothing; the fold sets it aside.
    if entry[2][i] == 'envelope' then envelope = select(2, pcall(cjson.decode, entry[2][i + 1])) end
    local id = type(envelope) == 'table' and type(envelope.facts) == 'table' and envelope.facts.entry
    if type(id) == 'string' and not seen[id] then
      seen[id] = true
      touched[#touched + 1] = id
      documents[#documents + 1] = active and redis.call('HGET', ARGV[1] .. active .. ':documents', id)
    end
  end
end
local more = #entries < #found or #found == tonumber(ARGV[2])
return {active, checkpoint, models, fold, feed, entries, quarantined, more, touched, documents}
