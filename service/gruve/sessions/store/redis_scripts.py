"""The Lua scripts of the Redis store: what has to happen at once on the server. `redis.py` has the fields' meanings."""

from __future__ import annotations

NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
MINE = """
local holder = redis.call('HMGET', KEYS[1], 'owner', 'version')
if holder[1] ~= ARGV[1] or holder[2] ~= ARGV[2] then return 0 end
"""
ACQUIRE = (
    NOW
    + """
local owner, known, lease, least = unpack(ARGV)
local has = redis.call('HMGET', KEYS[1], 'owner', 'until', 'version', 'ttl')
if not has[3] then return false end
if has[1] ~= '' and has[1] ~= owner and tonumber(has[2]) > now then return has[1] end
local version = string.format('%d', has[3] + 1)
redis.call('HSET', KEYS[1], 'owner', owner, 'until', now + lease, 'version', version)
redis.call('PEXPIRE', KEYS[1], math.max(has[4], least))
if has[3] == known then return {version} end
return {version, redis.call('HGETALL', KEYS[1])}
"""
)
"""Returns false if there is no such session, the owner's name if another server has the lease, else the version and,
unless the caller's copy is current, the contents."""
WRITE = (
    NOW
    + """
local at = 2
local function given() at = at + 1 return ARGV[at] end
local create, release, lease, least = given() == '1', given() == '1', given(), given()
local tenant, created, used, ttl, position, bytes, head = given(), given(), given(), given(), given(), given(), given()
if create and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'version', ARGV[2], 'created', created, 'tenant', tenant)
end
"""
    + MINE
    + """
local function replace(kind, cut)
  local n = given() + 0
  for _ = 1, given() do redis.call('HSET', KEYS[1], kind .. n, given()) n = n + 1 end
  while cut and redis.call('HDEL', KEYS[1], kind .. n) == 1 do n = n + 1 end
end
redis.call('HSET', KEYS[1], 'used', used, 'ttl', ttl, 'position', position, 'bytes', bytes,
  'owner', ARGV[1], 'until', release and 0 or now + lease)
replace('t:', head ~= '')
if head ~= '' then
  redis.call('HSET', KEYS[1], 'head', head)
  replace('g:', true)
end
for _ = 1, given() do redis.call('HDEL', KEYS[1], 's:' .. given()) end
for _ = 1, given() do redis.call('HSET', KEYS[1], 's:' .. given(), given()) end
redis.call('PEXPIRE', KEYS[1], release and ttl or math.max(ttl, least))
return 1
"""
)
"""A released lease keeps its owner's name, so that a write that arrives twice is still accepted."""
RENEW = (
    NOW
    + MINE
    + """
if redis.call('HGET', KEYS[1], 'until') == '0' then return 0 end
redis.call('HSET', KEYS[1], 'until', now + ARGV[3])
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('HGET', KEYS[1], 'ttl'), ARGV[4]))
return 1
"""
)
DELETE = MINE + "return redis.call('DEL', KEYS[1])"
MEASURE = """
local bytes = redis.call('HGET', KEYS[1], 'bytes')
if bytes then return tonumber(bytes) end
bytes = 0
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if name == 'head' or name:find('^[tgs]:') then bytes = bytes + redis.call('HSTRLEN', KEYS[1], name) end
end
if bytes > 0 then redis.call('HSET', KEYS[1], 'bytes', bytes) end
return bytes
"""
"""Returns 0 if there is no such session. One that was written before sessions had `bytes` gets them."""
