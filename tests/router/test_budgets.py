"""Hard and soft budgets end to end: exact stops, caps that make bounds, and what cannot be priced."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import SOFT_BUDGET, house

pytestmark = pytest.mark.asyncio(loop_scope="package")


def hard(limit_usd: float, **fields: Any) -> dict[str, Any]:
    """A hard budget over everything."""
    return {
        "name": "hard",
        "scope": "global",
        "limit_usd": limit_usd,
        "period": "total",
        "enforcement": "hard",
        **fields,
    }


async def test_a_hard_budget_is_never_exceeded_and_says_what_it_lacks(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    limit = 10_000_000  # nano-dollars: room for a few capped requests at once
    async with house(simulator, store, budgets=[SOFT_BUDGET, hard(0.01)]) as made:
        asked = [made.route(f"number {n}", parameters={"max_tokens": 2000}) for n in range(60)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        denied = [answer for answer in answers if isinstance(answer, BudgetExceededError)]
        assert 0 < len(denied) < 60
        details = denied[0].details
        assert (details["scope"], details["limit"]) == ("global:hard", Decimal("0.01"))
        assert details["settled"] + details["held"] + details["needed"] > details["limit"]
        (state,) = await made.router.ledger.scopes(["global:hard"])
        assert state.settled + state.held + state.suspense <= limit
        assert await made.at_rest() == await made.billed() <= limit


async def test_a_hard_budget_stops_exactly(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], budgets=[SOFT_BUDGET, hard(0.0001)]) as made:
        served = 0
        with pytest.raises(BudgetExceededError) as caught:
            for _ in range(100):
                await made.route(parameters={"max_tokens": 12})
                assert await made.router.books.flush(seconds=5)
                served += 1
        settled = await made.at_rest()
        assert settled == await made.billed()
        needed = int(caught.value.details["needed"] * 10**9)
        assert settled + needed > 100_000
        assert settled - settled // served + needed <= 100_000  # the last one that was served still fitted


async def test_a_cap_is_put_in_where_the_caller_gave_none(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "c1"], budgets=[SOFT_BUDGET, hard(1)]) as made:
        answer = await made.route("[[tokens:9000]] please")
        cap = made.finished[-1].token_cap
        assert cap is not None
        assert answer.metadata.tokens_used.output_tokens == cap
        await made.route("[[tokens:9000]] please", model="claude-haiku-5")  # its dialect always has one
        assert await made.at_rest() == await made.billed()
        await made.apply(["a1"])
        await made.route()
        assert made.finished[-1].token_cap is None


@pytest.mark.parametrize(("rule", "served"), [("deny", False), ("meter", True)])
async def test_what_has_no_price_follows_the_budgets_rule(
    simulator: SimulatorProcess, store: StateStore, rule: str, served: bool
) -> None:
    async with house(simulator, store, ["a1"], budgets=[SOFT_BUDGET, hard(1, unpriced=rule)]) as made:
        if served:
            answer = await made.route(model="a-model-without-price")
            assert answer.cost is None
            await made.at_rest()
            (state,) = await made.router.ledger.scopes(["global:hard"])
            assert state.unpriced_requests == 1
        else:
            with pytest.raises(BudgetExceededError) as caught:
                await made.route(model="a-model-without-price")
            assert caught.value.details["needed"] is None
            assert caught.value.details["unpriced"] == ["openai/a-model-without-price"]
            for told in (
                "no known price: openai/a-model-without-price",
                "`prices:`",
                "`cost_per_1k`",
                "`unpriced` rule",
            ):
                assert told in str(caught.value)
            assert (await made.seen("org-a"))["arrived"] == 0
            await made.at_rest()


async def test_a_soft_budget_serves_and_says_so(simulator: SimulatorProcess, store: StateStore) -> None:
    soft = {**SOFT_BUDGET, "name": "small", "limit_usd": 0.00001}
    async with house(simulator, store, ["a1"], budgets=[SOFT_BUDGET, soft]) as made:
        for _ in range(3):
            await made.route()
            assert await made.router.books.flush(seconds=5)
        assert made.finished[-1].soft_exceeded == ("global:small",)
        assert await made.at_rest() == await made.billed()


async def test_budgets_of_teams_clients_keys_and_providers_apply_to_theirs(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    budgets = [
        SOFT_BUDGET,
        hard(0.00001, name="team", scope="team", scope_id="blue"),
        hard(0.00001, name="key", scope="key", scope_id="a1"),
    ]
    async with house(simulator, store, ["a1", "a2"], budgets=budgets) as made:
        with pytest.raises(BudgetExceededError) as caught:
            await made.route(team="blue")
        assert caught.value.details["scope"] == "team:blue:team"
        assert {(await made.route(team="red")).key_used for _ in range(4)} == {"a2"}
        assert await made.at_rest() == await made.billed()


@pytest.mark.parametrize(
    "budgets",
    [
        [hard(0.00001)],
        [hard(0.00001, scope="provider", scope_id=name, name=name) for name in ("openai", "other")],
        [hard(0.00001, scope="provider", scope_id="openai")],
    ],
)
async def test_whoever_has_the_turn_a_request_that_no_budget_ever_admits_is_told_so(
    simulator: SimulatorProcess, store: StateStore, budgets: list[dict[str, Any]]
) -> None:
    small = [{"quota_group": "org-b", "tpm": 10, "headroom": 0}]
    async with house(simulator, store, ["a1", "b1"], budgets=[SOFT_BUDGET, *budgets], limits=small) as made:
        told = []
        for _ in range(4):
            with pytest.raises(BudgetExceededError) as caught:
                await made.route("a question that is longer than ten tokens " * 5)
            told.append(caught.value.details["scope"])
        assert len(set(told)) == 1
        assert await made.at_rest() == 0
