-- Takes a membership out, with a pulse only as long as it has that.
-- KEYS: the sorted set of nodes, the hash of infos. ARGV: membership, pulse or ''. Answers 1 if it is out.

local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and ARGV[2] ~= '' and string.format('%.0f', score) ~= ARGV[2] then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
