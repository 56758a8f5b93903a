"""How long a quota lasts at the present rate, with an honest interval. Pure arithmetic over counters and a clock.

A `Burn` learns from what a counter consumed, in slots of equal length. For every power of two of slots it keeps how far
its own forecasts over so long a time were off: what it says of the next hours rests on how wrong it was about hours,
not on a belief about how requests arrive. What was never observed is taken from the next shorter time, made wider.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import copysign, exp, expm1, log, log1p, log2, sqrt
from statistics import NormalDist

__all__ = ["Burn", "Crossing", "Demand", "crossing"]

LEVELS = 10
"""Times of 1, 2, 4 … 512 slots are learned; a window has 256 slots or fewer."""
SLOTS_PER_WINDOW = 256
SLOT_SECONDS_MIN = 2.0
IDLE_SLOTS_MAX = 2 ** (LEVELS - 1)
"""After so many slots without a look nothing of before says anything."""
BLOCKS_REMEMBERED = 32
"""Blocks of a length that its errors are averaged over, the older the less."""
PRIOR_BLOCKS = 2.0
"""How many observed blocks the guess from the next shorter time is worth."""
PUT_RIGHT_MAX = 1000.0
"""How many times its forecast a memory is put right by, at most: one that had expected next to nothing says no more."""
WIDENING = 2.2
"""How much the variance grows when time doubles, until it is observed: 2 were independence, 4 a rate never known."""
DOUBT = 3.0
NOISE = 1.0
"""How much of what the memories disagree by, beyond so many times what chance explains, is added to the variance."""
CYCLE_SECONDS = 86_400.0
CYCLE_SPREAD = 1.2
CYCLE_SHARE = 0.36
"""Use mostly goes with the day. Until one was observed, the rate over this share of it, or more, may be off by a factor
whose logarithm has this standard deviation; over less time, by less in proportion."""
CYCLE_OBSERVATIONS = 2.0
"""What is known of such a factor."""
BISECTIONS = 30
_RATES = (-2, 0, 2)
"""Memories that compete for a time: a quarter of it, as long, and four times as long; and a trend."""
_WEIGHTS = tuple(1 - exp(-1 / (1 << number)) for number in range(LEVELS))
_YESTERDAY = len(_RATES) + 1
_EXPERTS = _YESTERDAY + 1
"""And what the day before brought at the same time, once there was one."""
TREND_LEAST = 0.5
"""A trend is not followed below this part of the lowest rate that was seen: what falls seldom ends, and of nothing
there is no doubt."""
DAY_SLOTS_MAX = 1024
"""Where a slot is shorter than a day's so manieth part, the day before is not remembered."""
TRIED_MIN = 2.0
"""Blocks over which a memory must have been tried before it may be the best: three, for they fade a little."""
RIVAL = 3.0
"""A memory whose forecasts were off by so much more (squared) than the best one's casts no doubt on it."""
_NORMAL = NormalDist()
_WITHIN = _NORMAL.cdf(1.0)


@dataclass(frozen=True, slots=True)
class Demand:
    """What will be used in a stretch of time: as much as not, the variance of its logarithm, and how many observations
    that rests on."""

    expected: float
    spread: float
    observations: float

    def reaches(self, amount: float) -> float:
        """The probability that it is at least `amount`. Log-normal, with tails as fat as the observations are few."""
        if amount <= 0:
            return 1.0
        if self.expected <= 0:
            return 0.0
        if self.spread < 1e-12:
            return 1.0 if self.expected >= amount else 0.0
        return 1 - _NORMAL.cdf(_normal(log(amount / self.expected) / sqrt(self.spread), self.observations))

    def quantile(self, share: float) -> float:
        """What it stays below with this probability (0 < share < 1)."""
        if self.expected <= 0:
            return 0.0
        return self.expected * exp(_student(_NORMAL.inv_cdf(share), self.observations) * sqrt(self.spread))

    @property
    def error(self) -> float:
        """Half the width of what it is in two of three cases."""
        return (self.quantile(_WITHIN) - self.quantile(1 - _WITHIN)) / 2


def _normal(score: float, degrees: float) -> float:
    """A score of Student's t as one of the normal distribution (Wallace's approximation)."""
    shrink = (8 * degrees + 1) / (8 * degrees + 3)
    return copysign(shrink * sqrt(degrees * log1p(score**2 / degrees)), score)


def _student(score: float, degrees: float) -> float:
    """The inverse."""
    shrink = (8 * degrees + 1) / (8 * degrees + 3)
    return copysign(sqrt(degrees * expm1((score / shrink) ** 2 / degrees)), score)


class _Level:
    """Blocks of one length: the rate over about so long, and how wrong the forecasts over so long were."""

    __slots__ = ("actual", "best", "blocks", "counts", "errors", "expected", "forecasts", "rate", "slots", "total")

    def __init__(self) -> None:
        self.rate = 0.0
        self.slots = 0
        self.total = 0.0
        self.forecasts: tuple[float | None, ...] = ()
        self.blocks = 0.0
        self.best: int | None = None
        """The memory that was nearest, of those that were tried often enough."""
        self.counts = [0.0] * _EXPERTS
        self.actual = [0.0] * _EXPERTS
        self.expected = [0.0] * _EXPERTS
        self.errors = [0.0] * _EXPERTS


class Burn:
    """What one counter consumes. `slot_seconds` > 0; times are seconds of any one clock."""

    def __init__(self, *, slot_seconds: float) -> None:
        self.slot_seconds = slot_seconds
        self._levels: list[_Level] = []
        self._slots = 0
        self._spread: list[tuple[float, float]] = []
        self._open = 0.0
        self._ends = self._now = 0.0
        self._day = round(CYCLE_SECONDS / slot_seconds)
        self._sums: deque[float] = deque([0.0], self._day + 1 if 1 < self._day <= DAY_SLOTS_MAX else 1)
        """What was consumed until the end of each slot of the last day."""

    @classmethod
    def of_window(cls, seconds: float) -> "Burn":
        """A burn for a window of that length."""
        return cls(slot_seconds=max(SLOT_SECONDS_MIN, seconds / SLOTS_PER_WINDOW))

    @property
    def slots(self) -> int:
        """How many slots were observed."""
        return self._slots

    def add(self, amount: float, now: float) -> None:
        """So much was consumed since the last call. The first call only starts the clock."""
        self._now = now
        if not self._ends:
            self._ends = now + self.slot_seconds
            return
        if now - self._ends > IDLE_SLOTS_MAX * self.slot_seconds:
            self._levels.clear()
            self._sums.clear()
            self._sums.append(0.0)
            self._slots = 0
            self._open, self._ends = 0.0, now + self.slot_seconds
            return
        overdue = now - self._ends
        if overdue < 0:
            self._open += amount
            return
        passed = int(overdue / self.slot_seconds) + 1
        share = amount / (passed + 1)  # nobody knows when in between
        self._open += share
        for _ in range(passed):
            self._push(self._open)
            self._open = share
            self._ends += self.slot_seconds

    def prime(self, rate: float, now: float) -> None:
        """What is known of the rate (per second) before anything was observed."""
        if not self._slots:
            self._ends = self._ends or now + self.slot_seconds
            self._push(rate * self.slot_seconds)

    def _push(self, amount: float) -> None:
        """A slot is over."""
        self._slots += 1
        self._spread = []
        self._sums.append(self._sums[-1] + amount)
        if len(self._levels) < LEVELS and self._slots >= 2 ** len(self._levels):
            self._grow()
        least = 1.0 / self._slots
        for weight, level in zip(_WEIGHTS, self._levels, strict=False):
            level.rate += max(weight, least) * (amount - level.rate)
        for number, level in enumerate(self._levels):
            level.total += amount
            level.slots += 1
            if level.slots == 1 << number:
                self._close(level, number)

    def _grow(self) -> None:
        made = _Level()
        if self._levels:
            made.rate = self._levels[-1].rate
        self._levels.append(made)

    def _close(self, level: _Level, number: int) -> None:
        """A block is over: compare it with what was forecast at its beginning, and forecast the next."""
        if level.forecasts:
            keep = 1 - 1 / BLOCKS_REMEMBERED
            level.blocks = level.blocks * keep + 1
            for place, forecast in enumerate(level.forecasts):
                if forecast is not None:
                    level.counts[place] = level.counts[place] * keep + 1
                    level.actual[place] = level.actual[place] * keep + level.total
                    level.expected[place] = level.expected[place] * keep + forecast
                    level.errors[place] = level.errors[place] * keep + (level.total - forecast) ** 2
            tried = [place for place in range(_EXPERTS) if level.counts[place] >= TRIED_MIN]
            level.best = min(tried, key=lambda place: level.errors[place] / level.counts[place], default=None)
        level.forecasts = tuple(
            None if place == _YESTERDAY and not self._knows_yesterday else self._mean(number, place, 1 << number)
            for place in range(_EXPERTS)
        )
        level.total, level.slots = 0.0, 0

    def _mean(self, number: int, place: int, slots: float, begun: float = 0.0) -> float:
        """The forecast of one memory for so many slots, about 2^number, put right by how it was off until now.

        `begun`: how much of the present slot is over.
        """
        if place == _YESTERDAY:
            plain = self._yesterday(begun + slots) - self._yesterday(begun)
        else:
            plain = self._plain(number, place) * slots
        level = self._levels[number]
        usual = level.expected[place] / level.counts[place] if level.counts[place] else 0.0
        prior = PRIOR_BLOCKS * usual
        if usual <= 0:
            return plain
        put_right = (level.actual[place] + prior) / (level.expected[place] + prior)
        return plain * (put_right if put_right < PUT_RIGHT_MAX else PUT_RIGHT_MAX)

    @property
    def _knows_yesterday(self) -> bool:
        return len(self._sums) > max(1, self._day)

    def _yesterday(self, slots: float) -> float:
        """What the first so many slots from a day before the present one on consumed."""
        days, rest = divmod(slots, self._day)
        sums, whole = self._sums, int(rest)
        part = (rest - whole) * (sums[whole + 1] - sums[whole])
        return days * (sums[-1] - sums[0]) + sums[whole] - sums[0] + part

    def _plain(self, number: int, place: int) -> float:
        """What one memory expects of a slot among the next 2^number."""
        levels = self._levels
        if place < len(_RATES):
            at = min(max(number + _RATES[place], 0), len(levels) - 1)
            return levels[at].rate
        near, far = max(0, min(number, len(levels) - 3)), len(levels) - 1
        if far - near < 2:
            return levels[near].rate
        slope = (levels[near].rate - levels[far].rate) / (_lag(far, self._slots) - _lag(near, self._slots))
        now = levels[near].rate + slope * _lag(near, self._slots)
        least = TREND_LEAST * min(level.rate for level in levels)
        return max(least, now + slope * (1 << number) / 2)

    def _best(self, number: int) -> int:
        """The memory to go by for 2^number slots: the nearest of those that were tried over as many, or over fewer. If
        the day before was nearest over fewer, it is gone by until it was tried, too."""
        known = [level for level in self._levels[: number + 1] if level.best is not None]
        if not known:
            return 1
        tried = [level for level in known if level.counts[_YESTERDAY] >= TRIED_MIN]
        return (tried[-1] if tried and tried[-1].best == _YESTERDAY else known[-1]).best or 0

    def _rivals(self, number: int) -> list[int]:
        """The memories that may be right about 2^number slots: all that were not found to be clearly worse."""
        level = self._levels[number]
        known = range(_EXPERTS if self._knows_yesterday else _YESTERDAY)
        errors = [level.errors[place] / level.counts[place] if level.counts[place] else None for place in known]
        most = RIVAL * min((error for error in errors if error is not None), default=0.0)
        return [
            place for place in known if (error := errors[place]) is None or error <= most or level.blocks < TRIED_MIN
        ]

    @property
    def recent(self) -> float:
        """The largest of the rates (per second) over the memories: a quick bound."""
        return max((level.rate for level in self._levels), default=0.0) / self.slot_seconds

    @property
    def per_second(self) -> float:
        """The present rate."""
        return self.demand(self.slot_seconds * 8).expected / (self.slot_seconds * 8) if self._levels else 0.0

    def demand(self, seconds: float) -> Demand:
        """What will be consumed in the next `seconds`."""
        if not self._levels or seconds <= 0:
            return Demand(0.0, 0.0, 1.0)
        slots = seconds / self.slot_seconds
        exponent = log2(slots)
        low = min(max(int(exponent), 0), len(self._levels) - 1)
        high = min(low + 1, len(self._levels) - 1)
        part = min(max(exponent - low, 0.0), 1.0) if high > low else 0.0
        mean = self._expected(low, slots) * (1 - part) + self._expected(high, slots) * part
        if not self._spread:
            self._spread = self._variances(len(self._levels) - 1)
        variances = self._spread
        (near, n_near), (far, n_far) = variances[low], variances[high]
        per_unit = exp(log(near) * (1 - part) + log(far) * part)
        beyond = max(0.0, exponent - low - part)
        below = min(0.0, exponent)
        per_unit *= (WIDENING / 2) ** beyond * 2**below
        observations = n_near * (1 - part) + n_far * part
        doubt = DOUBT * self._doubt(high, slots, per_unit * mean)
        if mean <= 0:
            return Demand(0.0, 0.0, 1.0)
        spread = log1p(per_unit / mean) + log1p(doubt / mean**2)
        return self._swung(Demand(mean, spread, max(1.0, observations / (1 + beyond))), seconds)

    def _swung(self, demand: Demand, seconds: float) -> Demand:
        """With the doubt that comes from the part of the day that lies ahead and was not seen."""
        unseen = min(1.0, (CYCLE_SECONDS - self._slots * self.slot_seconds) / seconds)
        if unseen <= 0:
            return demand
        reach = min(1.0, seconds / (CYCLE_SHARE * CYCLE_SECONDS))
        trust = unseen * reach
        return Demand(
            demand.expected, demand.spread + unseen * (CYCLE_SPREAD * reach) ** 2,
            demand.observations * (1 - trust) + CYCLE_OBSERVATIONS * trust,
        )  # fmt: skip

    def _doubt(self, number: int, slots: float, chance: float) -> float:
        """What the memories disagree by beyond what chance explains, squared, over so many slots. `chance`: variance
        of what so many slots consume at a rate that is known."""
        told = [self._mean(number, place, slots, self._begun) for place in self._rivals(number)]
        shortest = min(max(number + _RATES[0], 0), len(self._levels) - 1)
        return max(0.0, (max(told) - min(told)) ** 2 - NOISE * chance * slots / (1 << shortest))

    def _expected(self, number: int, slots: float) -> float:
        return self._mean(number, self._best(number), slots, self._begun)

    @property
    def _begun(self) -> float:
        """How much of the present slot is over."""
        return min(max(1 - (self._ends - self._now) / self.slot_seconds, 0.0), 1.0)

    def _variances(self, last: int) -> list[tuple[float, float]]:
        """(variance per unit of mean, observations) for each length up to `last`: observed as far as possible."""
        found: list[tuple[float, float]] = []
        guess, widening = max(self._levels[0].rate, 1e-9), WIDENING / 2  # as if one use in two slots
        for number in range(last + 1):
            level, best = self._levels[number], self._best(number)
            weight = level.counts[best]
            expected = max(level.expected[best], level.actual[best])
            observed = level.errors[best] / expected if expected > 0 else guess
            blended = (observed * weight + guess * PRIOR_BLOCKS) / (weight + PRIOR_BLOCKS)
            found.append((max(blended, 1e-9), weight + PRIOR_BLOCKS))
            if weight and number:
                growth = min(max(blended / found[-2][0], 1.0), 2.0)
                widening += (growth - widening) * weight / (weight + PRIOR_BLOCKS) / 2
            guess = blended * widening
        return found


def _lag(number: int, slots: int) -> float:
    """How far back, in slots, the average of a memory lies."""
    return min(2.0**number, slots / 2)


@dataclass(frozen=True, slots=True)
class Crossing:
    """When an amount will be used up, in seconds from now; None: not before it resets. `chance`: that it will be."""

    earliest: float | None
    expected: float | None
    latest: float | None
    chance: float


def crossing(
    burn: Burn, remaining: float, *, reset_seconds: float, refill_per_second: float = 0.0, confidence: float = 0.9
) -> Crossing:
    """When `remaining` is used up, if nothing changes, between now and the reset.

    `refill_per_second` flows back meanwhile (buckets). The interval from `earliest` to `latest` contains the truth with
    probability `confidence` (0 < c < 1).
    """

    def chance(seconds: float) -> float:
        return burn.demand(seconds).reaches(remaining + refill_per_second * seconds)

    if remaining <= 0:
        return Crossing(0.0, 0.0, 0.0, 1.0)
    ends = [(1 - confidence) / 2, 0.5, (1 + confidence) / 2]
    times = [_first(chance, wanted, reset_seconds) for wanted in ends]
    return Crossing(times[0], times[1], times[2], chance(reset_seconds))


def _first(chance: Callable[[float], float], wanted: float, most: float) -> float | None:
    """The first time at which the chance is `wanted`; None: not until `most`."""
    low, high = 0.0, most / 64
    while chance(high) < wanted:
        if high >= most:
            return None
        low, high = high, min(most, high * 1.5)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) >= wanted else (middle, high)
    return high
