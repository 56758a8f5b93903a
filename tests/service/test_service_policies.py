"""Policies and budgets over HTTP, and shared with the library on one store."""

import asyncio
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import MASTER_KEY, Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
CLIENTS = [
    {"name": "app", "token": "the-token-of-the-app", "team": "blue"},
    {"name": "lab", "token": "the-token-of-the-lab", "team": "red"},
]


async def ask(service: Running, token: str, **options: Any) -> Any:
    """One chat request over the official SDK."""
    async with service.openai(token) as client:
        return await client.chat.completions.create(
            **{"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 12, **options}
        )


async def test_a_denial_by_policy_is_a_403_that_names_the_policy_and_no_key(
    service_valkey: Server, simulator: SimulatorProcess, config: dict[str, Any]
) -> None:
    config["clients"] = CLIENTS
    config["policies"] = [
        {"name": "no-gpt-for-red", "scope": "team", "scope_id": "red", "rules": {"denied_models": ["gpt-*"]}},
        {"name": "no-claude", "scope": "client", "scope_id": "lab", "rules": {"denied_providers": ["anthropic"]}},
    ]
    async with running_service(service_valkey.url, config) as service:
        assert (await ask(service, "the-token-of-the-app")).choices
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await ask(service, "the-token-of-the-lab")
        assert caught.value.code == "policy_denied"
        assert "no-gpt-for-red" in caught.value.message
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert "k1" not in caught.value.response.text
        async with service.anthropic("the-token-of-the-lab") as client:
            with pytest.raises(anthropic.PermissionDeniedError) as refused:
                await client.messages.create(model="claude-haiku-4-5", max_tokens=5, messages=HELLO)
        assert "no-claude" in str(refused.value)


async def test_library_and_service_honour_one_budget_exactly(
    service_valkey: Server, simulator: SimulatorProcess, config: dict[str, Any]
) -> None:
    store = RedisStateStore(service_valkey.url, "shared-budget")
    environ = {"APIKEYROUTER_NAMESPACE": store.namespace}
    async with (
        running_service(service_valkey.url, config, environ=environ) as service,
        ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}) as router,
    ):
        await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        limit = Decimal("0.0005")
        budget = await router.cost_controller.create_budget("global", limit, "total")

        async def known() -> bool:
            return service.runtime.router.catalogue.budget(budget.id) is not None

        async with asyncio.timeout(5):
            while not await known():
                await asyncio.sleep(0.02)
        served = denied = 0
        intent = {"model": "gpt-4o-mini", "messages": HELLO, "parameters": {"max_tokens": 12}}
        for _ in range(20):
            asked = [ask(service, "any") for _ in range(4)] + [router.route(intent) for _ in range(4)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    assert isinstance(answer, BudgetExceededError | openai.RateLimitError), answer
                    denied += 1
                else:
                    served += 1
            status = await router.cost_controller.get_budget_status(budget.id)
            assert status.settled + status.held + status.suspense <= limit
        assert served > 0
        assert denied > 0
        assert await router.books.flush(seconds=10)
        assert await service.runtime.router.books.flush(seconds=10)
        status = await router.cost_controller.get_budget_status(budget.id)
        billed = int((await simulator.report())["total"]["cost_nanousd"])
        assert status.settled == Decimal(billed).scaleb(-9) <= limit
        assert status.held == 0
