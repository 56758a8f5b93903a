"""Refused keys, and when their provider is to blame instead: the guard against correlated failures, at work.

Refusals are shared by the fleet through the audit trail, the suspicion through the provider's lane in the ledger, good
answers by `good_answers.py`.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from apikeyrouter.domain.components.catalogue import Catalogue, Key, provider_lane
from apikeyrouter.domain.components.correlation_guard import (
    Guard,
    Refusal,
    Suspects,
    alike,
)
from apikeyrouter.domain.components.failure_taxonomy import ALIKE
from apikeyrouter.domain.components.good_answers import GoodAnswers
from apikeyrouter.domain.components.pool import Option, Snapshot
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.api_key import KeyState, StateTransition
from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope

ACTOR = "router"
"""Who puts keys out in the audit trail. What an operator puts out stays out."""
Move = Callable[[Key, KeyState, str, float | None], Awaitable[None]]
Cool = Callable[[str, float, str], Awaitable[None]]


class Refusals:
    """Puts out keys that their provider refuses, and takes it back where the provider is at fault."""

    def __init__(self, catalogue: Catalogue, snapshot: Snapshot, store: StateStore, *, move: Move, cool: Cool) -> None:
        self._catalogue, self._snapshot, self._store = catalogue, snapshot, store
        self._move, self._cool = move, cool
        self._suspects = Suspects()
        self.answers = GoodAnswers(catalogue, snapshot, store)
        self.guard = Guard()

    def judge(self, failure: Failure, option: Option) -> Failure:
        """The failure as it counts: refusals by a provider under suspicion say nothing of keys."""
        if failure.action is not FailureAction.INVALIDATE or failure.scope is not FailureScope.KEY:
            return failure
        if not self._is_suspect(option):
            return failure
        self._suspects.add(option.provider.id, time.perf_counter(), self.guard.suspect_seconds)
        return ALIKE.failure(
            failure.message, status=failure.status, code=failure.code, type=failure.type,
            signature=failure.signature,
        )  # fmt: skip

    def heard(self, key: Key) -> bool:
        """Whether a key is out as refused, by whatever process: then this one's good answers matter to the others."""
        if key.state is not KeyState.Invalid:
            return False
        self.answers.matters(key.provider_id, self.guard.within_seconds + self.guard.suspect_seconds)
        return True

    async def refuse(self, key: Key, reason: str) -> None:
        """Write, then look: whoever is the last of several refused alike sees them all, in whichever process."""
        await self._move(key, KeyState.Invalid, reason, None)
        provider_id = key.provider_id
        self.heard(key)
        await self.answers.hear(provider_id)
        provider = self._catalogue.providers.get(provider_id)
        spared = alike(
            await self._recent(provider_id), self._groups(provider_id), self.guard, now=time.perf_counter(),
            answered_at=0.0 if provider is None else provider.answered_at,
        )  # fmt: skip
        if not spared:
            return
        self._suspects.add(provider_id, time.perf_counter(), self.guard.suspect_seconds)
        why = f"{len(spared)} keys of provider {provider_id} were refused alike: the provider is at fault"
        await self._cool(provider_lane(provider_id), self.guard.pause_seconds, why)
        for refusal in spared:
            await self._spare(refusal.key_id, why)

    async def _spare(self, key_id: str, why: str) -> None:
        """Make a key available again, unless somebody did, or said something else of it, since."""
        known, stored = self._catalogue.keys.get(key_id), await self._store.get_key(key_id)
        if known is not None and stored is not None and stored.state is KeyState.Invalid:
            await self._move(known, KeyState.Available, why, None)

    async def _recent(self, provider_id: str) -> list[Refusal]:
        """The keys of a provider that any process put out as refused a short time ago, in that order."""
        now, now_utc = time.perf_counter(), datetime.now(UTC)
        query = StateQuery("StateTransition", since=now_utc - timedelta(seconds=self.guard.within_seconds))
        trail: list[StateTransition] = await self._store.query_state(query)
        latest = {entry.entity_id: entry for entry in trail}
        found = []
        for key in self._catalogue.keys.values():
            entry = latest.get(key.id) if key.provider_id == provider_id else None
            if entry is not None and entry.to_state is KeyState.Invalid and entry.actor == ACTOR:
                at = now - (now_utc - entry.timestamp).total_seconds()
                found.append(Refusal(key.id, key.quota_group, at))
        return sorted(found, key=lambda refusal: refusal.at)

    def _groups(self, provider_id: str) -> set[str]:
        return {key.quota_group for key in self._catalogue.keys.values() if key.provider_id == provider_id}

    def _is_suspect(self, option: Option) -> bool:
        """Whether the provider is under suspicion here, or was cooled a short time ago by anybody in the fleet."""
        now, answered_at = time.perf_counter(), option.provider.answered_at
        if self._suspects.has(option.provider.id, answered_at=answered_at, now=now):
            return True
        lane = self._snapshot.lanes.get(option.lanes[-1])
        if lane is None or not lane.blocked_until_us:
            return False
        ended = now - (self._snapshot.ledger_us(now) - lane.blocked_until_us) / 1e6
        return ended > max(answered_at, now - self.guard.suspect_seconds)
