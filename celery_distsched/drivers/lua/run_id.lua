-- Which server this is: another after each start, and after a failover. '' where the user may not ask.
local function run_id()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end

-- What another server has of us is a copy, and may be an old one. '' where nothing is known yet.
local function is_another(known)
  return known ~= '' and known ~= run_id()
end
