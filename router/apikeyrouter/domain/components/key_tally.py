"""How often the fleet used each key, how often that failed, and when it was last."""

from collections.abc import Sequence

from apikeyrouter.domain.components.key_ring import Lanes
from apikeyrouter.domain.components.shared_counts import SharedCounts
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.system_error import ErrorCategory

__all__ = ["KeyTally"]

FAILURES = "key_failures"
"""Counters: failed attempts by key id."""
NOT_THE_KEYS_FAULT = frozenset({"", "cancelled", ErrorCategory.ValidationError.value})


class KeyTally:
    """Uses are counted by the ledger; failures here, and told to the others a few times a second."""

    def __init__(self, store: StateStore, lanes: Lanes) -> None:
        self._lanes, self._failures = lanes, SharedCounts(store, FAILURES)
        self.flush, self.abandon = self._failures.flush, self._failures.abandon

    def count(self, facts: Facts) -> None:
        """Count the failed attempts of a request that has ended."""
        for attempt in facts.attempts:
            if attempt.failure not in NOT_THE_KEYS_FAULT:
                self._failures.add(attempt.key_id)

    async def told(self, key: APIKey) -> APIKey:
        """A key with its counts."""
        return (await self.all_told([key]))[0]

    async def all_told(self, keys: Sequence[APIKey]) -> list[APIKey]:
        """Keys with their counts."""
        ids = [key.id for key in keys]
        uses, failures = await self._lanes.uses(ids), await self._failures.totals(ids)
        return [
            key.model_copy(
                update={
                    "usage_count": uses[key.id][0],
                    "last_used_at": uses[key.id][1],
                    "failure_count": failures[key.id],
                }
            )
            for key in keys
        ]
