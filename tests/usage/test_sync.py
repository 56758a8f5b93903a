"""`router.sync`: the same router for threads, with the same guarantees, and never a wait without end."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import KEYS, MASTER_KEY, config_of, house, intent

asynchronous = pytest.mark.asyncio(loop_scope="package")
SLOW = {**intent("tell me all"), "model": "gpt-4o-mini"}


@pytest.fixture(params=["memory", "valkey"])
def router(request: pytest.FixtureRequest) -> Iterator[ApiKeyRouter]:
    """A router that nobody has started, closed afterwards."""
    store: Any = InMemoryStateStore()
    if request.param == "valkey":
        store = RedisStateStore(request.getfixturevalue("redis_url"))
    made = ApiKeyRouter(store, config={"encryption_key": MASTER_KEY})
    yield made
    made.sync.close()


@pytest.fixture
def url(simulator: SimulatorProcess) -> str:
    """Where the OpenAI dialect is."""
    return simulator.openai_url


def prepare(router: ApiKeyRouter, url: str, key: str = "a1") -> None:
    """One provider, one key."""
    router.sync.register_provider("openai", OpenAIAdapter(url))
    metadata = {"quota_group": KEYS[key]["quota_group"]}
    router.sync.register_key(KEYS[key]["key"], "openai", metadata)


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.01)


def test_a_program_without_async_registers_routes_streams_and_closes(router: ApiKeyRouter, url: str) -> None:
    prepare(router, url)
    answer = router.sync.route(intent())
    pieces = list(router.sync.route_stream(intent()))
    batch = router.sync.route_batch([intent(f"number {n}") for n in range(5)], concurrency=2)
    assert answer.content.startswith("You said")
    assert "".join(map(str, pieces)).startswith("You said")
    assert pieces[-1].last
    assert [each.content[:18] for each in batch] == [f"You said: number {n}"[:18] for n in range(5)]
    assert router.sync.get_state_summary().keys.total == 1
    key = router.sync.key_manager.list_keys()[0]
    assert router.sync.key_manager.update_key_state(key.id, KeyState.Disabled, "by hand").to_state is KeyState.Disabled
    with pytest.raises(NoEligibleKeysError):
        router.sync.route(intent())
    router.sync.close()
    router.sync.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "apikeyrouter.sync"]


def test_it_is_a_context_manager_and_may_be_opened_again(url: str, redis_url: str) -> None:
    router = ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
    prepare(router, url)
    for _ in range(2):
        with router.sync as opened:
            assert opened.route(intent()).content
    assert router.loop is None


def test_many_threads_share_one_limit_exactly(router: ApiKeyRouter, simulator: SimulatorProcess, url: str) -> None:
    router.sync.apply(
        config_of(simulator, ["a1"], limits=[{"quota_group": "org-a", "rpd": 25, "kind": "fixed", "headroom": 0}])
    )

    def ask(_: int) -> bool:
        try:
            return bool(router.sync.route(intent()).content)
        except NoEligibleKeysError:
            return False

    with ThreadPoolExecutor(16) as pool:
        served = list(pool.map(ask, range(60)))
    assert served.count(True) == 25


def test_many_threads_may_be_the_first(router: ApiKeyRouter, url: str) -> None:
    barrier = threading.Barrier(8)

    def begin(number: int) -> str:
        barrier.wait()
        router.sync.register_provider(f"openai-{number}", OpenAIAdapter(url))
        key = f"{KEYS['a1']['key']}" if number == 0 else f"sk-another-{number}"
        return router.sync.register_key(key, f"openai-{number}").id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(begin, range(8)))) == 8
    assert router.sync.get_state_summary().keys.total == 8


def test_leaving_a_stream_early_closes_it(router: ApiKeyRouter, url: str) -> None:
    prepare(router, url, "s1")
    for chunk in router.sync.route_stream(SLOW):
        assert chunk.text
        break
    until(lambda: router.in_flight == 0)
    assert router.decisions[-1].outcome == "disconnected"
    assert router.sync.drain(5.0)


def test_errors_are_those_of_the_router(router: ApiKeyRouter, url: str) -> None:
    prepare(router, url)
    with pytest.raises(InvalidRequestError):
        router.sync.route({"model": "gpt-4o-mini", "messages": []})
    with pytest.raises(AttributeError):
        _ = router.sync.no_such_method
    answers = router.sync.route_batch([{"nonsense": 1}], return_exceptions=True)
    assert isinstance(answers[0], InvalidRequestError)


@asynchronous
async def test_threads_use_the_loop_that_the_router_was_started_on(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        answers = await asyncio.gather(
            *(asyncio.to_thread(made.router.sync.route, intent(f"number {n}")) for n in range(10)), made.route("mine")
        )
        assert len({answer.request_id for answer in answers}) == 11
        assert await made.at_rest() == await made.billed() > 0
        pieces = await asyncio.to_thread(lambda: list(made.router.sync.route_stream(intent())))
        assert pieces[-1].last


@asynchronous
async def test_waiting_on_the_routers_own_loop_is_refused(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        with pytest.raises(ConfigurationError, match="use await"):
            made.router.sync.route(intent())
        with pytest.raises(ConfigurationError, match="use await"):
            next(made.router.sync.route_stream(intent()))
        assert await made.route()


def test_from_inside_another_running_loop_it_works(router: ApiKeyRouter, url: str) -> None:
    async def inside() -> str:
        prepare(router, url)
        return router.sync.route(intent()).content

    assert asyncio.run(inside()).startswith("You said")


def test_a_loop_that_stands_still_is_refused(url: str) -> None:
    router = ApiKeyRouter(InMemoryStateStore())
    loop = asyncio.new_event_loop()
    loop.run_until_complete(router.start())
    try:
        with pytest.raises(ConfigurationError, match="stands still"):
            router.sync.route(intent())
    finally:
        loop.run_until_complete(router.close())
        loop.close()


def test_one_loop_after_another_works_and_two_at_once_are_refused(router: ApiKeyRouter, url: str) -> None:
    async def register() -> None:
        router.register_provider("openai", OpenAIAdapter(url))
        router.register_key(KEYS["a1"]["key"], "openai")

    async def ask() -> str:
        answer = await router.route(intent())
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(router.route(intent())))
        return answer.content

    asyncio.run(register())
    assert [asyncio.run(ask())[:8] for _ in range(3)] == ["You said"] * 3
    assert router.sync.route(intent()).content, "the loops have ended"
    assert router.sync.drain(5.0)


def test_a_loop_that_ends_under_a_call_ends_the_waiting(router: ApiKeyRouter, url: str) -> None:
    prepare(router, url, "s1")
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            router.sync.route(SLOW)
        except BaseException as exc:
            failures.append(exc)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: router.in_flight == 1)
    router.sync.close()
    asking.join(20)
    assert not asking.is_alive()
    assert len(failures) == 1


FORGETFUL = """
import asyncio, sys
from apikeyrouter import ApiKeyRouter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.router.house import MASTER_KEY, SOFT_BUDGET, KEYS, intent

redis_url, openai_url, how = sys.argv[1:]
router = ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
config = compile_config(read_config({
    "providers": {"openai": {"adapter": "openai", "base_url": openai_url}},
    "keys": [{"id": "a1", **KEYS["a1"]}], "budgets": [SOFT_BUDGET],
}), environ={})

async def main():
    await router.apply(config)
    await router.route(intent())

if how == "async":
    asyncio.run(main())
else:
    router.sync.apply(config)
    router.sync.route(intent())
"""


@asynchronous
@pytest.mark.parametrize("how", ["async", "sync"])
async def test_a_program_that_forgets_to_close_books_what_it_used(
    simulator: SimulatorProcess, redis_url: str, how: str
) -> None:
    arguments = [sys.executable, "-c", FORGETFUL, redis_url, simulator.openai_url, how]
    told = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        assert await made.at_rest() == await made.billed() > 0
