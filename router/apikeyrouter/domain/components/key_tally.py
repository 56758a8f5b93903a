"""How often the fleet used each key, how often that failed, when it was last, and what its last failure here was."""

import time
from collections.abc import Sequence

import msgspec

from apikeyrouter.domain.components.key_ring import Lanes
from apikeyrouter.domain.components.shared_counts import SharedCounts
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.call import AttemptFacts, Facts
from apikeyrouter.domain.models.system_error import ErrorCategory

__all__ = ["KeyFailure", "KeyTally"]

FAILURES = "key_failures"
"""Counters: failed attempts by key id."""
LATEST_MAX = 20_000
"""So many keys' last failures are remembered; the oldest go first."""
NOT_THE_KEYS_FAULT = frozenset({"", "cancelled", ErrorCategory.ValidationError.value})


class KeyFailure(msgspec.Struct, kw_only=True, frozen=True):
    """The last attempt with a key that failed: its category and row of the taxonomy ("" if none), the provider's status
    (0: no answer came), which model and request, and when it ended (Unix microseconds, this machine's clock)."""

    category: str
    meaning: str
    status: int
    model: str
    request_id: str
    at_us: int


class KeyTally:
    """Uses are counted by the ledger; failures here, and told to the others a few times a second."""

    def __init__(self, store: StateStore, lanes: Lanes) -> None:
        self._lanes, self._failures = lanes, SharedCounts(store, FAILURES)
        self.flush = self._failures.flush
        self.latest: dict[str, KeyFailure] = {}
        """The last failure of each key in this process, by key id, the latest last."""

    def abandon(self) -> None:
        """After a fork: what was counted is the parent's to tell."""
        self._failures.abandon()
        self.latest.clear()

    def count(self, facts: Facts) -> None:
        """Count the failed attempts of a request that has ended."""
        for attempt in facts.attempts:
            if attempt.failure not in NOT_THE_KEYS_FAULT:
                self._failures.add(attempt.key_id)
                self._remember(attempt, facts.request_id)

    def _remember(self, attempt: AttemptFacts, request_id: str) -> None:
        self.latest.pop(attempt.key_id, None)
        if len(self.latest) >= LATEST_MAX:
            del self.latest[next(iter(self.latest))]
        self.latest[attempt.key_id] = KeyFailure(
            category=attempt.failure, meaning=attempt.meaning, status=attempt.status, model=attempt.model,
            request_id=request_id, at_us=time.time_ns() // 1000,
        )  # fmt: skip

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
