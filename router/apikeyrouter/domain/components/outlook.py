"""How every key stands: what is left to it, what binds it, what keeps it out. Pure, in one pass over what is known."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from apikeyrouter.domain.components.capacity import Level
from apikeyrouter.domain.components.catalogue import Catalogue, key_lane, provider_lane
from apikeyrouter.domain.components.entries import Key
from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.components.quotas import COUNTED_ONLY
from apikeyrouter.domain.components.scoring import lane_out_until_us
from apikeyrouter.domain.models.accounting import LaneState, LimitState
from apikeyrouter.domain.models.api_key import KeyState

__all__ = ["KeyOutlook", "outlooks"]

Unused = Callable[[str], Sequence[LimitState]]
"""The limits of a lane that nobody was held in yet."""
Tightest = dict[str, tuple[str, LimitState] | None]
"""What was found of the lanes that keys share: the limit of which the smallest share is left."""

_BREAKERS = ("closed", "half_open", "open")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOutlook:
    """One key as routing sees it, as of the snapshot.

    `binding`: the lane and limit of which the smallest share is left; None: no limit is known, so that nothing is known
    of its headroom. `out_lane`: the lane that keeps it out longest, by cooling or an open breaker, until `out_until_us`
    on the ledger's clock; "": none does. `own`: its own lane; None: it was not used yet.
    """

    key: Key
    lanes: tuple[str, ...]
    level: Level
    binding: tuple[str, LimitState] | None
    breaker: str
    out_lane: str
    out_until_us: int
    own: LaneState | None

    @property
    def headroom(self) -> float | None:
        """The share of the binding limit that is left, 0 … 1; None: not known."""
        if self.binding is None:
            return None
        return _share_left(self.binding[1])


def outlooks(catalogue: Catalogue, snapshot: Snapshot, keys: Iterable[Key], unused: Unused) -> list[KeyOutlook]:
    """How each of these keys stands, in their order."""
    metered = catalogue.metering_lanes()
    tightest: Tightest = {}

    def look(key: Key) -> KeyOutlook:
        names = (*metered[key.id], provider_lane(key.provider_id))
        for name in names:
            if name not in tightest:
                lane = snapshot.lanes.get(name)
                tightest[name] = _tightest(name, unused(name) if lane is None else lane.limits)
        return _outlook(key, names, snapshot, tightest)

    return [look(key) for key in keys]


def _outlook(key: Key, names: tuple[str, ...], snapshot: Snapshot, tightest: Tightest) -> KeyOutlook:
    lanes = [snapshot.lanes[name] for name in names if name in snapshot.lanes]
    level = max((snapshot.capacity.get(name, Level.ABUNDANT) for name in names[:-1]), default=Level.ABUNDANT)
    binding = [found for name in names if (found := tightest[name]) is not None]
    out_until_us, out_lane = _kept_out(lanes, snapshot.now_us)
    return KeyOutlook(
        key=key, lanes=names, level=Level.EXHAUSTED if key.state is KeyState.Exhausted else level,
        binding=min(binding, key=lambda found: _share_left(found[1]), default=None), out_lane=out_lane,
        out_until_us=out_until_us, own=snapshot.lanes.get(key_lane(key.id)),
        breaker=max((lane.breaker for lane in lanes), key=_BREAKERS.index, default="closed"),
    )  # fmt: skip


def _tightest(lane_id: str, limits: Iterable[LimitState]) -> tuple[str, LimitState] | None:
    worst = min((limit for limit in limits if limit.capacity < COUNTED_ONLY), key=_share_left, default=None)
    return None if worst is None else (lane_id, worst)


def _kept_out(lanes: Sequence[LaneState], now_us: int) -> tuple[int, str]:
    until_us, name = max(((lane_out_until_us(lane, now_us), lane.id) for lane in lanes), default=(0, ""))
    return (until_us, name) if until_us else (0, "")


def _share_left(limit: LimitState) -> float:
    return max(0, limit.capacity - limit.used) / limit.capacity if limit.capacity else 0.0
