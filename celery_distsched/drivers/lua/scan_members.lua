-- KEYS[1]: the index of memberships. ARGV[1]: what the key of each begins with.
-- Answers membership, what its key holds, and so on; '' for a key that is no text. Takes those whose key has expired out
-- of the index. In one step: between two, a node might join again and be taken out.

local shown = {}
for _, membership in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local held = redis.pcall('GET', ARGV[1] .. membership)
  if type(held) == 'table' then
    held = ''
  end
  if held then
    shown[#shown + 1] = membership
    shown[#shown + 1] = held
  else
    redis.call('SREM', KEYS[1], membership)
  end
end
return shown
