"""Adapters that a reload replaced: each keeps its connections until the calls that chose it have ended."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

from apikeyrouter.domain.components.catalogue import Provider

__all__ = ["Retired", "close_adapter"]

CHOSEN_SECONDS_MAX = 30.0
"""Longest between the choice of a provider and its hold, after which the hold shows that it is in use: the store has
answered by then, or the call has failed."""
_Open = Iterable[bytes]


@dataclass(slots=True)
class _Leaving:
    """A provider that nobody can choose any more. `calls`: those that may use it; None: not to be told yet."""

    provider: Provider
    since: float
    calls: set[bytes] | None = None


class Retired:
    """Providers on their way out. Those that somebody else made are somebody else's to close."""

    def __init__(self) -> None:
        self._leaving: list[_Leaving] = []

    def __len__(self) -> int:
        return len(self._leaving)

    def put(self, provider: Provider | None) -> None:
        """Nobody can choose that one any more."""
        if provider is not None and provider.made_here:
            self._leaving.append(_Leaving(provider, time.perf_counter()))

    def unused(self, in_flight: int, holds: _Open) -> list[Provider]:
        """Those that no call uses any more; they are forgotten here. `holds`: the ids of the open ones."""
        if not self._leaving:
            return []
        held = set(holds)
        before, self._leaving = self._leaving, []
        unused: list[Provider] = []
        for leaving in before:
            if in_flight and self._in_use(leaving, held):
                self._leaving.append(leaving)
            else:
                unused.append(leaving.provider)
        return unused

    def _in_use(self, leaving: _Leaving, holds: set[bytes]) -> bool:
        """Whoever chose it has a hold after `CHOSEN_SECONDS_MAX`, or has ended; those holds are waited for."""
        if leaving.calls is None:
            if time.perf_counter() < leaving.since + CHOSEN_SECONDS_MAX:
                return True
            leaving.calls = holds
        leaving.calls &= holds
        return bool(leaving.calls)


async def close_adapter(provider: Provider) -> None:
    """Let go of an adapter's connections. An adapter's mistake must not keep the rest open."""
    closing = getattr(provider.adapter, "close", None)
    if closing is not None:
        with contextlib.suppress(Exception):
            await closing()
    if provider.owns_transport and provider.transport is not None:
        await provider.transport.close()
