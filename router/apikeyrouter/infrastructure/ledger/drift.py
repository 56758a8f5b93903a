"""Counters of a cell held against the reservations that still count."""

from collections.abc import Sequence
from dataclasses import dataclass

from apikeyrouter.domain.models.accounting import LaneState, ScopeState
from apikeyrouter.infrastructure.ledger.records import ReservationRecord

__all__ = ["Drift", "drifts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One counter that differs from what the reservations say. There should be none."""

    where: str
    counter: str
    counted: int
    recomputed: int


def drifts(
    open_ones: Sequence[ReservationRecord],
    suspended: Sequence[ReservationRecord],
    lanes: Sequence[LaneState],
    scopes: Sequence[ScopeState],
) -> list[Drift]:
    """Every counter of these lanes and scopes that is not what the reservations make of it."""
    in_flight: dict[str, int] = {}
    held: dict[tuple[str, int], int] = {}
    waiting: dict[tuple[str, int], int] = {}
    for record in open_ones:
        for lane in record.lanes:
            in_flight[lane] = in_flight.get(lane, 0) + record.calls
        for scope, amount, start, _, _ in record.scopes:
            held[scope, start] = held.get((scope, start), 0) + amount
    for record in suspended:
        for scope, amount, start, due, _ in record.scopes:
            if due:
                waiting[scope, start] = waiting.get((scope, start), 0) + amount
    found = [
        Drift(where=lane.id, counter="in_flight", counted=lane.in_flight, recomputed=in_flight.get(lane.id, 0))
        for lane in lanes
    ]
    for state in scopes:
        period = (state.id, state.starts_at_us)
        found.append(Drift(where=state.id, counter="held", counted=state.held, recomputed=held.get(period, 0)))
        suspense = waiting.get(period, 0)
        found.append(Drift(where=state.id, counter="suspense", counted=state.suspense, recomputed=suspense))
    return [drift for drift in found if drift.counted != drift.recomputed]
