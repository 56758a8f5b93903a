"""Providers as the catalogue has them, made of adapters, and of what a configuration says of them."""

from collections.abc import Mapping

from apikeyrouter.domain.components.catalogue import Provider
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.infrastructure.adapters.transport import Transport
from apikeyrouter.infrastructure.config.compiled import ProviderRecord
from apikeyrouter.infrastructure.security.addresses import is_public

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
