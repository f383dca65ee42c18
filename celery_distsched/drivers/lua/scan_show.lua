-- Shows that a node lives: 'join' makes it a member, 'renew' asks that it is one.
-- KEYS: the index of memberships, the key of this one.
-- ARGV: membership, info, milliseconds to be kept, 'join' or 'renew', the run_id of the server that was joined.
-- Answers the server's TIME and run_id, or nil for a renewal of what is not there, or on another server.

local index, node = KEYS[1], KEYS[2]
local membership, info, kept = ARGV[1], ARGV[2], tonumber(ARGV[3])

local shown = redis.call('GET', node)
if ARGV[4] == 'renew' and (not shown or is_another(ARGV[5])) then
  return false
end

-- Before any write, so that an index that is no set leaves nothing half done.
redis.call('SADD', index, membership)
local pulse = shown and tonumber(string.match(shown, '^%d+')) or 0
redis.call('SET', node, pulse + 1 .. ' ' .. info, 'PX', kept)

-- The index lives as long as the longest kept of its members.
if redis.call('PTTL', index) < kept then
  redis.call('PEXPIRE', index, kept)
end
local time = redis.call('TIME')
return {time[1], time[2], run_id()}
