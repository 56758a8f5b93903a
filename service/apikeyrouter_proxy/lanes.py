"""Lanes as they are shown before anybody was held in them."""

from apikeyrouter.domain.models.accounting import LaneConfig, LimitState

__all__ = ["unused_limits"]


def unused_limits(lane: LaneConfig) -> tuple[LimitState, ...]:
    """The limits of a lane that the ledger has no record of yet: nothing is used."""
    return tuple(
        LimitState(
            name=limit.name, metric=limit.metric, kind=limit.kind, capacity=limit.burst or limit.amount, used=0,
            reset_at_us=0, learned=False,
        )
        for limit in lane.limits
    )  # fmt: skip
