-- KEYS[2]: the sorted set of nodes.
local function is_member(membership)
  return redis.call('ZSCORE', KEYS[2], membership)
end
