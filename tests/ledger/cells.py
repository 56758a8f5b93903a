"""Cells to test: engines with a clock that tests set, the oracle beside them, and replies compared."""

from collections.abc import Sequence
from typing import cast

import redis

from apikeyrouter.domain.models.accounting import LaneState, ScopeState
from apikeyrouter.infrastructure.ledger.engine import Argument, Engine, Reply
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.records import ReservationRecord, read_lane, read_reservation, read_scope
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.ledger.oracle import Answer, AnyOf, Oracle
from tests.ledger.support import CELL, NAMESPACE, Clock, cell_key


class VirtualRedis:
    """The scripts on a server, under a clock that the test sets."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.engine = RedisEngine(url, namespace=NAMESPACE, cell=CELL, timeout_s=20.0, virtual_time=True)
        self.client = redis.Redis.from_url(url)
        self._clock = clock

    async def open(self) -> None:
        await self.engine.open()

    async def close(self) -> None:
        await self.engine.close()
        self.client.close()

    def tick(self) -> None:
        """Tell the server what time it is now."""
        self.client.hset(cell_key("L"), "\nvirtual_now", str(self._clock.now_us))

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        self.tick()
        return await self.engine.run(name, args, pool=pool)


class Witnessed:
    """An engine whose every reply must be the oracle's."""

    def __init__(self, engine: Engine, clock: Clock, oracle: Oracle | None = None) -> None:
        self.engine, self.clock, self.oracle = engine, clock, oracle or Oracle()
        self.runs = 0

    async def open(self) -> None:
        await self.engine.open()

    async def close(self) -> None:
        await self.engine.close()

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        reply = await self.engine.run(name, args, pool=pool)
        answer = self.oracle.run(name, args, pool=pool, now=self.clock.now_us)
        require_same(answer, reply, what=f"{name} {list(args)}")
        self.runs += 1
        return reply


def local_engine(clock: Clock, *, jit: bool = True) -> LocalEngine:
    """The in-process engine under the test's clock."""
    return LocalEngine(namespace=NAMESPACE, cell=CELL, clock_us=clock, jit=jit)


def ledger_over(engine: Engine) -> ScriptLedger:
    """A ledger that does not repeat itself: tests repeat."""
    return ScriptLedger(engine, tries=1)


def require_same(answer: Answer, reply: Reply, *, what: str) -> None:
    """Fail with what differs when a reply is not the answer."""
    differences = differences_of(answer, reply)
    assert not differences, "\n".join([what, *differences])


def differences_of(answer: Answer, reply: Reply) -> list[str]:
    """Each place where a reply, its records read, is not the answer."""
    if len(answer) != len(reply):
        return [f"  oracle: {answer}", f"  script: {reply}"]
    found = []
    for place, (wanted, value) in enumerate(zip(answer, reply, strict=True)):
        told = _read(wanted, value, reply)
        if told not in wanted.values if isinstance(wanted, AnyOf) else told != wanted:
            found.append(f"  [{place}] oracle: {wanted}\n  [{place}] script: {told}")
    return found


def _read(wanted: object, value: object, reply: Reply) -> object:
    if isinstance(wanted, LaneState):
        return read_lane(wanted.id, cast("bytes", value), now_us=cast("int", reply[3]))
    if isinstance(wanted, ScopeState):
        return read_scope(wanted.id, cast("bytes", value))
    if isinstance(wanted, ReservationRecord):
        return read_reservation(wanted.rid, cast("bytes", value))
    return value
