"""When quotas end whose windows are nobody's calendar. The ledger counts those in windows without end, and says so.

What it says of their lanes, and of who was denied there, gets the end that the key's quota has. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from apikeyrouter.domain.components.entries import Key
from apikeyrouter.domain.components.quotas import limit_of, told_name
from apikeyrouter.domain.models.accounting import AMOUNT_MAX, LaneState, LimitState, Loss, Reason, RetryKind

__all__ = ["QuotaEnds"]

SOON_US = 1_000_000
"""A window whose time has come is set back within so long."""
_LANE = "k:"


class QuotaEnds:
    """The ends of the quotas of these keys, which may come and go."""

    def __init__(self, keys: Mapping[str, Key]) -> None:
        self._keys = keys

    def in_lanes(self, lanes: Sequence[LaneState]) -> Sequence[LaneState]:
        """The same lanes, each limit with its true end; the same object where the ledger knew all of them."""
        return [self._in_lane(lane) for lane in lanes] if any(map(self._known, lanes)) else lanes

    def in_losses(self, losses: Iterable[Loss], now_us: int) -> tuple[Loss, ...]:
        """The same losses, each with its true end. `now_us`: the ledger's time."""
        return tuple(self._in_loss(loss, now_us) for loss in losses)

    def _known(self, lane: LaneState) -> Mapping[str, int]:
        return self._ends(lane.id) if lane.limits and lane.id.startswith(_LANE) else {}

    def _in_lane(self, lane: LaneState) -> LaneState:
        ends = self._known(lane)
        return replace(lane, limits=tuple(_ending(limit, ends) for limit in lane.limits)) if ends else lane

    def _in_loss(self, loss: Loss, now_us: int) -> Loss:
        if loss.reason is not Reason.LIMIT or loss.retry_at_us < AMOUNT_MAX:
            return loss
        end_us = self._ends(loss.where).get(told_name(loss.limit)) if loss.where.startswith(_LANE) else None
        if end_us is None:
            return msgspec.structs.replace(loss, retry_kind=RetryKind.NEVER)
        if end_us > now_us:
            return msgspec.structs.replace(loss, retry_at_us=end_us, retry_kind=RetryKind.EXACT)
        return msgspec.structs.replace(loss, retry_at_us=now_us + SOON_US, retry_kind=RetryKind.ESTIMATED)

    def _ends(self, lane_id: str) -> dict[str, int]:
        """By limit, as people know it: the end of the present window, in microseconds since 1970."""
        key = self._keys.get(lane_id.removeprefix(_LANE))
        if key is None or not key.quotas:
            return {}
        return {
            told_name(limit_of(quota).name): int(quota.resets_at.timestamp() * 1e6)
            for quota in key.quotas
            if quota.resets_at is not None
        }


def _ending(limit: LimitState, ends: Mapping[str, int]) -> LimitState:
    end_us = ends.get(told_name(limit.name))
    return limit if end_us is None else replace(limit, reset_at_us=end_us)
