-- Takes a membership out, with a pulse only as long as it has that.
-- KEYS: the index of memberships, the key of this one. ARGV: membership, pulse or ''. Answers 1 if it is out.

local held = redis.call('GET', KEYS[2])
if held and ARGV[2] ~= '' and string.match(held, '^%d+') ~= ARGV[2] then
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[1], ARGV[1])
return 1
