"""One of several processes that tell the same requests' costs at once, each totals of its own.

`python -m tests.router.telling REDIS_URL SEED REQUESTS`; it prints `ready`, starts at a line on its standard input, and
prints what it booked, in nano-dollars.
"""

import asyncio
import sys
from decimal import Decimal
from random import Random

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from tests.router.house import MASTER_KEY

TOLD = "told"


def totals(seed: int, requests: int) -> list[int]:
    """Dollars that the process of a seed tells, by request."""
    chance = Random(seed)
    return [chance.randint(1, 9) for _ in range(requests)]


async def tell(redis_url: str, seed: int, requests: int) -> Decimal:
    """Tell them one after the other; what this process booked."""
    booked = Decimal(0)
    async with ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY}) as router:
        desk = router.cost_controller
        await desk.list_budgets()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for number, total in enumerate(totals(seed, requests)):
            try:
                booked += await desk.record_actual_cost(f"r{number}", total, team=TOLD)
            except InvalidRequestError:  # the other was faster, with more
                continue
    return booked


if __name__ == "__main__":
    url, seed, requests = sys.argv[1:]
    print(asyncio.run(tell(url, int(seed), int(requests))), flush=True)
