"""The scripts in this process: LuaJIT, or Lua 5.1, over hashes and sorted sets in Lua tables.

The same files that Redis runs, so that a router without a server has the same accounting, not a second
implementation. A differential test holds both engines equal, reply for reply.
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from apikeyrouter.domain.models.system_error import LedgerProtocolError
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply, cell_keys, encoded
from apikeyrouter.infrastructure.ledger.scripts import load_library

_PRELUDE = b"""
local pack, unpack_struct = ...
local now, hashes, sets = 0, {}, {}
local function text(value)
  return type(value) == 'number' and string.format('%.17g', value) or value
end
local function hash(key)
  local found = hashes[key]
  if not found then
    found = {}
    hashes[key] = found
  end
  return found
end
local commands = {}
function commands.TIME()
  return { math.floor(now / 1000000), now % 1000000 }
end
function commands.HGET(key, field)
  return hash(key)[field] or false
end
function commands.HMGET(key, ...)
  local from, list = hash(key), { ... }
  for i = 1, #list do
    list[i] = from[list[i]] or false
  end
  return list
end
function commands.HSET(key, ...)
  local to, list = hash(key), { ... }
  for i = 1, #list, 2 do
    to[list[i]] = text(list[i + 1])
  end
  return #list / 2
end
function commands.HSETNX(key, field, value)
  local to = hash(key)
  if to[field] then
    return 0
  end
  to[field] = text(value)
  return 1
end
function commands.HLEN(key)
  local count = 0
  for _ in pairs(hash(key)) do
    count = count + 1
  end
  return count
end
function commands.HEXISTS(key, field)
  return hash(key)[field] and 1 or 0
end
function commands.HDEL(key, ...)
  local from = hash(key)
  for _, field in ipairs({ ... }) do
    from[field] = nil
  end
  return 0
end
function commands.DEL(key)
  hashes[key], sets[key] = nil, nil
  return 0
end
commands.UNLINK = commands.DEL

-- Sorted sets: members in order of (score, member), from `first` to `last`. Scores are told as numbers, not as text.
local nobody = { first = 1, last = 0, order = {}, scores = {} }
local function sorted(key)
  local found = sets[key]
  if not found then
    found = { first = 1, last = 0, order = {}, scores = {} }
    sets[key] = found
  end
  return found
end
local function place(set, score, member) -- where it stands, or would
  local order, scores, low, high = set.order, set.scores, set.first, set.last
  if low > high or scores[order[high]] < score then
    return high + 1
  end
  while low < high do
    local middle = math.floor((low + high) / 2)
    local other = order[middle]
    local at = scores[other]
    if at < score or at == score and other < member then
      low = middle + 1
    else
      high = middle
    end
  end
  if scores[order[low]] == score and order[low] < member then
    low = low + 1
  end
  return low
end
local function put(set, score, member)
  local order, last = set.order, set.last + 1
  local at = place(set, score, member)
  for i = last, at + 1, -1 do
    order[i] = order[i - 1]
  end
  order[at], set.scores[member], set.last = member, score, last
end
local function take(set, member) -- the shorter side moves: the oldest mostly go first
  local order, first, last = set.order, set.first, set.last
  local at = place(set, set.scores[member], member)
  set.scores[member] = nil
  if at - first < last - at then
    for i = at, first + 1, -1 do
      order[i] = order[i - 1]
    end
    order[first], set.first = nil, first + 1
  else
    for i = at, last - 1 do
      order[i] = order[i + 1]
    end
    order[last], set.last = nil, last - 1
  end
  first, last = set.first, set.last
  if first > 64 and first > last - first then -- more is free at the front than is in use
    for i = first, last do
      order[i - first + 1], order[i] = order[i], nil
    end
    set.first, set.last = 1, last - first + 1
  end
end
function commands.ZADD(key, ...)
  local set, list, at = sorted(key), { ... }, 1
  local known, rises, falls = false, false, false
  while list[at] == 'XX' or list[at] == 'GT' or list[at] == 'LT' do
    known, rises, falls = known or list[at] == 'XX', rises or list[at] == 'GT', falls or list[at] == 'LT'
    at = at + 1
  end
  for i = at, #list, 2 do
    local score, member = tonumber(list[i]), list[i + 1]
    local old = set.scores[member]
    if not old then
      if not known then
        put(set, score, member)
      end
    elseif score ~= old and not (rises and score < old or falls and score > old) then
      take(set, member)
      put(set, score, member)
    end
  end
  return 0
end
function commands.ZREM(key, ...)
  local set, list = sets[key] or nobody, { ... }
  for i = 1, #list do
    if set.scores[list[i]] then
      take(set, list[i])
    end
  end
  return 0
end
function commands.ZCARD(key)
  local set = sets[key] or nobody
  return set.last - set.first + 1
end
function commands.ZMSCORE(key, ...)
  local scores, list = (sets[key] or nobody).scores, { ... }
  for i = 1, #list do
    list[i] = scores[list[i]] or false
  end
  return list
end
function commands.ZRANGE(key, from, to, with_scores)
  local set, found = sets[key] or nobody, {}
  for i = set.first + from, math.min(set.first + to, set.last) do
    found[#found + 1] = set.order[i]
    if with_scores then
      found[#found + 1] = set.scores[set.order[i]]
    end
  end
  return found
end
function commands.ZRANGEBYSCORE(key, low, high, _, offset, count)
  local set, found = sets[key] or nobody, {}
  local at = (low == '-inf' and set.first or place(set, tonumber(low), '')) + offset
  while #found < tonumber(count) and at <= set.last and set.scores[set.order[at]] <= tonumber(high) do
    found[#found + 1], at = set.order[at], at + 1
  end
  return found
end
local functions = {}
redis = {
  call = function(name, ...) return commands[name](...) end,
  register_function = function(told) functions[told.function_name] = told.callback end,
}
struct = { pack = pack, unpack = unpack_struct }
local has_ffi, ffi = pcall(require, 'ffi')
if has_ffi and ffi.abi('le') then -- LuaJIT packs in place; elsewhere Python does
  local limit = 4096
  local buffer = ffi.new('double[?]', limit)
  function struct.pack(format, ...)
    local count, values = #format - 1, { ... }
    if count > limit then
      error('too many numbers')
    end
    for i = 1, count do
      buffer[i - 1] = values[i]
    end
    return ffi.string(buffer, count * 8)
  end
  function struct.unpack(format, packed, position)
    local count, offset = #format - 1, (position or 1) - 1
    if count > limit or offset + count * 8 > #packed then
      error('data string too short')
    end
    ffi.copy(buffer, ffi.cast('const char *', packed) + offset, count * 8)
    local values = {}
    for i = 1, count do
      values[i] = buffer[i - 1]
    end
    values[count + 1] = offset + count * 8 + 1
    return unpack(values, 1, count + 1)
  end
end
function flush()
  hashes, sets = {}, {}
end
function poke(key, field, value)
  hash(key)[field] = value
end
function peek(key)
  return hash(key)
end
function scores(key)
  return (sets[key] or nobody).scores
end
function ranked()
  return sets
end
function load(chunk, name)
  assert(loadstring(chunk, '@' .. name))()
end
function callable(name)
  local run = functions[name]
  return function(time, keys, ...)
    now = time
    return unpack(run(keys, { ... }))
  end
end
setmetatable(_G, {
  __index = function(_, name) error('access to undefined global ' .. name) end,
  __newindex = function(_, name) error('write to global ' .. name) end,
})
"""
_CACHE_MAX = 64


def _now_us() -> int:
    return time.time_ns() // 1000


@cache
def _struct(format: bytes) -> struct.Struct:
    return struct.Struct(format.decode())


def _pack(format: bytes, *values: float) -> bytes:
    return _struct(format).pack(*values)


def _unpack(format: bytes, packed: bytes, position: float = 1) -> tuple[float, ...]:
    compiled = _struct(format)
    offset = int(position) - 1
    return (*compiled.unpack_from(packed, offset), offset + compiled.size + 1)


@cache
def _implementation(*, jit: bool) -> Any:
    """The module of lupa to use: not every platform has LuaJIT."""
    if jit:
        with contextlib.suppress(ImportError):
            from lupa import luajit21

            return luajit21
    from lupa import lua51

    return lua51


class LocalEngine:
    """Runs the scripts of one cell in this process. State lives as long as the engine.

    `clock_us` gives integer microseconds since 1970; it is what Redis TIME is elsewhere. `jit` False: plain Lua 5.1, as
    where no LuaJIT is; the answers are the same, at twice the time.
    """

    def __init__(
        self,
        *,
        namespace: str = "apikeyrouter",
        cell: str = "main",
        clock_us: Callable[[], int] | None = None,
        jit: bool = True,
    ) -> None:
        self._namespace, self._cell = namespace, cell
        implementation = _implementation(jit=jit)
        self._error = implementation.LuaError
        self._lua = implementation.LuaRuntime(
            encoding=None, unpack_returned_tuples=True, register_eval=False, register_builtins=False
        )
        self._clock_us = clock_us or _now_us
        self._lua.compile(_PRELUDE)(_pack, _unpack)
        library = load_library()
        self._scripts = library.scripts
        self._lua.globals()[b"load"](library.text.partition("\n")[2].encode(), library.name.encode())
        callable_ = self._lua.globals()[b"callable"]
        self._functions = {name: callable_(script.function.encode()) for name, script in self._scripts.items()}
        self._key_tables: dict[tuple[str, str], Any] = {}

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def flush(self) -> None:
        """Forget everything, as FLUSHALL would."""
        self._lua.globals()[b"flush"]()

    def _keys(self, name: str, pool: str) -> Any:
        found = self._key_tables.get((name, pool))
        if found is None:
            if len(self._key_tables) > _CACHE_MAX * len(self._scripts):
                self._key_tables.clear()
            keys = cell_keys(self._namespace, self._cell, self._scripts[name].keys, pool=pool)
            found = self._key_tables[name, pool] = self._lua.table_from([key.encode() for key in keys])
        return found

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """Run one script to its end; nothing else of this cell runs meanwhile.

        Lets others come first that are ready too: what is done for many calls in a row costs each of them less.
        """
        await asyncio.sleep(0)
        return self.run_now(name, args, pool=pool)

    def run_now(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """`run`, without a loop."""
        try:
            reply = self._functions[name](self._clock_us(), self._keys(name, pool), *encoded(args))
        except (self._error, struct.error) as exc:
            raise LedgerProtocolError(f"script {name} failed: {exc}") from exc
        return [int(value) if isinstance(value, float) else value for value in reply]
