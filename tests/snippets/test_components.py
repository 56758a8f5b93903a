"""The snippet of the components document: registrations that nobody awaits, and a request as a dict."""

from decimal import Decimal

from apikeyrouter import ApiKeyRouter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from tests.snippets.conftest import Keep


async def test_registrations_that_were_not_awaited_are_done_before_the_first_request(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    router.register_provider("openai", OpenAIAdapter())
    router.register_key("sk-openai-key1", "openai", {"tier": "pay-as-you-go"})
    router.register_key("sk-openai-key2", "openai", {"tier": "pay-as-you-go"})
    router.register_key("sk-openai-key3", "openai", {"tier": "team"})
    response = await router.route(
        request_intent={"model": "gpt-4", "messages": [{"role": "user", "content": "Hello!"}]},
        objective="reliability",
    )
    assert "Hello!" in response.content
    keys = await router.key_manager.list_keys("openai")
    assert response.metadata.key_used in {key.id for key in keys}
    assert sorted(key.metadata["tier"] for key in keys) == ["pay-as-you-go", "pay-as-you-go", "team"]
    assert isinstance(response.metadata.cost, Decimal)
