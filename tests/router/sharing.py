"""One of several processes: asks as often as it is told, and says how that went.

`python -m tests.router.sharing REDIS_URL OPENAI_URL ANTHROPIC_URL PLAN REQUESTS`
"""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from tests.router.house import MASTER_KEY, config_of, intent

AT_ONCE = 10
PLANS: dict[str, dict[str, Any]] = {
    "limit": {"limits": [{"quota_group": "org-a", "rpd": 50, "kind": "fixed", "headroom": 0}]},
    "budget": {
        "budgets": [
            {"name": "all", "scope": "global", "limit_usd": 0.0001, "period": "total", "enforcement": "hard"},
        ]
    },
}


@dataclass(frozen=True, slots=True)
class Providers:
    """Where the simulated providers are."""

    openai_url: str
    anthropic_url: str


async def share(redis_url: str, providers: Providers, plan: str, requests: int) -> dict[str, int]:
    """Ask, `AT_ONCE` at a time."""
    router = ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
    found: list[SystemResponse | BaseException] = []
    async with router:
        await router.apply(config_of(providers, ["a1", "a2"], **PLANS[plan]))
        for _ in range(requests // AT_ONCE):
            asked = (router.route(intent(parameters={"max_tokens": 12})) for _ in range(AT_ONCE))
            found += await asyncio.gather(*asked, return_exceptions=True)
    served = [answer for answer in found if isinstance(answer, SystemResponse)]
    denied = [answer for answer in found if isinstance(answer, (BudgetExceededError, NoEligibleKeysError))]
    unexpected = [answer for answer in found if answer not in served and answer not in denied]
    assert unexpected == []
    cost = sum(int(answer.cost.amount * 10**9) for answer in served if answer.cost is not None)
    return {"served": len(served), "denied": len(denied), "cost": cost}


if __name__ == "__main__":
    redis_url, openai_url, anthropic_url, plan, requests = sys.argv[1:]
    told = asyncio.run(share(redis_url, Providers(openai_url, anthropic_url), plan, int(requests)))
    print(json.dumps(told), flush=True)
