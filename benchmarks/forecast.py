"""Back-test of the exhaustion forecasts: how often the truth fell inside the stated interval.

Seeded arrivals (steady, bursts that switch on and off, a daily cycle, office hours, a step, a ramp) of requests whose
tokens are log-normal consume a daily quota. At a random moment the forecast is asked when a random rest of it will be
used up; then time goes on and tells.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from apikeyrouter.domain.components.forecast import Burn, crossing
from benchmarks.report import Figure, Section

__all__ = ["CONFIDENCES", "PROCESSES", "Coverage", "coverage", "measure_forecast"]

DAY = 86_400.0
RATE = 3_000 / DAY
"""Requests a second, on the average."""
CONFIDENCES = (0.5, 0.8, 0.9, 0.95)
LENGTH = 4.5 * DAY
FRESH, SEASONED = (0.1, 1.2), (2.0, 3.2)
"""When the forecast is asked, in days after the first request."""
RUNS, RUNS_QUICK = 600, 100
Arrivals = Callable[[random.Random], Iterator[float]]


def _poisson(rng: random.Random, rate: float) -> Iterator[float]:
    at = rng.expovariate(rate)
    while at < LENGTH:
        yield at
        at += rng.expovariate(rate)


def _thinned(rng: random.Random, rate: Callable[[float], float], peak: float) -> Iterator[float]:
    return (at for at in _poisson(rng, peak) if rng.random() * peak < rate(at))


def _bursts(rng: random.Random, hold_seconds: float) -> Iterator[float]:
    """A Markov-modulated Poisson process: fifteen times as many requests in one state as in the other."""
    at, busy, ends = 0.0, rng.random() < 0.5, rng.expovariate(1 / hold_seconds)
    while at < LENGTH:
        following = at + rng.expovariate(RATE * (3.0 if busy else 0.2))
        if following > ends:
            at, busy, ends = ends, not busy, ends + rng.expovariate(1 / hold_seconds)
            continue
        at = following
        yield at


def _daily(rng: random.Random) -> Iterator[float]:
    begins = rng.uniform(0, DAY)
    return _thinned(rng, lambda at: RATE * (1 + 0.8 * math.sin(2 * math.pi * (at - begins) / DAY)), RATE * 1.8)


def _ramp(rng: random.Random) -> Iterator[float]:
    return _thinned(rng, lambda at: RATE * (0.5 + 1.5 * at / LENGTH), RATE * 2)


def _office(rng: random.Random) -> Iterator[float]:
    """Nineteen of twenty requests come in ten hours of the day."""
    busy = 0.95 * DAY / 36_000
    begins = rng.uniform(0, DAY)
    return _thinned(rng, lambda at: RATE * (busy if (at - begins) % DAY < 36_000 else 0.05 / 0.583), RATE * busy)


def _step(rng: random.Random) -> Iterator[float]:
    """The rate changes threefold, once, at any moment."""
    at, first, then = rng.uniform(0, LENGTH), *rng.choice([(0.5, 1.5), (1.5, 0.5)])
    return _thinned(rng, lambda now: RATE * (first if now < at else then), RATE * 1.5)


PROCESSES: dict[str, Arrivals] = {
    "poisson": lambda rng: _poisson(rng, RATE),
    "bursts of 2 minutes": lambda rng: _bursts(rng, 120),
    "bursts of 30 minutes": lambda rng: _bursts(rng, 1_800),
    "daily cycle": _daily,
    "office hours": _office,
    "a step": _step,
    "ramp": _ramp,
}


@dataclass(slots=True)
class Coverage:
    """Of so many runs: the share in which the truth was inside, by confidence, and the median width of the interval
    as a share of the time that the quota had."""

    runs: int
    shares: dict[float, float] = field(default_factory=dict)
    widths: dict[float, float] = field(default_factory=dict)


def measure_forecast(*, quick: bool = False) -> Section:
    """How often the truth fell inside the stated intervals, per arrival process."""
    runs = RUNS_QUICK if quick else RUNS
    figures = []
    for days, asked in (("in its first 1.2 days", FRESH), ("after 2 to 3.2 days", SEASONED)):
        for process in PROCESSES:
            told = coverage(process, runs=runs, seed=0, asked=asked)
            inside = " · ".join(f"{told.shares[c]:.0%}" for c in CONFIDENCES)
            measured = f"{inside}; {told.widths[0.9]:.0%} wide at 90 %"
            figures.append(Figure(name=f"{process}, {days}", measured=measured))
    notes = [
        "share of the truths that fell inside the intervals stated at "
        + " · ".join(f"{c:.0%}" for c in CONFIDENCES)
        + " confidence, and the median width as a share of the time until the reset",
        f"{runs} seeded runs each: 3,000 requests a day of log-normal tokens; asked at a random moment when a random "
        "rest of a day's quota is used up, then checked against what came",
        "until it has seen a day the forecast allows for a load that goes with the day: its intervals are wider there "
        "than a steady load needs, so that one that is all but off for half the day is told honestly, too",
    ]
    return Section(title="Forecasts of exhaustion", figures=figures, notes=notes)


def coverage(process: str, *, runs: int, seed: int, asked: tuple[float, float] = FRESH) -> Coverage:
    """Back-test one arrival process."""
    found = [_run(PROCESSES[process], random.Random(f"{process}/{seed}/{run}"), asked) for run in range(runs)]
    told = Coverage(runs)
    for place, confidence in enumerate(CONFIDENCES):
        told.shares[confidence] = sum(run[place][0] for run in found) / runs
        told.widths[confidence] = sorted(run[place][1] for run in found)[runs // 2]
    return told


def _run(process: Arrivals, rng: random.Random, asked: tuple[float, float]) -> list[tuple[bool, float]]:
    """For each confidence: whether the truth was inside the interval, and how wide that was."""
    uses = [(at, rng.lognormvariate(6, 1)) for at in process(rng)]
    now = rng.uniform(*asked) * DAY
    reset = min(DAY, LENGTH - now)
    burn, at = Burn.of_window(DAY), 0
    burn.add(0, 1e-9)
    step, moment = burn.slot_seconds / 3, 0.0
    while moment < now:
        moment, amount = min(now, moment + step), 0.0
        while at < len(uses) and uses[at][0] <= moment:
            amount += uses[at][1]
            at += 1
        burn.add(amount, moment + 1e-9)
    so_far = sum(amount for _, amount in uses[:at]) / now
    rest = so_far * reset * rng.uniform(0.03, 0.75)
    truth = _used_up(uses[at:], rest, now, reset)
    found = []
    for confidence in CONFIDENCES:
        told = crossing(burn, rest, reset_seconds=reset, confidence=confidence)
        low = math.inf if told.earliest is None else told.earliest
        high = math.inf if told.latest is None else told.latest
        found.append((low <= truth <= high, (min(high, reset) - min(low, reset)) / reset))
    return found


def _used_up(uses: list[tuple[float, float]], rest: float, now: float, reset: float) -> float:
    """Seconds from now until the rest was used; infinity: not before the reset."""
    for at, amount in uses:
        if at > now + reset:
            break
        rest -= amount
        if rest <= 0:
            return at - now
    return math.inf
