-- KEYS[1]: the index of memberships. ARGV[1]: what the key of each begins with.
-- Answers membership, what its key holds, and so on; takes those whose key has expired out of the index. In one step:
-- between two, a node might join again and be taken out.

local shown = {}
for _, membership in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local held = redis.call('GET', ARGV[1] .. membership)
  if held then
    shown[#shown + 1] = membership
    shown[#shown + 1] = held
  else
    redis.call('SREM', KEYS[1], membership)
  end
end
return shown
