"""The store, and what lies between it and the workers. Both do harm, as the plan of faults has it."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Sequence
from contextvars import copy_context
from typing import Protocol

from apikeyrouter.domain.models.system_error import LedgerError, LedgerRefusedError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply, encoded
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.scripts import load_library
from tests.faults.faults import LATE_US_MAX, Fault, Kind
from tests.faults.virtual_loop import VirtualLoop
from tests.ledger.support import CELL, NAMESPACE, START_US, STRUCTURES, cell_key

ANSWER_WITHIN_S = 0.15
SNAPSHOT_EVERY_US = 500_000
SNAPSHOTS_KEPT = 64
_SETS = ("D", "S", "G")
Words = tuple[bytes, ...]


_COPYING = b"""
local function copied(of)
  local twin = {}
  for name, value in pairs(of) do
    twin[name] = value
  end
  return twin
end
local function image(keys)
  local hashes, sets = {}, {}
  for at = 1, #keys do
    hashes[keys[at]] = copied(peek(keys[at]))
    local set = ranked()[keys[at]]
    if set then
      sets[keys[at]] = { first = set.first, last = set.last, order = copied(set.order), scores = copied(set.scores) }
    end
  end
  return { hashes = hashes, sets = sets }
end
local function be(what)
  flush()
  for key, entries in pairs(what.hashes) do
    for field, value in pairs(entries) do
      poke(key, field, value)
    end
  end
  for key, set in pairs(what.sets) do
    ranked()[key] = { first = set.first, last = set.last, order = copied(set.order), scores = copied(set.scores) }
  end
end
return image, be
"""
"""A cell's image, and a cell that becomes one, beside the engine's own tables: copies are made twice a second."""


class Witness(Protocol):
    """Who sees all that the store does, in the order in which it does it."""

    def executed(self, worker: str, name: str, words: Words, pool: str, reply: Reply, clock_us: int) -> None:
        """A script ran."""
        ...

    def broke(self, worker: str, name: str, error: LedgerError) -> None:
        """A script failed."""
        ...

    def remember(self) -> object:
        """What it knows of the store, to be given to `go_back`."""
        ...

    def go_back(self, to: object | None) -> None:
        """The store is as it was then; None: it is empty."""
        ...


class Store:
    """One cell, its clock, and copies of what it was."""

    def __init__(self, loop: VirtualLoop, witness: Witness, *, begins_us: int) -> None:
        self._loop, self._witness = loop, witness
        self.offset_us = begins_us
        self.engine = LocalEngine(namespace=NAMESPACE, cell=CELL, clock_us=self.clock)
        self._copies: deque[tuple[int, object, object]] = deque(maxlen=SNAPSHOTS_KEPT)
        self._image, self._be = self.engine._lua.compile(_COPYING)()
        self._keys = self.engine._lua.table_from([cell_key(name).encode() for name in STRUCTURES])
        self._scripts = load_library().scripts
        self.down = self.full = False

    def clock(self) -> int:
        return START_US + self._loop.now_us + self.offset_us

    def execute(self, worker: str, name: str, words: Words, pool: str) -> Reply | LedgerError:
        """Run a script, as a server would."""
        if self.full and not {"allow-oom", "no-writes"}.intersection(self._scripts[name].flags):
            return LedgerRefusedError("Redis refused: OOM command not allowed when used memory > 'maxmemory'")
        try:
            reply = self.engine.run_now(name, words, pool=pool)
        except LedgerError as exc:
            self._witness.broke(worker, name, exc)
            return exc
        self._witness.executed(worker, name, words, pool, reply, self.clock())
        return reply

    def copy(self) -> None:
        """Keep what it is now, as a replica or a file would."""
        self._copies.append((self._loop.now_us, self._image(self._keys), self._witness.remember()))

    def restore(self, before_us: int) -> bool:
        """Be what it was at the latest copy that is so old; whether there is one."""
        wanted = self._loop.now_us - before_us
        found = next((copy for copy in reversed(self._copies) if copy[0] <= wanted), None)
        if found is None:
            return False
        while self._copies and self._copies[-1][0] > found[0]:
            self._copies.pop()
        self._be(found[1])
        self._witness.go_back(found[2])
        return True

    def flush(self) -> None:
        """Forget everything."""
        self._copies.clear()
        self.engine.flush()
        self._witness.go_back(None)


def put_back(engine: LocalEngine, image: dict[str, dict[bytes, bytes]]) -> None:
    """Fill an engine that holds nothing with what a cell held."""
    doors = engine._lua.globals()
    poke, call = doors[b"poke"], doors[b"redis"][b"call"]
    for structure, entries in image.items():
        key = cell_key(structure).encode()
        for field, value in entries.items():
            if structure in _SETS:
                call(b"ZADD", key, float(value), field)
            else:
                poke(key, field, value)


class Network:
    """Carries requests to the store and replies back, or does not. Chance is drawn for each worker by itself.

    `ordered`: what one worker sends, and what it is answered, keeps its order, as on a connection: what is late holds
    up what comes after it.
    """

    def __init__(self, loop: VirtualLoop, store: Store, seed: str, *, ordered: bool) -> None:
        self.loop, self.store, self._seed, self.ordered = loop, store, seed, ordered
        self._last: Counter[tuple[int, bool]] = Counter()
        self.context = copy_context()
        self.under_way: dict[int, set[asyncio.Future[Reply]]] = {}
        self._active: list[Fault] = []
        self._odds: dict[tuple[Kind, int], int] = {}
        self._chances: dict[int, random.Random] = {}

    def begin(self, fault: Fault) -> None:
        """From now on, this fault."""
        self._active.append(fault)
        self._odds.clear()
        if fault.kind is Kind.CUT:
            for number, waiting in self.under_way.items():
                if fault.target in (-1, number):
                    self._last[number, True] = self._last[number, False] = 0
                    self._refuse(waiting, "connection lost: closed by the server")

    def end(self, fault: Fault) -> None:
        """No longer."""
        self._active.remove(fault)
        self._odds.clear()

    def odds(self, kind: Kind, number: int) -> int:
        """How many of a thousand messages of this worker meet that fault now."""
        if not self._active:
            return 0
        found = self._odds.get((kind, number))
        if found is None:
            values = (f.value or 1000 for f in self._active if f.kind is kind and f.target in (-1, number))
            found = self._odds[kind, number] = max(values, default=0)
        return found

    def _happens(self, kind: Kind, number: int) -> bool:
        """Whether this message meets that fault."""
        odds = self.odds(kind, number)
        return odds > 0 and self.chance(number).random() * 1000 < odds

    def chance(self, number: int) -> random.Random:
        """What is drawn for one worker's messages."""
        found = self._chances.get(number)
        if found is None:
            found = self._chances[number] = random.Random(f"{self._seed}/network/{number}")
        return found

    def send(
        self, worker: str, number: int, name: str, words: Words, pool: str, answer: "asyncio.Future[Reply]"
    ) -> None:
        """One request under way, and, it may be, a second time."""
        if self.store.down or self.odds(Kind.CUT, number):
            self._later(0, self._set_error, answer, "connection refused")
            return
        self.under_way.setdefault(number, set()).add(answer)
        if not self._happens(Kind.LOSE_REQUESTS, number) and not self.odds(Kind.SILENCE, number):
            self._next(number, self._arrive, worker, number, name, words, pool, answer)
        if self._happens(Kind.DUPLICATE, number):
            late_us = int(self.chance(number).random() * LATE_US_MAX)
            self._later(self._latency(number), self._arrive, worker, number, name, words, pool, answer)
            self._later(late_us, self._arrive, worker, number, name, words, pool, answer)

    def _arrive(
        self, worker: str, number: int, name: str, words: Words, pool: str, answer: "asyncio.Future[Reply]"
    ) -> None:
        if self.store.down or self.odds(Kind.SILENCE, number):
            return
        reply = self.store.execute(worker, name, words, pool)
        if not self._happens(Kind.LOSE_REPLIES, number):
            self._next(number, self._deliver, number, answer, reply)

    def _deliver(self, number: int, answer: "asyncio.Future[Reply]", reply: Reply | LedgerError) -> None:
        self.under_way[number].discard(answer)
        if answer.done() or self.odds(Kind.SILENCE, number):
            return
        if isinstance(reply, LedgerError):
            answer.set_exception(reply)
        else:
            answer.set_result(reply)

    def _latency(self, number: int) -> int:
        drawn = self.chance(number).random()
        late = self._happens(Kind.DELAY, number)
        return int(drawn * LATE_US_MAX) if late else 100 + int(drawn * 1900)

    def _next(self, number: int, work: object, *words: object) -> None:
        """After its latency; on a connection not before what was sent that way before."""
        due_us = self.loop.now_us + self._latency(number)
        if self.ordered:
            way = (number, work == self._arrive)
            due_us = self._last[way] = max(due_us, self._last[way])
        self._later(due_us - self.loop.now_us, work, *words)

    def _later(self, after_us: int, work: object, *words: object) -> None:
        self.loop.call_at((self.loop.now_us + after_us) / 1e6, work, *words, context=self.context)  # type: ignore[arg-type]

    def _set_error(self, answer: "asyncio.Future[Reply]", why: str) -> None:
        if not answer.done():
            answer.set_exception(LedgerUnavailableError(f"Redis: {why}"))

    def _refuse(self, waiting: "set[asyncio.Future[Reply]]", why: str) -> None:
        for answer in list(waiting):
            self._set_error(answer, why)
        waiting.clear()


class Line:
    """A worker's engine: one connection to the store."""

    def __init__(self, network: Network, worker: str, number: int) -> None:
        self._network, self._worker, self._number = network, worker, number

    async def open(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """Ask, and wait no longer than the deadline."""
        loop = self._network.loop
        answer: asyncio.Future[Reply] = loop.create_future()
        self._network.send(self._worker, self._number, name, tuple(encoded(args)), pool, answer)
        timer = loop.call_later(ANSWER_WITHIN_S, _expire, answer)
        try:
            return await answer
        finally:
            timer.cancel()
            self._network.under_way.get(self._number, set()).discard(answer)


def _expire(answer: "asyncio.Future[Reply]") -> None:
    if not answer.done():
        answer.set_exception(LedgerUnavailableError("Redis did not answer within the deadline"))
