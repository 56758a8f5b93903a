"""Samples and what may be said of them: the median, and the middle half of what was seen."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of `count` samples, their quartiles, and the extremes."""

    median: float
    lower: float
    upper: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> "Spread":
        """The spread of at least one sample."""
        values = sorted(samples)
        if len(values) == 1:
            return cls(values[0], values[0], values[0], values[0], values[0], 1)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, values[0], values[-1], len(values))

    def text(self, unit: str = "", *, digits: int = 0) -> str:
        """`175 µs (170 … 181)`: the median, then the quartiles."""
        suffix = f" {unit}" if unit else ""
        if self.count == 1:
            return f"{self.median:,.{digits}f}{suffix}"
        return f"{self.median:,.{digits}f}{suffix} ({self.lower:,.{digits}f} … {self.upper:,.{digits}f})"
