"""Asking a provider about a key on an endpoint that costs nothing, and what follows from the answer."""

import asyncio

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter, where_raised
from apikeyrouter.domain.models.api_key import KeyMaterial, KeyState

__all__ = ["ask", "verdict_of"]

PROBE_SECONDS_MAX = 30.0
"""A probe that takes longer has found nothing out."""


async def ask(adapter: ProviderAdapter, material: KeyMaterial) -> tuple[bool | None, str]:
    """Whether the provider takes the key, None if it did not say, and a word about it. Never raises an `Exception`."""
    try:
        async with asyncio.timeout(PROBE_SECONDS_MAX):
            works: object = await adapter.probe_key(material)
    except (Exception, asyncio.CancelledError) as exc:
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return None, f"the probe failed: {where_raised(exc)}"
    if works is None:
        return None, "the provider gave no verdict"
    if not isinstance(works, bool):
        return None, f"the probe failed: {type(adapter).__name__} returned {type(works).__name__}, not a bool"
    return works, "the provider took the key" if works else "the provider refused the key"


def verdict_of(state: KeyState, works: bool | None) -> KeyState | None:
    """The state that a probe moves a key to; None: it stays."""
    if works and state is KeyState.Invalid:
        return KeyState.Available
    if works is False and state not in (KeyState.Invalid, KeyState.Disabled):
        return KeyState.Invalid
    return None
