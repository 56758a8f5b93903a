"""What this worker has counted: plain integers in lists, one list per combination of labels, looked up once a request.

Lists of different workers with the same labels are summed place by place; that is all that sharing takes.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping

import msgspec

from apikeyrouter.domain.models.call import Facts

__all__ = ["Counters", "Labels", "Metrics", "add_counters"]

SERIES_MAX = 2_000
"""Combinations of labels kept; what comes after counts under OTHER, so that clients cannot fill the memory."""
OTHER = "other"
DURATION_BOUNDS_US = (
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000, 120_000_000, 300_000_000,
)  # fmt: skip
OVERHEAD_BOUNDS_US = (
    50, 100, 150, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000,
)  # fmt: skip
FIRST_TOKEN_BOUNDS_US = DURATION_BOUNDS_US

REQUESTS, ATTEMPTS, INPUT, OUTPUT, CACHED, COST = range(6)
DURATION_SUM, OVERHEAD_SUM, FIRST_TOKEN_SUM = range(6, 9)
DURATION = 9
OVERHEAD = DURATION + len(DURATION_BOUNDS_US) + 1
FIRST_TOKEN = OVERHEAD + len(OVERHEAD_BOUNDS_US) + 1
LENGTH = FIRST_TOKEN + len(FIRST_TOKEN_BOUNDS_US) + 1
"""Places in a series' list; of a histogram, the first of its buckets (not cumulative, the last one unbounded)."""

Labels = tuple[str, str, str, str]
"""Route, provider, model, outcome."""
Counters = dict[str, list[int]]
"""Labels as a JSON array → counts. Four labels: a series; one: a denial's reason; two, the first empty: a counter."""


class Metrics:
    """Counts of one worker. Owned by one event loop; nothing here locks, waits or fails."""

    def __init__(self) -> None:
        self._series: dict[Labels, list[int]] = {}
        self._denials: dict[str, int] = {}
        self.in_flight = 0

    def observe(self, facts: Facts) -> None:
        """Count one call that has ended."""
        attempts = facts.attempts
        if attempts:
            labels = (facts.operation, attempts[-1].provider_id, facts.model, facts.outcome)
        else:  # a model that nothing was ever held for may be anything a client made up
            labels = (facts.operation, "", facts.model if facts.denial is not None else "", facts.outcome)
        series = self._series.get(labels) or self._add(labels)
        series[REQUESTS] += 1
        series[ATTEMPTS] += len(attempts)
        usage = facts.usage
        if usage is not None:
            series[INPUT] += usage.input_tokens
            series[OUTPUT] += usage.output_tokens
            series[CACHED] += usage.cache_read_tokens
        if facts.cost_nanousd is not None:
            series[COST] += facts.cost_nanousd
        total = facts.total_us
        series[DURATION_SUM] += total
        series[DURATION + bisect_left(DURATION_BOUNDS_US, total)] += 1
        overhead = facts.overhead_us
        series[OVERHEAD_SUM] += overhead
        series[OVERHEAD + bisect_left(OVERHEAD_BOUNDS_US, overhead)] += 1
        first = facts.first_token_us
        if first:
            series[FIRST_TOKEN_SUM] += first
            series[FIRST_TOKEN + bisect_left(FIRST_TOKEN_BOUNDS_US, first)] += 1

    def refused(self, route: str, outcome: str, total_us: int) -> None:
        """Count one request that never reached the router."""
        labels = (route, "", "", outcome)
        series = self._series.get(labels) or self._add(labels)
        series[REQUESTS] += 1
        series[DURATION_SUM] += total_us
        series[DURATION + bisect_left(DURATION_BOUNDS_US, total_us)] += 1
        series[OVERHEAD_SUM] += total_us
        series[OVERHEAD + bisect_left(OVERHEAD_BOUNDS_US, total_us)] += 1

    def denied(self, reason: str) -> None:
        """Count one error answer."""
        denials = self._denials
        if reason not in denials and len(denials) >= SERIES_MAX:
            reason = OTHER
        denials[reason] = denials.get(reason, 0) + 1

    def counters(self, singles: Mapping[str, int]) -> Counters:
        """A copy of everything, to be shared or shown. `singles`: counters kept elsewhere, by metric name."""
        counted = {_key(*labels): list(series) for labels, series in self._series.items()}
        counted.update({_key(reason): [count] for reason, count in self._denials.items()})
        counted.update({_key("", name): [count] for name, count in singles.items()})
        return counted

    def _add(self, labels: Labels) -> list[int]:
        if len(self._series) >= SERIES_MAX:
            labels = (labels[0], OTHER, OTHER, labels[3])
        return self._series.setdefault(labels, [0] * LENGTH)


def _key(*labels: str) -> str:
    return msgspec.json.encode(labels).decode()


def add_counters(parts: Iterable[Counters]) -> Counters:
    """The sum, place by place. Lists of another length (another version's) are left out."""
    total: Counters = {}
    for part in parts:
        for labels, values in part.items():
            known = total.get(labels)
            if known is None:
                total[labels] = list(values)
            elif len(known) == len(values):
                for place, value in enumerate(values):
                    known[place] += value
    return total
