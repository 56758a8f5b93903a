"""Measures: what each objective looks at, in natural units, and less is better. Pure over an option and its lanes.

A measure is a finite number, whatever happens; WORST means "as bad as can be" (a price that nobody knows).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apikeyrouter.domain.components.capacity import Level, worst
from apikeyrouter.domain.components.evidence import proven_share
from apikeyrouter.domain.models.accounting import LaneState
from apikeyrouter.domain.models.quota_state import CapacityState

if TYPE_CHECKING:
    from apikeyrouter.domain.components.pool import Option

TYPICAL_TOKENS = (1000, 500)
"""Input and output tokens of the request by which prices are compared when no other is meant."""
LATENCY_SECONDS = 60.0
"""How fast a latency that was not seen again is doubted: what it exceeds the best by falls to 1/e in that time."""
WORST = 1e300
SUCCESS_LEAST = 0.02
"""A key that always fails counts as succeeding this often, so that its latency stays a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What options are compared under. `now_us`: the ledger's time; `now`: this process's, in seconds.

    `capacity`: lanes with less than an abundance left. `out`: lanes that are cooling, or have an open breaker.
    """

    lanes: Mapping[str, LaneState]
    out: Collection[str] = ()
    capacity: Mapping[str, Level] = field(default_factory=dict)
    now_us: int = 0
    now: float = 0.0
    input_tokens: int = TYPICAL_TOKENS[0]
    output_tokens: int = TYPICAL_TOKENS[1]
    stream: bool = False


Measure = Callable[["Option", Conditions], float]


def cost_nanousd(option: "Option", at: Conditions) -> float:
    """What such a request is expected to cost, in nano-dollars."""
    price = option.price
    return WORST if price is None else price.expected(at.input_tokens, at.output_tokens)


def failure_share(option: "Option", at: Conditions) -> float:
    """The share of attempts that is *proven* to fail, 0 … 1: what is not known is not held against anybody.

    Over the recent outcomes of its lanes, all processes together, halved every minute, and feedback. A key and its
    provider fail independently.
    """
    success, lanes = 1.0, at.lanes
    for lane_id in option.lanes:
        lane = lanes.get(lane_id)
        if lane is not None and lane.failures:
            success *= 1.0 - proven_share(lane.failures, lane.successes + lane.failures)
    if option.seen.was_blamed:
        blamed = option.seen.blamed(at.now)
        success *= 1.0 - proven_share(blamed, blamed + outcomes(option, at))
    return 1.0 - success


def outcomes(option: "Option", at: Conditions) -> float:
    """How many recent outcomes of its own lane there are: what `failure_share` rests on."""
    lane = at.lanes.get(option.lanes[0])
    return 0.0 if lane is None else float(lane.successes + lane.failures)


def latency_us(option: "Option", at: Conditions) -> float:
    """How long it takes to answer, in microseconds, by this process's peak-EWMA, else the fleet's EWMA; 0: unknown.

    Of streams: until the first token. Only answers count, so that a fast refusal looks like nothing.
    """
    seen = option.seen.latency(at.stream)
    if seen > 0:
        return seen
    lanes = option.lanes
    for lane_id in (lanes[1], lanes[0]) if len(lanes) > 1 else lanes:
        lane = at.lanes.get(lane_id)
        if lane is not None and lane.latency_us:
            return float(lane.latency_us)
    return 0.0


def recent_load(option: "Option", at: Conditions) -> float:
    """Recent requests of its own lane, those in flight included, per weight: what is to be even."""
    lane = at.lanes.get(option.lanes[0])
    load = 0 if lane is None else lane.successes + lane.failures + lane.in_flight
    return (load + 1) / option.key.weight


def shortfall(option: "Option", at: Conditions) -> float:
    """What is missing to perfect quality, 0 … 1: the declared score times the share of good answers, from 1."""
    return 1.0 - option.quality * option.seen.good_share(at.now)


def out_until_us(option: "Option", at: Conditions) -> int:
    """When the last of its lanes that are out is back (cooling, breaker open), Unix microseconds; 0: none is out."""
    until = 0
    for lane_id in option.lanes if at.out else ():
        if lane_id in at.out:
            until = max(until, lane_out_until_us(at.lanes[lane_id], at.now_us))
    return until


def scarcity(option: "Option", at: Conditions) -> Level:
    """How little is left in the lane of it that is worst off."""
    return worst(at.capacity, option.lanes) if at.capacity else Level.ABUNDANT


def lane_out_until_us(lane: LaneState, now_us: int) -> int:
    """When a lane that is out is back; 0: it is not out."""
    until = lane.blocked_until_us if lane.blocked_until_us > now_us else 0
    if lane.breaker == "open" and lane.breaker_until_us > max(now_us, until):
        until = lane.breaker_until_us
    return until


class CandidateView:
    """What a strategy may look at: one way to serve a request, and what is known of it. Read only."""

    __slots__ = ("_at", "_option")

    def __init__(self, option: "Option", at: Conditions) -> None:
        self._option, self._at = option, at

    @property
    def key_id(self) -> str:
        """The key's id."""
        return self._option.key.id

    @property
    def provider_id(self) -> str:
        """The provider's id."""
        return self._option.provider.id

    @property
    def model(self) -> str:
        """The model's name at the provider."""
        return self._option.model

    @property
    def quota_group(self) -> str:
        """The keys that the provider meters together."""
        return self._option.key.quota_group

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The key's metadata."""
        return self._option.key.metadata

    @property
    def weight(self) -> float:
        """The key's weight, above 0."""
        return self._option.key.weight

    @property
    def quality(self) -> float:
        """Declared quality times the share of good answers, 0 … 1."""
        return 1.0 - shortfall(self._option, self._at)

    @property
    def cost_usd(self) -> float | None:
        """Dollars that a typical request costs; None: the price is unknown."""
        cost = cost_nanousd(self._option, self._at)
        return None if cost == WORST else cost / 1e9

    @property
    def failure_share(self) -> float:
        """The share of recent attempts that is proven to fail, 0 … 1."""
        return failure_share(self._option, self._at)

    @property
    def latency_ms(self) -> float | None:
        """How long it takes to answer, requests before it not counted; None: nothing is known."""
        return latency_us(self._option, self._at) / 1000 or None

    @property
    def capacity_state(self) -> CapacityState:
        """What is left of its quotas, by headroom and forecast."""
        return scarcity(self._option, self._at).state

    @property
    def in_flight(self) -> int:
        """Requests that are under way with this key, in all processes."""
        lane = self._at.lanes.get(self._option.lanes[0])
        return 0 if lane is None else lane.in_flight

    @property
    def lanes(self) -> tuple[LaneState, ...]:
        """Its lanes as they were last seen (own first), with their limits and what is used of them."""
        found = (self._at.lanes.get(lane) for lane in self._option.lanes)
        return tuple(lane for lane in found if lane is not None)
