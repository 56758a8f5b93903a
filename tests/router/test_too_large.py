"""Names and amounts that the ledger cannot hold: they fail nobody else's request, nor one that needs no such amount."""

from collections import Counter
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter, BudgetExceededError, InvalidRequestError, ProviderAdapter, SystemResponse
from apikeyrouter.domain.components.entries import group_lane
from apikeyrouter.domain.models.accounting import check_id
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_response import ResponseMetadata, TokenUsage
from tests.router.house import intent

pytestmark = pytest.mark.asyncio(loop_scope="package")
LONG = {"max_tokens": 2**31 - 1}


class Echo(ProviderAdapter):
    """Answers at once."""

    async def execute_request(self, intent: RequestIntent, key: str) -> SystemResponse:
        """A word."""
        tokens = TokenUsage(input_tokens=10, output_tokens=10)
        return SystemResponse(content="x", metadata=ResponseMetadata(model_used=intent.model, tokens_used=tokens))


async def routed(*metadata: dict[str, Any]) -> ApiKeyRouter:
    """A router with keys of one provider."""
    router = ApiKeyRouter()
    router.register_provider("echo", Echo())
    for n, told in enumerate(metadata):
        await router.register_key(f"material-{n}", "echo", told)
    return router


@pytest.mark.parametrize("length", [196, 197, 256])
async def test_a_group_with_a_long_name_serves_and_is_metered_alone(length: int) -> None:
    groups = ["ü" * (length - 1) + end for end in "ab"]
    models = {"models": ["m"], "limits": {"rpd": 2, "kind": "fixed"}}
    async with await routed(*({"quota_group": group, **models} for group in groups)) as router:
        served = Counter([(await router.route(intent(model="m"))).key_used for _ in range(4)])
        assert sorted(served.values()) == [2, 2]  # each group has its own limit


@pytest.mark.parametrize("length", [180, 190, 256])
async def test_a_model_with_a_long_name_is_served(length: int) -> None:
    names = ["\N{DESERET SMALL LETTER YEE}" * (length - 1) + end for end in "ab"]
    async with await routed({"models": names}) as router:
        for name in names:
            assert (await router.route(intent(model=name))).content == "x"


async def test_lanes_of_groups_are_lines_that_the_ledger_takes_and_told_apart() -> None:
    names = ["a", "a:b", "b", "x\ny", "\ud800", "ü" * 300, "ü" * 299 + "v", "x" * 98, "x" * 99, "x" * 600]
    lanes = [group_lane(group, model) for group in names for model in names]
    assert [lane for lane in lanes if check_id(lane, what="lane") != lane] == []
    alike = {("a", "a:b"), ("a:b", "b"), ("a", "b:b")}
    assert len(set(lanes)) >= len(lanes) - len(alike)
    assert group_lane("org", "gpt-4o") == "g:org:gpt-4o"


async def test_a_key_on_which_a_request_could_cost_too_much_to_count_leaves_it_to_the_others() -> None:
    dear, cheap = {"models": ["m"], "cost_per_1k": 900}, {"models": ["m"], "cost_per_1k": "0.1"}
    async with await routed(dear, cheap) as router:
        await router.cost_controller.create_budget("global", 9_000_000, "daily", "hard")
        good = next(key.id for key in await router.key_manager.list_keys() if key.metadata == cheap)
        for objective in ("fairness", "cost", "latency"):
            for _ in range(4):
                assert (await router.route(intent(model="m", parameters=LONG), objective)).key_used == good


async def test_what_can_only_be_held_beyond_what_can_be_counted_never_fits_its_budget() -> None:
    async with await routed({"models": ["m"], "cost_per_1k": 900}) as router:
        await router.cost_controller.create_budget("global", 9_000_000, "daily", "hard")
        with pytest.raises(BudgetExceededError) as told:
            await router.route(intent(model="m", parameters=LONG))
        assert told.value.retry_after is None
        assert (await router.route(intent(model="m", parameters={"max_tokens": 5}))).content == "x"


async def test_counts_that_cannot_be_multiplied_are_no_matter_where_nothing_limits_them() -> None:
    many = {"max_tokens": 2**31 - 1, "n": 2**31 - 1}
    async with await routed({"models": ["m"], "cost_per_1k": 900}) as router:
        assert (await router.route(intent(model="m", parameters=many))).content == "x"
        await router.cost_controller.create_budget("global", 5, "daily", "soft")
        assert (await router.route(intent(model="m", parameters=many))).content == "x"


async def test_spending_that_cannot_be_counted_is_refused_with_the_bound() -> None:
    async with await routed({"models": ["m"]}) as router:
        desk = router.cost_controller
        budget = await desk.create_budget("global", 5, "daily", "soft")
        for amount in (9_007_200, "9007199.254740993", 1e10):
            with pytest.raises(InvalidRequestError, match=r"at most 9,?007,?199"):
                await desk.update_spending(budget.id, amount)
            with pytest.raises(InvalidRequestError, match=r"at most 9,?007,?199"):
                await desk.record_actual_cost("r1", amount, team="red")
        assert (await desk.get_budget_status(budget.id)).settled == 0
