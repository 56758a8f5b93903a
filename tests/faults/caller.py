"""A process under load: calls go on until its standard input ends, then it tells what it was answered.

`python -m tests.faults.caller REDIS_URL OPENAI_URL ANTHROPIC_URL CONCURRENCY [PLAN]`
"""

import asyncio
import itertools
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from tests.faults.worker import Providers, say
from tests.router.house import MASTER_KEY, config_of, intent, until

TELL_EVERY = 10
PAUSE_SECONDS = 0.02


class Caller:
    """Calls, what they cost, and how many were refused."""

    def __init__(self, router: ApiKeyRouter, intents: Sequence[Mapping[str, Any]]) -> None:
        self._router, self._intents = router, itertools.cycle(intents)
        self.answered = self.refused = self.cost = 0
        self.stopping = False

    async def call(self) -> None:
        """One after the other; an outage is waited for."""
        while not self.stopping:
            try:
                answer = await self._router.route(intent(**next(self._intents)))
            except ApiKeyRouterError:
                self.refused += 1
                say(refused=self.refused)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            assert answer.cost is not None
            self.cost += int(answer.cost.amount * 10**9)
            self.answered += 1
            if self.answered % TELL_EVERY == 0:
                say(answered=self.answered)


async def work(redis_url: str, providers: Providers, concurrency: int, plan: Any) -> None:
    """Call until told to stop; then let everything be booked."""
    settings = {"encryption_key": MASTER_KEY, **plan.SETTINGS}
    router = ApiKeyRouter(state_store=RedisStateStore(redis_url), config=settings)
    async with router:
        await router.apply(config_of(providers, plan.KEYS, **plan.PARTS))
        caller = Caller(router, plan.INTENTS)
        calling = [asyncio.create_task(caller.call()) for _ in range(concurrency)]
        await asyncio.to_thread(sys.stdin.read)
        caller.stopping = True
        await asyncio.gather(*calling)
        await until(lambda: router.in_flight == 0)
        await router.books.flush(seconds=20)
        await until(lambda: router.books.waiting == 0)
        say(
            answered=caller.answered,
            refused=caller.refused,
            cost=caller.cost,
            done=1,
            forgotten=router.ledger.forgotten,
        )


if __name__ == "__main__":
    redis_url, openai_url, anthropic_url, concurrency, *named = sys.argv[1:]
    plan = import_module(named[0] if named else "tests.faults.plan")
    asyncio.run(work(redis_url, Providers(openai_url, anthropic_url), int(concurrency), plan))
