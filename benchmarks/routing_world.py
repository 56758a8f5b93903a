"""A world of keys that differ, in virtual time: what each costs, how fast it answers, how often it fails, its limit.

Every contender meets the same requests with the same luck: what becomes of request n with key k is drawn once.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["RATE_PER_SECOND", "WAYS", "Contender", "Denied", "Ending", "Outcome", "Shape", "Told", "Way", "World"]

ATTEMPTS_MAX = 3
REFUSED_SECONDS = 0.05
"""How fast a provider says 429."""
TICK_SECONDS = 0.25
RATE_PER_SECOND = 15.0
SLOW_AT = 100.0
"""Requests in flight at which a key takes twice as long."""
SPREAD = 0.3
"""Sigma of the lognormal latencies."""


@dataclass(frozen=True, slots=True)
class Way:
    """One key. Prices in dollars per million tokens; `failure`, `good`: shares; `rpm`: what its provider admits."""

    name: str
    input_usd: float
    output_usd: float
    latency_seconds: float
    failure: float
    good: float
    rpm: int
    weight: float = 1.0

    @property
    def burst(self) -> int:
        """Requests at once: ten seconds' worth."""
        return max(1, self.rpm // 6)


WAYS = (
    Way("reads-cheap", 0.15, 0.60, 1.2, 0.010, 0.90, 300),
    Way("writes-cheap", 0.40, 0.30, 0.9, 0.020, 0.92, 300),
    Way("cheap-small", 0.08, 0.20, 2.5, 0.080, 0.70, 30),
    Way("fast-dear", 2.50, 10.0, 0.25, 0.030, 0.95, 600, weight=2.0),
    Way("sound", 1.00, 4.00, 0.6, 0.001, 0.93, 600, weight=2.0),
    Way("good-slow", 3.00, 15.0, 1.8, 0.010, 0.995, 300),
    Way("flaky", 0.50, 1.50, 0.5, 0.250, 0.85, 300),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of request, in tokens; `cap` is the client's own."""

    input_tokens: int
    output_tokens: int
    cap: int


SHAPES = (Shape(3000, 80, 100), Shape(150, 900, 1200))
"""Long questions with short answers, and the other way round: which key is cheapest depends on it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one attempt. `kind`: ok, failed, or refused (429)."""

    kind: str
    seconds: float
    good: bool


class Denied:
    """Nothing had room."""


class Contender(Protocol):
    """A way to choose. `tried` are the names of the ways that this request has tried."""

    async def choose(self, request: int, shape: Shape, tried: Sequence[str]) -> Way | Denied:
        """The way to try next."""
        ...

    async def ended(self, request: int, shape: Shape, way: Way, outcome: Outcome) -> None:
        """An attempt has ended."""
        ...

    async def tick(self) -> None:
        """A quarter of a second has passed."""
        ...


@dataclass(slots=True)
class Ending:
    """How one request ended. `seconds` from its arrival."""

    served: Way | None
    attempts: int
    seconds: float
    good: bool


@dataclass(slots=True)
class Told:
    """What one contender achieved."""

    name: str
    endings: list[Ending] = field(default_factory=list)
    cost_usd: float = 0.0
    refused: int = 0
    served: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """How many there were."""
        return len(self.endings)

    @property
    def success(self) -> float:
        """The share that was served."""
        return sum(ending.served is not None for ending in self.endings) / self.requests

    @property
    def at_once(self) -> float:
        """The share that the first key tried has served."""
        return sum(ending.served is not None and ending.attempts == 1 for ending in self.endings) / self.requests

    @property
    def cost_per_thousand_usd(self) -> float:
        """Dollars for a thousand requests served."""
        return self.cost_usd / max(1, sum(self.served.values())) * 1000

    @property
    def refused_per_thousand(self) -> float:
        """429s of providers for a thousand requests."""
        return self.refused / self.requests * 1000

    @property
    def good(self) -> float:
        """The share of answers that were of use."""
        answers = [ending.good for ending in self.endings if ending.served is not None]
        return sum(answers) / max(1, len(answers))

    @property
    def evenness(self) -> float:
        """Jain's index of requests served per weight: 1 is perfectly even."""
        shares = [self.served[way.name] / way.weight for way in WAYS]
        return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares) or 1.0)

    def seconds_at(self, share: float) -> float:
        """The time in which this share of the served was served."""
        times = sorted(ending.seconds for ending in self.endings if ending.served is not None)
        return times[min(len(times) - 1, int(share * len(times)))]


@dataclass(slots=True)
class _Request:
    """One on its way: `way` and `outcome` of the attempt under way."""

    number: int
    shape: Shape
    since: float
    tried: list[str] = field(default_factory=list)
    way: Way | None = None
    outcome: Outcome = Outcome("none", 0.0, False)
    over: bool = False


class World:
    """Runs requests against a contender. Deterministic by its seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.now = 0.0
        self.in_flight: Counter[str] = Counter()
        self._levels = {way.name: (float(way.burst), 0.0) for way in WAYS}

    @property
    def now_us(self) -> int:
        """The same as Unix microseconds of some day."""
        return 1_800_000_000_000_000 + int(self.now * 1e6)

    async def run(self, name: str, contender: Contender, seconds: float) -> Told:
        """So many virtual seconds of requests, and the end of all that were sent."""
        told, order = Told(name), itertools.count()
        events: list[tuple[float, int, _Request | None]] = []
        for at, arrived in self._arrivals(seconds):
            heapq.heappush(events, (at, next(order), arrived))
        for number in range(int(seconds / TICK_SECONDS) + 40):
            heapq.heappush(events, (number * TICK_SECONDS, next(order), None))
        while events:
            self.now, _, request = heapq.heappop(events)
            if request is None:
                await contender.tick()
                continue
            await self._ended(contender, told, request)
            if not request.over:
                await self._tried(contender, told, request)
            if not request.over:
                heapq.heappush(events, (self.now + request.outcome.seconds, next(order), request))
        return told

    def _arrivals(self, seconds: float) -> Iterator[tuple[float, "_Request"]]:
        luck, at = random.Random(f"{self._seed}/arrivals"), 0.0
        for number in itertools.count():
            at += luck.expovariate(RATE_PER_SECOND)
            if at >= seconds:
                return
            yield at, _Request(number, SHAPES[luck.random() < 0.5], at)

    async def _tried(self, contender: Contender, told: Told, request: "_Request") -> None:
        """Begin the next attempt, if anything has room."""
        way = await contender.choose(request.number, request.shape, request.tried)
        if isinstance(way, Denied):
            self._over(told, request, None)
            return
        request.way, request.outcome = way, self._outcome(request.number, way)
        request.tried.append(way.name)
        self.in_flight[way.name] += 1

    async def _ended(self, contender: Contender, told: Told, request: "_Request") -> None:
        """End the attempt that is under way, if there is one."""
        way, outcome, shape = request.way, request.outcome, request.shape
        if way is None:
            return
        self.in_flight[way.name] -= 1
        await contender.ended(request.number, shape, way, outcome)
        if outcome.kind == "ok":
            told.served[way.name] += 1
            told.cost_usd += (shape.input_tokens * way.input_usd + shape.output_tokens * way.output_usd) / 1e6
            self._over(told, request, way)
            return
        told.refused += outcome.kind == "refused"
        if len(request.tried) >= ATTEMPTS_MAX:
            self._over(told, request, None)

    def _over(self, told: Told, request: "_Request", served: Way | None) -> None:
        request.over = True
        good = served is not None and request.outcome.good
        told.endings.append(Ending(served, len(request.tried), self.now - request.since, good))

    def _outcome(self, request: int, way: Way) -> Outcome:
        """What becomes of a request with a key: the same for every contender, but for load and limits."""
        if not self._admits(way):
            return Outcome("refused", REFUSED_SECONDS, False)
        luck = random.Random(f"{self._seed}/{request}/{way.name}")
        seconds = way.latency_seconds * luck.lognormvariate(0, SPREAD) * (1 + self.in_flight[way.name] / SLOW_AT)
        failed, good = luck.random() < way.failure, luck.random() < way.good
        return Outcome("failed" if failed else "ok", seconds * (0.3 if failed else 1.0), good)

    def _admits(self, way: Way) -> bool:
        level, since = self._levels[way.name]
        level = min(float(way.burst), level + (self.now - since) * way.rpm / 60)
        self._levels[way.name] = (level - 1 if level >= 1 else level, self.now)
        return level >= 1
