"""Asking a provider about a key on an endpoint that costs nothing, and what follows from the answer."""

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.api_key import KeyMaterial, KeyState

__all__ = ["ask", "verdict_of"]


async def ask(adapter: ProviderAdapter, material: KeyMaterial) -> tuple[bool | None, str]:
    """Whether the provider takes the key, None if it did not say, and a word about it. Never raises."""
    try:
        works = await adapter.probe_key(material)
    except Exception as exc:
        return None, f"the probe failed: {type(exc).__name__}"
    if works is None:
        return None, "the provider gave no verdict"
    return works, "the provider took the key" if works else "the provider refused the key"


def verdict_of(state: KeyState, works: bool | None) -> KeyState | None:
    """The state that a probe moves a key to; None: it stays."""
    if works and state is KeyState.Invalid:
        return KeyState.Available
    if works is False and state not in (KeyState.Invalid, KeyState.Disabled):
        return KeyState.Invalid
    return None
