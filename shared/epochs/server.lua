-- The server process that runs this, as it tells of itself.
-- KEYS  1 a key of the shard that it is asked for    ARGV  none
-- Gives {"<run id> <replication id>", role, number of connected replicas, offset up to which it followed another or -1}
local info = redis.call('INFO', 'server', 'replication')
return {
  string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)'),
  string.match(info, 'role:(%w+)'), string.match(info, 'connected_slaves:(%d+)'),
  string.match(info, 'second_repl_offset:(-?%d+)'),
}
