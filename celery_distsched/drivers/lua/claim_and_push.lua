-- Claims and pushes in one step. Follows a definition of `is_member`.
-- KEYS: the ledger, then what `is_member` looks at, then the lists of the broker.
-- ARGV: the fence, the run_id of the server that the broker is, how many claims; for each its entry; for each its
--       expected record ('' for none, else '=' and the record), the new one, and how many messages; and for each
--       list, in the order of KEYS: how many of the claims are its own (they come in that order); all the messages.
-- Answers nil where the fence is not there, 'elsewhere' where the broker is another server, else for each claim that
-- was not made: its number from 0, 'lost' or 'refused', and the record in its way or the error. An error where the
-- server takes no writes; nothing was done.

if not is_member(ARGV[1]) then
  return false
end
if string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') ~= ARGV[2] then
  return 'elsewhere'
end

-- No entry comes twice, so all may be read before any is written. `unpack` gives up near 8000 values: 1000 claims and
-- 4000 messages are safe.
local count = tonumber(ARGV[3])
local records = redis.call('HMGET', KEYS[1], unpack(ARGV, 4, 3 + count))
local claims_at, list_at = 4 + count, 4 + 4 * count
local message_at = list_at + #KEYS - 2

-- What says that the server takes no writes for now, of whatever list: no memory, a replica, a disk that is full.
local function takes_no_writes(err)
  for _, code in ipairs({'OOM', 'READONLY', 'MISCONF', 'NOREPLICAS'}) do
    if string.find(err, code .. ' ', 1, true) then
      return true
    end
  end
  return false
end

local writes, not_made = {}, {}
local number = 0
for list = 3, #KEYS do
  local pushes, wins = {}, {}
  for _ = 1, tonumber(ARGV[list_at + list - 3]) do
    local record, at = records[number + 1], claims_at + 3 * number
    local messages = tonumber(ARGV[at + 2])
    if (record and '=' .. record or '') == ARGV[at] then
      wins[#wins + 1] = number
      for message = message_at, message_at + messages - 1 do
        pushes[#pushes + 1] = ARGV[message]
      end
    else
      not_made[#not_made + 1] = {number, 'lost', record}
    end
    message_at, number = message_at + messages, number + 1
  end
  if #wins > 0 then
    -- The push first, and caught: a script is no transaction, and a list that is none costs nobody else's run. All of
    -- a list's messages go in one command, all or none.
    local pushed = redis.pcall('LPUSH', KEYS[list], unpack(pushes))
    local refused = type(pushed) == 'table' and pushed.err
    if refused and #writes == 0 and takes_no_writes(refused) then
      -- That cannot begin within a script: it met the first push, and nothing has been done.
      return pushed
    end
    for _, win in ipairs(wins) do
      if refused then
        not_made[#not_made + 1] = {win, 'refused', refused}
      else
        writes[#writes + 1] = ARGV[4 + win]
        writes[#writes + 1] = ARGV[claims_at + 3 * win + 1]
      end
    end
  end
end
if #writes > 0 then
  redis.call('HSET', KEYS[1], unpack(writes))
end
return not_made
