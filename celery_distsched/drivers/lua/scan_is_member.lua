-- KEYS[2]: the key of this membership.
local function is_member()
  return redis.call('EXISTS', KEYS[2]) == 1
end
