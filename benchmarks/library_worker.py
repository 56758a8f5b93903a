"""The process in which `route()` is measured: `python -m benchmarks.library_worker BASE_URL [REDIS_URL]`."""

import argparse
import asyncio
import base64
import secrets
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec

from apikeyrouter import ApiKeyRouter
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from benchmarks.payload import COST_NANOUSD, MODEL, request_body
from benchmarks.workers import BUDGETS, CLIENT, TEAM, configuration

__all__ = ["Told", "main"]

AT_ONCE, ASKED, COUNTED = 32, 2_000, 60
SETTLED_SECONDS = 0.01
"""Until what is booked behind a request is booked."""
FLUSH_SECONDS_MAX = 10.0
OTHERS: list[dict[str, object]] = [
    {
        "id": f"of-team-{number}",
        "scope": "team",
        "scope_id": f"team-{number}",
        "rules": {"denied_providers": ["nobody"]},
    }
    for number in range(20)
]
"""Policies of other teams."""


class Told(msgspec.Struct, kw_only=True):
    """Samples in µs of CPU per call, and what the books say at the end."""

    route_us: list[float]
    policies_us: list[float]
    """`route()` while there are policies, none of which applies."""
    asked_us: list[float]
    """What each request asks of the policies then."""
    bare_us: list[float]
    calls: int
    """Calls of functions, of Python's and of C's, in one `route()`: the fewest of some."""
    policies_calls: int
    """The same while there are policies, none of which applies."""
    requests: int
    settled: int


def main() -> None:
    """Measure, and print one JSON line. Ends with an error when the books are not even."""
    parser = argparse.ArgumentParser(description="the process in which route() is measured")
    parser.add_argument("base_url")
    parser.add_argument("redis_url", nargs="?", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    options = parser.parse_args()
    told = asyncio.run(_measure(options.base_url, options.redis_url, options.rounds, options.requests))
    if told.settled != told.requests * COST_NANOUSD:
        raise SystemExit(f"{told.settled} nano-dollars settled after {told.requests} requests of {COST_NANOUSD}")
    print(msgspec.json.encode(told).decode())


async def _measure(base_url: str, redis_url: str, rounds: int, requests: int) -> Told:
    store = RedisStateStore(redis_url, "library") if redis_url else InMemoryStateStore()
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    told = Told(route_us=[], policies_us=[], asked_us=[], bare_us=[], calls=0, policies_calls=0, requests=0, settled=0)
    async with (
        ApiKeyRouter(state_store=store, config={"encryption_key": key}) as router,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        await router.apply(compile_config(read_config(configuration(base_url)), environ={}))
        for number in range(rounds + 1):
            route = await _cpu_us(_router_call(router), requests)
            bare = await _cpu_us(_bare_call(session, base_url), requests)
            for policy in OTHERS:
                await router.configure_policy(policy)
            under = await _cpu_us(_router_call(router), requests)
            asked = _asked_us(router)
            for policy in OTHERS:
                await router.policy_engine.delete_policy(str(policy["id"]))
            told.requests += 2 * requests
            if number:
                told.route_us.append(route)
                told.policies_us.append(under)
                told.asked_us.append(asked)
                told.bare_us.append(bare)
        told.calls = await _calls(_router_call(router))
        for policy in OTHERS:
            await router.configure_policy(policy)
        told.policies_calls = await _calls(_router_call(router))
        told.requests += 2 * COUNTED
        await router.books.flush(seconds=FLUSH_SECONDS_MAX)
        told.settled = (await router.ledger.scopes([BUDGETS[3]]))[0].settled
    return told


async def _cpu_us(call: Callable[[], Awaitable[object]], requests: int) -> float:
    before = time.process_time()
    for at in range(0, requests, AT_ONCE):
        await asyncio.gather(*(call() for _ in range(min(AT_ONCE, requests - at))))
    return (time.process_time() - before) / requests * 1e6


async def _calls(call: Callable[[], Awaitable[object]]) -> int:
    """The fewest calls of functions that one of some requests makes, one after the other; it does not hang on a clock,
    or on who else uses the machine."""
    counts = []
    for _ in range(COUNTED):
        count = 0

        def called(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(called)
        await call()
        sys.setprofile(None)
        counts.append(count)
        await asyncio.sleep(SETTLED_SECONDS)
    return min(counts)


def _asked_us(router: ApiKeyRouter) -> float:
    """CPU of asking which policies apply to a call: none."""
    engine = router.policy_engine
    before = time.process_time()
    for _ in range(ASKED):
        engine.constraints(client=CLIENT, team=TEAM, provider_id=None, model=MODEL, own=None)
    return (time.process_time() - before) / ASKED * 1e6


def _router_call(router: ApiKeyRouter) -> Callable[[], Awaitable[object]]:
    body = msgspec.json.decode(request_body(), type=dict[str, object])
    intent = {"model": body["model"], "messages": body["messages"], "team": TEAM, "client": CLIENT}
    intent["parameters"] = {name: body[name] for name in ("max_tokens", "temperature")}
    return lambda: router.route(intent)


def _bare_call(session: aiohttp.ClientSession, base_url: str) -> Callable[[], Awaitable[object]]:
    body = request_body()
    headers = {"content-type": "application/json", "authorization": "Bearer sk-bench"}

    async def call() -> object:
        async with session.post(f"{base_url}/chat/completions", data=body, headers=headers) as response:
            return msgspec.json.decode(await response.read())

    return call


if __name__ == "__main__":
    main()
