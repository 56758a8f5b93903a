"""Expected waits: what the latency objective compares. Settled when an order is built, kept up with what is under way.

Latencies differ in how far they are believed; a key's wait is its latency times what is under way with it.
"""

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apikeyrouter.domain.components.objectives import EXPECTED_US, FAILURE_SHARE, IN_FLIGHT, LATENCY_US, Plan
from apikeyrouter.domain.components.scoring import LATENCY_SECONDS, SUCCESS_LEAST, Conditions, latency_us

if TYPE_CHECKING:
    from apikeyrouter.domain.components.ordering import Row
    from apikeyrouter.domain.components.pool import Option
    from apikeyrouter.domain.models.ranking import Standing

UNKNOWN_US = 1.0
"""The latency of everybody where nobody's is known."""


class Waits:
    """The waits of these options under these conditions: what is unknown is taken to be as good as the best until it
    was tried."""

    __slots__ = ("_at", "_best", "_places")

    def __init__(self, plan: Plan, options: Sequence["Option"], at: Conditions) -> None:
        self._at = at
        self._best = min((us for option in options if (us := latency_us(option, at)) > 0), default=UNKNOWN_US)
        self._places = tuple(map(plan.measures.index, (EXPECTED_US, LATENCY_US, IN_FLIGHT, FAILURE_SHARE)))

    def settle(self, row: "Row") -> None:
        """The latency among a row's values as it is believed, and the wait that it makes."""
        expected, latency, in_flight, failed = self._places
        option, values = row.option, list(row.values)
        lane = self._at.lanes.get(option.lanes[0])
        us = values[latency] = doubted(option, values[latency], self._best, self._at)
        own = option.key.under_way
        others = max(0, (0 if lane is None else lane.in_flight) - own)
        row.alone = us / (option.key.weight * max(SUCCESS_LEAST, 1.0 - values[failed]))
        row.others = others
        values[in_flight] = float(others + own)
        values[expected] = row.alone * (others + own + 1)
        row.values = tuple(values)


def doubted(option: "Option", us: float, best: float, at: Conditions) -> float:
    """A latency as it is believed: an old bad one less than a new one, an untried key's like the best."""
    lane = at.lanes.get(option.lanes[0])
    if us <= 0:
        tries = 0 if lane is None else lane.requests_total + lane.in_flight
        return best * (1 + tries)
    if option.seen.latency(at.stream) > 0:
        age = option.seen.latency_age(at.stream, at.now)
    else:
        age = max(0.0, (at.now_us - lane.last_used_us) / 1e6) if lane is not None else 0.0
    return best + (us - best) * math.exp(-age / LATENCY_SECONDS)


def by_waits(plan: Plan, rows: "list[Row]", count: int) -> "tuple[list[Standing], list[Option], int]":
    """At most `count` rows of a calm order, by how long each makes one wait now: how they stand, what they are, and how
    many at the head are equally good."""
    best = math.inf
    for row in rows:
        under_way = row.others + row.option.key.under_way
        if row.told_at != under_way:  # few candidates have moved since they were last asked
            row.tell(plan, under_way)
        if row.wait < best:
            best = row.wait
    limit = plan.equal_to(best)
    ordered = [row for row in rows if row.wait <= limit]
    equals = len(ordered)
    if equals < len(rows):
        ordered += sorted([row for row in rows if row.wait > limit], key=_wait)
    del ordered[count:]
    standings: list[Standing] = [row.told for row in ordered]  # type: ignore[misc]  # all of them were told
    return standings, [row.option for row in ordered], min(equals, count)


_wait = operator.attrgetter("wait")
