"""An SDK in this process and a service in another, on one Redis: one limit and one budget, exactly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from openai import AsyncOpenAI

from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.integrations.httpx2 import RouterTransport
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.cli.processes import clean_environ, hear, running
from tests.router.house import KEYS, MASTER_KEY, house, until

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(120)]
REQUESTS_MAX = 50
LIMIT: dict[str, Any] = {
    "limits": [{"quota_group": "org-a", "rpd": REQUESTS_MAX, "kind": "fixed", "headroom": 0}],
}
BUDGET: dict[str, Any] = {
    "budgets": [{"name": "all", "scope": "global", "limit_usd": 0.0001, "period": "total", "enforcement": "hard"}],
}


def configuration(simulator: SimulatorProcess, parts: dict[str, Any]) -> dict[str, Any]:
    """A file with two keys of one organisation."""
    return {
        "providers": {"openai": {"adapter": "openai", "base_url": simulator.openai_url}},
        "keys": [{"id": name, **KEYS[name]} for name in ("a1", "a2")],
        **parts,
    }


@contextlib.asynccontextmanager
async def both(
    simulator: SimulatorProcess, redis_url: str, parts: dict[str, Any], directory: Path
) -> AsyncIterator[tuple[ApiKeyRouter, list[AsyncOpenAI]]]:
    """A service process with that file, a router here that was told nothing but the Redis, an SDK of each."""
    path = directory / "router.yaml"
    path.write_text(yaml.safe_dump(configuration(simulator, parts)))
    environ = clean_environ(APIKEYROUTER_ENCRYPTION_KEY=MASTER_KEY, OPENAI_BASE_URL=simulator.openai_url)
    arguments = ["-m", "apikeyrouter.cli", "serve", "--port", "0", "--json", "--redis-url", redis_url]
    with running([*arguments, "--config", str(path)], cwd=directory, environ=environ) as process:
        told = await asyncio.to_thread(hear, process, "listening")
        router = ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
        from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter

        async with router, httpx2.AsyncClient(transport=RouterTransport(router)) as http:
            await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
            here = AsyncOpenAI(api_key="any", http_client=http, max_retries=0)
            there = AsyncOpenAI(api_key="any", base_url=f"{told['url']}/v1", max_retries=0)
            async with there:
                yield router, [here, there]


async def spend(clients: list[AsyncOpenAI], requests: int) -> list[int]:
    """How many each client was served, of as many as it asked: one after the other, then all at once in tens."""
    served = [0, 0]

    async def ask(number: int) -> None:
        try:
            await clients[number].chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}], max_tokens=12
            )
            served[number] += 1
        except openai.RateLimitError:
            pass

    for number in (0, 1):
        await ask(number)
    for _ in range(requests // 10):
        await asyncio.gather(*(ask(number) for number in (0, 1) for _ in range(10)))
    return served


async def test_an_sdk_here_and_a_service_there_share_one_limit_exactly(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    async with both(simulator, redis_url, LIMIT, tmp_path) as (_, clients):
        served = await spend(clients, REQUESTS_MAX)
        assert sum(served) == REQUESTS_MAX
        assert min(served) > 0, "both were served"
        seen = (await simulator.report())["organisations"]["org-a"]
        assert (seen["arrived"], seen["admitted"]) == (REQUESTS_MAX, REQUESTS_MAX)


async def test_an_sdk_here_and_a_service_there_share_one_budget_exactly(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    async with both(simulator, redis_url, BUDGET, tmp_path) as (router, clients):
        served = await spend(clients, REQUESTS_MAX)
        assert min(served) > 0, "both were served"
        billed = (await simulator.report())["total"]["cost_nanousd"]
        assert 0 < billed <= 100_000

        async def settled() -> bool:
            (state,) = await router.ledger.scopes(["global:all"])
            return state.held == 0 and state.settled == billed

        await until(settled)


CLIENT: dict[str, Any] = {
    "clients": [{"name": "app", "token": "a-token-that-is-long-enough", "concurrency": 1}],
}


async def test_a_clients_own_limit_holds_over_all_ways_in(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    chat: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    async with both(simulator, redis_url, CLIENT, tmp_path) as (router, (_, service)):
        there = service.with_options(api_key=CLIENT["clients"][0]["token"])
        async with httpx2.AsyncClient(transport=RouterTransport(router, client="app")) as http:
            here = AsyncOpenAI(api_key="any", http_client=http, max_retries=0)
            async with router.lease("gpt-4o-mini", estimated_tokens=10, client="app") as lease:
                for client in (here, there):
                    with pytest.raises(openai.RateLimitError, match="client's limit"):
                        await client.chat.completions.create(**chat)
                for refused in (
                    router.route({**chat, "client": "app"}),
                    router.lease("gpt-4o-mini", estimated_tokens=10, client="app").__aenter__(),
                ):
                    with pytest.raises(NoEligibleKeysError):
                        await refused
                assert (await router.route({**chat, "client": "another"})).content
                await lease.release()
            for client in (here, there):
                assert (await client.chat.completions.create(**chat)).choices
                await router.books.flush(seconds=5)
                await until(lambda: idle(router))


async def idle(router: ApiKeyRouter) -> bool:
    """Whether nobody holds anything of the client's."""
    (lane,) = await router.ledger.lanes(["c:app"])
    return lane.in_flight == 0


def shares(heavy: float, light: float) -> dict[str, Any]:
    """Two clients of these weights, and one place for both."""
    return {
        "clients": [
            {"name": "heavy", "token": "a-token-that-is-heavy", "weight": heavy},
            {"name": "light", "token": "a-token-that-is-light", "weight": light},
        ],
        "limits": [{"quota_group": "org-a", "concurrency": 1, "headroom": 0}],
    }


ENOUGH = 60


@pytest.mark.parametrize(
    ("way", "heavy", "light"), [("route", 4, 1), ("lease", 4, 1), ("sdk", 4, 1), ("route", 0.8, 0.2)]
)
async def test_scarce_capacity_is_shared_by_the_weights_of_clients_in_the_library_too(
    simulator: SimulatorProcess, redis_url: str, way: str, heavy: float, light: float
) -> None:
    served = {"heavy": 0, "light": 0}
    chat: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    await simulator.control(organisation="org-a", settings={"latency_ms": 10})
    async with house(simulator, RedisStateStore(redis_url), ["a1", "a2"], **shares(heavy, light)) as made:

        async def ask(client: str, sdk: AsyncOpenAI) -> None:
            if way == "route":
                await made.router.route({**chat, "client": client})
            elif way == "sdk":
                await sdk.chat.completions.create(**chat)
            else:
                async with made.router.lease("gpt-4o-mini", estimated_tokens=20, client=client) as lease:
                    await asyncio.sleep(0.01)
                    lease.settle(input_tokens=10, output_tokens=10)

        async def want(client: str) -> None:
            async with httpx2.AsyncClient(transport=RouterTransport(made.router, client=client)) as http:
                sdk = AsyncOpenAI(api_key="any", http_client=http, max_retries=0)
                while sum(served.values()) < ENOUGH:
                    try:
                        await ask(client, sdk)
                        served[client] += 1
                    except (NoEligibleKeysError, openai.RateLimitError):
                        await asyncio.sleep(0.005)

        await asyncio.gather(*(want(client) for client in served for _ in range(3)))
        await made.at_rest()
    assert served["light"] * 2 < served["heavy"]
    assert served["light"] > 0


async def test_who_asks_now_and_then_gets_its_turn_beside_one_that_never_lets_go(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    """In another process, with one place for both: what was denied is told, and its turn kept until it comes again."""
    chat: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    served = {"heavy": 0, "light": 0}
    await simulator.control(organisation="org-a", settings={"latency_ms": 10})
    busy = house(simulator, RedisStateStore(redis_url), ["a1", "a2"], **shares(1, 1))
    async with busy as here, house(simulator, RedisStateStore(redis_url), ["a1", "a2"], **shares(1, 1)) as there:

        async def never_lets_go() -> None:
            while served["light"] < 5:
                with contextlib.suppress(NoEligibleKeysError):
                    await here.router.route({**chat, "client": "heavy"})
                    served["heavy"] += 1

        greedy = [asyncio.create_task(never_lets_go()) for _ in range(3)]
        while served["light"] < 5:
            try:
                await there.router.route({**chat, "client": "light"})
                served["light"] += 1
            except NoEligibleKeysError as exc:
                await asyncio.sleep(exc.retry_after or 0.0)
        await asyncio.gather(*greedy)
        await here.at_rest()
        await there.at_rest()
    assert served["heavy"] < 150, "some 50; where nobody said that another waits, 280"
