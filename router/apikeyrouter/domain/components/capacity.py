"""How much is left in each lane, from headroom and forecast: Abundant, Constrained, Critical, Exhausted.

Worked out when the snapshot is refreshed, off every request's path. A lane is as well off as the limit that is worst.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from apikeyrouter.domain.components.forecast import Burn, Crossing, crossing
from apikeyrouter.domain.components.quotas import told_name
from apikeyrouter.domain.models.accounting import LaneState, LimitKind, LimitState
from apikeyrouter.domain.models.quota_state import CapacityState

__all__ = ["FEW", "CapacityWatch", "Level", "window_seconds"]

FEW = 32
"""Of so few places for calls in flight, what was read lately says nothing of now: they come and go too quickly."""
CONSTRAINED_SHARE, CRITICAL_SHARE = 0.2, 0.05
"""At or below this share left, whatever the forecast says."""
LIKELY = 0.5
"""The chance of running out before the reset from which a limit is constrained."""
SOON = 0.1
"""Running out within this share of the window is critical."""
EASE = 1.25
"""A state is left for a better one only when this much better: no to and fro at the edge."""
FORECAST_EVERY_US = 10_000_000
"""A forecast is renewed at least this often, and with every slot and window; headroom is looked at every time."""
NO_FORECAST_SHARE = 0.5
"""With more than this left and a rate that would take four times as long, there is nothing to forecast."""
_SECONDS = {"m": 60.0, "h": 3_600.0, "d": 86_400.0, "s": 1.0}
_PERIODS = {"hourly": 3_600.0, "daily": 86_400.0, "weekly": 604_800.0, "monthly": 2_592_000.0}
UNKNOWN_WINDOW_SECONDS = 2_592_000.0


class Level(IntEnum):
    """Capacity states as numbers: the higher, the less is left."""

    ABUNDANT = 0
    CONSTRAINED = 1
    CRITICAL = 2
    EXHAUSTED = 3

    @property
    def state(self) -> CapacityState:
        """The state in the documents' words."""
        return CapacityState[self.name.capitalize()]


def window_seconds(limit: LimitState) -> float:
    """How long a limit's window is, or how long a bucket takes to refill, by its name."""
    name = told_name(limit.name)
    if (period := name.rpartition("_")[2]) in _PERIODS:
        return _PERIODS[period]
    if name.rpartition("p")[0] in ("r", "t", "it", "ot"):
        return _SECONDS[name[-1]]
    return UNKNOWN_WINDOW_SECONDS


@dataclass(slots=True)
class _Watched:
    """One limit of one lane as it was last seen."""

    burn: Burn
    window_seconds: float
    used: int
    reset_at_us: int
    at_us: int
    refill_per_second: float = 0.0
    refill_seen: int = 0
    level: Level = Level.ABUNDANT
    forecast: Level = Level.ABUNDANT
    judged: tuple[int, int] = (-1, -1)
    """(slots, reset) of the last forecast."""
    judged_at_us: int = 0


class CapacityWatch:
    """Learns from every snapshot how fast limits are used up, and says how each lane is off."""

    def __init__(self) -> None:
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._idle: dict[str, int] = {}

    def see(self, lanes: Iterable[LaneState], now_us: int) -> dict[str, Level]:
        """The level of each of these lanes, as of `now_us` on the ledger's clock."""
        return {lane.id: self._lane(lane, now_us) for lane in lanes}

    def forget(self, lane_ids: Iterable[str]) -> None:
        """Lanes that are in use no longer."""
        gone = set(lane_ids)
        for known in [known for known in self._watched if known[0] in gone]:
            del self._watched[known]
        for lane_id in gone:
            self._idle.pop(lane_id, None)

    def level(self, lane_id: str, limit: LimitState) -> Level:
        """What was last said of one limit; by its headroom alone where it was never seen."""
        watched = self._watched.get((lane_id, limit.name))
        return _by_share(limit, Level.ABUNDANT) if watched is None else watched.level

    def burn(self, lane_id: str, limit: LimitState) -> Burn | None:
        """What was learned of how a limit is used up; None: nothing yet."""
        watched = self._watched.get((lane_id, limit.name))
        return None if watched is None else watched.burn

    def crossing(self, lane_id: str, limit: LimitState, now_us: int, *, confidence: float) -> Crossing | None:
        """When a limit will be used up; None: nothing is known of its rate."""
        watched = self._watched.get((lane_id, limit.name))
        if watched is None or not watched.burn.slots:
            return None
        return crossing(
            watched.burn, limit.capacity - limit.used, reset_seconds=_horizon(limit, watched, now_us),
            refill_per_second=watched.refill_per_second, confidence=confidence,
        )  # fmt: skip

    def _lane(self, lane: LaneState, now_us: int) -> Level:
        if lane.blocked_until_us > now_us:
            return Level.EXHAUSTED
        if self._idle.get(lane.id) == lane.seq:
            return Level.ABUNDANT  # untouched since it was last seen with nothing used
        level, idle = Level.ABUNDANT, True
        for limit in lane.limits:
            if limit.kind is LimitKind.CONCURRENCY:
                if limit.capacity > FEW:
                    level = max(level, _by_share(limit, Level.ABUNDANT))
                idle = idle and not limit.used
                continue
            found = self._limit(lane.id, limit, now_us)
            level, idle = max(level, found), idle and not limit.used and (lane.id, limit.name) not in self._watched
        if idle:
            self._idle[lane.id] = lane.seq
        else:
            self._idle.pop(lane.id, None)
        return level

    def _limit(self, lane_id: str, limit: LimitState, now_us: int) -> Level:
        watched = self._watched.get((lane_id, limit.name))
        if watched is None:
            if not limit.used:
                return _by_share(limit, Level.ABUNDANT)
            watched = self._watched[lane_id, limit.name] = _first_sight(limit, now_us)
        else:
            _take_in(watched, limit, now_us)
        judged = (watched.burn.slots, 0 if limit.kind is LimitKind.BUCKET else limit.reset_at_us)
        if watched.judged != judged or now_us - watched.judged_at_us >= FORECAST_EVERY_US:
            watched.judged, watched.judged_at_us = judged, now_us
            watched.forecast = _forecast(watched, limit, now_us)
        watched.level = max(_by_share(limit, watched.level), watched.forecast)
        return watched.level


def _first_sight(limit: LimitState, now_us: int) -> _Watched:
    seconds = window_seconds(limit)
    burn = Burn.of_window(seconds)
    watched = _Watched(burn, seconds, limit.used, limit.reset_at_us, now_us)
    _learn_refill(watched, limit, now_us)
    burn.add(0, now_us / 1e6)
    if limit.kind in (LimitKind.FIXED, LimitKind.CALENDAR):
        elapsed = seconds - (limit.reset_at_us - now_us) / 1e6
        if elapsed >= burn.slot_seconds:
            burn.prime(limit.used / elapsed, now_us / 1e6)
    return watched


def _take_in(watched: _Watched, limit: LimitState, now_us: int) -> None:
    """What was consumed since the limit was last seen."""
    elapsed = max(0, now_us - watched.at_us) / 1e6
    before = float(watched.used)
    if limit.kind in (LimitKind.FIXED, LimitKind.CALENDAR):
        if limit.reset_at_us != watched.reset_at_us:
            before = 0.0
    elif limit.kind is LimitKind.BUCKET:
        before = max(0.0, before - watched.refill_per_second * elapsed)
    else:
        before = max(0.0, before - before * elapsed / watched.window_seconds)
    watched.burn.add(max(0.0, limit.used - before), now_us / 1e6)
    watched.used, watched.reset_at_us, watched.at_us = limit.used, limit.reset_at_us, now_us
    _learn_refill(watched, limit, now_us)


def _learn_refill(watched: _Watched, limit: LimitState, now_us: int) -> None:
    """A bucket says when it will be full again; the more is used, the better that tells its rate."""
    left_us = limit.reset_at_us - now_us
    if limit.kind is LimitKind.BUCKET and left_us > 0 and limit.used >= watched.refill_seen:
        watched.refill_per_second, watched.refill_seen = limit.used * 1e6 / left_us, limit.used


def _horizon(limit: LimitState, watched: _Watched, now_us: int) -> float:
    """Seconds until a window resets; of what refills all the time, as long as a whole window."""
    if limit.kind in (LimitKind.FIXED, LimitKind.CALENDAR):
        return max(1e-3, (limit.reset_at_us - now_us) / 1e6)
    return watched.window_seconds


def _by_share(limit: LimitState, before: Level) -> Level:
    if limit.used >= limit.capacity:
        return Level.EXHAUSTED
    left = limit.capacity - limit.used
    for level, least in ((Level.CRITICAL, CRITICAL_SHARE), (Level.CONSTRAINED, CONSTRAINED_SHARE)):
        if left <= limit.capacity * (least * EASE if before >= level else least):
            return level
    return Level.ABUNDANT


def _forecast(watched: _Watched, limit: LimitState, now_us: int) -> Level:
    if not watched.burn.slots or limit.used >= limit.capacity:
        return Level.ABUNDANT
    left, horizon = limit.capacity - limit.used, _horizon(limit, watched, now_us)
    if left > NO_FORECAST_SHARE * limit.capacity and watched.burn.recent * horizon * 4 < left:
        return Level.ABUNDANT
    refill = watched.refill_per_second
    soon = min(horizon, SOON * watched.window_seconds)
    if watched.burn.demand(soon).reaches(left + refill * soon) >= LIKELY:
        return Level.CRITICAL
    likely = LIKELY / EASE if watched.level >= Level.CONSTRAINED else LIKELY
    reaches = watched.burn.demand(horizon).reaches(left + refill * horizon)
    return Level.CONSTRAINED if reaches >= likely else Level.ABUNDANT


def worst(levels: Mapping[str, Level], lanes: Iterable[str]) -> Level:
    """The level of a candidate that is metered in these lanes."""
    return max((levels.get(lane, Level.ABUNDANT) for lane in lanes), default=Level.ABUNDANT)
