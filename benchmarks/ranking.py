"""What it costs to choose, by the number of keys: flat, for orders are built when lanes move, and not per request."""

import asyncio
import math
import time

from apikeyrouter.domain.components.catalogue import Catalogue, Key, Provider, key_lane
from apikeyrouter.domain.components.objectives import Plan, Strategies
from apikeyrouter.domain.components.pool import Pool, Snapshot
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.models.accounting import Admission, LaneState, ReserveRequest, Stamp
from apikeyrouter.domain.models.api_key import KeyMaterial, KeyState
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.serving.admission import Admissions, Admitted
from apikeyrouter.serving.requests import parsed_for
from apikeyrouter_proxy.runtime import settle_garbage_collector
from benchmarks.payload import MODEL, request_body
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section
from benchmarks.samples import Spread

__all__ = ["measure_ranking"]

KEYS = (3, 8, 100, 10_000)
OBJECTIVES = ("fairness", "cost", "reliability", "latency", "quality")
REQUESTS_PER_TICK = 1_000
"""Between two looks at the lanes: 4,000 requests a second, as one worker serves them."""
LANES_PER_TICK = 2_048
OPTIONS_PER_TICK = 2_560
TICKS, TICKS_QUICK = 24, 6
LOOKS_A_SECOND = 4
MOVES = 50
FLAT = 1.3
_STAMP = Stamp(epoch=1, seq=1, now_us=1, config_version=0)


class _AtOnce:
    """A ledger that admits the first candidate: what is measured is what comes before it."""

    async def reserve(self, request: ReserveRequest) -> Admission:
        """Admit."""
        return Admission(
            stamp=_STAMP, rid=request.rid, index=0, deadline_us=0, probe=False, soft_exceeded=(), losses=(),
            replayed=False,
        )  # fmt: skip


class _Scene:
    """So many keys whose lanes keep moving, and requests for them."""

    def __init__(self, count: int) -> None:
        self.catalogue, self.snapshot, self.count = Catalogue(PriceBook.load()), Snapshot(), count
        adapter = OpenAIAdapter("http://127.0.0.1:1/v1")
        self.catalogue.providers["openai"] = Provider(id="openai", adapter=adapter, wire=adapter.wire)
        for number in range(count):
            name = f"k{number}"
            material = KeyMaterial(f"sk-{name}", key_id=name)
            self.catalogue.keys[name] = Key(
                id=name, provider_id="openai", material=material, quota_group=f"g{number // 8}"
            )
        self.pool: Pool = self.catalogue.pool(MODEL, None, "")
        self.admissions = Admissions(_AtOnce(), self.catalogue, TokenEstimator(), self.snapshot, lease_us=0)
        self.parsed = adapter.wire.parse(request_body(), operation="chat")
        self._tick = 0

    def look(self) -> None:
        """The lanes have moved; what requests found to be out of date is renewed, as housekeeping does it."""
        self._tick += 1
        start = self._tick * LANES_PER_TICK % self.count if self.count > LANES_PER_TICK else 0
        numbers = range(start, min(self.count, start + LANES_PER_TICK))
        self.snapshot.take([_lane(number, self._tick) for number in numbers], now=time.perf_counter(), now_us=0)

    def renew(self) -> None:
        """Renew what requests found to be out of date, as housekeeping does it."""
        for pool, which in list(self.snapshot.wanted):
            if pool.renew(which, self.snapshot, time.perf_counter(), OPTIONS_PER_TICK):
                del self.snapshot.wanted[pool, which]

    async def serve(self, plan: Plan, requests: int) -> None:
        """Admit so many requests. Errors: ProofError when one was not."""
        for _ in range(requests):
            call = Call(
                request_id="req", operation="chat", model=MODEL, stream=False, started=0.0, dialect="openai",
                parsed=self.parsed,
            )  # fmt: skip
            found = await self.admissions.admit(call, self.pool, parsed_for(call), plan=plan, skip=(), version=0)
            if not isinstance(found, Admitted):
                raise ProofError(f"{self.count} keys: a request was not admitted")


def measure_ranking(*, quick: bool = False) -> Section:
    """CPU per request from its pool to the reserve. Errors: ProofError."""
    ticks = TICKS_QUICK if quick else TICKS
    settle_garbage_collector()
    section = Section(title="Choosing among keys, µs of CPU per request before the reserve")
    strategies = Strategies(lambda name, found: None)
    scenes = [_Scene(count) for count in KEYS]
    for name in OBJECTIVES:
        plan = strategies.compile(RoutingObjective(name))
        told = [_measured(scene, plan, ticks) for scene in scenes]
        few, eight = told[0][0].median, told[1][0].median
        for scene, (serving, building) in zip(scenes, told, strict=True):
            ratio = serving.median / few
            measured = serving.text("µs", digits=1) + f", orders behind it {building}"
            if ratio != 1.0:
                measured += f"; {ratio:.2f} × {KEYS[0]} keys, {serving.median / eight:.2f} × {KEYS[1]} keys"
            section.figures.append(
                Figure(
                    name=f"{name}, {scene.count:,} keys", measured=measured,
                    budget=f"≤ {FLAT} × that of {KEYS[0]} keys" if ratio != 1.0 else "",
                    holds=ratio <= FLAT if ratio != 1.0 else None,
                )
            )  # fmt: skip
    section.figures += [_moves(scene, strategies.compile(RoutingObjective("fairness"))) for scene in scenes]
    section.notes.append(
        f"{REQUESTS_PER_TICK:,} requests between two looks at the lanes, {LANES_PER_TICK:,} of which have moved then;"
        f" eight candidates a request, of three keys three: what eight cost more is in the ratio to {KEYS[0]} keys;"
        f" {ticks} looks; the garbage collector as in a worker"
    )
    return section


def _moves(scene: _Scene, plan: Plan) -> Figure:
    """What a key's change of state costs here: the pools put right, and the first request after it."""
    key, told = scene.catalogue.keys["k1"], []
    for number in range(2 * MOVES):
        scene.renew()
        before = time.process_time_ns()
        key.state = KeyState.Available if number % 2 else KeyState.Disabled
        scene.catalogue.state_changed(key.id)
        scene.catalogue.pool(MODEL, None, "").rank(plan, 8, snapshot=scene.snapshot, now=time.perf_counter())
        told.append((time.process_time_ns() - before) / 1e3)
    return Figure(
        name=f"a key goes or comes back, and the next request, {scene.count:,} keys",
        measured=Spread.of(told).text("µs", digits=1),
    )


def _measured(scene: _Scene, plan: Plan, ticks: int) -> tuple[Spread, str]:
    """µs per request, and what orders take beside them."""
    serving, building = [], []
    for number in range(ticks + 2):
        scene.look()
        before = time.process_time()
        asyncio.run(scene.serve(plan, REQUESTS_PER_TICK))
        between = time.process_time()
        scene.renew()
        if number >= 2:
            serving.append((between - before) / REQUESTS_PER_TICK * 1e6)
            building.append((time.process_time() - between) * 1e3)
    beside = f"{math.fsum(building) / ticks * LOOKS_A_SECOND:.1f} ms a second, at most {max(building):.1f} ms at a time"
    return Spread.of(serving), beside


def _lane(number: int, tick: int) -> LaneState:
    return LaneState(
        id=key_lane(f"k{number}"), seq=tick, in_flight=number % 3, blocked_until_us=0, breaker="closed",
        breaker_until_us=0, successes=50 + (number * 7 + tick) % 50, failures=(number + tick) % 3,
        latency_us=1000 + (number * 37 + tick * 11) % 900, requests_total=100, failures_total=1, last_used_us=0,
        limits=(),
    )  # fmt: skip
