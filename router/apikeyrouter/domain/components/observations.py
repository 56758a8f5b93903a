"""What this process has seen of each key and model: how fast answers come, how good they are, what callers say.

Latency stays here, for it differs with where one stands. Quality and blame are shared: every process leaves its own
counts where the others find them (`export`, `take_over`), and reads theirs.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from apikeyrouter.domain.components.evidence import proven_share

PEAK_SECONDS = 10.0
"""Time constant of the peak-EWMA: a slower answer counts at once, faster ones pull it down over this time."""
GOOD_HALF_SECONDS = 900.0
BLAME_HALF_SECONDS = 60.0
"""How fast counts are forgotten: answers in a quarter of an hour, blame like the health of lanes."""
GOOD_PRIOR = 5.0
"""Good answers that everybody is credited with."""
KEPT_MAX = 20_000
"""Pairs of key and model remembered; the one asked for longest ago goes first."""
EXPORTED_MAX = 2000
"""Pairs that other processes are told of: those asked for latest."""
EXPORT_VERSION = 1
COUNT_MAX = 1e9


class _Fading:
    """A count that halves in a fixed time."""

    __slots__ = ("_at", "_half_seconds", "_value")

    def __init__(self, half_seconds: float) -> None:
        self._half_seconds, self._value, self._at = half_seconds, 0.0, 0.0

    @property
    def any(self) -> bool:
        """Whether anything was ever counted."""
        return self._value > 0

    def at(self, now: float) -> float:
        """What is left of it at `now`, in seconds of any steady clock."""
        if not self._value:
            return 0.0
        return float(self._value * 2.0 ** (-max(0.0, now - self._at) / self._half_seconds))

    def add(self, amount: float, now: float) -> None:
        """Count `amount`."""
        self._value, self._at = min(COUNT_MAX, self.at(now) + amount), now


class _Peak:
    """Peak-EWMA of a duration, in microseconds; 0: nothing seen yet."""

    __slots__ = ("at", "us")

    def __init__(self) -> None:
        self.us, self.at = 0.0, 0.0

    def take(self, us: float, now: float) -> None:
        """Take one duration in."""
        if us >= self.us:
            self.us = us
        else:
            self.us += (us - self.us) * (1.0 - math.exp(-max(0.0, now - self.at) / PEAK_SECONDS))
        self.at = now


class Seen:
    """What is known of one key with one model. Times are readings of `time.perf_counter()`, in seconds."""

    __slots__ = ("_answers", "_blame", "_first", "_good", "_others", "_whole")

    def __init__(self) -> None:
        self._whole, self._first = _Peak(), _Peak()
        self._answers, self._good = _Fading(GOOD_HALF_SECONDS), _Fading(GOOD_HALF_SECONDS)
        self._blame = _Fading(BLAME_HALF_SECONDS)
        self._others = (0.0, 0.0, 0.0)

    def latency(self, stream: bool) -> float:
        """Microseconds until the whole answer, or a stream's first token; 0: unknown."""
        return self._first.us if stream else self._whole.us

    def latency_age(self, stream: bool, now: float) -> float:
        """Seconds since that was seen."""
        return max(0.0, now - (self._first.at if stream else self._whole.at))

    def answered(self, us: float, *, stream: bool, now: float) -> None:
        """An answer came after `us` microseconds; of a stream, its first token."""
        if us > 0:
            (self._first if stream else self._whole).take(us, now)

    def judged(self, quality: float, now: float) -> None:
        """An answer was good (1), of no use (0), or between."""
        self._answers.add(1.0, now)
        self._good.add(quality, now)

    def blame(self, now: float) -> None:
        """A caller said that an attempt failed which looked like a success."""
        self._blame.add(1.0, now)

    def good_share(self, now: float) -> float:
        """One less the share of answers that is *proven* to be of no use, 0 … 1; 1 where nothing is known."""
        answers, good, _ = self._others
        if not (answers or self._answers.any):
            return 1.0
        answers, good = answers + self._answers.at(now), good + self._good.at(now)
        return 1.0 - proven_share(answers - good, answers + GOOD_PRIOR)

    @property
    def was_blamed(self) -> bool:
        """Whether there is any blame, however old."""
        return bool(self._blame.any or self._others[2])

    def blamed(self, now: float) -> float:
        """Recent failures by callers' word."""
        return self._others[2] + self._blame.at(now)

    def counts(self, now: float) -> tuple[float, float, float]:
        """This process's own (answers, good ones, blame)."""
        return self._answers.at(now), self._good.at(now), self._blame.at(now)

    def others(self, counts: tuple[float, float, float]) -> None:
        """What all other processes count together, in place of what was known of them."""
        self._others = counts


class Observations:
    """Every `Seen` of this process, by key and model. One event loop owns it."""

    def __init__(self, *, kept_max: int = KEPT_MAX) -> None:
        self._kept_max = kept_max
        self._seen: OrderedDict[tuple[str, str], Seen] = OrderedDict()

    def of(self, key_id: str, model: str) -> Seen:
        """What is known of a key with a model; the same object as long as it is remembered."""
        found = self._seen.get((key_id, model))
        if found is None:
            found = self._seen[key_id, model] = Seen()
            if len(self._seen) > self._kept_max:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end((key_id, model))
        return found

    def export(self, now: float | None = None) -> dict[str, object]:
        """This process's counts as plain JSON values; rows are [key, model, answers, good, blame]."""
        now = time.perf_counter() if now is None else now
        rows = []
        for (key_id, model), seen in list(self._seen.items())[-EXPORTED_MAX:]:
            counts = seen.counts(now)
            if max(counts) >= 0.01:
                rows.append([key_id, model, *(round(count, 3) for count in counts)])
        return {"version": EXPORT_VERSION, "rows": rows}

    def take_over(self, told: Iterable[Mapping[str, object]]) -> None:
        """What the other processes exported, in place of what they did before. Rows that make no sense are skipped."""
        sums: dict[tuple[str, str], tuple[float, float, float]] = {}
        for state in told:
            rows = state.get("rows") if state.get("version") == EXPORT_VERSION else None
            for row in rows[: self._kept_max] if isinstance(rows, list) else ():
                counted = _read(row)
                if counted is not None:
                    pair, counts = counted
                    before = sums.get(pair, (0.0, 0.0, 0.0))
                    sums[pair] = (before[0] + counts[0], before[1] + counts[1], before[2] + counts[2])
        for pair, seen in self._seen.items():
            seen.others(sums.pop(pair, (0.0, 0.0, 0.0)))
        for key_id, model in sums:
            self.of(key_id, model).others(sums[key_id, model])


def _read(row: object) -> tuple[tuple[str, str], tuple[float, float, float]] | None:
    if not isinstance(row, list) or len(row) != 5 or not isinstance(row[0], str) or not isinstance(row[1], str):
        return None
    counts = row[2:]
    if not all(isinstance(count, int | float) and 0 <= count <= COUNT_MAX for count in counts):
        return None
    answers, good, blame = (float(count) for count in counts)
    return (row[0], row[1]), (answers, min(good, answers), blame)
