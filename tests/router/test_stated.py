"""What is stated while a router runs: providers, limits and clients, seen in what requests meet, here and elsewhere."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter import ApiKeyRouter, NoEligibleKeysError
from apikeyrouter.domain.components.limits import LimitRow
from apikeyrouter.domain.models.client import Client
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.config.stated import StatedLimits, StatedProvider
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
ELSEWHERE = "sk-sim-house-b-number-1"


@pytest_asyncio.fixture(loop_scope="package")
async def two(simulator: SimulatorProcess, redis_url: str) -> AsyncIterator[tuple[House, House]]:
    """Two routers on one store, with a key of one organisation."""
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1"]) as here,
        house(simulator, RedisStateStore(redis_url), ["a1"]) as there,
    ):
        yield here, there


def client(name: str = "app-1", **told: Any) -> Client:
    """One whose token is of no matter here."""
    return Client(name=name, token_sha256=hashlib.sha256(name.encode()).hexdigest(), **told)


async def outcome(made: House, **fields: Any) -> str:
    """The key that served a request, or the kind of error it met."""
    try:
        return (await made.route(**fields)).key_used
    except ApiKeyRouterError as exc:
        return type(exc).__name__


async def meets(made: House, expected: str, **fields: Any) -> None:
    """Until requests meet that."""

    async def met() -> bool:
        return await outcome(made, **fields) == expected

    await until(met)


async def test_a_provider_that_is_stated_serves_in_every_process_until_it_is_forgotten(
    two: tuple[House, House], simulator: SimulatorProcess
) -> None:
    here, there = two
    stated = StatedProvider(id="stated", adapter="openai", base_url=simulator.openai_url)
    for made in two:
        made.router.private_urls = True
    await here.router.configure_provider(stated)
    key = await here.router.register_key(ELSEWHERE, "stated")
    assert await outcome(here, provider_id="stated") == key.id
    await meets(there, key.id, provider_id="stated")
    assert (await here.seen("org-b"))["keys"]["org-b/1"]["arrived"] >= 2
    assert await here.router.forget_provider("stated") is True
    assert await here.router.forget_provider("stated") is False
    assert await outcome(here, provider_id="stated") != key.id
    await until(lambda: "stated" not in there.router.catalogue.providers)
    assert await outcome(there, provider_id="stated") != key.id
    assert await outcome(there, provider_id="openai") == "a1", "the others serve on"


async def test_a_provider_that_cannot_be_is_refused_and_changes_nothing(two: tuple[House, House]) -> None:
    router = two[0].router
    with pytest.raises(ConfigurationError, match="must be one of openai"):
        await router.configure_provider(StatedProvider(id="bad", adapter="nonsense"))
    with pytest.raises(InvalidRequestError, match="breaker"):
        await router.configure_provider(StatedProvider(id="bad", adapter="openai", breaker_settings={"failures": -1}))
    assert "bad" not in router.catalogue.providers
    assert "bad" not in router.stated_providers


async def test_limits_that_are_stated_hold_for_all_processes_together_until_they_are_forgotten(
    two: tuple[House, House],
) -> None:
    here, there = two
    limits = StatedLimits(quota_group="org-a", rows=[LimitRow(rpm=3, kind="fixed")])
    await here.router.configure_limits(limits)
    met = [await outcome(made) for made in (here, there, here, there, here, there)]
    assert (met.count("a1"), met.count(NoEligibleKeysError.__name__)) == (3, 3)
    assert limits.lane_id in here.router.stated_limits
    assert await here.router.forget_limits(limits.lane_id) is True
    assert await here.router.forget_limits(limits.lane_id) is False
    assert await outcome(here) == "a1"
    await meets(there, "a1")


async def test_limits_of_nobody_and_of_the_file_are_refused(simulator: SimulatorProcess) -> None:
    limited = [{"quota_group": "org-a", "rpm": 100}]
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=limited) as made:
        router, rows = made.router, [LimitRow(rpm=1)]
        assert router.is_limited_by_file("g:org-a:*") is True
        with pytest.raises(InvalidRequestError, match="configuration file"):
            await router.configure_limits(StatedLimits(quota_group="org-a", rows=rows))
        with pytest.raises(InvalidRequestError, match="no key 'nobody'"):
            await router.configure_limits(StatedLimits(key="nobody", rows=rows))
        assert [await outcome(made) for _ in range(2)] == ["a1", "a1"]
        await router.configure_limits(StatedLimits(key="a1", rows=[LimitRow(rpm=1, kind="fixed")]))
        assert [await outcome(made) for _ in range(2)] == ["a1", "NoEligibleKeysError"]


async def test_a_clients_limits_and_providers_hold_wherever_it_asks_until_revoked(two: tuple[House, House]) -> None:
    here, there = two
    told: list[str] = []
    there.router.on_clients_changed.append(lambda: told.append("changed"))
    await here.router.configure_client(client(concurrency=5, rpm=2, providers=["openai"]))
    assert list(await there.router.list_clients()) == ["app-1"]
    assert told
    met = [await outcome(made, client="app-1") for made in (here, there, here, there)]
    assert (met[:2], set(met[2:])) == (["a1", "a1"], {"NoEligibleKeysError"})
    assert await outcome(here, client="somebody-else") == "a1"
    for made in two:
        await made.apply(["a1", "b1"])
        assert await outcome(made, client="app-1", provider_id="other") == "PolicyDeniedError"
        assert await outcome(made, client="somebody-else", provider_id="other") == "b1"
    assert [policy.scope_id for policy in there.router.client_policies()] == ["app-1"]
    assert await here.router.revoke_client("app-1") is True
    assert await here.router.revoke_client("app-1") is False
    assert dict(await there.router.list_clients()) == {}
    for made in two:
        assert await outcome(made, client="app-1", provider_id="other") == "b1"


async def test_a_client_of_providers_that_there_are_not_is_refused(two: tuple[House, House]) -> None:
    router = two[0].router
    with pytest.raises(InvalidRequestError, match="'nobody' is not registered"):
        await router.configure_client(client(providers=["nobody"]))
    assert dict(await router.list_clients()) == {}
    await router.configure_client(client(providers=["other"]))
    assert await outcome(two[0], client="app-1") == "PolicyDeniedError"


async def test_what_was_stated_is_there_after_a_restart(simulator: SimulatorProcess, redis_url: str) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        made.router.private_urls = True
        await made.router.configure_provider(
            StatedProvider(id="stated", adapter="openai", base_url=simulator.openai_url)
        )
        key = await made.router.register_key(ELSEWHERE, "stated")
        await made.router.configure_limits(StatedLimits(key=key.id, rows=[LimitRow(rpm=1, kind="fixed")]))
        await made.router.configure_client(client())
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as again:
        again.router.private_urls = True
        assert isinstance(again.router, ApiKeyRouter)
        assert list(await again.router.list_clients()) == ["app-1"]
        await meets(again, key.id, provider_id="stated")
        assert await outcome(again, provider_id="stated") == "NoEligibleKeysError"
