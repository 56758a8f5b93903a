"""When a budget will be used up: the burn rate of what was seen, with its uncertainty. Pure.

Spending is taken for a sum of independent amounts: its variance grows with time, and is estimated from how uneven the
observed intervals were. The rate itself is only as certain as the time it was observed for.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

SAMPLES_MAX = 120
"""Samples kept of one budget; when there are more, every second one goes and the history covers twice the time."""
WINDOW_US = 3_600_000_000
"""The rate is that of the last hour; an older history shows only where there is no other."""
HORIZON_US = 10 * 366 * 86_400_000_000
RANGE_SCORE = NormalDist().inv_cdf(0.9)
"""Four of five outcomes lie between `earliest` and `latest`."""
_HALVINGS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """Nano-dollars a microsecond, its standard error, and the variance of spending per microsecond."""

    rate: float
    error: float
    variance: float
    observed_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Depletion:
    """Microseconds from now until nothing is free; None: not within ten years. `lasts_probability`: until the reset."""

    expected_us: int | None
    earliest_us: int | None
    latest_us: int | None
    lasts_probability: float


class SpendHistory:
    """What one budget had spent at some moments of its current period."""

    def __init__(self) -> None:
        self._start_us = -1
        self._samples: list[tuple[int, int]] = []

    def see(self, at_us: int, spent_nanousd: int, *, start_us: int) -> None:
        """Note a sample. A new period forgets the old one's; it began with nothing spent."""
        if start_us != self._start_us:
            self._start_us = start_us
            self._samples = [(start_us, 0)] if start_us > 0 else []
        if self._samples and at_us <= self._samples[-1][0]:
            return
        self._samples.append((at_us, spent_nanousd))
        if len(self._samples) > SAMPLES_MAX:
            del self._samples[1:-1:2]

    def burn(self) -> Burn | None:
        """The rate of the last hour; None with fewer than two samples."""
        samples = _recent(self._samples)
        if len(samples) < 2:
            return None
        return _burn(samples)


def _recent(samples: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """The samples of the window and the one before it; at least two intervals where there are two."""
    first = len(samples) - 1
    while first > 0 and (samples[-1][0] - samples[first][0] < WINDOW_US or len(samples) - first < 3):
        first -= 1
    return samples[first:]


def _burn(samples: Sequence[tuple[int, int]]) -> Burn:
    observed = samples[-1][0] - samples[0][0]
    rate = max(0, samples[-1][1] - samples[0][1]) / observed
    pairs = list(itertools.pairwise(samples))
    if len(pairs) < 2:
        return Burn(rate=rate, error=rate, variance=rate * rate * observed, observed_us=observed)
    squares = sum((later[1] - one[1] - rate * (later[0] - one[0])) ** 2 for one, later in pairs)
    variance = squares / observed * len(pairs) / (len(pairs) - 1)
    return Burn(rate=rate, error=math.sqrt(variance / observed), variance=variance, observed_us=observed)


def depletion(burn: Burn, free_nanousd: int, until_reset_us: int | None) -> Depletion:
    """When `free_nanousd` will be spent. `until_reset_us` None: the budget never resets."""
    if free_nanousd <= 0:
        return Depletion(expected_us=0, earliest_us=0, latest_us=0, lasts_probability=0.0)
    return Depletion(
        expected_us=_reached(burn, free_nanousd, 0.0),
        earliest_us=_reached(burn, free_nanousd, RANGE_SCORE),
        latest_us=_reached(burn, free_nanousd, -RANGE_SCORE),
        lasts_probability=_lasts(burn, free_nanousd, until_reset_us),
    )


def _spent(burn: Burn, after_us: float, score: float) -> float:
    """The amount spent after a time, at so many standard deviations from what is expected."""
    deviation = math.sqrt(burn.variance * after_us + (burn.error * after_us) ** 2)
    return burn.rate * after_us + score * deviation


def _reached(burn: Burn, free: int, score: float) -> int | None:
    low, high = 0.0, float(HORIZON_US)
    if _spent(burn, high, score) < free:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _spent(burn, middle, score) < free else (low, middle)
    return int(high)


def _lasts(burn: Burn, free: int, until_reset_us: int | None) -> float:
    if burn.rate == 0 or until_reset_us == 0:
        return 1.0
    if until_reset_us is None:
        return 0.0
    mean = burn.rate * until_reset_us
    deviation = math.sqrt(burn.variance * until_reset_us + (burn.error * until_reset_us) ** 2)
    if deviation == 0:
        return 1.0 if mean < free else 0.0
    return NormalDist(mean, deviation).cdf(free)
