"""The scripts in this process: LuaJIT, or Lua 5.1, over hashes in Lua tables and sorted sets in Python.

The same files that Redis runs, so that a router without a server has the same accounting, not a second
implementation. A differential test holds both engines equal, reply for reply.
"""

import contextlib
import struct
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from typing import Any

from apikeyrouter.domain.models.system_error import LedgerProtocolError
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply, cell_keys, encoded
from apikeyrouter.infrastructure.ledger.scripts import load_library

_PRELUDE = b"""
local clock, zset, pack, unpack_struct = ...
local hashes = {}
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
  local now = clock()
  return { string.format('%.0f', math.floor(now / 1000000)), string.format('%.0f', now % 1000000) }
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
  hashes[key] = nil
  return zset.DEL(key)
end
commands.UNLINK = commands.DEL
for _, name in ipairs({ 'ZADD', 'ZREM', 'ZCARD', 'ZSCORE', 'ZMSCORE', 'ZRANGE', 'ZRANGEBYSCORE' }) do
  commands[name] = zset[name]
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
  hashes = {}
end
function poke(key, field, value)
  hash(key)[field] = value
end
function peek(key)
  return hash(key)
end
function load(chunk, name)
  assert(loadstring(chunk, '@' .. name))()
end
function callable(name)
  local run = functions[name]
  return function(keys, ...)
    return unpack(run(keys, { ... }))
  end
end
setmetatable(_G, {
  __index = function(_, name) error('access to undefined global ' .. name) end,
  __newindex = function(_, name) error('write to global ' .. name) end,
})
"""
_CACHE_MAX = 64


class _SortedSets:
    """Sorted sets as Redis has them: members in order of (score, member)."""

    def __init__(self, table_from: Callable[[list[Any]], Any]) -> None:
        self._table = table_from
        self._orders: dict[bytes, list[tuple[float, bytes]]] = {}
        self._scores: dict[bytes, dict[bytes, float]] = {}

    def clear(self) -> None:
        self._orders.clear()
        self._scores.clear()

    def commands(self) -> dict[bytes, Callable[..., Any]]:
        return {
            b"ZADD": self.add, b"ZREM": self.remove, b"ZCARD": self.count, b"ZSCORE": self.score,
            b"ZMSCORE": self.scores, b"ZRANGE": self.range, b"ZRANGEBYSCORE": self.due, b"DEL": self.delete,
        }  # fmt: skip

    def add(self, key: bytes, *rest: Any) -> int:
        words = list(rest)
        flags: set[bytes] = set()
        while words and words[0] in (b"XX", b"GT", b"LT"):
            flags.add(words.pop(0))
        order, scores = self._orders.setdefault(key, []), self._scores.setdefault(key, {})
        for raw, member in zip(words[::2], words[1::2], strict=True):
            score, old = float(raw), scores.get(member)
            if old is None and b"XX" in flags:
                continue
            if old is not None:
                if (b"GT" in flags and score <= old) or (b"LT" in flags and score >= old):
                    continue
                del order[bisect_left(order, (old, member))]
            scores[member] = score
            insort(order, (score, member))
        return 0

    def remove(self, key: bytes, *members: bytes) -> int:
        order, scores = self._orders.get(key, []), self._scores.get(key, {})
        for member in members:
            score = scores.pop(member, None)
            if score is not None:
                del order[bisect_left(order, (score, member))]
        return 0

    def delete(self, key: bytes) -> int:
        self._orders.pop(key, None)
        self._scores.pop(key, None)
        return 0

    def count(self, key: bytes) -> int:
        return len(self._orders.get(key, ()))

    def score(self, key: bytes, member: bytes) -> bytes | bool:
        found = self._scores.get(key, {}).get(member)
        return False if found is None else _number_text(found)

    def scores(self, key: bytes, *members: bytes) -> Any:
        return self._table([self.score(key, member) for member in members])

    def range(self, key: bytes, first: float, last: float, *options: bytes) -> Any:
        found = self._orders.get(key, [])[int(first) : int(last) + 1]
        if options:
            return self._table([part for score, member in found for part in (member, _number_text(score))])
        return self._table([member for _, member in found])

    def due(self, key: bytes, low: float, high: float, _limit: bytes, _offset: float, most: float) -> Any:
        order = self._orders.get(key, [])
        start = bisect_left(order, float(low), key=lambda pair: pair[0])
        end = min(bisect_right(order, float(high), key=lambda pair: pair[0]), start + int(most))
        return self._table([member for _, member in islice(order, start, end)])


def _number_text(value: float) -> bytes:
    return (b"%d" % int(value)) if value == int(value) else repr(value).encode()


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
        self._sets = _SortedSets(self._lua.table_from)
        clock = clock_us or (lambda: time.time_ns() // 1000)
        self._lua.compile(_PRELUDE)(clock, self._lua.table_from(self._sets.commands()), _pack, _unpack)
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
        self._sets.clear()

    def _keys(self, name: str, pool: str) -> Any:
        found = self._key_tables.get((name, pool))
        if found is None:
            if len(self._key_tables) > _CACHE_MAX * len(self._scripts):
                self._key_tables.clear()
            keys = cell_keys(self._namespace, self._cell, self._scripts[name].keys, pool=pool)
            found = self._key_tables[name, pool] = self._lua.table_from([key.encode() for key in keys])
        return found

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """Run one script to its end; nothing else of this cell runs meanwhile."""
        return self.run_now(name, args, pool=pool)

    def run_now(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """`run`, without a loop."""
        try:
            reply = self._functions[name](self._keys(name, pool), *encoded(args))
        except (self._error, struct.error) as exc:
            raise LedgerProtocolError(f"script {name} failed: {exc}") from exc
        return [int(value) if isinstance(value, float) else value for value in reply]
