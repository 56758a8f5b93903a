"""A process that serves requests whose ids their clients chose, as a service does.

`python -m tests.router.naming REDIS_URL BASE_URL`: for each line on its standard input it serves one request under
that id, and prints what it cost, in dollars, as soon as that is booked.
"""

import asyncio
import sys

from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.serving.answers import response_of
from apikeyrouter.serving.requests import call_of
from tests.router.house import MASTER_KEY, WAIT_SECONDS_MAX, intent

DECISIONS_MAX = 2


async def serve(redis_url: str, base_url: str) -> None:
    """Serve until the input ends."""
    store = RedisStateStore(redis_url, max_decisions=DECISIONS_MAX)
    config = {"encryption_key": MASTER_KEY, "max_decisions": DECISIONS_MAX}
    async with ApiKeyRouter(state_store=store, config=config) as router:
        await router.register_provider("openai", OpenAIAdapter(base_url), overwrite=True)
        await router.register_key("sk-sim-house-a-number-1", "openai")
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            call = call_of(RequestIntent.parse(intent("hello", team="blue")), None, stream=False)
            call.request_id = line.strip()
            answer = response_of(call, await router.serve(call))
            await router.books.flush(seconds=WAIT_SECONDS_MAX)
            assert answer.cost is not None
            print(answer.cost.amount, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
