"""The simulator's own clock: wall time that never runs backwards."""

from __future__ import annotations

import time

__all__ = ["NS_PER_SECOND", "ProviderClock"]

NS_PER_SECOND = 1_000_000_000


class ProviderClock:
    """Wall time anchored once and advanced by the monotonic clock, so that a step of the host's clock is not seen.

    ``offset_ns`` makes the provider's clock differ from everybody else's; ``advance`` jumps it forward at run time.
    """

    __slots__ = ("_anchor_ns",)

    def __init__(self, *, offset_ns: int = 0) -> None:
        self._anchor_ns = time.time_ns() - time.monotonic_ns() + offset_ns

    def now_ns(self) -> int:
        """The present, integer nanoseconds since the Unix epoch by the provider's own clock."""
        return self._anchor_ns + time.monotonic_ns()

    def advance(self, delta_ns: int) -> None:
        """Jump forward by ``delta_ns`` ≥ 0; raises ``ValueError`` on a step back."""
        if delta_ns < 0:
            raise ValueError("a provider's clock never runs backwards")
        self._anchor_ns += delta_ns
