"""Circuit breakers: when one opens, and how the lanes of a key are read as one circuit. Counting is the ledger's."""

from datetime import UTC, datetime, timedelta

from apikeyrouter.domain.components.scoring import lane_out_until_us
from apikeyrouter.domain.models.accounting import Breaker, LaneState
from apikeyrouter.domain.models.failure import CircuitPhase, CircuitState

KEY_BREAKER = Breaker()
"""A key's own: five failures in a row that speak for it alone, within ten seconds."""
PROVIDER_BREAKER = Breaker(failures=10, window_us=60_000_000)
"""A provider's: ten in a row over all its keys within a minute, without one success. That is enough at ten attempts a
minute, and a provider at which every other attempt fails comes to it once in a thousand times."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def circuit_of(key_id: str, lanes: list[LaneState], *, now_us: int) -> CircuitState:
    """The circuit that requests with a key pass: of its lanes, the one that keeps them out longest.

    `lanes`: the key's own, and its provider's; those that were never used may be missing. `now_us`: ledger's time.
    """
    worst = max(
        lanes, key=lambda lane: (lane_out_until_us(lane, now_us), lane.breaker != CircuitPhase.CLOSED), default=None
    )
    if worst is None:
        return CircuitState(key_id=key_id, state=CircuitPhase.CLOSED, lane=f"k:{key_id}")
    until_us = lane_out_until_us(worst, now_us)
    phase = CircuitPhase(worst.breaker)
    return CircuitState(
        key_id=key_id, state=phase, lane=worst.id,
        until=_EPOCH + timedelta(microseconds=until_us) if until_us else None,
        cooling=worst.blocked_until_us > now_us, successes=worst.successes, failures=worst.failures,
    )  # fmt: skip
