"""What providers say in their answers: how much is left, and whose key it was. Acted on behind the requests' backs."""

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from apikeyrouter.domain.components.catalogue import key_lane
from apikeyrouter.domain.components.pool import Option, Snapshot
from apikeyrouter.domain.components.quota_groups import SharedCounters, organization_digest
from apikeyrouter.domain.components.stated_limits import stated_limits
from apikeyrouter.domain.models.accounting import LaneState, Observation
from apikeyrouter.domain.models.failure import Failure, FailureAction
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger

OBSERVE_EVERY_SECONDS = 0.5
"""A lane is re-synced with its provider's headers at most this often, but for refusals."""
LOOK_EVERY_SECONDS = 30.0
"""How often a key whose organisation is known is looked at again."""
OBSERVED_MAX = 40_000
PAUSE_SECONDS_DEFAULT = 1.0
"""How long a lane rests whose provider says that nothing is left, but not of what or until when."""
PAUSE_SECONDS_MAX = 86_400.0
TOO_MANY_REQUESTS = 429
Chore = Callable[[Coroutine[Any, Any, object]], object]
Learned = Callable[[str, str], Coroutine[Any, Any, object]]
"""Key id and digest of its organisation: keep that."""
Suspect = Callable[[str, str], None]
"""Two keys whose counters fall together."""


class Observer:
    """Re-syncs lanes with headers. One event loop owns it."""

    def __init__(
        self, ledger: AnyLedger, snapshot: Snapshot, *, chore: Chore, learned: Learned, suspect: Suspect
    ) -> None:
        self._ledger, self._snapshot = ledger, snapshot
        self._chore, self._learned, self._suspect = chore, learned, suspect
        self._due: dict[str, float] = {}
        self._counters = SharedCounters()

    def seen(self, option: Option, status: int, headers: Mapping[str, str]) -> None:
        """An answer came. Cheap: most are not looked at."""
        lane, key_id, due, now = option.lanes[1], option.key.id, self._due, time.perf_counter()
        resync = status == TOO_MANY_REQUESTS or now >= due.get(lane, 0.0)
        look = now >= due.get(key_id, 0.0)
        if not (resync or look):
            return
        if len(due) >= OBSERVED_MAX:
            due.clear()
        told = option.provider.wire.observe(headers)
        if resync:
            due[lane] = now + OBSERVE_EVERY_SECONDS
            self._resync(lane, told, now)
        if look:
            self._whose(option, headers)
            due[key_id] = now + (LOOK_EVERY_SECONDS if option.key.organization else OBSERVE_EVERY_SECONDS)
            if told and not option.key.organization:
                self._compare(option, told, now)

    def refused(self, option: Option, failure: Failure) -> None:
        """A provider said no; its words may state the limit that headers did not."""
        if failure.action is FailureAction.COOL:
            stated = stated_limits(failure.message)
            if stated:
                self._chore(self._ledger.record(option.lanes[1], observations=stated))

    def _resync(self, lane: str, told: list[Observation], now: float) -> None:
        known = self._snapshot.lanes.get(lane)
        seen, pause = complete(told, known)
        if pause > 0:
            self._snapshot.blocked[lane] = max(now + pause, self._snapshot.blocked.get(lane, 0.0))
        if seen or pause > 0:
            self._chore(self._ledger.record(lane, observations=seen, blocked_for_us=int(pause * 1e6)))

    def _whose(self, option: Option, headers: Mapping[str, str]) -> None:
        told = option.provider.wire.organization(headers)
        if told:
            digest = organization_digest(option.key.provider_id, told)
            if digest != option.key.organization:
                option.key.organization = digest
                self._chore(self._learned(option.key.id, digest))

    def _compare(self, option: Option, told: list[Observation], now: float) -> None:
        key, place = option.key, (option.key.provider_id, option.model)
        for seen in told:
            other = self._counters.see(key.id, key.quota_group, place, seen, self._requests, now)
            if other is not None:
                self._suspect(key.id, other)

    def _requests(self, key_id: str) -> int:
        lane = self._snapshot.lanes.get(key_lane(key_id))
        return 0 if lane is None else lane.requests_total + lane.in_flight


def complete(told: list[Observation], lane: LaneState | None) -> tuple[list[Observation], float]:
    """What can be counted of what was told, and for how many seconds the lane must rest for the rest of it.

    "Nothing left" without the limit is the limit that the lane knows, all used; where it knows none, the lane rests
    until the reset that was told.
    """
    seen: list[Observation] = []
    pause = 0.0
    for one in told:
        if one.limit or one.remaining != 0:
            seen.append(one)
            continue
        known = next((limit for limit in lane.limits if limit.name == one.name), None) if lane else None
        if known is not None and known.kind is one.kind:
            seen.append(replace(one, limit=known.capacity))
        else:
            seconds = one.reset_us / 1e6 if one.reset_us else PAUSE_SECONDS_DEFAULT
            pause = max(pause, min(seconds, PAUSE_SECONDS_MAX))
    return seen, pause
