"""Random histories of one cell: every transition, good and bad arguments, seeded so that a failure can be repeated."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from apikeyrouter.domain.models.accounting import (
    Breaker,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Period,
    ScopeConfig,
    SuspenseRule,
    UnpricedRule,
)
from apikeyrouter.infrastructure.ledger.calendars import FUNDED, boundaries, calendar_number
from apikeyrouter.infrastructure.ledger.encoding import (
    METRIC_CODES,
    NAME_CODES,
    bucket_numbers,
    lane_entry,
    scope_entry,
)
from apikeyrouter.infrastructure.ledger.engine import Argument
from tests.ledger.events import WRONG_CALLS, Call, Event, Flush, Offer, Schema, Wind, Wish, doubles, used_words

__all__ = [
    "FIELDS", "LANES", "SCOPES", "WRONG_CALLS", "Call", "Event", "Flush", "History", "Offer", "Schema", "Wind", "Wish",
    "doubles", "used_words",
]  # fmt: skip

SECOND_US, MINUTE_US, HOUR_US, DAY_US = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
LANES = ("org/a", "org/b", "key/1", "key/2", "day/1", "free", "unseen")
SCOPES = ("global", "team/x", "key/1", "soft", "total", "flat", "funded")
FIELDS = (*(f"l:{name}" for name in LANES), *(f"s:{name}" for name in SCOPES))
CALENDARS = (
    (Period.HOURLY, "UTC"), (Period.DAILY, "America/Los_Angeles"), (Period.DAILY, "UTC"),
    (Period.MONTHLY, "Europe/Berlin"), (Period.WEEKLY, "UTC"), (Period.TOTAL, "UTC"),
)  # fmt: skip
ZONED = tuple(calendar for calendar in CALENDARS if calendar[0] is not Period.TOTAL)


@dataclass
class History:
    """A seeded source of events. Its world is small, so that limits are full half of the time."""

    seed: int
    now_us: int
    flushes: bool = True
    rids: list[bytes] = field(default_factory=list)
    made: int = 0
    version: int = 1
    token: int = 0

    def __post_init__(self) -> None:
        self.random, self.apart = random.Random(self.seed), random.Random(f"slabs {self.seed}")

    def events(self, count: int) -> Iterator[Event]:
        """`count` events, the first of which make a configured cell, and refuse every wrong call."""
        yield from self.beginning()
        yield from WRONG_CALLS
        for _ in range(count):
            yield from self.one()

    def beginning(self) -> Iterator[Event]:
        epoch, layout = self.random.randrange(2**52), self.random.choice(["", "two cells"])
        yield Call("open", [epoch])
        yield Call("open", [epoch, layout])
        self.version = 1
        yield from self.put(all_of_them=True)
        if self.random.random() < 0.8:
            yield from self._calendar()

    def one(self) -> Iterator[Event]:
        draw = self.random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        yield from getattr(self, f"_{draw}")()

    # --- what there is ------------------------------------------------------------------------------------------------

    def put(self, *, all_of_them: bool = False) -> Iterator[Event]:
        lanes = [self.lane(name) for name in LANES[:-1] if all_of_them or self.random.random() < 0.2]
        scopes = [self.scope(name) for name in SCOPES if all_of_them or self.random.random() < 0.2]
        yield Call("configure", ["put", 0, *_flat(lanes, scopes)])
        self.version += 1

    def lane(self, name: str) -> LaneConfig:
        pick = self.random.choice
        limits: list[Limit] = []
        if name.startswith("org"):
            limits = [
                self.limit("rpm", Metric.REQUESTS, pick([4, 6, 7, 60])),
                self.limit("tpm", Metric.TOKENS, pick([50, 70, 1000])),
                self.limit("spend", Metric.SPEND, pick([80, 200])),
            ]
        elif name.startswith("key"):
            limits = [
                Limit(
                    name="concurrency", metric=Metric.CONCURRENCY, kind=LimitKind.CONCURRENCY, amount=pick([1, 2, 5])
                ),
                self.limit("otpm", Metric.OUTPUT_TOKENS, pick([0, 30, 100])),
            ]
        elif name.startswith("day"):
            period, zone = pick(ZONED)
            limits = [
                Limit(
                    name="rpd", metric=Metric.REQUESTS, kind=LimitKind.CALENDAR, amount=pick([5, 20]),
                    calendar=period, timezone=zone,
                ),
                self.limit("itpd", Metric.INPUT_TOKENS, 200),
            ]  # fmt: skip
        breaker = Breaker(
            failures=pick([1, 2, 3]), window_us=10 * SECOND_US, open_us=2 * SECOND_US, open_max_us=MINUTE_US
        )
        return LaneConfig(
            id=name, limits=tuple(self.random.sample(limits, self.random.randint(min(1, len(limits)), len(limits)))),
            breaker=pick([None, breaker]), fair=pick([True, False]),
        )  # fmt: skip

    def limit(self, name: str, metric: Metric, amount: int) -> Limit:
        kind = self.random.choice([LimitKind.BUCKET, LimitKind.BUCKET, LimitKind.FIXED, LimitKind.SLIDING])
        burst = self.random.choice([None, amount // 2 or amount]) if kind is LimitKind.BUCKET else None
        return Limit(
            name=name, metric=metric, kind=kind, amount=amount, burst=burst,
            period_us=self.random.choice([SECOND_US, MINUTE_US, 7 * SECOND_US, DAY_US]),
            headroom=self.random.choice([0.0, 0.02, 0.25]), refund=self.random.choice([True, True, False]),
        )  # fmt: skip

    def scope(self, name: str) -> ScopeConfig:
        pick = self.random.choice
        period, zone = (Period.TOTAL, "UTC") if name == "total" else pick(CALENDARS)
        if name == "funded":
            period, zone = pick([(Period.TOTAL, "UTC"), (Period.HOURLY, "UTC")])
        return ScopeConfig(
            id=name, limit_nanousd=pick([0, 100, 300, 1000, 1000, 10_000]), hard=name != "soft", period=period,
            timezone=zone,
            unpriced=UnpricedRule.FLAT if name == "flat" else pick(list(UnpricedRule)), flat_nanousd=20,
            suspense=pick(list(SuspenseRule)), suspense_after_us=pick([SECOND_US, MINUTE_US, HOUR_US]),
        )  # fmt: skip

    # --- what happens -------------------------------------------------------------------------------------------------

    def _reserve(self) -> Iterator[Event]:
        pick = self.random.choice
        new = self.random.random() < 0.9
        shared, charges = self.names(SCOPES, 2), [self.charge() for _ in range(self.random.randint(1, 2))]
        wish = Wish(
            rid=self.new_rid() if new else self.rid(), version=pick([0] * 9 + [self.version, 10**6]),
            lease_us=pick([0, 5 * SECOND_US, 30 * SECOND_US, HOUR_US]), principal=pick(["", "", "p1", "p2", "p3"]),
            weight=pick([1, 1, 2]), pool=pick(["", "pool"]), shared=shared, charges=tuple(charges),
            offers=tuple(self.offer(shared, len(charges)) for _ in range(pick([1, 1, 2, 3, 5]))),
            calls=self.apart.choice([1, 1, 1, 2, 4]),
        )  # fmt: skip
        yield wish.reserve()

    def offer(self, shared: tuple[str, ...], charges: int) -> Offer:
        lanes = self.random.sample(LANES, self.random.choice([1, 1, 2, 3]))
        scopes = [name for name in SCOPES if name not in shared and self.random.random() < 0.1]
        if self.random.random() < 0.01:
            scopes = ["nobody"]
        return Offer(tuple(lanes), tuple(scopes), self.random.randint(1, charges))

    def charge(self) -> tuple[int, ...]:
        pick = self.random.choice
        tokens_in, tokens_out = pick([0, 1, 5, 20, 90]), pick([0, 5, 30])
        return tokens_in, tokens_out, tokens_in + tokens_out, pick([-1, 0, 10, 50]), pick([-1, 0, 20, 60, 60, 500])

    def _settle(self) -> Iterator[Event]:
        args: list[Argument] = []
        for _ in range(self.random.choice([1, 1, 1, 3])):
            args += self.settlement()
        yield Call("settle", args)

    def settlement(self) -> list[Argument]:
        pick = self.random.choice
        cost, outcome = pick([-1, 0, 10, 45, 80]), pick([0, 1, 1, 2])
        apart = self.apart.choice
        stays = [apart([0, 2, 15, 100]) for _ in range(5)]
        slab = (apart([0, 1, 3]), *stays, apart([0, 1, 3]), apart([0, 2, 16]), apart([0, 2]))
        return used_words(
            self.rid(), pick([0, 3, 20]), pick([0, 4, 30, 60]), cost, outcome, pick([0, 1, 3]), pick([0, 900, 10**6]),
            *apart([(), (), slab]),
        )  # fmt: skip

    def _release(self) -> Iterator[Event]:
        yield Call("release", [self.rid(), self.random.randint(0, 1), self.random.choice([0, 0, 1, 2]), 1000])

    def _cancel(self) -> Iterator[Event]:
        yield Call("cancel", [self.new_rid() if self.random.random() < 0.1 else self.rid()])

    def _reassert(self) -> Iterator[Event]:
        shared = self.names(SCOPES, 2)
        rid = self.new_rid() if self.random.random() < 0.5 else self.rid()
        again = Wish(
            rid=rid, lease_us=10 * SECOND_US, shared=shared, charges=(self.charge(),),
            offers=(self.offer(shared, 1),), calls=self.apart.choice([1, 3]),
        )  # fmt: skip
        yield from [again.reassert()] * self.random.choice([1, 1, 2])

    def _renew(self) -> Iterator[Event]:
        rids = [self.rid() for _ in range(self.random.randint(1, 4))]
        yield Call("renew", [self.random.choice([SECOND_US, MINUTE_US]), *rids])

    def _acknowledge(self) -> Iterator[Event]:
        yield Call("acknowledge", [self.rid() for _ in range(3)])

    def _sweep(self) -> Iterator[Event]:
        yield Call("sweep", [])

    def _record(self) -> Iterator[Event]:
        pick = self.random.choice
        args: list[Argument] = ["l:" + pick(LANES), pick([0] * 8 + [-1, SECOND_US, 10 * SECOND_US])]
        for name in self.random.sample(["rpm", "tpm", "otpm", "itpm", "concurrency"], self.random.randint(0, 2)):
            args += self.observation(name)
        yield Call("record", args)

    def observation(self, name: str) -> list[Argument]:
        pick = self.random.choice
        metric = {"rpm": Metric.REQUESTS, "tpm": Metric.TOKENS, "otpm": Metric.OUTPUT_TOKENS,
                  "itpm": Metric.INPUT_TOKENS, "concurrency": Metric.CONCURRENCY}[name]  # fmt: skip
        capacity = pick([0, 3, 10, 60, 500])
        kind, scale, drain, tick = pick([2, 4]), pick([SECOND_US, MINUTE_US]), 0, 1
        if name == "concurrency":
            kind, scale = 5, 1
        elif capacity and self.random.random() < 0.6:
            kind, (scale, drain, tick) = 1, bucket_numbers(capacity, pick([SECOND_US, MINUTE_US]), capacity, what=name)
        return [
            NAME_CODES[name], METRIC_CODES[metric], kind, capacity, scale, drain, tick,
            pick([-1, 0, 2, 20, 2, 20, -2]), pick([0, 0, 100_000, 10 * SECOND_US]),
        ]  # fmt: skip

    def _grant(self) -> Iterator[Event]:
        pick = self.random.choice
        scope = pick(["total", "total", "global", "soft", "funded", "nobody"])
        told = [self.start(), pick([0, 0, 50, 200, 500]), pick([0, 0, 30, 50])]
        told[1] = max(told[1:])
        call = Call("grant", [f"s:{scope}", pick([1, 1, 2, 3]), *told, pick([0, 30, 200, 1000]), pick([0, 1, 100])])
        yield from [call] * pick([1, 1, 2])

    def _fund(self) -> Iterator[Event]:
        pick = self.random.choice
        scope = pick(["funded"] * 8 + ["total", "nobody"])
        granted, back = pick([0, 100, 300, 1000, 3000]), pick([0, 0, 0, 50, 200])
        recall = pick([0, 0, 0, 100, 500, 10**6])
        call = Call("fund", [f"s:{scope}", self.start(), max(granted, back), back, recall])
        yield from [call] * pick([1, 1, 2])

    def start(self) -> int:
        """When a period began; seldom one that is over."""
        hour = boundaries(calendar_number(Period.HOURLY, "UTC"), self.now_us)[0]
        return self.random.choice([0, 0, 0, hour, hour, hour - HOUR_US])

    def _suspect(self) -> Iterator[Event]:
        yield Call("suspect", [1 if self.random.random() < 0.2 else 0])

    def _claim(self) -> Iterator[Event]:
        pick = self.random.choice
        yield Call(
            "claim", [pick(["p1", "p2", "p3", "p4"]), pick([0, SECOND_US, 20 * SECOND_US])], pool=pick(["", "pool"])
        )

    def _forgot(self) -> Iterator[Event]:
        pick = self.random.choice
        yield Call("forgot", [pick([1, 1, 2]), pick([0, 5, self.made]), pick([0, SECOND_US, 20 * SECOND_US])])

    def _snapshot(self) -> Iterator[Event]:
        since = self.random.choice([0, 0, self.made, 10**6])
        yield Call("snapshot", [since, *FIELDS])

    def _audit(self) -> Iterator[Event]:
        yield Call(
            "audit", [self.random.randint(1, 2), self.random.choice([0, 0, 5]), self.random.choice([1, 50, 256])]
        )

    def _open(self) -> Iterator[Event]:
        yield Call("open", [self.random.randrange(2**52), *self.random.choice([[], [""], ["two cells"], ["three"]])])

    def _put(self) -> Iterator[Event]:
        yield from self.put()

    def _calendar(self) -> Iterator[Event]:
        numbers = [calendar_number(*calendar) for calendar in ZONED]
        for number in [*numbers, FUNDED, calendar_number(Period.HOURLY, "UTC") + FUNDED]:
            bounds = boundaries(number, self.now_us)[: self.random.choice([2, 3, 32])]
            yield Call("configure", ["calendar", 0, f"c:{number}", len(bounds), *bounds])

    def _replace(self) -> Iterator[Event]:
        self.token += 1
        lanes = [self.lane(name) for name in LANES[:-1] if self.random.random() < 0.9]
        scopes = [self.scope(name) for name in SCOPES if self.random.random() < 0.9]
        yield Call("configure", ["begin", self.token])
        if self.random.random() < 0.5:
            yield from self.one()
        token = self.token if self.random.random() < 0.8 else self.token + 1
        yield Call("configure", ["stage", token, *_flat(lanes, scopes)])
        wrong = self.random.random() < 0.2
        yield Call("configure", ["flip", self.token, "version", 1, 10**6 if wrong else self.version])
        self.version += not wrong

    def _wrong(self) -> Iterator[Event]:
        yield self.random.choice(WRONG_CALLS)

    def _wind(self) -> Iterator[Event]:
        step = self.random.choice(
            [1, 250, 10_000, 400_000, SECOND_US, SECOND_US, 3 * SECOND_US, 20 * SECOND_US, MINUTE_US, -2 * SECOND_US]
        )
        yield self.wind(self.now_us + step + self.random.randint(0, 5))

    def _leap(self) -> Iterator[Event]:
        if self.random.random() < 0.7:
            edge = boundaries(calendar_number(*self.random.choice(ZONED)), self.now_us)[1]
            yield self.wind(edge + self.random.choice([-1, 0, 1]))
            return
        yield self.wind(self.now_us + self.random.choice([HOUR_US, HOUR_US, DAY_US, 40 * DAY_US]))
        for name in self.random.sample(["cancel", "release", "reassert", "record", "settle", "sweep"], 6):
            yield from getattr(self, f"_{name}")()
        yield from self._calendar()

    def wind(self, now_us: int) -> Wind:
        self.now_us = now_us
        return Wind(now_us)

    def _forget_scripts(self) -> Iterator[Event]:
        yield Flush(scripts_only=True)

    def _forget(self) -> Iterator[Event]:
        if not self.flushes:
            return
        yield Flush(scripts_only=False)
        for name in ("reserve", "settle", "sweep", "snapshot", "renew", "record", "release", "cancel", "audit",
                     "acknowledge", "suspect", "forgot", "claim", "reassert", "grant", "fund"):  # fmt: skip
            yield from getattr(self, f"_{name}")()
        yield Call("configure", ["begin", 1])
        yield from self.beginning()

    def _foreign(self) -> Iterator[Event]:
        yield Schema(ours=False)
        for name in ("open", "reserve", "settle", "sweep", "snapshot", "renew", "record", "release", "cancel", "audit",
                     "acknowledge", "suspect", "forgot", "claim", "reassert", "grant", "fund"):  # fmt: skip
            yield from getattr(self, f"_{name}")()
        yield Call("configure", ["begin", 1])
        yield Schema(ours=True)

    # --- names --------------------------------------------------------------------------------------------------------

    def new_rid(self) -> bytes:
        self.made += 1
        rid = b"r:%d\x00\n\xff" % self.made
        self.rids.append(rid)
        return rid

    def rid(self) -> bytes:
        """One of those made lately, seldom one that nobody made."""
        if not self.rids or self.random.random() < 0.02:
            return b"r:nobody's %d" % self.random.randint(0, 5)
        recent = self.random.random() < 0.9
        return self.random.choice(self.rids[-25:] if recent else self.rids[-400:])

    def names(self, among: tuple[str, ...], most: int) -> tuple[str, ...]:
        return tuple(self.random.sample(among, self.random.randint(0, most)))


_WEIGHTS = {
    "reserve": 300, "settle": 120, "release": 30, "cancel": 25, "reassert": 12, "renew": 25, "acknowledge": 10,
    "sweep": 20, "record": 25, "suspect": 5, "claim": 20, "forgot": 8, "snapshot": 12, "audit": 6, "open": 2, "put": 8,
    "calendar": 30, "replace": 4, "grant": 12, "fund": 20, "wrong": 3, "wind": 200, "leap": 12, "forget_scripts": 1,
    "forget": 1, "foreign": 1,
}  # fmt: skip


def _flat(lanes: list[LaneConfig], scopes: list[ScopeConfig]) -> list[Argument]:
    words: list[Argument] = []
    for name, numbers in [
        *map(lane_entry, lanes),
        *(scope_entry(scope, funded=scope.id == "funded") for scope in scopes),
    ]:
        words += [name, len(numbers), *numbers]
    return words
