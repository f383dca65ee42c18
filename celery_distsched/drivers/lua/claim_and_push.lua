-- Claims and pushes in one step. Follows a definition of `is_member`.
-- KEYS: the ledger, then what `is_member` looks at, then the lists of the broker.
-- ARGV: the fence, the run_id of the server that the broker is,
--       then for each claim: entry, expected, new, the number of its list among KEYS, how many messages, the messages.
-- Answers nil where the fence is not there, 'elsewhere' where the broker is another server, else for each claim that
-- was not made: its number from 0, 'lost' or 'refused', and the record in its way or the error.

if not is_member(ARGV[1]) then
  return false
end
if string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') ~= ARGV[2] then
  return 'elsewhere'
end

local not_made = {}
local at, number = 3, 0
while at <= #ARGV do
  local entry, expected, new = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local list, messages = KEYS[tonumber(ARGV[at + 3])], tonumber(ARGV[at + 4])
  local record = redis.call('HGET', KEYS[1], entry)
  if (record and '=' .. record or '') ~= expected then
    not_made[#not_made + 1] = {number, 'lost', record}
  else
    -- The push first, and caught: a script is no transaction, and a list that is none costs nobody else's run. Several
    -- messages go in one command, all or none.
    local pushed = redis.pcall('LPUSH', list, unpack(ARGV, at + 5, at + 4 + messages))
    if type(pushed) == 'table' and pushed.err then
      not_made[#not_made + 1] = {number, 'refused', pushed.err}
    else
      redis.call('HSET', KEYS[1], entry, new)
    end
  end
  at, number = at + 5 + messages, number + 1
end
return not_made
