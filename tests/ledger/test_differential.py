"""Both engines run the same files: they must answer alike, reply for reply, and as the oracle does.

`AKR_LONG=1` runs more than 10⁵ operations on each server instead of some thousands.
"""

import os
import struct
from collections import Counter
from collections.abc import Iterator
from itertools import chain, zip_longest

import pytest

from apikeyrouter.domain.models.accounting import Breaker, LaneConfig, Outcome, Reason
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.encoding import lane_entry
from apikeyrouter.infrastructure.ledger.engine import Reply
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.scripts import SCRIPT_NAMES
from tests.ledger.cells import VirtualRedis, local_engine, require_same
from tests.ledger.histories import Call, Event, Flush, History, Offer, Schema, Wind, Wish, used_words
from tests.ledger.oracle import Answer, AnyOf, Oracle
from tests.ledger.support import HOUR, SECOND, Clock, cell_key, window
from tests.servers import Server

LONG = os.environ.get("AKR_LONG") == "1"
HISTORIES = 56 if LONG else 6
EVENTS = 2_400 if LONG else 1_200
FIRST_SEED = 1_000

COMMON = {Code.OK, Code.NO_CELL, Code.BAD_SCHEMA}
CODES = {
    "open": {Code.OK, Code.CONFLICT, Code.BAD_SCHEMA, Code.BAD_ARGUMENT},
    "grant": COMMON | {Code.CONFLICT, Code.UNKNOWN_SCOPE, Code.CALENDAR_NEEDED, Code.BAD_ARGUMENT},
    "fund": COMMON | {Code.CONFLICT, Code.UNKNOWN_SCOPE, Code.CALENDAR_NEEDED, Code.BAD_ARGUMENT},
    "configure": COMMON | {Code.CONFLICT, Code.BAD_ARGUMENT},
    "reserve": (COMMON - {Code.OK}) | {
        Code.ADMITTED, Code.REPLAYED, Code.DENIED, Code.CONFLICT, Code.STALE_CONFIG, Code.UNKNOWN_SCOPE,
        Code.CALENDAR_NEEDED, Code.BAD_ARGUMENT,
    },
    "settle": COMMON | {Code.CALENDAR_NEEDED, Code.BAD_ARGUMENT},
    "release": COMMON | {Code.REPLAYED, Code.CONFLICT, Code.UNMATCHED, Code.CALENDAR_NEEDED, Code.BAD_ARGUMENT},
    "cancel": COMMON | {Code.REPLAYED, Code.CONFLICT, Code.CALENDAR_NEEDED},
    "reassert": COMMON | {
        Code.REPLAYED, Code.CONFLICT, Code.UNKNOWN_SCOPE, Code.CALENDAR_NEEDED, Code.BAD_ARGUMENT,
    },
    "renew": COMMON | {Code.BAD_ARGUMENT},
    "acknowledge": COMMON | {Code.BAD_ARGUMENT},
    "sweep": COMMON | {Code.CALENDAR_NEEDED},
    "record": COMMON | {Code.CALENDAR_NEEDED, Code.BAD_ARGUMENT},
    "suspect": COMMON,
    "claim": COMMON | {Code.BAD_ARGUMENT},
    "forgot": COMMON | {Code.REPLAYED, Code.BAD_ARGUMENT},
    "snapshot": COMMON | {Code.BAD_ARGUMENT},
    "audit": COMMON | {Code.BAD_ARGUMENT},
}  # fmt: skip
"""Every code that a script's header names."""
SETTLED_ONE_BY_ONE = {Code.OK, Code.REPLAYED, Code.CONFLICT, Code.UNMATCHED}


CHARGE = (1, 1, 2, 0, 0)


class Seen:
    """What a history has reached: codes by script, those of single settlements, and reasons of denials."""

    def __init__(self) -> None:
        self.runs = 0
        self.codes: dict[str, Counter[object]] = {name: Counter() for name in SCRIPT_NAMES}
        self.settlements: Counter[object] = Counter()
        self.reasons: Counter[object] = Counter()

    def note(self, name: str, reply: Reply) -> None:
        self.runs += 1
        self.codes[name][reply[0]] += 1
        if name == "settle" and reply[0] == Code.OK:
            self.settlements.update(reply[5::2])
        if name == "reserve" and reply[0] == Code.DENIED:
            self.reasons.update(reply[6::5])


class Pair:
    """A cell in this process under LuaJIT and under Lua, the same on a server, and the oracle: what happens, happens to
    each."""

    def __init__(self, server: VirtualRedis, local: LocalEngine, clock: Clock, seen: Seen) -> None:
        self.server, self.local, self.clock, self.seen = server, local, clock, seen
        self.plain = local_engine(clock, jit=False)
        self.oracle = Oracle()

    async def happen(self, event: Event, *, what: str) -> None:
        match event:
            case Wind(now_us):
                self.clock.now_us = now_us
            case Flush(scripts_only=True):
                self.server.client.function_flush()
            case Flush():
                self.server.client.flushdb()
                self.local.flush()
                self.plain.flush()
                self.oracle.forget()
            case Schema(ours):
                self.mark(ours=ours)
            case Call():
                await self.call(event, what)

    async def call(self, call: Call, what: str) -> None:
        answer = self.oracle.run(call.name, call.args, pool=call.pool, now=self.clock.now_us)
        here = self.local.run_now(call.name, call.args, pool=call.pool)
        there = await self.server.run(call.name, call.args, pool=call.pool)
        for other in (there, self.plain.run_now(call.name, call.args, pool=call.pool)):
            assert _firm(answer, here) == _firm(answer, other), f"{what} {call}"
            require_same(answer, other, what=f"{what} {call}")
        require_same(answer, here, what=f"{what} {call}")
        self.seen.note(call.name, here)

    def mark(self, *, ours: bool) -> None:
        """Make the cell another version's, or ours again."""
        if not self.oracle.exists:
            return
        self.oracle.schema_is_ours = ours
        key = cell_key("L")
        peek = self.local._lua.globals()[b"peek"]
        marked = struct.pack("<d", 4 if ours else 3) + bytes(peek(key.encode())[b""])[8:]
        for engine in (self.local, self.plain):
            engine._lua.globals()[b"poke"](key.encode(), b"", marked)
        self.server.client.hset(key, "", marked)


def _firm(answer: Answer, reply: Reply) -> list[object]:
    """A reply without the places in which several values are right."""
    return [value for wanted, value in zip_longest(answer, reply) if not isinstance(wanted, AnyOf)]


@pytest.mark.timeout(1800 if LONG else 300)
async def test_both_engines_answer_as_the_oracle_does_through_random_histories(any_server: Server) -> None:
    seen = Seen()
    for seed in range(FIRST_SEED, FIRST_SEED + HISTORIES):
        await run_history(any_server, seed, EVENTS, seen)
    assert seen.runs >= (100_000 if LONG else 6_000)
    unseen = {name: wanted - seen.codes[name].keys() for name, wanted in CODES.items()}
    assert not any(unseen.values()), unseen
    unexpected = {name: seen.codes[name].keys() - wanted for name, wanted in CODES.items()}
    assert not any(unexpected.values()), unexpected
    assert SETTLED_ONE_BY_ONE - seen.settlements.keys() == set()
    assert set(Reason) - seen.reasons.keys() == set()


def what_chance_may_miss(history: History) -> Iterator[Event]:
    """A greedy principal beside a modest one; a lane that breaks, its one probe; what is done twice."""
    yield put(LaneConfig(id="crowded", limits=(window(6),), fair=True))
    for principal in ("modest", *["greedy"] * 8, "modest"):
        yield ask("crowded", history.new_rid(), principal)
    yield put(LaneConfig(id="frail", breaker=Breaker(failures=1, open_us=SECOND)))
    first, probe = history.new_rid(), history.new_rid()
    yield ask("frail", first)
    yield Call("settle", used_words(first, 1, 1, 1, int(Outcome.FAILURE), 1, 0))
    yield ask("frail", history.new_rid())
    yield history.wind(history.now_us + SECOND)
    yield ask("frail", probe)
    yield ask("frail", probe)
    yield ask("frail", history.new_rid())
    again = history.new_rid()
    for call in (
        Call("release", [probe, 1, 0, 0]),
        Wish(rid=again, lease_us=HOUR, charges=(CHARGE,), offers=(Offer(("frail",)),)).reassert(),
        Call("cancel", [again]),
    ):
        yield call
        yield call


def put(lane: LaneConfig) -> Call:
    field, numbers = lane_entry(lane)
    return Call("configure", ["put", 0, field, len(numbers), *numbers])


def ask(lane: str, rid: bytes, principal: str = "") -> Call:
    offers = (Offer((lane,)),)
    return Wish(rid=rid, lease_us=HOUR, principal=principal, pool="crowd", charges=(CHARGE,), offers=offers).reserve()


async def run_history(server: Server, seed: int, events: int, seen: Seen) -> None:
    server.flush()
    clock = Clock()
    pair = Pair(VirtualRedis(server.unix_url or server.url, clock), local_engine(clock), clock, seen)
    await pair.server.open()
    try:
        history = History(seed, clock.now_us)
        for number, event in enumerate(chain(history.events(events), what_chance_may_miss(history))):
            await pair.happen(event, what=f"seed {seed}, event {number}:")
    finally:
        await pair.server.close()
