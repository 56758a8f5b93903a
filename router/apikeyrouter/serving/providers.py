"""Providers as the catalogue has them, made of adapters, and of what a configuration says of them."""

import inspect
from collections.abc import Collection, Mapping

from apikeyrouter.domain.components.catalogue import Provider
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter, ProviderCapabilities, where_raised
from apikeyrouter.domain.models.request_intent import Operation
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.transport import Transport
from apikeyrouter.infrastructure.config.compiled import ProviderRecord
from apikeyrouter.infrastructure.security.addresses import is_public
from apikeyrouter.serving.foreign_code import called

__all__ = ["adapters_of", "provider_of"]


def provider_of(provider_id: str, adapter: ProviderAdapter) -> Provider:
    """A provider with what its adapter says of itself.

    Raises:
        ConfigurationError: it fails there, or says what makes no sense.
    """
    able = _capabilities(provider_id, adapter)
    silent = type(adapter).get_capabilities is ProviderAdapter.get_capabilities  # the default says nothing of tools
    return Provider(
        id=provider_id,
        adapter=adapter,
        wire=getattr(adapter, "wire", None),
        models=able.models if able.models is None or isinstance(able.models, frozenset) else frozenset(able.models),
        takes=frozenset(able.operations),
        tools=None if silent else able.tools,
        quality=able.quality,
    )


def _capabilities(provider_id: str, adapter: ProviderAdapter) -> ProviderCapabilities:
    where = f"the adapter of provider {provider_id!r} ({type(adapter).__name__}): get_capabilities"
    if not hasattr(adapter, "get_capabilities"):
        raise ConfigurationError(f"{where} is missing; derive it from ProviderAdapter")
    try:
        able: object = called(adapter.get_capabilities)
    except Exception as exc:
        raise ConfigurationError(f"{where} failed: {where_raised(exc)}") from exc
    if inspect.iscoroutine(able):
        able.close()
    if not isinstance(able, ProviderCapabilities):
        raise ConfigurationError(f"{where} returned {type(able).__name__}, not ProviderCapabilities")
    wrong = _wrong(able)
    if wrong:
        raise ConfigurationError(f"{where} returned {wrong}")
    return able


def _wrong(able: ProviderCapabilities) -> str:
    """What of capabilities makes no sense; "": nothing."""
    models: object = able.models
    operations: object = able.operations
    quality: object = able.quality
    names = models if isinstance(models, Collection) else ()
    if isinstance(models, str) or (models is not None and not isinstance(models, Collection)):
        return f"{type(models).__name__} for models, which is a set of names, or None"
    if not all(isinstance(name, str) for name in names):
        return "models that are not named by texts"
    if not isinstance(operations, Collection) or not all(isinstance(one, Operation) for one in operations):
        return "operations that are none"
    if not isinstance(quality, Mapping) or not all(_is_share(value) for value in quality.values()):
        return "a quality that is no mapping to numbers from 0 to 1"
    return ""


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def adapters_of(
    records: Mapping[str, ProviderRecord], transport: Transport | None = None, *, is_guarded: bool = False
) -> dict[str, Provider]:
    """Configured providers, each with a new adapter. `transport`: what they share; one with a limit of connections has
    its own, which `is_guarded` keeps to public addresses. Errors: ConfigurationError where one refuses its options."""
    from apikeyrouter.infrastructure.adapters.registry import make_adapter

    made: dict[str, Provider] = {}
    for record in records.values():
        own = None if record.connections_max is None else _bounded(record.connections_max, is_guarded=is_guarded)
        provider = made[record.id] = provider_of(record.id, make_adapter(record, transport=own or transport))
        provider.timeouts_told = record.timeouts
        provider.transport, provider.owns_transport = own or transport, own is not None
        provider.made_here = True
    return made


def _bounded(connections_max: int, *, is_guarded: bool) -> Transport:
    from apikeyrouter.infrastructure.adapters.transports import make_transport

    return make_transport(admits=is_public if is_guarded else None, connections_max=connections_max)
