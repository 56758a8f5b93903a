"""Good answers of other processes: what clears a provider of blame there clears it here.

They are told while it matters only: from when a key was refused until the suspicion that may follow is over. What is
told is when the latest request was sent that was answered well, in the ledger's time.
"""

import contextlib
import time

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.interfaces.state_store import StateStore

__all__ = ["ANSWERED", "GoodAnswers"]

ANSWERED = "answered"
"""The kind of the documents: one for each provider."""
TELL_SECONDS = 0.5
"""How often one process tells of one provider at most."""


class GoodAnswers:
    """Tells the others of this process's, and hears of theirs. One event loop owns it."""

    def __init__(self, catalogue: Catalogue, snapshot: Snapshot, store: StateStore) -> None:
        self._catalogue, self._snapshot, self._store = catalogue, snapshot, store
        self._matters_until: dict[str, float] = {}
        self._told: dict[str, tuple[float, float]] = {}
        """By provider: which answer was told, and when."""

    def matters(self, provider_id: str, seconds: float) -> None:
        """A key of this provider was refused, somewhere: for so long answers of it are told."""
        if provider_id in self._catalogue.providers:
            self._matters_until[provider_id] = time.perf_counter() + seconds

    def due(self) -> list[str]:
        """The providers that there is something to tell of. To be asked a few times a second."""
        if not self._matters_until:
            return []
        now, due = time.perf_counter(), []
        for provider_id, until in list(self._matters_until.items()):
            provider = self._catalogue.providers.get(provider_id)
            if provider is None or now > until:
                del self._matters_until[provider_id]
                self._told.pop(provider_id, None)
                continue
            answer, at = self._told.get(provider_id, (0.0, 0.0))
            if provider.answered_at > answer and now - at >= TELL_SECONDS:
                due.append(provider_id)
        return due

    async def tell(self, provider_id: str) -> None:
        """Tell of the latest good answer here, unless another process had a later one."""
        provider = self._catalogue.providers.get(provider_id)
        if provider is None or not provider.answered_at:
            return
        own, self._told[provider_id] = provider.answered_at, (provider.answered_at, time.perf_counter())
        if await self.hear(provider_id) < own:
            with contextlib.suppress(NotImplementedError):
                sent_us = self._snapshot.ledger_us(own)
                await self._store.save_document(ANSWERED, provider_id, {"sent_us": sent_us})

    async def hear(self, provider_id: str) -> float:
        """Take in what was told of a provider: when that request was sent, by `time.perf_counter()`; 0.0: nothing."""
        told = await self._store.get_document(ANSWERED, provider_id)
        sent_us = None if told is None else told.get("sent_us")
        provider, now = self._catalogue.providers.get(provider_id), time.perf_counter()
        if provider is None or isinstance(sent_us, bool) or not isinstance(sent_us, int):
            return 0.0
        sent = now - max(0, self._snapshot.ledger_us(now) - sent_us) / 1e6
        provider.answered_at = max(provider.answered_at, sent)
        return sent
