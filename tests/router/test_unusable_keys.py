"""Keys that cannot be used: refused before anything is stored, or, once stored, set aside without harm to others."""

import json
from typing import Any

import pytest
import redis

from apikeyrouter import ApiKeyRouter, KeyRegistrationError, ProviderAdapter, SystemResponse
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import StateStoreError
from apikeyrouter.domain.models.system_response import ResponseMetadata, TokenUsage
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.router.house import MASTER_KEY, intent

pytestmark = pytest.mark.asyncio(loop_scope="package")
FIELD = "apikeyrouter:e:{e}:keys"
"""Where the store keeps keys."""


class Echo(ProviderAdapter):
    """Answers at once."""

    async def execute_request(self, intent: RequestIntent, key: str) -> SystemResponse:
        """A word."""
        tokens = TokenUsage(input_tokens=10, output_tokens=10)
        return SystemResponse(content="x", metadata=ResponseMetadata(model_used=intent.model, tokens_used=tokens))


def router_on(store: StateStore) -> ApiKeyRouter:
    """A router with one provider."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.register_provider("echo", Echo())
    return router


def pools(*names: str) -> list[dict[str, Any]]:
    """Pools of a group, each with model m and another."""
    return [{"models": ["m", name], "rpm": 5} for name in names]


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"cost_per_1k": 1000.01}, "cost_per_1k"),
        ({"cost_per_1k": 1e30}, "cost_per_1k"),
        ({"quota_group": "org\n"}, "quota_group"),
        ({"quota_group": "x" * 257}, "quota_group"),
        ({"models": ["m", "m\n2"]}, "models[1]"),
        ({"models": [" "]}, "models[0]"),
        ({"models": ["../m"]}, "models[0]"),
        ({"models": ["x" * 513]}, "models[0]"),
        ({"limits": {"rpm": 0}}, "limits.rpm"),
        ({"limits": [{"rpm": 5}, {"rpm": 5, "kind": "foo"}]}, "limits[1].kind"),
        ({"limits": {"rpm": 5, "on_store_loss": "bounded"}}, "limits.on_store_loss"),
        ({"limits": {"kind": "fixed"}}, "limits"),
        ({"limits": {"tpm": 2**53 - 1}}, "limits"),
        ({"limits": pools("a", "b", "c", "d", "e")}, "limits"),
        ({"quality": 2}, "quality"),
    ],
)
async def test_metadata_that_could_not_be_used_is_refused_by_name_and_nothing_is_stored(
    metadata: dict[str, Any], field: str
) -> None:
    async with router_on(InMemoryStateStore()) as router:
        good = await router.register_key("good-material", "echo", {"models": ["m"]})
        with pytest.raises(KeyRegistrationError) as told:
            await router.register_key("bad-material", "echo", metadata)
        assert str(told.value).startswith(f"metadata.{field}: ")
        assert [key.id for key in await router.key_manager.list_keys()] == [good.id]
        assert (await router.route(intent(model="m"))).key_used == good.id


async def test_metadata_whose_names_are_no_text_is_refused() -> None:
    async with router_on(InMemoryStateStore()) as router:
        with pytest.raises(KeyRegistrationError, match=r"metadata: must be a mapping .*text, not by int"):
            await router.register_key("bad-material", "echo", {1: 2})  # type: ignore[dict-item]


async def test_pools_that_would_crowd_those_of_the_other_keys_of_a_group_are_refused() -> None:
    async with router_on(InMemoryStateStore()) as router:
        for n, names in enumerate((("a", "b"), ("b", "c", "d"))):
            await router.register_key(f"material-{n}", "echo", {"quota_group": "org", "limits": pools(*names)})
        with pytest.raises(KeyRegistrationError, match=r"metadata\.limits: a model may be in at most"):
            await router.register_key("material-2", "echo", {"quota_group": "org", "limits": pools("e")})
        assert (await router.route(intent(model="m"))).content == "x"


def broken(kind: str, text: str) -> str:
    """A stored key that nobody can use."""
    key = json.loads(text)
    match kind:
        case "no json":
            return text[:20]
        case "no key":
            key["state"] = "asleep"
        case "price":
            key["metadata"]["cost_per_1k"] = 2_000_000
        case "group":
            key["metadata"]["quota_group"] = "org\n"
        case "limits":
            key["metadata"]["limits"] = {"tpm": 2**53 - 1}
        case "id":
            key["id"] = "another"
        case "material":
            key["encrypted_material"] = "nothing"
    return json.dumps(key)


@pytest.mark.parametrize("kind", ["no json", "no key", "price", "group", "limits", "id", "material"])
async def test_a_stored_key_that_cannot_be_used_stops_no_other_and_can_be_mended(redis_url: str, kind: str) -> None:
    def store() -> RedisStateStore:
        return RedisStateStore(redis_url)

    async with router_on(store()) as first:
        good = await first.register_key("good-material", "echo", {"models": ["m"]})
        bad = await first.register_key("bad-material", "echo", {"models": ["other"]})
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.hset(FIELD, bad.id, broken(kind, str(client.hget(FIELD, bad.id))))
    async with router_on(store()) as router:
        assert (await router.route(intent(model="m"))).key_used == good.id
        await router.register_provider("more", Echo())
        more = await router.register_key("more-material", "more", {"models": ["m2"]})
        assert (await router.route(intent(model="m2"))).key_used == more.id
        assert router.catalogue.unread[bad.id].why
        assert {key.id for key in await router.key_manager.list_keys()} >= {good.id, bad.id, more.id}
        if kind == "no json":
            with pytest.raises(StateStoreError, match="register it again, or revoke it"):
                await router.key_manager.disable_key(bad.id)
        if kind == "material":
            with pytest.raises(KeyRegistrationError, match="sealed under a master key"):
                await router.register_key("bad-material", "echo")
            await router.key_manager.revoke_key(bad.id)
        again = await router.register_key("bad-material", "echo", {"models": ["other"]})
        assert again.id == bad.id
        assert (await router.route(intent(model="other"))).key_used == bad.id
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.hset(FIELD, bad.id, "{")
    async with router_on(store()) as router:
        await router.key_manager.revoke_key(bad.id)
        assert {key.id for key in await router.key_manager.list_keys()} == {good.id, more.id}
