"""Adapters by the names that a configuration file gives them."""

from collections.abc import Callable, Mapping

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.config.compiled import ProviderRecord

ADAPTERS: Mapping[str, Callable[..., ProviderAdapter]] = {"openai": OpenAIAdapter, "anthropic": AnthropicAdapter}


def make_adapter(record: ProviderRecord) -> ProviderAdapter:
    """The adapter of a configured provider.

    Raises:
        ConfigurationError: no adapter of that name, or options it does not take.
    """
    make = ADAPTERS.get(record.adapter)
    if make is None:
        raise ConfigurationError(f"providers.{record.id}.adapter: must be one of {', '.join(ADAPTERS)}")
    try:
        return make(record.base_url, provider_id=record.id, **record.options)
    except TypeError as exc:
        raise ConfigurationError(f"providers.{record.id}.options: {exc}") from exc
