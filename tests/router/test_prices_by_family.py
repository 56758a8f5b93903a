"""What a provider's models cost is found by its adapter where its id says nothing."""

from typing import Any

import pytest

from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import house

pytestmark = pytest.mark.asyncio(loop_scope="package")


KEY = {"id": "e1", "provider": "europe", "key": "sk-ant-sim-house-c-1", "quota_group": "org-c"}
MODEL = "claude-haiku-4-5"


@pytest.mark.parametrize(("told", "rates"), [([], (1, 5)), ([{"input": 7, "output": 9}], (7, 9))])
async def test_a_provider_of_any_name_costs_what_its_family_costs_unless_told(
    simulator: SimulatorProcess, told: list[dict[str, Any]], rates: tuple[int, int]
) -> None:
    parts: dict[str, Any] = {
        "providers": {"europe": {"adapter": "anthropic", "base_url": simulator.anthropic_url}},
        "prices": [{"provider": "europe", "model": MODEL, **price} for price in told],
    }
    async with house(simulator, InMemoryStateStore(), [KEY], **parts) as made:
        answer = await made.route(model=MODEL)
        assert answer.cost is not None
        used = answer.metadata.tokens_used
        assert answer.cost.amount * 10**6 == used.input_tokens * rates[0] + used.output_tokens * rates[1]
        assert MODEL in [model for model, _ in made.router.catalogue.models()]
