-- Shows that a node lives: 'join' makes it a member, 'renew' asks that it is one.
-- KEYS: the sorted set of nodes, the hash of infos.
-- ARGV: membership, info, milliseconds to be kept, 'join' or 'renew', the run_id of the server that was joined.
-- Answers the server's TIME and run_id, or nil for a renewal of what is not there, or on another server.

local nodes, infos = KEYS[1], KEYS[2]
local membership, info, kept = ARGV[1], ARGV[2], tonumber(ARGV[3])

local score = redis.call('ZSCORE', nodes, membership)
if ARGV[4] == 'renew' and (not score or is_another(ARGV[5])) then
  return false
end

-- The server's clock on both sides of the comparison: no host's clock is ever compared with another's.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The score is the pulse too: it must grow by a renewal in the same millisecond, or after the clock was set back.
redis.call('ZADD', nodes, math.max(now + kept, (score or 0) + 1), membership)
redis.call('HSET', infos, membership, info)

for _, forgotten in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', now)) do
  redis.call('ZREM', nodes, forgotten)
  redis.call('HDEL', infos, forgotten)
end

-- With the last of its members the whole goes. A score that nobody of us wrote may be no time at all.
local latest = tonumber(redis.call('ZRANGE', nodes, -1, -1, 'WITHSCORES')[2])
latest = string.format('%.0f', math.min(latest, 2 ^ 53))
redis.call('PEXPIREAT', nodes, latest)
redis.call('PEXPIREAT', infos, latest)
return {time[1], time[2], run_id()}
