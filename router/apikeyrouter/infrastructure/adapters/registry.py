"""Adapters by the names that a configuration file gives them."""

from collections.abc import Callable, Mapping
from functools import partial

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.azure_adapter import AzureOpenAIAdapter
from apikeyrouter.infrastructure.adapters.gemini_adapter import GeminiAdapter
from apikeyrouter.infrastructure.adapters.generic_http_adapter import GenericHTTPAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.adapters.transport import Transport
from apikeyrouter.infrastructure.config.compiled import ProviderRecord

__all__ = ["ADAPTERS", "make_adapter"]

COMPATIBLE = ("mistral", "groq", "deepseek", "openrouter", "vllm", "ollama", "llamacpp", "compatible")
"""Profiles of OpenAI's dialect that have a name of their own."""
ADAPTERS: Mapping[str, Callable[..., ProviderAdapter]] = {
    "openai": OpenAIAdapter,
    "anthropic": AnthropicAdapter,
    "gemini": GeminiAdapter,
    "azure": AzureOpenAIAdapter,
    "generic": GenericHTTPAdapter,
    **{name: partial(OpenAIAdapter, profile=name) for name in COMPATIBLE},
}


def make_adapter(record: ProviderRecord, *, transport: Transport | None = None) -> ProviderAdapter:
    """The adapter of a configured provider. `transport`: what it is to use, and somebody else closes; None: its own.

    Raises:
        ConfigurationError: no adapter of that name, or options it does not take.
    """
    make = ADAPTERS.get(record.adapter)
    if make is None:
        raise ConfigurationError(f"providers.{record.id}.adapter: must be one of {', '.join(ADAPTERS)}")
    try:
        given = {} if transport is None else {"transport": _for(record.adapter, transport)}
        return make(record.base_url, provider_id=record.id, **given, **record.options)
    except TypeError as exc:
        raise ConfigurationError(f"providers.{record.id}.options: {exc}") from exc
    except ConfigurationError as exc:
        raise ConfigurationError(f"providers.{record.id}: {exc}") from exc


def _for(adapter: str, transport: Transport) -> object:
    """The transport as that adapter takes it."""
    if adapter != "generic":
        return transport
    from apikeyrouter.infrastructure.adapters.httpx_over_transport import HttpxOverTransport

    return HttpxOverTransport(transport)
