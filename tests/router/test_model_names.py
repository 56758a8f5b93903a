"""Names that stand for models: aliases and equivalents, in the file and in code, and who can really serve a request."""

from collections.abc import Mapping
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from apikeyrouter import ApiKeyRouter, NoEligibleKeysError, ProviderError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError, ModelNotFoundError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.integrations.httpx2 import RouterTransport
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
SMALL = {"provider": "openai", "model": "gpt-4o-mini"}
OTHER = {"provider": "anthropic", "model": "claude-haiku-5"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SHAPE = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGE = [
    {"type": "text", "text": "what is it?"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
]


async def served(made: House, **fields: Any) -> tuple[str, str]:
    """Who served a request for the name `fast`, under which model."""
    answer = await made.router.route({**intent(model="fast"), **fields})
    assert answer.metadata.model_used == made.finished[-1].attempts[-1].model
    return answer.metadata.provider_id, answer.metadata.model_used


@pytest.mark.parametrize("how", ["file", "code"])
async def test_a_name_is_served_by_its_first_target_and_by_the_next_where_that_fails(
    simulator: SimulatorProcess, store: StateStore, how: str
) -> None:
    names: dict[str, Any] = {"fast": [SMALL, OTHER]}
    async with house(simulator, store, ["a1", "c1"], **({"models": names} if how == "file" else {})) as made:
        if how == "code":
            await made.router.configure_models(names)
        assert {await served(made) for _ in range(3)} == {("openai", "gpt-4o-mini")}
        await simulator.fail("insufficient_quota", organisation="org-a")
        assert await served(made) == ("anthropic", "claude-haiku-5")
        assert [attempt.model for attempt in made.finished[-1].attempts] == ["gpt-4o-mini", "claude-haiku-5"]
        assert made.finished[-1].model == "fast"
        *pieces, last = await made.stream(model="fast")
        assert "".join(map(str, pieces))
        assert last.key_used == "c1"
        assert await made.at_rest() == await made.billed()


async def test_a_name_made_in_code_is_known_in_every_process_and_after_a_restart(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1", "c1"]) as one:
        async with house(simulator, RedisStateStore(redis_url), ["a1", "c1"]) as two:
            await one.router.configure_models({"fast": [SMALL], "slow": [OTHER]})
            await until(lambda: "slow" in two.router.catalogue.aliases)
            assert await served(two) == ("openai", "gpt-4o-mini")
            await two.router.configure_models({"slow": []})
            await until(lambda: "slow" not in one.router.catalogue.aliases)
            with pytest.raises(ModelNotFoundError):
                await one.route(model="slow", provider_id="anthropic")
        await one.router.close()
    async with house(simulator, RedisStateStore(redis_url), ["a1", "c1"]) as again:
        assert await served(again) == ("openai", "gpt-4o-mini")


async def test_a_name_in_code_goes_before_one_of_the_file(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "c1"], models={"fast": [SMALL]}) as made:
        await made.router.configure_models({"fast": [OTHER]})
        assert await served(made) == ("anthropic", "claude-haiku-5")
        await made.router.configure_models({"fast": []})
        assert await served(made) == ("openai", "gpt-4o-mini")


@pytest.mark.parametrize(
    ("models", "field"),
    [
        ({"fast": [{"provider": "nobody", "model": "m"}]}, "models.fast[0].provider"),
        ({"fast": [{"provider": "openai"}]}, "models.fast[0].model"),
        ({"fast": [{**SMALL, "vison": True}]}, "models.fast[0].vison"),
        ({"fast": [{**SMALL, "context_tokens": -1}]}, "models.fast[0].context_tokens"),
        ({"fast": [{**SMALL, "tools": "yes"}]}, "models.fast[0].tools"),
        ({"fast": ["gpt-4o-mini"]}, "models.fast[0]"),
        ({"fast": None}, "models"),
        ("fast", "models"),
    ],
)
async def test_a_wrong_target_is_named_and_nothing_is_changed(
    simulator: SimulatorProcess, models: Any, field: str
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        with pytest.raises(InvalidRequestError) as caught:
            await made.router.configure_models(models)
        assert caught.value.field == field
        assert made.router.catalogue.aliases == {}


# --- equivalents and pins --------------------------------------------------------------------------------------------


async def test_equivalents_fail_over_and_a_pinned_model_is_never_rewritten(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    same = {"gpt-4o-mini": [SMALL, OTHER]}
    await simulator.fail("server_error", organisation="org-a")
    async with house(simulator, store, ["a1", "c1"], models=same) as made:
        assert (await made.route()).metadata.model_used == "claude-haiku-5"
        with pytest.raises(ProviderError):
            await made.route(provider_id="openai")
        with pytest.raises(ModelNotFoundError):
            await made.route(provider_id="anthropic")
        assert {attempt.model for facts in made.finished[1:] for attempt in facts.attempts} == {"gpt-4o-mini"}


async def test_a_pinned_provider_serves_its_own_target_of_an_alias(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "c1"], models={"fast": [SMALL, OTHER]}) as made:
        assert await served(made, provider_id="anthropic") == ("anthropic", "claude-haiku-5")


# --- who can serve ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lack", "fields"),
    [
        ({"vision": False}, {"messages": [{"role": "user", "content": IMAGE}]}),
        ({"tools": False}, {"parameters": {"tools": [TOOL]}}),
        ({"structured_output": False}, {"parameters": {"response_format": SHAPE}}),
        ({"context_tokens": 50}, {"messages": [{"role": "user", "content": "word " * 100}]}),
    ],
)
async def test_what_a_request_needs_decides_which_target_serves_it(
    simulator: SimulatorProcess, store: StateStore, lack: Mapping[str, Any], fields: dict[str, Any]
) -> None:
    names = {"fast": [{**SMALL, **lack}, OTHER]}
    async with house(simulator, store, ["a1", "c1"], models=names) as made:
        assert await served(made) == ("openai", "gpt-4o-mini")
        assert await served(made, **fields) == ("anthropic", "claude-haiku-5")
        await made.router.key_manager.update_key_state("c1", "disabled")
        with pytest.raises(NoEligibleKeysError) as caught:
            await served(made, **fields)
        assert caught.value.reasons["a1"].startswith("it")
        assert "disabled" in caught.value.reasons["c1"]


async def test_what_no_target_can_do_is_refused_before_anything_is_held(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    names = {"fast": [{**SMALL, "vision": False}, {**OTHER, "vision": False, "tools": False}]}
    async with house(simulator, store, ["a1", "c1"], models=names) as made:
        with pytest.raises(InvalidRequestError, match="takes no images"):
            await served(made, messages=[{"role": "user", "content": IMAGE}])
        assert made.router.decided == 0
        assert await served(made) == ("openai", "gpt-4o-mini")
        await made.at_rest()


async def test_an_estimate_alone_refuses_nobody(simulator: SimulatorProcess, store: StateStore) -> None:
    names = {"fast": [{**SMALL, "context_tokens": 10}, {**OTHER, "context_tokens": 20}]}
    async with house(simulator, store, ["a1", "c1"], models=names) as made:
        assert (await served(made, messages=[{"role": "user", "content": "word " * 100}]))[0] in ("openai", "anthropic")


async def test_a_context_that_was_too_short_after_all_gives_way_to_a_longer_one(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    names = {"fast": [{**SMALL, "context_tokens": 1000}, {**OTHER, "context_tokens": 200_000}]}
    await simulator.fail("context_length_exceeded", organisation="org-a")
    async with house(simulator, store, ["a1", "a2", "c1"], models=names) as made:
        assert await served(made) == ("anthropic", "claude-haiku-5")
        assert len(made.finished[-1].attempts) == 2
        with pytest.raises(ProviderError) as caught:
            await made.route()
        assert not caught.value.retryable
        assert len(made.finished[-1].attempts) == 1


class Plain(ProviderAdapter):
    """Says which model it was asked for."""

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        return {"content": f"I am {intent.model}", "usage": {"input_tokens": 1, "output_tokens": 1}}


async def test_an_adapter_of_ones_own_is_asked_for_the_model_it_knows(store: StateStore) -> None:
    async with ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}) as router:
        router.register_provider("own", Plain())
        router.register_key("own-key-material-0123456789", "own")
        router.configure_models({"fast": [{"provider": "own", "model": "its-own-name"}]})
        answer = await router.route(intent(model="fast"))
        assert (answer.content, answer.metadata.model_used) == ("I am its-own-name", "its-own-name")


async def test_an_sdk_that_asks_for_a_name_gets_who_can_serve_it(simulator: SimulatorProcess) -> None:
    names = {"fast": [{**SMALL, "vision": False}, {"provider": "other", "model": "gpt-4o-mini"}]}
    async with (
        house(simulator, InMemoryStateStore(), ["a1", "b1"], models=names) as made,
        httpx2.AsyncClient(transport=RouterTransport(made.router)) as http,
    ):
        client = AsyncOpenAI(api_key="any", http_client=http, max_retries=0)
        text: Any = [{"role": "user", "content": "hello"}]
        image: Any = [{"role": "user", "content": IMAGE}]
        for messages, served_by in ((text, "a1"), (image, "b1")):
            answer = await client.chat.completions.create(model="fast", messages=messages)
            told = (answer.model_extra or {})["routing_metadata"]
            assert (told["key_used"], told["model"], answer.model) == (served_by, "gpt-4o-mini", "gpt-4o-mini")
        await simulator.fail("server_error", organisation="org-b")
        with pytest.raises(openai.APIStatusError):
            await client.chat.completions.create(model="fast", messages=image)
        assert [attempt.key_id for attempt in made.finished[-1].attempts] == ["b1"]
