"""Providers as the catalogue has them, made of adapters, and of what a configuration says of them."""

from collections.abc import Mapping

from apikeyrouter.domain.components.catalogue import Provider
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.infrastructure.adapters.transport import Transport
from apikeyrouter.infrastructure.config.compiled import ProviderRecord

__all__ = ["adapters_of", "provider_of"]


def provider_of(provider_id: str, adapter: ProviderAdapter) -> Provider:
    """A provider with what its adapter says of itself."""
    able = adapter.get_capabilities()
    silent = type(adapter).get_capabilities is ProviderAdapter.get_capabilities  # the default says nothing of tools
    return Provider(
        id=provider_id,
        adapter=adapter,
        wire=getattr(adapter, "wire", None),
        models=able.models,
        takes=frozenset(able.operations),
        tools=None if silent else able.tools,
        quality=able.quality,
    )


def adapters_of(records: Mapping[str, ProviderRecord], transport: Transport | None = None) -> dict[str, Provider]:
    """Configured providers, each with a new adapter. `transport`: their own. Errors: ConfigurationError where one
    refuses its options."""
    from apikeyrouter.infrastructure.adapters.registry import make_adapter

    made = {record.id: provider_of(record.id, make_adapter(record, transport=transport)) for record in records.values()}
    for record in records.values():
        made[record.id].timeouts_told = record.timeouts
        made[record.id].transport = transport
        made[record.id].made_here = True
    return made
