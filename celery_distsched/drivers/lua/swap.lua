-- The exact swap. Follows a definition of `is_member`.
-- KEYS: the ledger, then what `is_member` looks at.
-- ARGV: the fence ('' for none), the run_id of the server that it joined, 'settle' or '',
--       then for each swap: entry, expected, new.
--       expected is '' where there must be no record, else '=' and the record.
-- Answers nil where the fence is not there, else for each swap that lost: its number from 0, the record in its way.

if ARGV[1] ~= '' and (is_another(ARGV[2]) or not is_member(ARGV[1])) then
  return false
end

-- No entry comes twice, so all may be read before any is written. `unpack` gives up near 8000 values: 1000 swaps are safe.
local entries = {}
for argument = 4, #ARGV, 3 do
  entries[#entries + 1] = ARGV[argument]
end
local records = redis.call('HMGET', KEYS[1], unpack(entries))

local writes, lost = {}, {}
for i, entry in ipairs(entries) do
  local record, expected, new = records[i], ARGV[3 * i + 2], ARGV[3 * i + 3]
  if (record and '=' .. record or '') == expected then
    writes[#writes + 1] = entry
    writes[#writes + 1] = new
  else
    lost[#lost + 1] = i - 1
    lost[#lost + 1] = record
    -- WAIT waits for what its own connection wrote. What stands in the way may be an earlier attempt of this very swap,
    -- made over another connection: written again, unchanged, it is waited for as well.
    if record and ARGV[3] == 'settle' then
      writes[#writes + 1] = entry
      writes[#writes + 1] = record
    end
  end
end

-- One command, for a script is no transaction: what it wrote before an error would stay.
if #writes > 0 then
  redis.call('HSET', KEYS[1], unpack(writes))
end
return lost
