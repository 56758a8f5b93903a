"""Quotas: what is left of them, how long that lasts, and what is known of use that the router did not see.

The ledger's lanes are the truth. Requests of the router are counted there before they are sent; what is said here of a
key is read from its lanes, and what is told here is written into them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from os import urandom
from typing import Any, Protocol

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.components.capacity import CapacityWatch, Level
from apikeyrouter.domain.components.catalogue import Catalogue, Key, key_lane
from apikeyrouter.domain.components.key_manager import KeyManager
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.components.quota_ends import QuotaEnds
from apikeyrouter.domain.components.quotas import COUNTED_ONLY, quota_of, told_name, unit_of, window_of
from apikeyrouter.domain.interfaces.ledger import Ledger
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import (
    AMOUNT_MAX,
    UNPRICED,
    Candidate,
    Charge,
    LaneConfig,
    LaneState,
    LimitKind,
    LimitState,
    Metric,
    Outcome,
    ReserveRequest,
    Settlement,
    rid_in,
)
from apikeyrouter.domain.models.cost_estimate import CostEstimate, nanousd
from apikeyrouter.domain.models.quota_state import (
    CapacityEstimate,
    ExhaustionPrediction,
    LimitForecast,
    Quota,
    QuotaState,
    QuotaUnit,
    TimeWindow,
)
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["HTTPAnswer", "QuotaAwarenessEngine", "QuotaLanes"]

CONFIDENCE = 0.9
LOOKAHEAD_SECONDS = 1.0
"""How old what is known may be, when a decision rests on it: an estimate is for then."""
UNSEEN_REQUESTS_MAX = 1000
"""Requests that the router did not see, told at once."""
UNSEEN_TOKENS_MAX = 2**31
LEASE_US = 30_000_000
NANOUSD = 1_000_000_000
_NEVER_US = 2**53 - 1
"""When the ledger resets what never resets."""
_FAR = datetime.max.replace(tzinfo=UTC)


class QuotaLanes(Protocol):
    """What is declared of lanes."""

    def lane_config(self, lane_id: str) -> LaneConfig:
        """A lane as it is declared; without limits where nothing is."""
        ...


class HTTPAnswer(Protocol):
    """An answer of a provider, as most HTTP clients have it: also `status` for `status_code`, `body` for `content`."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


Act = Callable[[Option, int, Mapping[str, str], bytes], None]
"""Does with an answer's status, headers and body what the router does with its own."""


@checking(
    "get_quota_state", "predict_exhaustion", "calculate_capacity_estimate", "configure_quota", "remove_quota",
    "reset_quota", "handle_quota_response", "forecast_of",
)  # fmt: skip
class QuotaAwarenessEngine:
    """What is known of each key's quotas. Errors everywhere: InvalidRequestError for a key that is not known here."""

    def __init__(
        self,
        catalogue: Catalogue,
        ledger: Ledger,
        store: StateStore,
        keys: KeyManager,
        watch: CapacityWatch,
        *,
        lanes: QuotaLanes,
        act: Act,
        settled: Callable[[], Any],
    ) -> None:
        self._catalogue, self._ledger, self._store, self._keys = catalogue, ledger, store, keys
        self._watch, self._lanes, self._act, self._settled = watch, lanes, act, settled
        self._ends = QuotaEnds(catalogue.keys)

    # --- reading -------------------------------------------------------------------------------------------------

    async def get_quota_state(self, key_id: str, time_window: TimeWindow | str | None = None) -> QuotaState:
        """What is left of a key's quota in that window; without one, of the limit that is worst off.

        A key is in several limits: its own and its group's. Where several count in one window, the worst one speaks.
        """
        key, window = self._key(key_id), _window(time_window)
        return self._state(key, window, await self._read(key))

    async def predict_exhaustion(
        self, key_id: str, time_window: TimeWindow | str | None = None, *, confidence: float = CONFIDENCE
    ) -> ExhaustionPrediction | None:
        """When a key's quota will run out at the present rate; of several limits, the first to run out.

        None: no limit is known in that window, or nothing of its rate. `confidence` (0 < c < 1) is the share of cases
        in which the truth lies from `earliest_at` to `latest_at`.
        """
        if not 0 < confidence < 1:
            raise InvalidRequestError("must be between 0 and 1", field="confidence")
        key, window = self._key(key_id), _window(time_window)
        lanes, now_us = await self._read(key), self._ledger.stamp.now_us
        found: list[ExhaustionPrediction] = []
        for lane, limit in _counting(lanes, window):
            crossing = self._watch.crossing(lane.id, limit, now_us, confidence=confidence)
            burn = self._watch.burn(lane.id, limit)
            if crossing is None or burn is None or limit.capacity >= COUNTED_ONLY:
                continue
            found.append(
                ExhaustionPrediction(
                    key_id=key.id, time_window=window_of(limit), limit=told_name(limit.name), unit=unit_of(limit),
                    probability=crossing.chance, expected_at=_after(now_us, crossing.expected),
                    earliest_at=_after(now_us, crossing.earliest), latest_at=_after(now_us, crossing.latest),
                    reset_at=_moment(limit.reset_at_us), burn_rate_per_hour=burn.per_second * 3600,
                    confidence=confidence,
                )
            )  # fmt: skip
        return min(found, key=lambda told: (told.expected_at or _FAR, -told.probability), default=None)

    def forecast_of(self, lane_id: str, limit: LimitState, *, confidence: float = CONFIDENCE) -> LimitForecast | None:
        """When one limit of a lane will be used up; None: no such limit, or nothing is known of its rate."""
        now_us = self._ledger.stamp.now_us
        crossing = self._watch.crossing(lane_id, limit, now_us, confidence=confidence)
        burn = self._watch.burn(lane_id, limit)
        if crossing is None or burn is None or limit.capacity >= COUNTED_ONLY:
            return None
        per_hour = burn.per_second * 3600
        return LimitForecast(
            probability=crossing.chance, expected_at=_after(now_us, crossing.expected),
            earliest_at=_after(now_us, crossing.earliest), latest_at=_after(now_us, crossing.latest),
            per_hour=per_hour / NANOUSD if limit.metric is Metric.SPEND else per_hour, confidence=confidence,
        )  # fmt: skip

    async def calculate_capacity_estimate(
        self, key_id: str, time_window: TimeWindow | str | None = None, *, confidence: float = CONFIDENCE
    ) -> CapacityEstimate:
        """What is left when a decision that is made now rests on it: what may be used meanwhile is the uncertainty."""
        if not 0 < confidence < 1:
            raise InvalidRequestError("must be between 0 and 1", field="confidence")
        key, window = self._key(key_id), _window(time_window)
        found = self._worst(await self._read(key), window)
        if found is None or found[1].capacity >= COUNTED_ONLY:
            return CapacityEstimate(key_id=key.id, method="no limit is known")
        lane, limit = found
        left = max(0, limit.capacity - limit.used)
        burn = self._watch.burn(lane.id, limit)
        demand = burn.demand(LOOKAHEAD_SECONDS) if burn is not None else None
        used = 0 if demand is None else demand.quantile((1 + confidence) / 2)
        learned = "learned from the provider" if limit.learned else "as declared"
        return CapacityEstimate(
            key_id=key.id, unit=unit_of(limit), remaining=left, lower=max(0, left - int(used)), upper=left,
            confidence=confidence, method=f"the ledger's count of {told_name(limit.name)}, {learned}, less what the "
            f"fleet may use in {LOOKAHEAD_SECONDS:g} s",
        )  # fmt: skip

    # --- telling -------------------------------------------------------------------------------------------------

    async def configure_quota(
        self,
        key_id: str,
        time_window: TimeWindow | str,
        total_capacity: int | None,
        reset_at: datetime | None = None,
        unit: QuotaUnit | str = QuotaUnit.Tokens,
        *,
        actor: str = "operator",
    ) -> QuotaState:
        """Give a key a quota of its own; one that it has in that window and unit is changed and keeps its count.

        `total_capacity` None: only counted. `reset_at` (aware): when the present window ends; the next ones follow.

        Raises:
            InvalidRequestError: naming the field.
        """
        key, window, kind = self._key(key_id), _required_window(time_window), _unit(unit)
        if total_capacity is not None and (
            isinstance(total_capacity, bool)
            or not isinstance(total_capacity, int)
            or not 0 <= total_capacity <= AMOUNT_MAX
        ):
            raise InvalidRequestError("must be an integer from 0 to 2^53 - 1, or None", field="total_capacity")
        quota = quota_of(window, kind, total_capacity, reset_at, datetime.now(UTC))

        def with_quota(quotas: tuple[Quota, ...]) -> tuple[Quota, ...]:
            before = next((one for one in quotas if _is(one, window, kind)), None)
            turn = before.resets if before is not None else 0
            return (*(one for one in quotas if not _is(one, window, kind)), quota.model_copy(update={"resets": turn}))

        amount = "counted only" if total_capacity is None else f"{total_capacity:,}"
        await self._keys.edit_quotas(key.id, with_quota, f"quota {kind} {window}: {amount}", actor=actor)
        return await self._saved(key.id, window)

    async def remove_quota(
        self,
        key_id: str,
        time_window: TimeWindow | str,
        unit: QuotaUnit | str = QuotaUnit.Tokens,
        *,
        actor: str = "operator",
    ) -> None:
        """Take a quota of its own from a key, if it has it."""
        key, window, kind = self._key(key_id), _required_window(time_window), _unit(unit)
        await self._keys.edit_quotas(
            key.id, lambda quotas: tuple(one for one in quotas if not _is(one, window, kind)),
            f"quota {kind} {window} removed", actor=actor,
        )  # fmt: skip

    async def update_capacity(
        self,
        key_id: str,
        consumed: int | None = None,
        cost_estimate: CostEstimate | None = None,
        *,
        used_tokens: int | None = None,
        requests: int = 1,
        time_window: TimeWindow | str | None = None,
        model: str | None = None,
    ) -> QuotaState:
        """Count use of a key that the router did *not* see; what it routed itself is counted already.

        `consumed` (or `used_tokens`) tokens in so many `requests` count in the key's own limits and in its group's:
        those of `model`, or without one those for all models. It is added whatever the limit says, and refused by
        nothing: it has happened. Where the key has no limit in `time_window`, it is counted from now on.

        Raises:
            InvalidRequestError: an amount is wrong.
        """
        tokens = used_tokens if consumed is None else consumed
        tokens = _check_count(tokens, "consumed", UNSEEN_TOKENS_MAX)
        _check_count(requests, "requests", UNSEEN_REQUESTS_MAX)
        if not isinstance(cost_estimate, CostEstimate | None):
            raise InvalidRequestError("must be a CostEstimate", field="cost_estimate")
        key, window = self._key(key_id), _window(time_window)
        if self._worst(await self._read(key), window or TimeWindow.Daily) is None:
            await self.configure_quota(key_id, window or TimeWindow.Daily, None)
            key = self._key(key_id)
        cost = UNPRICED if cost_estimate is None else nanousd(cost_estimate.amount)
        for number in range(max(1, requests)):
            await self._book(key, model, tokens if number == 0 else 0, cost if number == 0 else 0)
        return await self._saved(key_id, window)

    async def reset_quota(self, key_id: str, time_window: TimeWindow | str, *, actor: str = "operator") -> QuotaState:
        """Begin a window anew: everything that counts the key in it has counted nothing.

        The key's own quotas are set back in one write, and the limits that it shares with its group in one more.
        """
        key, window = self._key(key_id), _required_window(time_window)

        def anew(quotas: tuple[Quota, ...]) -> tuple[Quota, ...]:
            return tuple(
                one.model_copy(update={"resets": one.resets + 1}) if one.time_window is window else one
                for one in quotas
            )

        await self._keys.edit_quotas(key.id, anew, f"quota {window} reset", actor=actor)
        own = {f"{one.unit.value}_{window.value}" for one in self._key(key_id).quotas}
        for lane in await self._read(self._key(key_id)):
            names = {
                limit.name for limit in lane.limits
                if window_of(limit) is window and not (lane.id == key_lane(key_id) and told_name(limit.name) in own)
            }  # fmt: skip
            if names:
                await self._ledger.restart(lane.id, limits=sorted(names))
        return await self._saved(key_id, window)

    async def handle_quota_response(self, key_id: str, response: HTTPAnswer, *, model: str | None = None) -> QuotaState:
        """Act on an answer of the provider that the router did not fetch itself, as on its own.

        Limits in its headers re-sync the lanes, a rate limit cools them until the stated time, a refusal moves the key.
        `model`: which one was asked for; without it, the one that the key was last routed with.

        Raises:
            InvalidRequestError: it is no HTTP answer, or nothing is known of the model.
        """
        key = self._key(key_id)
        option = self._option(key, model)
        status = getattr(response, "status_code", None) or getattr(response, "status", None)
        headers = getattr(response, "headers", None)
        told = (getattr(response, name, None) for name in ("content", "body", "text"))
        body = next((text for text in told if isinstance(text, str | bytes)), b"")
        if not isinstance(status, int) or not isinstance(headers, Mapping):
            raise InvalidRequestError("must have status_code and headers", field="response")
        folded = {str(name).lower(): str(value) for name, value in headers.items()}
        self._act(option, status, folded, body.encode() if isinstance(body, str) else body)
        await self._settled()
        return await self._saved(key_id, None)

    # --- the rim -------------------------------------------------------------------------------------------------

    def _key(self, key_id: str) -> Key:
        key = self._catalogue.keys.get(key_id)
        if key is None:
            raise InvalidRequestError(f"no key {key_id!r} here", field="key_id")
        return key

    async def _read(self, key: Key) -> Sequence[LaneState]:
        """The key's lanes as the ledger has them now."""
        lanes = self._ends.in_lanes(await self._ledger.lanes(self._catalogue.lanes_of(key)))
        self._watch.see(lanes, self._ledger.stamp.now_us)
        return lanes

    def _worst(self, lanes: Sequence[LaneState], window: TimeWindow | None) -> tuple[LaneState, LimitState] | None:
        """The limit of that window that is worst off, and its lane."""
        found = _counting(lanes, window)
        return max(found, key=lambda pair: (self._watch.level(pair[0].id, pair[1]), _share_used(pair[1])), default=None)

    def _state(self, key: Key, window: TimeWindow | None, lanes: Sequence[LaneState]) -> QuotaState:
        now_us, found = self._ledger.stamp.now_us, self._worst(lanes, window)
        cooling = window is None and any(lane.blocked_until_us > now_us for lane in lanes)
        if found is None:
            level = Level.EXHAUSTED if cooling else Level.ABUNDANT
            return QuotaState(key_id=key.id, time_window=window, capacity_state=level.state)
        lane, limit = found
        level = Level.EXHAUSTED if cooling else self._watch.level(lane.id, limit)
        return QuotaState(
            key_id=key.id, time_window=window_of(limit), limit=told_name(limit.name), capacity_state=level.state,
            total_capacity=None if limit.capacity >= COUNTED_ONLY else limit.capacity, used_capacity=limit.used,
            unit=unit_of(limit), reset_at=_moment(limit.reset_at_us),
        )  # fmt: skip

    async def _saved(self, key_id: str, window: TimeWindow | None) -> QuotaState:
        """The state, kept in the store too, where queries find it."""
        state = await self.get_quota_state(key_id, window)
        await self._store.save_quota_state(state)
        return state

    async def _book(self, key: Key, model: str | None, tokens: int, cost_nanousd: int) -> None:
        """Count one request, whatever the limits say: a reservation that was never asked for, settled at once."""
        lanes = [key_lane(key.id)]
        if model is not None:
            lanes += self._catalogue.group_lanes(key.quota_group, model)
        else:
            lanes += self._catalogue.general_lanes(key.quota_group)
        rid = rid_in(
            self._ledger.of_booking(lanes=lanes), (time.time_ns() // 1_000_000).to_bytes(6, "big") + urandom(10)
        )
        candidate = Candidate(lanes=tuple(lanes), charge=Charge())
        await self._ledger.reassert(ReserveRequest(rid=rid, candidates=(candidate,), lease_us=LEASE_US), index=0)
        await self._ledger.settle(
            Settlement(
                rid=rid, input_tokens=tokens, output_tokens=0, cost_nanousd=cost_nanousd, outcome=Outcome.NEUTRAL
            )
        )
        await self._ledger.acknowledge([rid])

    def _option(self, key: Key, model: str | None) -> Option:
        option = self._catalogue.option_of(key, model)
        if option is None:
            why = "was not routed with a model yet; name one" if model is None else f"does not serve {model!r}"
            raise InvalidRequestError(f"key {key.id} {why}", field="model")
        return option


def _window(told: TimeWindow | str | None) -> TimeWindow | None:
    return None if told is None else _required_window(told)


def _required_window(told: TimeWindow | str) -> TimeWindow:
    window = told if isinstance(told, TimeWindow) else TimeWindow.lookup(told)
    if window is None:
        raise InvalidRequestError(f"must be one of {', '.join(TimeWindow)}", field="time_window")
    return window


def _unit(told: QuotaUnit | str) -> QuotaUnit:
    unit = told if isinstance(told, QuotaUnit) else QuotaUnit.lookup(told)
    if unit is None:
        raise InvalidRequestError(f"must be one of {', '.join(QuotaUnit)}", field="unit")
    return unit


def _check_count(told: int | None, field: str, most: int) -> int:
    if isinstance(told, bool) or not isinstance(told, int) or not 0 <= told <= most:
        raise InvalidRequestError(f"must be an integer from 0 to {most:,}", field=field)
    return told


def _is(quota: Quota, window: TimeWindow, unit: QuotaUnit) -> bool:
    return quota.time_window is window and quota.unit is unit


def _counting(lanes: Sequence[LaneState], window: TimeWindow | None) -> list[tuple[LaneState, LimitState]]:
    """The limits over time, or those of one window, with their lanes."""
    return [
        (lane, limit)
        for lane in lanes
        for limit in lane.limits
        if limit.kind is not LimitKind.CONCURRENCY and (window is None or window_of(limit) is window)
    ]


def _share_used(limit: LimitState) -> float:
    return limit.used / limit.capacity if limit.capacity else 1.0


def _moment(us: int) -> datetime | None:
    return None if not 0 < us < _NEVER_US else datetime.fromtimestamp(us / 1e6, UTC)


def _after(now_us: int, seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(now_us / 1e6 + seconds, UTC)
