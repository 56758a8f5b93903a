"""Programs that fork, each with a verdict as JSON: `python -m tests.usage.forking LOOP PLAN REDIS_URL OPENAI_URL`.

They run in processes of their own: a test process with threads and loops is no place to fork from.
"""

import asyncio
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.serving.bookkeeping import Cancel
from tests.router.house import KEYS, MASTER_KEY, SOFT_BUDGET, intent

SETTINGS = {"encryption_key": MASTER_KEY}
CHILDREN = 3
REQUESTS = 20
LIMIT = 50
heard: list[str] = []


def config_of(openai_url: str) -> CompiledConfig:
    """One key of one organisation with LIMIT requests a day, a soft budget."""
    sections: dict[str, Any] = {
        "providers": {"openai": {"adapter": "openai", "base_url": openai_url}},
        "keys": [{"id": "a1", **KEYS["a1"]}],
        "limits": [{"quota_group": "org-a", "rpd": LIMIT, "kind": "fixed", "headroom": 0}],
        "budgets": [SOFT_BUDGET],
    }
    return compile_config(read_config(sections), environ={})


def ask(route: Callable[[], Any], times: int) -> dict[str, Any]:
    """What became of so many requests, one after the other."""
    served, errors = 0, []
    for _ in range(times):
        try:
            route()
            served += 1
        except ApiKeyRouterError as exc:
            errors.append(type(exc).__name__)
    return {"pid": os.getpid(), "served": served, "errors": sorted(set(errors))}


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The verdict of work in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        verdict: dict[str, Any] = {"error": "nothing was said"}
        try:
            verdict = work()
        except BaseException as exc:
            verdict = {"error": f"{type(exc).__name__}: {exc}"}
        finally:
            os.write(writing, json.dumps(verdict).encode())
            os._exit(0)
    os.close(writing)
    told = b"".join(iter(lambda: os.read(reading, 65536), b""))
    os.close(reading)
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(told)
    return found


def sync_and_fork(redis_url: str, openai_url: str) -> dict[str, Any]:
    """A facade in use, children that use it too, and the parent again."""
    router = ApiKeyRouter(RedisStateStore(redis_url), config=SETTINGS)
    router.sync.apply(config_of(openai_url))
    router.subscribe_to_events("request.completed", lambda event: heard.append(event["request_id"]))
    before = ask(lambda: router.sync.route(intent()), 5)

    def work() -> dict[str, Any]:
        verdict = ask(lambda: router.sync.route(intent()), 5)
        verdict |= {
            "settled": router.books.settled,
            "spent": int(router.sync.get_state_summary().costs.total_spent * 10**9),
        }
        router.sync.close()
        return verdict

    children = [in_child(work) for _ in range(CHILDREN)]
    after = ask(lambda: router.sync.route(intent()), 5)
    router.sync.close()
    return {"before": before, "children": children, "after": after, "heard": len(heard)}


def async_and_fork(redis_url: str, openai_url: str) -> dict[str, Any]:
    """A fork out of a coroutine, with requests under way in the parent."""
    router = ApiKeyRouter(RedisStateStore(redis_url), config=SETTINGS)

    def work() -> dict[str, Any]:
        async def share() -> dict[str, Any]:
            async with router:
                answer = await router.route(intent())
                return {"served": len(answer.content), "in_flight": router.in_flight, "holds": len(router.books.open)}

        return asyncio.run(share())

    async def main() -> dict[str, Any]:
        async with router:
            await router.apply(config_of(openai_url))
            under_way = [asyncio.ensure_future(router.route(intent(f"number {n}"))) for n in range(10)]
            while router.in_flight < 10:
                await asyncio.sleep(0)
            child = in_child(work)
            answers = await asyncio.gather(*under_way)
            more = await router.route(intent())
            loop = type(asyncio.get_running_loop()).__module__
            return {"child": child, "answers": len(answers), "more": len(more.content), "loop": loop}

    return asyncio.run(main())


def chores_and_fork(redis_url: str, openai_url: str) -> dict[str, Any]:
    """A fork while the parent takes back what cancelled requests may have held."""
    router = ApiKeyRouter(RedisStateStore(redis_url), config=SETTINGS)

    def work() -> dict[str, Any]:
        async def share() -> dict[str, Any]:
            answer = await router.route(intent())
            inherited = _cancels(router)
            await router.close()
            return {"served": len(answer.content), "inherited": inherited}

        return asyncio.run(share())

    async def main() -> dict[str, Any]:
        async with router:
            await router.apply(config_of(openai_url))
            under_way = [asyncio.ensure_future(router.route(intent(f"number {n}"))) for n in range(10)]
            while router.in_flight < 10:
                await asyncio.sleep(0)
            for each in under_way:
                each.cancel()
            while not _cancels(router):
                await asyncio.sleep(0)
            chores = _cancels(router)
            child = in_child(work)
            return {"chores": chores, "child": child, "more": len((await router.route(intent())).content)}

    return asyncio.run(main())


def _cancels(router: ApiKeyRouter) -> int:
    """Reserves that are to be taken back."""
    return sum(isinstance(waiting.end, Cancel) for waiting in router.books.cells[0]._outbox)


def memory_and_fork(redis_url: str, openai_url: str) -> dict[str, Any]:
    """In-process accounting cannot be shared with a child; what was not started yet can be used there."""
    router = ApiKeyRouter(InMemoryStateStore(), config=SETTINGS)
    router.sync.apply(config_of(openai_url))
    started = in_child(lambda: ask(lambda: router.sync.route(intent()), 1) | {"message": message(router)})
    fresh = ApiKeyRouter(InMemoryStateStore(), config=SETTINGS)

    def work() -> dict[str, Any]:
        fresh.sync.apply(config_of(openai_url))
        return ask(lambda: fresh.sync.route(intent()), 1)

    verdict = {"started": started, "fresh": in_child(work), "parent": ask(lambda: router.sync.route(intent()), 1)}
    router.sync.close()
    return verdict


def message(router: ApiKeyRouter) -> str:
    """What the refusal says."""
    try:
        router.sync.route(intent())
    except ApiKeyRouterError as exc:
        return str(exc)
    return ""


_shared: list[ApiKeyRouter] = []


def _worker(_: int) -> dict[str, Any]:
    router = _shared[0]
    verdict = ask(lambda: router.sync.route(intent()), REQUESTS)
    router.sync.close()
    return verdict


def pool_and_fork(redis_url: str, openai_url: str) -> dict[str, Any]:
    """multiprocessing's fork, with a router of the module's that the parent has used: one limit over all of them."""
    router = ApiKeyRouter(RedisStateStore(redis_url), config=SETTINGS)
    _shared.append(router)
    router.sync.apply(config_of(openai_url))
    with multiprocessing.get_context("fork").Pool(CHILDREN) as pool:
        told = pool.map_async(_worker, range(CHILDREN), chunksize=1)
        mine = ask(lambda: router.sync.route(intent()), REQUESTS)
        children = told.get(90)
    router.sync.close()
    return {"parent": mine, "children": children}


PLANS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "sync": sync_and_fork, "async": async_and_fork, "chores": chores_and_fork, "memory": memory_and_fork,
    "pool": pool_and_fork,
}  # fmt: skip

if __name__ == "__main__":
    loop, plan, redis_url, openai_url = sys.argv[1:]
    if loop == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    print(json.dumps(PLANS[plan](redis_url, openai_url)), flush=True)
