"""A worker to be killed: opens streams, keeps settlements unflushed, says so, and never ends by itself.

`python -m tests.faults.worker REDIS_URL OPENAI_URL ANTHROPIC_URL STREAMS SETTLEMENTS`
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from tests.faults.plan import KEYS, PARTS
from tests.router.faulty import ALWAYS, faults_in
from tests.router.house import MASTER_KEY, config_of, intent, until


@dataclass(frozen=True, slots=True)
class Providers:
    """Where the simulated providers are."""

    openai_url: str
    anthropic_url: str


async def work(redis_url: str, providers: Providers, streams: int, settlements: int) -> None:
    """Settle some, then hold everything open and be ready to die."""
    router = ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
    async with router:
        await router.apply(config_of(providers, KEYS, **PARTS))
        settled = [await router.route(intent(provider_id="other")) for _ in range(settlements)]
        assert await router.books.flush(seconds=10)
        say(settled=len(settled), cost=sum(int(answer.cost.amount * 10**9) for answer in settled if answer.cost))
        faults_in(router).unreachable["settle"] = ALWAYS
        opened = [await opened_stream(router) for _ in range(streams)]
        await asyncio.gather(*(router.route(intent(provider_id="other")) for _ in range(settlements)))
        await until(lambda: router.books.waiting >= settlements)
        say(streams=len(opened), open=len(router.books.open), waiting=router.books.waiting)
        reading = [asyncio.create_task(read(stream)) for stream in opened]
        await asyncio.gather(*reading)
        await asyncio.Event().wait()


async def opened_stream(router: ApiKeyRouter) -> AsyncIterator[Any]:
    """A stream whose first word has come."""
    stream = router.route_stream(intent(provider_id="openai"))
    await anext(stream)
    return stream


async def read(stream: AsyncIterator[Any]) -> None:
    """Read as fast as it comes."""
    async for _ in stream:
        pass


def say(**facts: int) -> None:
    """One line for the parent."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    redis_url, openai_url, anthropic_url, streams, settlements = sys.argv[1:]
    asyncio.run(work(redis_url, Providers(openai_url, anthropic_url), int(streams), int(settlements)))
