"""The desk beside the gate: budgets made, changed and read in code, and what was spent elsewhere."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import Candidate, Charge, ReserveRequest, Settlement
from apikeyrouter.domain.models.budget import BudgetScope, EnforcementMode, TimeWindow
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
TINY = Decimal("0.000000001")
NOTHING = Decimal(0)
SCOPES = [
    (BudgetScope.Global, None),
    (BudgetScope.Provider, "openai"),
    (BudgetScope.Key, "a1"),
    (BudgetScope.Team, "blue"),
    (BudgetScope.Client, "app-1"),
]


async def settled(made: House) -> None:
    """Wait until what was served is booked."""
    assert await made.router.books.flush(seconds=10)


@pytest.mark.parametrize(("scope", "scope_id"), SCOPES)
async def test_budgets_of_every_scope_period_and_mode_hold_what_they_say(
    simulator: SimulatorProcess, store: StateStore, scope: BudgetScope, scope_id: str | None
) -> None:
    asked: dict[str, Any] = {"team": "blue", "client": "app-1", "parameters": {"max_tokens": 5}}
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        for period in TimeWindow:
            budget = await desk.create_budget(scope, TINY, period, EnforcementMode.Hard, scope_id)
            with pytest.raises(BudgetExceededError) as caught:
                await made.route(**asked)
            details = caught.value.details
            assert (details["scope"], details["limit"]) == (budget.id, TINY)
            assert details["settled"] == details["held"] == 0
            assert details["needed"] > TINY
            assert details["resets_at"] == (await desk.get_budget_status(budget.id)).resets_at
            assert "ask for fewer tokens" in str(caught.value)  # waiting would not help
            await desk.enforce_budget(scope, EnforcementMode.Soft, scope_id)
            answer = await made.route(**asked)
            assert answer.metadata.additional_metadata["soft_budgets_exceeded"] == [budget.id]
            await settled(made)
            status = await desk.get_budget_status(budget.id)
            assert answer.cost is not None
            assert (status.settled, status.held, status.free) == (answer.cost.amount, NOTHING, NOTHING)
            assert status.exceeded
            assert (status.resets_at is None) == (period is TimeWindow.Total)
            await desk.delete_budget(budget.id)
            assert (await made.route(**asked)).metadata.additional_metadata == {}
        assert await made.at_rest() == await made.billed()


async def test_a_budget_of_others_does_not_bind(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        desk = made.router.cost_controller
        for scope, scope_id in (("team", "red"), ("client", "app-9"), ("provider", "anthropic"), ("key", "a1")):
            await desk.create_budget(scope, TINY, scope_id=scope_id)
        answers = [await made.route(team="blue", client="app-1") for _ in range(3)]
        assert {answer.key_used for answer in answers} == {"b1"}  # the key's budget counts as part of the choice


async def test_creating_a_budget_again_changes_it_and_keeps_what_was_spent(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        first = await desk.create_budget(BudgetScope.Global, Decimal("1.00"))
        assert (first.id, first.period, first.enforcement_mode) == ("global:daily", "daily", "hard")
        await made.route(parameters={"max_tokens": 5})
        await settled(made)
        again = await desk.create_budget("global", 2, "Daily", "soft")
        assert (again.id, again.limit, again.enforcement_mode) == (first.id, Decimal(2), EnforcementMode.Soft)
        assert again.current_spending > 0
        assert [budget.id for budget in await desk.list_budgets()] == ["global:daily", "global:all"]
        other = await desk.create_budget("global", 3, name="reserve")
        assert other.id == "global:reserve"


async def test_an_assignment_takes_effect_before_the_next_request(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget(BudgetScope.Global, TINY)
        with pytest.raises(BudgetExceededError):
            await made.route()
        budget.enforcement_mode = EnforcementMode.Soft
        await made.route()
        budget.enforcement_mode = EnforcementMode.Hard
        with pytest.raises(BudgetExceededError):
            await made.route()
        budget.limit = Decimal(5)
        await made.route()
        read = await desk.get_budget(budget.id)
        assert (read.limit, read.enforcement_mode) == (Decimal(5), EnforcementMode.Hard)
        with pytest.raises(InvalidRequestError, match="limit"):
            budget.limit = Decimal(-1)
        with pytest.raises(InvalidRequestError, match="update_budget"):
            budget.period = TimeWindow.Hourly
        changed = await desk.update_budget(budget.id, period="hourly", timezone="Asia/Kolkata")
        assert changed.period is TimeWindow.Hourly
        assert changed.resets_at is not None
        assert changed.resets_at.minute == 30


async def test_a_budget_of_the_file_is_changed_in_the_file_alone(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.get_budget("global:all")
        with pytest.raises(InvalidRequestError, match="configuration file"):
            budget.enforcement_mode = EnforcementMode.Hard
        assert budget.enforcement_mode is EnforcementMode.Soft
        for change in (desk.update_budget("global:all", limit=1), desk.delete_budget("global:all")):
            with pytest.raises(InvalidRequestError, match="configuration file"):
                await change
        with pytest.raises(InvalidRequestError, match="configuration file"):
            await desk.create_budget("global", 1, name="all")
        await made.route()


async def test_the_status_names_what_is_held_suspended_unpriced_and_free(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk, ledger = made.router.cost_controller, made.router.ledger
        budget = await desk.create_budget("global", "0.01", unpriced="flat", flat="0.001")
        await made.route(model="a-model-without-price")
        await settled(made)
        rid = new_rid()
        lost = ReserveRequest(
            rid=rid, scopes=(budget.id,), lease_us=1_000_000,
            candidates=(Candidate(lanes=("x:test",), charge=Charge(expected_nanousd=1, bound_nanousd=4_000_000)),),
        )  # fmt: skip
        await ledger.reserve(lost)
        status = await desk.get_budget_status(budget.id)
        assert (status.settled, status.held, status.suspense) == (Decimal("0.001"), Decimal("0.004"), NOTHING)
        assert (status.unpriced_requests, status.free) == (1, Decimal("0.005"))

        async def suspended() -> bool:
            return (await desk.get_budget_status(budget.id)).suspense == Decimal("0.004")

        await until(suspended)  # the lease ran out; what it held still counts
        status = await desk.get_budget_status(BudgetScope.Global)
        assert (status.budget_id, status.held, status.free) == (budget.id, NOTHING, Decimal("0.005"))
        with pytest.raises(BudgetExceededError) as caught:
            await made.route(parameters={"max_tokens": 16_000})
        assert caught.value.details["held"] == Decimal("0.004")
        await ledger.settle(Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=2_000_000))
        status = await desk.get_budget_status(budget.id)
        assert (status.settled, status.suspense) == (Decimal("0.003"), NOTHING)


async def test_a_period_ends_at_midnight_of_the_budgets_time_zone(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        for zone in ("Pacific/Kiritimati", "America/Los_Angeles"):
            made_ = await made.router.cost_controller.create_budget("global", 1, name=zone[:3], timezone=zone)
            for budget in (made_, await made.router.cost_controller.get_budget(made_.id)):
                assert budget.resets_at is not None
                local = budget.resets_at.astimezone(ZoneInfo(zone))
                assert (local.hour, local.minute) == (0, 0)
                assert timedelta(0) < budget.resets_at - datetime.now(UTC) <= timedelta(hours=25)
            await made.route()


async def test_spending_elsewhere_counts_once_for_each_idempotency_key(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget(BudgetScope.Global, Decimal("100.00"), TimeWindow.Daily)
        other = await desk.create_budget(BudgetScope.Global, Decimal("100.00"), TimeWindow.Monthly)
        for key in ("invoice-1", "invoice-1", "invoice-2", None, None):
            await desk.update_spending(budget.id, Decimal("25.50"), idempotency_key=key)
        status = await desk.get_budget_status(budget.id)
        assert (status.settled, status.held, status.free) == (
            Decimal("102.00"),
            NOTHING,
            NOTHING,
        )  # it is spent: booked all the same
        assert (await desk.get_budget_status(other.id)).settled == 0
        with pytest.raises(BudgetExceededError) as caught:
            await made.route()
        assert caught.value.details["settled"] == Decimal("102.00")
        assert (await desk.get_budget(budget.id)).current_spending == Decimal("102.00")
        for amount in (Decimal(-1), Decimal("NaN"), "a lot", True):
            with pytest.raises(InvalidRequestError, match="amount"):
                await desk.update_spending(budget.id, amount)


async def test_an_estimate_is_what_admission_holds(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "c1"]) as made:
        desk = made.router.cost_controller
        asked = intent("hello", parameters={"max_tokens": 100})
        estimate = await desk.estimate_request_cost(asked, "openai", "a1")
        assert estimate is not None
        assert estimate.bound is not None
        assert 0 < estimate.amount <= estimate.bound
        budget = await desk.create_budget("global", TINY)
        with pytest.raises(BudgetExceededError) as caught:
            await made.router.route(asked)
        assert caught.value.details["needed"] == estimate.bound
        for limit, allowed in ((estimate.bound - TINY, False), (estimate.bound, True)):
            await desk.update_budget(budget.id, limit=limit)
            advice = await desk.check_budget(asked, estimate, "openai", "a1")
            assert (advice.allowed, advice.needed, advice.remaining) == (allowed, estimate.bound, limit)
            assert advice.violated == ([] if allowed else [budget.id])
            if allowed:
                await made.router.route(asked)
        assert await desk.estimate_request_cost(intent(model="a-model-without-price"), "openai") is None
        advice = await desk.check_budget(intent(model="a-model-without-price"), None)
        assert "no price or no upper bound" in advice.reason
        assert not advice.allowed
        for unknown in ({"key_id": "k9"}, {"provider_id": "nobody"}, {"key_id": "c1"}):
            with pytest.raises(InvalidRequestError):
                await desk.estimate_request_cost(asked, **unknown)


async def test_a_reconciled_estimate_brings_the_next_one_closer(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        asked = intent("hello", parameters={"max_tokens": 1})
        estimate = await desk.estimate_request_cost(asked)
        assert estimate is not None
        list_price = estimate.amount
        for _ in range(12):
            estimate = await desk.estimate_request_cost(asked)
            assert estimate is not None
            answer = await made.router.route(asked)
            await desk.reconcile_estimate(answer.request_id, estimate, list_price * 3)
        after = await desk.estimate_request_cost(asked)
        assert after is not None
        assert abs(after.amount - list_price * 3) < list_price / 10
        assert after.bound == estimate.bound
        with pytest.raises(InvalidRequestError, match="request_id"):
            await desk.reconcile_estimate("nobody's", estimate, 1)


async def test_every_field_of_a_status_is_what_other_books_say(simulator: SimulatorProcess, redis_url: str) -> None:
    zone = ZoneInfo("Asia/Kolkata")
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1"]) as made,
        ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY}) as other,
    ):
        made_here = await made.router.cost_controller.create_budget(
            "team", 5, "daily", "soft", "blue", timezone=zone.key, unpriced="meter"
        )
        costs = [(await made.route(team="blue")).cost for _ in range(4)]
        await made.route(team="blue", model="a-model-without-price")
        async with made.router.lease("gpt-4o-mini", team="blue", estimated_tokens=1000) as lease:
            await settled(made)
            status = await other.cost_controller.get_budget_status("team", "blue")
            bound = (await other.ledger.scopes([made_here.id]))[0].held
            assert bound > 0
            assert status.held == Decimal(bound).scaleb(-9)
            await lease.settle(input_tokens=1, output_tokens=0)
        midnight = datetime.now(zone).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        assert status.resets_at == midnight
        billed = [cost.amount for cost in costs if cost is not None]
        assert len(billed) == 4
        assert status.settled == status.current_spending == sum(billed)  # what the callers were told
        assert (status.suspense, status.late, status.unpriced) == (NOTHING, NOTHING, NOTHING)
        assert status.unpriced_requests == 1
        assert status.remaining == status.free == status.limit - status.settled - status.held
        assert (status.budget_id, status.scope, status.scope_id) == (made_here.id, BudgetScope.Team, "blue")
        assert (status.limit, status.period) == (Decimal(5), TimeWindow.Daily)
        assert status.enforcement_mode is EnforcementMode.Soft
        assert not status.exceeded
        assert status.forecast is not None
        assert status.forecast.burn_per_hour > 0
        assert status.forecast.lasts == (status.forecast.used_up_at is None or status.forecast.used_up_at > midnight)


async def test_a_forecast_says_when_it_will_be_used_up(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        endless = await desk.create_budget("global", 1000, "total")
        assert (await desk.get_budget_status(endless.id)).forecast is None
        monthly = await desk.create_budget("global", 1000, "monthly", timezone="Pacific/Auckland")
        await desk.update_spending(monthly.id, 900)
        now = datetime.now(UTC)
        desk._books.forget(monthly.id)
        desk._books._sampled_us = 0  # as a process that begins now sees it for the first time
        status = await desk.get_budget_status(monthly.id)
        forecast = status.forecast
        assert forecast is not None
        assert forecast.used_up_at is not None
        hours = (forecast.observed_seconds or 1) / 3600
        assert abs(float(forecast.burn_per_hour) - 900 / hours) <= 900 / hours / 5
        expected = timedelta(hours=hours / 9)
        assert expected / 3 < forecast.used_up_at - now < expected * 3
        assert forecast.earliest is not None
        assert forecast.earliest < forecast.used_up_at < (forecast.latest or datetime.max.replace(tzinfo=UTC))
        await desk.update_spending(monthly.id, 100)
        used_up = (await desk.get_budget_status(monthly.id)).forecast
        assert used_up is not None
        assert not used_up.lasts
        assert used_up.confidence == 1


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"scope": "planet"}, "scope"),
        ({"scope": "team"}, "scope_id"),
        ({"scope": "global", "scope_id": "x"}, "scope_id"),
        ({"limit": 0}, "limit"),
        ({"limit": -1}, "limit"),
        ({"limit": float("inf")}, "limit"),
        ({"limit": 10**9}, "limit"),
        ({"limit": "much"}, "limit"),
        ({"period": "fortnightly"}, "period"),
        ({"enforcement_mode": "firm"}, "enforcement_mode"),
        ({"timezone": "Mars/Olympus"}, "budget"),
        ({"unpriced": "free"}, "unpriced"),
        ({"unpriced": "flat"}, "flat"),
        ({"flat": 1}, "flat"),
        ({"suspense": "forget"}, "suspense"),
        ({"suspense_after_seconds": 1}, "suspense_after_seconds"),
        ({"name": "a:b"}, "name"),
    ],
)
async def test_a_wrong_budget_is_refused_and_changes_nothing(
    simulator: SimulatorProcess, wrong: dict[str, Any], field: str
) -> None:
    async with ApiKeyRouter() as router:
        with pytest.raises(InvalidRequestError) as caught:
            await router.cost_controller.create_budget(**{"scope": "global", "limit": 1, **wrong})
        assert caught.value.field == field
        assert await router.cost_controller.list_budgets() == []
        for call in (router.cost_controller.get_budget("x"), router.cost_controller.get_budget_status("team")):
            with pytest.raises(InvalidRequestError):
                await call


async def test_more_budgets_than_a_request_can_hold_are_refused_when_they_are_made() -> None:
    async with ApiKeyRouter() as router:
        for number in range(8):
            await router.cost_controller.create_budget("global", 1, name=f"n{number}")
        with pytest.raises(InvalidRequestError, match="at most 8"):
            await router.cost_controller.create_budget("team", 1, scope_id="blue")
        for number in range(4):
            await router.cost_controller.create_budget("key", 1, scope_id="k", name=f"n{number}")
        with pytest.raises(InvalidRequestError, match="at most 4"):
            await router.cost_controller.create_budget("provider", 1, scope_id="openai")
        assert len(await router.cost_controller.list_budgets()) == 12


async def test_other_processes_hold_in_what_was_made_changed_and_deleted(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1"]) as made,
        ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY}) as other,
    ):
        budget = await made.router.cost_controller.create_budget("global", TINY)

        def known(router: ApiKeyRouter) -> bool | None:
            found = router.catalogue.budget(budget.id)
            return None if found is None else found.hard

        await until(lambda: known(other) is True)
        read = await other.cost_controller.get_budget(budget.id)
        read.enforcement_mode = EnforcementMode.Soft
        await other.start()
        await made.route()
        await until(lambda: known(made.router) is False)
        await other.cost_controller.delete_budget(budget.id)
        await until(lambda: known(made.router) is None)


async def test_a_budget_made_in_code_survives_a_restart_with_what_was_spent(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        budget = await made.router.cost_controller.create_budget("team", "0.5", "monthly", scope_id="blue")
        await made.router.cost_controller.update_spending(budget.id, "0.5")
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        with pytest.raises(BudgetExceededError) as caught:
            await made.route(team="blue")
        assert caught.value.details["settled"] == Decimal("0.5")
        assert isinstance(await made.router.cost_controller.estimate_request_cost(intent()), CostEstimate)


async def test_thresholds_and_soft_excess_are_told_as_events(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        told: list[Mapping[str, Any]] = []
        made.router.subscribe_to_events("budget.threshold", told.append)
        made.router.subscribe_to_events("budget.soft_exceeded", told.append)
        desk = made.router.cost_controller
        budget = await desk.create_budget("global", 10, enforcement_mode="soft")
        for amount, percent in ((4, None), (1, 50), ("0.5", None), ("3.6", 90), (5, 100)):
            await desk.update_spending(budget.id, amount)
            before = len(told)
            for _ in range(2):  # each is told once
                await desk.sample()
            if percent is not None:
                await until(lambda before=before: len(told) > before)
                assert [(event["scope"], event["percent"]) for event in told[before:]] == [(budget.id, percent)]
        before = len(told)
        answer = await made.route()
        await until(lambda: len(told) > before)
        assert (told[-1]["event"], told[-1]["scope"]) == ("budget.soft_exceeded", budget.id)
        assert told[-1]["request_id"] == answer.request_id
