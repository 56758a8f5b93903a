"""Quotas of keys: declared, counted, forecast, set back; and how requests turn away before a limit binds."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.quota_state import CapacityState, QuotaState, TimeWindow
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.gemini_adapter import GeminiAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, config_of, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
SCARCE = (CapacityState.Constrained, CapacityState.Critical)
"""Which of the two depends on how much of the window is left when the test runs."""
A1, A2, B1 = "sk-sim-house-a-number-1", "sk-sim-house-a-number-2", "sk-sim-house-b-number-1"


@asynccontextmanager
async def plain(simulator: SimulatorProcess, store: StateStore) -> AsyncIterator[ApiKeyRouter]:
    """A router with the simulated provider, and no key of its own."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
    async with router:
        yield router


async def served(router: ApiKeyRouter, count: int) -> list[Any]:
    """So many requests, one after the other; what each came to."""
    found: list[Any] = []
    for _ in range(count):
        try:
            found.append((await router.route(intent())).key_used)
        except NoEligibleKeysError:
            found.append("denied")
    return found


async def test_a_quota_in_requests_admits_exactly_so_many(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        state = await router.configure_quota(key.id, TimeWindow.Monthly, 5, unit="requests")
        assert (state.total_capacity, state.used_capacity, state.unit) == (5, 0, "requests")
        answers = await asyncio.gather(*(router.route(intent()) for _ in range(9)), return_exceptions=True)
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 5
        state = await router.quota_awareness_engine.get_quota_state(key.id, "monthly")
        assert (state.used_capacity, state.remaining_capacity) == (5, 0)
        assert state.capacity_state == "Exhausted"
        assert (await simulator.report())["total"]["admitted"] == 5


@pytest.mark.parametrize("kind", ["fixed", "bucket"])
async def test_a_small_declared_limit_admits_all_that_it_says(
    simulator: SimulatorProcess, store: StateStore, kind: str
) -> None:
    async with plain(simulator, store) as router:
        for number in range(1, 21):
            limits = {"rpd": number, "kind": kind}
            await router.register_key(A1, "openai", {"quota_group": f"group-{number}", "limits": limits})
            answers = await served(router, number + 2)
            assert answers.count("denied") == 2, (number, answers)


async def test_a_quota_that_never_resets_says_so_and_what_it_never_admits_is_named(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        assert (await router.configure_quota(key.id, "total", 1)).reset_at is None
        with pytest.raises(NoEligibleKeysError) as caught:
            await router.route(intent())
        assert caught.value.details["reasons"][key.id] == (
            f"the request is larger than limit tokens_total of k:{key.id} ever admits"
        )


async def test_a_quota_is_one_over_all_processes(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        plain(simulator, RedisStateStore(redis_url)) as one,
        plain(simulator, RedisStateStore(redis_url)) as two,
    ):
        key = await one.register_key(A1, "openai")
        await one.configure_quota(key.id, "daily", 6, unit="requests")
        await until(lambda: key.id in two.catalogue.keys)
        answers = await asyncio.gather(
            *(router.route(intent()) for _ in range(8) for router in (one, two)), return_exceptions=True
        )
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 6


async def test_a_changed_quota_keeps_its_count_and_a_removed_one_binds_no_more(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.configure_quota(key.id, "daily", 2, unit="requests")
        assert await served(router, 3) == [key.id, key.id, "denied"]
        assert (await router.configure_quota(key.id, "daily", 4, unit="requests")).used_capacity == 2
        assert await served(router, 3) == [key.id, key.id, "denied"]
        await router.quota_awareness_engine.remove_quota(key.id, "daily", "requests")
        assert await served(router, 2) == [key.id, key.id]


async def test_a_quota_survives_a_restart_and_a_configuration_file(simulator: SimulatorProcess, redis_url: str) -> None:
    config = config_of(simulator, ["a1"], limits=[{"key": "a1", "concurrency": 9}])
    for expected in ([*["a1"] * 2], ["a1", "denied"]):
        async with ApiKeyRouter(
            state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY}
        ) as router:
            await router.apply(config)
            if expected == ["a1", "a1"]:
                await router.configure_quota("a1", "daily", 3, unit="requests")
            assert await served(router, 2) == expected
            (lane,) = await router.ledger.lanes(["k:a1"])
            assert {limit.name for limit in lane.limits} == {"concurrency", "requests_daily"}


async def test_use_that_the_router_did_not_see_counts(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        engine = router.quota_awareness_engine
        key = await router.register_key(A1, "openai")
        await router.configure_quota(key.id, TimeWindow.Daily, 1000)
        states = await asyncio.gather(*(engine.update_capacity(key.id, 300, time_window="daily") for _ in range(3)))
        assert max(state.used_capacity for state in states) == 900
        with pytest.raises(NoEligibleKeysError):
            await router.route(intent("many words " * 200))
        state = await engine.update_capacity(key_id=key.id, used_tokens=500, time_window=TimeWindow.Daily)
        assert (state.used_capacity, state.remaining_capacity) == (1400, 0)
        assert state.capacity_state is CapacityState.Exhausted
        (stored,) = await store.query_state(StateQuery("QuotaState", key_id=key.id))
        assert stored.used_capacity == 1400


async def test_use_counts_in_the_limits_of_the_group_too(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        limits = [{"rpd": 3, "kind": "fixed", "headroom": 0}]
        key = await router.register_key(A1, "openai", {"limits": limits})
        await router.quota_awareness_engine.update_capacity(key.id, 0, requests=2)
        assert await served(router, 2) == [key.id, "denied"]


async def test_a_key_without_limits_is_counted_from_the_first_word(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        engine = router.quota_awareness_engine
        key = await router.register_key(A1, "openai")
        response = await router.route(intent())
        assert response.metadata.key_used is not None
        assert (await engine.get_quota_state(response.metadata.key_used, TimeWindow.Daily)).total_capacity is None
        state = await engine.update_capacity(
            key_id=response.metadata.key_used, used_tokens=response.metadata.token_usage.total,
            time_window=TimeWindow.Daily,
        )  # fmt: skip
        assert state.used_capacity == response.metadata.token_usage.total
        assert state.total_capacity is None
        assert state.capacity_state == "Abundant"
        assert await served(router, 1) == [key.id]


async def test_a_reset_begins_the_window_anew_for_own_shared_and_learned_limits(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        engine = router.quota_awareness_engine
        limits = [{"rpd": 2, "kind": "fixed", "headroom": 0}]
        key = await router.register_key(A1, "openai", {"limits": limits})
        await router.configure_quota(key.id, "daily", 2, unit="requests")
        assert await served(router, 3) == [key.id, key.id, "denied"]
        assert (await engine.reset_quota(key.id, "daily")).used_capacity == 0
        assert await served(router, 3) == [key.id, key.id, "denied"]
        assert await served(router, 1) == ["denied"]
        entry = (await router.key_manager.get_transitions(key.id))[-1]
        assert entry.reason == "quota daily reset"


async def test_a_quota_of_another_day_of_the_month_begins_anew_by_itself(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        soon = datetime.now(UTC) + timedelta(seconds=4)
        state = await router.configure_quota(key.id, "monthly", 1, reset_at=soon, unit="requests")
        assert state.time_window is TimeWindow.Monthly
        assert await served(router, 2) == [key.id, "denied"]

        async def anew() -> bool:
            found = await router.quota_awareness_engine.get_quota_state(key.id, "monthly")
            return found.used_capacity == 0

        await until(anew)
        assert datetime.now(UTC) >= soon
        assert await served(router, 2) == [key.id, "denied"]
        (quota,) = (await router.key_manager._stored(key.id)).quotas
        assert quota.resets_at is not None
        assert timedelta(days=27) < quota.resets_at - soon < timedelta(days=32)


async def test_a_quota_that_is_nobodys_calendar_says_when_it_ends(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        engine = router.quota_awareness_engine
        key = await router.register_key(A1, "openai")
        ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2, minutes=7, seconds=1)
        assert (await router.configure_quota(key.id, "weekly", 1, reset_at=ends, unit="requests")).reset_at == ends
        assert await served(router, 1) == [key.id]
        with pytest.raises(NoEligibleKeysError, match="is full until") as caught:
            await router.route(intent(), wait_max_ms=1000)
        told = f"limit requests_weekly of k:{key.id} is full until {ends.isoformat()}"
        assert (caught.value.details["reasons"], caught.value.first_back_at) == ({key.id: told}, ends)
        assert caught.value.retry_after is not None
        assert timedelta(days=2) < timedelta(seconds=caught.value.retry_after) < timedelta(days=2, minutes=8)
        planned = await router.dry_run(intent())
        assert [verdict.reason for verdict in planned.candidates] == [told]

        async def foretold() -> bool:
            return await engine.predict_exhaustion(key.id, "weekly") is not None

        await until(foretold)
        prediction = await engine.predict_exhaustion(key.id, "weekly")
        assert prediction is not None
        assert prediction.reset_at == ends


async def test_who_waits_for_a_quota_that_is_nobodys_calendar_is_served_when_it_begins_anew(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        later = datetime.now(UTC) + timedelta(minutes=40, seconds=7)
        await router.configure_quota(key.id, "hourly", 1, reset_at=later, unit="requests")
        assert await served(router, 1) == [key.id]
        soon = datetime.now(UTC) + timedelta(seconds=1.2)
        await router.configure_quota(key.id, "hourly", 1, reset_at=soon, unit="requests")
        assert (await router.route(intent(), wait_max_ms=60_000)).key_used == key.id
        assert datetime.now(UTC) >= soon


async def test_a_total_that_is_used_up_is_full_for_good(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.configure_quota(key.id, "total", 1, unit="requests")
        assert await served(router, 1) == [key.id]
        with pytest.raises(NoEligibleKeysError) as caught:
            await router.route(intent())
        assert caught.value.details["reasons"] == {key.id: f"limit requests_total of k:{key.id} is full"}
        assert (caught.value.retry_after, caught.value.first_back_at) == (None, None)


async def test_a_day_that_ends_at_midnight_in_california_does_so_in_summer_and_winter(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    pacific = ZoneInfo("America/Los_Angeles")
    async with plain(simulator, store) as router:
        limits = [{"rpd": 1500, "kind": "calendar", "timezone": "America/Los_Angeles"}]
        key = await router.register_key(A1, "openai", {"limits": limits})
        await router.route(intent())
        state = await router.quota_awareness_engine.get_quota_state(key.id, "daily")
        local = datetime.now(pacific)
        midnight = (local + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        assert state.reset_at == midnight.astimezone(UTC)
        mine = await router.configure_quota(key.id, "daily", 10**6, reset_at=midnight)
        assert mine.reset_at == midnight.astimezone(UTC)
        (quota,) = (await router.key_manager._stored(key.id)).quotas
        assert (quota.timezone, quota.anchor_at) == ("America/Los_Angeles", None)


async def test_a_provider_with_a_day_of_its_own_has_it_without_being_told(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        await router.register_provider("gemini", GeminiAdapter("http://127.0.0.1:9"))
        limits = {"rpd": 1500, "models": ["gemini-2.5-flash"]}
        key = await router.register_key("AIza-not-a-real-key", "gemini", {"limits": limits})
        await router.quota_awareness_engine.update_capacity(key.id, 10, model="gemini-2.5-flash", time_window="daily")
        state = await router.quota_awareness_engine.get_quota_state(key.id, "daily")
        assert (state.limit, state.total_capacity, state.used_capacity) == ("rpd", 1500, 1)
        local = datetime.now(ZoneInfo("America/Los_Angeles")) + timedelta(days=1)
        assert state.reset_at == local.replace(hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)


async def test_a_key_has_a_state_for_each_of_its_windows_and_the_worst_one_speaks_for_it(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        engine = router.quota_awareness_engine
        limits = [{"rpm": 1000}, {"rpd": 10, "kind": "fixed", "headroom": 0}]
        key = await router.register_key(A1, "openai", {"limits": limits})
        await router.configure_quota(key.id, "hourly", 100, unit="requests")
        await router.configure_quota(key.id, "monthly", 10**6)
        await served(router, 9)
        states = {window: await engine.get_quota_state(key.id, window) for window in ("hourly", "daily", "monthly")}
        assert [(state.limit, state.used_capacity) for state in states.values()][:2] == [
            ("requests_hourly", 9), ("rpd", 9),
        ]  # fmt: skip
        assert states["monthly"].used_capacity > 9
        assert states["daily"].capacity_state in SCARCE
        assert (await engine.get_quota_state(key.id)).limit == "rpd"
        assert (await engine.get_quota_state(key.id, "weekly")).total_capacity is None


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("gone", "daily", 5), "key_id"), (("KEY", "yearly", 5), "time_window"), (("KEY", "daily", -1), "total"),
        (("KEY", "daily", 2**53), "total"), (("KEY", "daily", 1.5), "total"), (("KEY", "daily", True), "total"),
        (("KEY", "daily", 5, datetime(2030, 1, 1)), "reset_at"),  # noqa: DTZ001 (wrong on purpose)
        (("KEY", "daily", 5, datetime(2020, 1, 1, tzinfo=UTC)), "reset_at"),
        (("KEY", "daily", 5, datetime(2090, 1, 1, tzinfo=UTC)), "reset_at"),
        (("KEY", "total", 5, datetime(2090, 1, 1, tzinfo=UTC)), "reset_at"),
        (("KEY", "daily", 5, None, "euro"), "unit"),
    ],
)  # fmt: skip
async def test_a_wrong_quota_is_refused_by_its_field_and_nothing_is_kept(
    simulator: SimulatorProcess, store: StateStore, arguments: tuple[Any, ...], field: str
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        given: Any = tuple(key.id if one == "KEY" else one for one in arguments)
        with pytest.raises(InvalidRequestError, match=field):
            await router.configure_quota(*given)
        assert (await router.key_manager._stored(key.id)).quotas == ()


async def test_more_quotas_than_a_lane_can_count_are_refused(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        for window in ("hourly", "daily", "weekly", "monthly"):
            for unit in ("requests", "tokens"):
                await router.configure_quota(key.id, window, 10**6, unit=unit)
        with pytest.raises(InvalidRequestError, match="at most 8"):
            await router.configure_quota(key.id, "total", 100)
        assert await served(router, 1) == [key.id]


@pytest.mark.parametrize("amounts", [{"consumed": -1}, {"consumed": None}, {"consumed": 1, "requests": 10**6}])
async def test_absurd_use_is_refused(simulator: SimulatorProcess, store: StateStore, amounts: dict[str, Any]) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        with pytest.raises(InvalidRequestError, match="integer"):
            await router.quota_awareness_engine.update_capacity(key.id, **amounts)
        with pytest.raises(InvalidRequestError, match="cost_estimate"):
            await router.quota_awareness_engine.update_capacity(key.id, 1, "daily")  # type: ignore[arg-type]


# --- forecasts and routing -------------------------------------------------------------------------------------------


async def test_requests_turn_away_while_a_quota_is_constrained_and_not_only_when_it_is_out(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        one = await router.register_key(A1, "openai")
        two = await router.register_key(B1, "openai")
        await router.configure_quota(one.id, "daily", 100, unit="requests")
        assert set(Counter(await served(router, 8)).values()) == {4}
        await router.quota_awareness_engine.update_capacity(one.id, 0, requests=80)
        await until(lambda: router.snapshot.capacity.get(f"k:{one.id}"))
        assert (await router.quota_awareness_engine.get_quota_state(one.id)).capacity_state in SCARCE
        assert await served(router, 10) == [two.id] * 10
        summary = await router.get_state_summary()
        scarce = summary.quotas.constrained_keys + summary.quotas.critical_keys
        assert (scarce, summary.quotas.abundant_keys, summary.quotas.exhausted_keys) == (1, 1, 0)
        await router.key_manager.disable_key(two.id)
        assert await served(router, 3) == [one.id] * 3  # it still serves where nothing better is left


async def test_a_prediction_has_an_interval_and_says_when_it_resets_first(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        engine = router.quota_awareness_engine
        key = await router.register_key(A1, "openai")
        assert await engine.predict_exhaustion(key.id) is None
        estimate = await engine.calculate_capacity_estimate(key.id)
        assert (estimate.remaining, estimate.method) == (None, "no limit is known")
        await router.configure_quota(key.id, "daily", 10**9, unit="requests")
        await served(router, 2)

        async def learned() -> bool:
            return await engine.predict_exhaustion(key.id, "daily") is not None

        await until(learned)
        prediction = await engine.predict_exhaustion(key.id, "daily")
        assert prediction is not None
        assert (prediction.expected_at, prediction.unit, prediction.confidence) == (None, "requests", 0.9)
        assert prediction.probability < 0.01
        assert prediction.reset_at is not None
        estimate = await engine.calculate_capacity_estimate(key.id, "daily")
        assert estimate.upper == 10**9 - 2
        assert estimate.lower is not None
        assert estimate.lower <= estimate.upper
        for wrong in (0, 1, 2.0):
            with pytest.raises(InvalidRequestError, match="confidence"):
                await engine.predict_exhaustion(key.id, confidence=wrong)


async def test_quota_states_of_a_key_that_is_gone_are_gone(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.configure_quota(key.id, "daily", 5)
        assert isinstance(await store.get_quota_state(key.id), QuotaState)
        await router.key_manager.revoke_key(key.id)
        assert await store.get_quota_state(key.id) is None
        with pytest.raises(InvalidRequestError, match="no key"):
            await router.quota_awareness_engine.get_quota_state(key.id)
