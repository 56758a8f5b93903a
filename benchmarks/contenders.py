"""Who chooses: the routing code over a real ledger in virtual time, and what people do without one."""

import random
from collections.abc import Callable, Sequence
from decimal import Decimal

from apikeyrouter.domain.components.capacity import CapacityWatch
from apikeyrouter.domain.components.catalogue import Catalogue, Key, ModelPool, Provider, key_lane, provider_lane
from apikeyrouter.domain.components.circuits import KEY_BREAKER, PROVIDER_BREAKER
from apikeyrouter.domain.components.objectives import Strategies
from apikeyrouter.domain.components.pool import Option, Snapshot
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.accounting import LaneConfig, Limit, LimitKind, Metric, Settlement
from apikeyrouter.domain.models.accounting import Outcome as Evidence
from apikeyrouter.domain.models.api_key import KeyMaterial
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.serving.admission import Admissions, Admitted
from apikeyrouter.serving.requests import parsed_for
from benchmarks.routing_world import WAYS, Denied, Outcome, Shape, Way, World

__all__ = ["BASELINES", "Baseline", "Routed"]

MODEL = "simulated"
LEASE_US = 120_000_000
COOL_SECONDS = 5.0
_BY_NAME = {way.name: way for way in WAYS}


class Routed:
    """The router's own choice: its orders, its admission, its ledger, its health counts, its quota levels."""

    def __init__(self, world: World, objective: RoutingObjective) -> None:
        self._world = world
        self._ledger = ScriptLedger(LocalEngine(clock_us=lambda: world.now_us))
        self._catalogue, self._snapshot = Catalogue(PriceBook()), Snapshot()
        self._estimator, self._watch = TokenEstimator(), CapacityWatch()
        self._admissions = Admissions(
            self._ledger, self._catalogue, self._estimator, self._snapshot, lease_us=LEASE_US, clock=lambda: world.now
        )
        self._plan = Strategies(lambda name, found: None).compile(objective)
        self._open: dict[tuple[int, str], Admitted] = {}
        self._parsed: dict[Shape, ParsedRequest] = {}
        adapter = OpenAIAdapter("http://127.0.0.1:1/v1")
        for way in WAYS:
            self._declare(way, adapter)
        self._catalogue.replace_model_pools({way.name: [ModelPool(lane=f"g:{way.name}")] for way in WAYS})

    def _declare(self, way: Way, adapter: OpenAIAdapter) -> None:
        catalogue, name = self._catalogue, way.name
        catalogue.providers[name] = Provider(id=name, adapter=adapter, wire=adapter.wire)
        catalogue.prices.add(name, MODEL, input=Decimal(str(way.input_usd)), output=Decimal(str(way.output_usd)))
        material = KeyMaterial(f"sk-{name}", key_id=name)
        catalogue.put_keys([Key(id=name, provider_id=name, material=material, quota_group=name, weight=way.weight)])

    async def open(self) -> "Routed":
        """Make the cell and its lanes."""
        await self._ledger.open()
        lanes = []
        for way in WAYS:
            limit = Limit(
                name="rpm", metric=Metric.REQUESTS, kind=LimitKind.BUCKET, amount=way.rpm, burst=way.burst,
                headroom=0.02,
            )  # fmt: skip
            lanes += [
                LaneConfig(id=key_lane(way.name), breaker=KEY_BREAKER),
                LaneConfig(id=f"g:{way.name}", limits=(limit,)),
                LaneConfig(id=provider_lane(way.name), breaker=PROVIDER_BREAKER),
            ]
        await self._ledger.put(lanes=lanes)
        return self

    async def choose(self, request: int, shape: Shape, tried: Sequence[str]) -> Way | Denied:
        """Admit the request with what it has not tried yet."""
        call = Call(
            request_id=f"r{request}", operation="chat", model=MODEL, stream=False, started=0.0, dialect="openai",
            parsed=self._request(shape),
        )  # fmt: skip
        pool = self._catalogue.pool(MODEL, None, "openai")
        skip: list[Option] = [option for option in pool.options if option.key.id in tried]
        found = await self._admissions.admit(call, pool, parsed_for(call), plan=self._plan, skip=skip, version=0)
        if not isinstance(found, Admitted):
            return Denied()
        name = found.option.key.id
        found.option.key.under_way += 1
        self._open[request, name] = found
        return _BY_NAME[name]

    async def ended(self, request: int, shape: Shape, way: Way, outcome: Outcome) -> None:
        """Settle or release, and note what was seen."""
        admitted, now = self._open.pop((request, way.name)), self._world.now
        option, rid = admitted.option, admitted.request.rid
        option.key.under_way -= 1
        if outcome.kind == "ok":
            usage = Usage(input_tokens=shape.input_tokens, output_tokens=shape.output_tokens)
            assert option.price is not None
            await self._ledger.settle(
                Settlement(
                    rid=rid, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens,
                    cost_nanousd=option.price.cost(usage), outcome=Evidence.SUCCESS,
                    latency_us=int(outcome.seconds * 1e6),
                )
            )  # fmt: skip
            self._estimator.learn(way.name, MODEL, shape=admitted.estimate.shape, choices=1, usage=usage)
            option.seen.answered(outcome.seconds * 1e6, stream=False, now=now)
            option.seen.judged(float(outcome.good), now)
            return
        failed = outcome.kind == "failed"
        await self._ledger.release(rid, sent=True, failed_lanes=int(failed), latency_us=int(outcome.seconds * 1e6))
        if not failed:
            await self._ledger.record(f"g:{way.name}", blocked_for_us=int(COOL_SECONDS * 1e6))
            self._snapshot.blocked[f"g:{way.name}"] = now + COOL_SECONDS

    async def tick(self) -> None:
        """Look at the lanes, as housekeeping does."""
        lanes = await self._ledger.lanes(self._catalogue.lane_ids())
        levels = self._watch.see(lanes, self._world.now_us)
        self._snapshot.take(lanes, now=self._world.now, now_us=self._world.now_us, levels=levels)

    def _request(self, shape: Shape) -> ParsedRequest:
        if shape not in self._parsed:
            size = shape.input_tokens * 4
            self._parsed[shape] = ParsedRequest(
                model=MODEL, stream=False, choices=1, max_output_tokens=shape.cap, input_bytes=size, messages=1,
                extra_tokens=0, unbounded=False, include_usage=True, fields={}, text_bytes=size,
            )  # fmt: skip
        return self._parsed[shape]


Choice = Callable[["Baseline", list[Way]], Way]


class Baseline:
    """A choice without a ledger: what has failed for this request is not tried again, and nothing else is known."""

    def __init__(self, world: World, seed: int, choice: Choice) -> None:
        self.world, self.random, self._choice = world, random.Random(f"{seed}/baseline"), choice
        self.turn = 0
        self.used: dict[str, int] = dict.fromkeys(_BY_NAME, 0)

    async def choose(self, request: int, shape: Shape, tried: Sequence[str]) -> Way | Denied:
        """One of those that were not tried."""
        way = self._choice(self, [way for way in WAYS if way.name not in tried])
        self.used[way.name] += 1
        return way

    async def ended(self, request: int, shape: Shape, way: Way, outcome: Outcome) -> None:
        """Learn nothing."""

    async def tick(self) -> None:
        """Forget what was used a minute ago, about."""
        if int(self.world.now / 60) != int((self.world.now - 0.25) / 60):
            self.used = dict.fromkeys(_BY_NAME, 0)


def _at_random(baseline: Baseline, ways: list[Way]) -> Way:
    return baseline.random.choice(ways)


def _round_robin(baseline: Baseline, ways: list[Way]) -> Way:
    baseline.turn += 1
    return ways[baseline.turn % len(ways)]


def _least_used(baseline: Baseline, ways: list[Way]) -> Way:
    return min(ways, key=lambda way: (baseline.world.in_flight[way.name], baseline.used[way.name]))


BASELINES: dict[str, Choice] = {"random": _at_random, "round-robin": _round_robin, "least-used": _least_used}
