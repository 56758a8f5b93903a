"""Mistakes that a type checker must see: each line carries the complaint that it earns, and none may be unused."""

from apikeyrouter import ApiKeyRouter, RouterSettings, SystemResponse
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter


async def mistakes(router: ApiKeyRouter, response: SystemResponse) -> None:
    """Wrong types, wrong names, a forgotten await."""
    await router.route(42)  # type: ignore[arg-type]
    await router.register_key(b"bytes", "openai")  # type: ignore[arg-type]
    await router.register_provider("openai", object())  # type: ignore[arg-type]
    router.route({}).content  # type: ignore[attr-defined]  # noqa: B018
    response.metadata.cost + 1  # type: ignore[operator]
    ApiKeyRouter(config=RouterSettings(), store=None)  # type: ignore[call-arg]
    OpenAIAdapter(base_url=8000)  # type: ignore[arg-type]
