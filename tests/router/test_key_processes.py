"""Keys in several real processes: what one does, the others know within a second, notices or not."""

import pytest
import redis

from apikeyrouter import ApiKeyRouter, KeyRegistrationError, ModelNotFoundError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, intent, until
from tests.router.keyholder import keyholder
from tests.servers import running

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(120)]
A1, A2, B1 = "sk-sim-house-a-number-1", "sk-sim-house-a-number-2", "sk-sim-house-b-number-1"
OTHER_MASTER = MASTER_KEY.replace("MDEy", "OTg3")


def deaf(redis_url: str) -> str:
    """The same server for a user to whom it gives no notices."""
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">listen", "~*", "&*", "+@all", "-subscribe")
    return redis_url.replace("redis://", "redis://deaf:listen@")


@pytest.mark.parametrize("notices", ["heard", "lost"])
async def test_what_one_process_does_with_a_key_the_other_knows(simulator: SimulatorProcess, notices: str) -> None:
    with running() as server:
        router = ApiKeyRouter(state_store=RedisStateStore(server.url), config={"encryption_key": MASTER_KEY})
        router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        url = server.url if notices == "heard" else deaf(server.url)
        async with router, keyholder(url, simulator.openai_url, MASTER_KEY) as other:
            key = await router.register_key(A1, "openai")

            async def seen(state: str, generation: int) -> None:
                async def so() -> bool:
                    return bool((await other.ask("keys")).get(key.id) == [state, generation])

                await until(so)

            await seen("available", 0)
            assert await other.ask("route") == key.id
            await router.key_manager.disable_key(key.id)
            await seen("disabled", 0)
            assert await other.ask("route") == {"error": "NoEligibleKeysError"}
            await router.key_manager.enable_key(key.id)
            await router.key_manager.rotate_key(key.id, B1)
            await seen("available", 1)
            assert await other.ask("route") == key.id
            assert (await simulator.report())["organisations"]["org-b"]["admitted"] == 1
            assert await other.ask("update", key.id, "throttled") == "throttled"
            await until(lambda: router.catalogue.keys[key.id].state == "throttled")
            assert await other.ask("update", key.id, "available") == "available"
            await router.key_manager.revoke_key(key.id)
            # not even one decision more: the other looks again before it decides
            assert await other.ask("route") == {"error": "ModelNotFoundError"}
            assert await other.ask("keys") == {}


async def test_a_key_has_one_id_in_every_process_and_after_every_restart(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    ids = []
    for _ in range(2):
        async with keyholder(redis_url, simulator.openai_url, MASTER_KEY) as one:
            ids.append(await one.ask("register", A1))
            async with keyholder(redis_url, simulator.openai_url, MASTER_KEY) as two:
                ids.append(await two.ask("register", A1))
                assert [*await two.ask("keys")] == ids[:1]
    assert len(set(ids)) == 1


async def test_a_master_key_is_replaced_while_processes_serve(simulator: SimulatorProcess, redis_url: str) -> None:
    url = simulator.openai_url
    async with keyholder(redis_url, url, MASTER_KEY) as old:
        key = await old.ask("register", A1)
        assert await old.ask("route") == key
        # a process with both reseals what it reads; the one that has the old only keeps serving
        async with keyholder(redis_url, url, f"{OTHER_MASTER},{MASTER_KEY}") as both:
            assert await both.ask("route") == key
            assert await old.ask("route") == key
            more = await both.ask("register", A2)
    async with keyholder(redis_url, url, OTHER_MASTER) as new:  # the old one is gone for good
        assert sorted(await new.ask("keys")) == sorted([key, more])
        assert await new.ask("route") in (key, more)
    async with keyholder(redis_url, url, MASTER_KEY) as late:
        assert await late.ask("keys") == {}


async def test_reencrypting_says_how_many_and_names_what_it_cannot_open(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    store = RedisStateStore(redis_url)
    async with ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}) as router:
        await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        key = await router.register_key(A1, "openai")
        assert await router.key_manager.reencrypt() == 0
    async with ApiKeyRouter(state_store=store, config={"encryption_key": f"{OTHER_MASTER},{MASTER_KEY}"}) as router:
        assert await router.key_manager.reencrypt() == 1
        stored = await store.get_key(key.id)
        assert stored is not None
        assert KeyVault.parse(OTHER_MASTER).decrypt(stored.encrypted_material, key_id=key.id) == A1
    async with ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}) as router:
        with pytest.raises(Exception, match=key.id):
            await router.key_manager.reencrypt()


async def test_a_key_whose_master_key_was_lost_can_be_rotated(simulator: SimulatorProcess, redis_url: str) -> None:
    async with keyholder(redis_url, simulator.openai_url, MASTER_KEY) as old:
        key = await old.ask("register", A1)
    store = RedisStateStore(redis_url)
    async with ApiKeyRouter(state_store=store, config={"encryption_key": OTHER_MASTER}) as router:
        await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        assert router.catalogue.keys == {}
        await router.key_manager.rotate_key(key, B1)
        assert (await router.route(intent())).key_used == key


async def test_another_master_key_does_not_take_over_what_it_cannot_open(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with keyholder(redis_url, simulator.openai_url, MASTER_KEY) as old:
        key = await old.ask("register", A1)
        async with ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": OTHER_MASTER}) as router:
            await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
            with pytest.raises(KeyRegistrationError, match=f"{key} .*master key"):
                await router.register_key(A1, "openai", {"weight": 2})
            assert router.catalogue.keys == {}
    async with keyholder(redis_url, simulator.openai_url, MASTER_KEY) as again:
        assert await again.ask("route") == key
    async with ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": OTHER_MASTER}) as router:
        await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        await router.key_manager.revoke_key(key, "its master key is lost")
        assert (await router.register_key(A1, "openai")).id == key
        assert (await router.route(intent())).key_used == key


async def test_keys_that_cannot_be_read_are_named_with_the_remedy(simulator: SimulatorProcess, redis_url: str) -> None:
    async with keyholder(redis_url, simulator.openai_url, MASTER_KEY) as old:
        keys = [await old.ask("register", material) for material in (A1, A2)]
    async with ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": OTHER_MASTER}) as router:
        await router.register_provider("another", OpenAIAdapter(simulator.openai_url))
        with pytest.raises(ModelNotFoundError, match=r"keys .* of provider 'openai', not registered here"):
            await router.route(intent())
        await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        with pytest.raises(
            ModelNotFoundError, match=r"cannot be read here: keys .*APIKEYROUTER_ENCRYPTION_KEY"
        ) as found:
            await router.route(intent())
        told = str(found.value)
        assert all(key in told for key in keys)
        assert "register a provider and a key first" not in told
        assert not any(secret in told for secret in (A1, A2, MASTER_KEY, OTHER_MASTER))
        await router.key_manager.revoke_key(keys[0], "its master key is lost")
        with pytest.raises(ModelNotFoundError) as one_left:
            await router.route(intent())
        assert keys[0] not in str(one_left.value)
        await router.key_manager.rotate_key(keys[1], A2)
        assert (await router.route(intent())).key_used == keys[1]
        with pytest.raises(ModelNotFoundError, match=r"known models: [^;]*$"):
            await router.route(intent(provider_id="another"))


async def test_a_request_of_another_process_under_way_ends_on_the_old_material(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    router = ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
    async with router, keyholder(redis_url, simulator.openai_url, MASTER_KEY) as other:
        await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        key = await router.register_key("sk-sim-house-slow-1", "openai")
        stream = router.route_stream(intent("[[tokens:20]] please"))
        await anext(stream)

        async def known() -> bool:
            return key.id in await other.ask("keys")

        await until(known)
        await router.key_manager.rotate_key(key.id, B1)
        assert await other.ask("route") == key.id
        assert [chunk async for chunk in stream][-1].last
