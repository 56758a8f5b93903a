"""What is shared in a run: lanes, budgets, and how much is asked of them. A small house, a busy one, one with slabs.

Whatever the size: more is asked for than there is room for, so that every limit and budget is met.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from apikeyrouter.domain.models.accounting import (
    Breaker,
    LaneConfig,
    Limit,
    Period,
    ScopeConfig,
    SuspenseRule,
    Words,
    place_words,
)
from apikeyrouter.serving.presence import WORKERS
from tests.faults.books import World
from tests.ledger.support import SECOND, bucket, in_flight, sliding, window

_BREAKER = Breaker(failures=3, window_us=10 * SECOND, open_us=SECOND, open_max_us=8 * SECOND)
CANARY_LANE, CANARY_SCOPE = "canary", "canary"
"""What nobody uses until the end: it must be served then."""
_CANARY = (
    LaneConfig(id=CANARY_LANE, limits=(in_flight(10),)),
    ScopeConfig(id=CANARY_SCOPE, limit_nanousd=10**9, hard=True, period=Period.TOTAL),
)
_LANES = (
    LaneConfig(id="org/a", limits=(bucket(900, burst=30), bucket(500_000, burst=30_000, name="tpm")), fair=True),
    LaneConfig(id="org/b", limits=(window(500), sliding(300_000, name="tpm"))),
    LaneConfig(id="org/c", limits=(sliding(400), bucket(90_000, burst=9_000, name="otpm"))),
    LaneConfig(id="key/a1", limits=(in_flight(14),), breaker=_BREAKER),
    LaneConfig(id="key/a2", limits=(in_flight(9),), breaker=_BREAKER),
    LaneConfig(id="key/b1", limits=(in_flight(20),)),
    LaneConfig(id="key/c1", limits=(in_flight(8),), breaker=_BREAKER),
)
_WAYS = (("key/a1", "org/a"), ("key/a2", "org/a"), ("key/b1", "org/b"), ("key/c1", "org/c"))
_SCOPES = (
    ScopeConfig(
        id="all", limit_nanousd=600_000, hard=True, period=Period.HOURLY, suspense_after_us=20 * SECOND,
    ),
    ScopeConfig(id="team", limit_nanousd=120_000, hard=True, period=Period.TOTAL, suspense=SuspenseRule.HOLD),
    ScopeConfig(id="soft", limit_nanousd=30_000, hard=False, period=Period.HOURLY, suspense_after_us=9 * SECOND),
    ScopeConfig(
        id="key", limit_nanousd=500_000, hard=True, period=Period.HOURLY, suspense_after_us=20 * SECOND,
    ),
)  # fmt: skip
_SLAB_LANES = (
    LaneConfig(
        id="org/s", limits=(bucket(15_000, burst=2_500), bucket(12_000_000, burst=1_500_000, name="tpm")), fair=True
    ),
    LaneConfig(id="org/t", limits=(window(12_000), sliding(9_000_000, name="tpm"))),
    LaneConfig(id="key/s1", limits=(in_flight(1500),), breaker=_BREAKER),
    LaneConfig(id="key/t1", limits=(in_flight(1200),)),
)
_SLAB_WAYS = (("key/s1", "org/s"), ("key/t1", "org/t"))


@dataclass(frozen=True, slots=True)
class House:
    """One of them. `per_second`: how often each caller asks. `slabs`: workers hold slabs of every limit."""

    world: World
    ways: tuple[Words, ...]
    """A key, and the quota group that it is metered in."""
    callers: int
    per_second: float
    slabs: bool = False
    seconds: tuple[float, ...] = (0.02, 0.1, 0.3, 1.0, 7.0)
    """How long calls take, more or less."""
    fails: float = 0.15
    """The share of calls that do."""


def _house(
    lanes: tuple[LaneConfig, ...], scopes: tuple[ScopeConfig, ...], ways: tuple[tuple[str, str], ...],
    callers: int, per_second: float, *, slabs: bool = False, seconds: tuple[float, ...] = (0.02, 0.1, 0.3, 1.0, 7.0),
) -> House:  # fmt: skip
    shown = (*lanes, _CANARY[0], *([LaneConfig(id=WORKERS)] if slabs else []))
    world = World({lane.id: lane for lane in shown}, {scope.id: scope for scope in (*scopes, _CANARY[1])})
    words = tuple(place_words(way, ("key",)) for way in ways)
    return House(world, words, callers, per_second, slabs, seconds, 0.02 if slabs else 0.15)


def _larger(lanes: tuple[LaneConfig, ...], times: int) -> Iterator[LaneConfig]:
    for lane in lanes:
        yield replace(lane, limits=tuple(_times(limit, times) for limit in lane.limits))


def _times(limit: Limit, times: int) -> Limit:
    return replace(limit, amount=limit.amount * times, burst=None if limit.burst is None else limit.burst * times)


def _richer(times: int) -> tuple[ScopeConfig, ...]:
    return tuple(replace(scope, limit_nanousd=scope.limit_nanousd * times) for scope in _SCOPES)


def _with_slabs(lanes: tuple[LaneConfig, ...]) -> Iterator[LaneConfig]:
    for lane in lanes:
        yield replace(lane, limits=tuple(replace(limit, slabs=True) for limit in lane.limits))


SMALL = _house(_LANES, _SCOPES, _WAYS, 14, 5.0)
BUSY = _house(tuple(_larger(_LANES, 8)), _richer(8), _WAYS, 20, 16.0)
SLABS = _house(
    tuple(_with_slabs(_SLAB_LANES)), _richer(12), _SLAB_WAYS, 8, 75.0, slabs=True, seconds=(0.02, 0.1, 0.3, 1.0)
)
HOUSES = (SMALL, BUSY, SLABS)


def house_of(seed: int) -> House:
    """The small one, the busy one and the one with slabs take turns, with every kind of faults. Where messages overtake
    each other (every other seed) every answer looks like a loss, so that slabs are given up at once and all that is
    open is told again: the house is small then.
    """
    return SMALL if seed % 2 else HOUSES[seed // 6 % len(HOUSES)]
