"""What processes learn and tell each other through the store: token ratios, and how good answers are."""

import contextlib
import secrets
import time

from apikeyrouter.domain.components.observations import Observations
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.state_store import StateStore

RATIOS_DOCUMENT = ("token_ratios", "learned")
OBSERVATIONS = "observations"
"""One document for each process, with its own counts alone: they add up, and none counts twice."""
FORGOTTEN_SECONDS = 6 * 3600.0
"""What a process left behind is taken away when it has not renewed it for this long."""
DOCUMENT_KINDS = frozenset({RATIOS_DOCUMENT[0], OBSERVATIONS})


class Learned:
    """One process's part of it."""

    def __init__(self, store: StateStore, estimator: TokenEstimator, observations: Observations) -> None:
        self._store, self._estimator, self._observations = store, estimator, observations
        self._name = secrets.token_hex(8)
        self._told: object = []

    async def share(self) -> None:
        """Take the others', leave ours. A store of the user's own that keeps no documents shares nothing.

        Errors: StateStoreUnavailableError.
        """
        with contextlib.suppress(NotImplementedError):
            await self._share_ratios()
            await self._share_observations()

    async def _share_ratios(self) -> None:
        told = await self._store.get_document(*RATIOS_DOCUMENT)
        if told:
            self._estimator.merge(told)
        learned = self._estimator.export()
        if learned["models"] and learned != told:
            await self._store.save_document(*RATIOS_DOCUMENT, learned)

    async def _share_observations(self) -> None:
        own = self._observations.export()
        if own["rows"] or self._told:
            await self._store.save_document(OBSERVATIONS, self._name, {**own, "at": time.time()})
            self._told = own["rows"]
        found = await self._store.list_documents(OBSERVATIONS)
        found.pop(self._name, None)
        for name, told in list(found.items()):
            at = told.get("at")
            if not isinstance(at, int | float) or time.time() - at > FORGOTTEN_SECONDS:
                del found[name]
                await self._store.delete_document(OBSERVATIONS, name)
        self._observations.take_over(found.values())
