"""What merely comes last, in every process: keys without a model, providers without capacity. Told through the store.

One document for each place, with the ledger's time at which it ends. A store that keeps no documents tells nobody.
"""

import contextlib
import time
from typing import Any

from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.interfaces.state_store import StateStore

__all__ = ["AVOIDED", "PLACES_MAX", "Avoidance"]

AVOIDED = "avoided"
"""The kind of the documents."""
PLACES_MAX = 1000
"""Places that are told of; beyond it those that end first are forgotten."""
LONGER_SHARE = 0.25
"""How much longer a place must be avoided than was told, as a share, to be told again."""
LEFT_SECONDS = 60.0
"""How long after its end a document may be left by who wrote it, before anybody takes it away."""


class Avoidance:
    """Puts places last here, and has them put last elsewhere. One event loop owns it."""

    def __init__(self, snapshot: Snapshot, store: StateStore) -> None:
        self._snapshot, self._store = snapshot, store
        self._until_us: dict[str, int] = {}
        """What everybody knows: until when, by place."""

    def avoid(self, place: str, seconds: float) -> bool:
        """A lane, or an option's place, comes last here from now on; whether the others do not know it yet."""
        blocked, now = self._snapshot.blocked, time.perf_counter()
        blocked[place] = max(now + seconds, blocked.get(place, 0.0))
        known = self._until_us.get(place, 0) - self._snapshot.ledger_us(now)
        return seconds * 1e6 > max(0, known) * (1 + LONGER_SHARE)

    async def tell(self, place: str, seconds: float) -> None:
        """Have it come last everywhere. Errors: StateStoreUnavailableError."""
        now_us = self._snapshot.ledger_us(time.perf_counter())
        self._until_us[place] = now_us + int(seconds * 1e6)
        with contextlib.suppress(NotImplementedError):
            await self._store.save_document(AVOIDED, place, {"until_us": self._until_us[place]})
            await self._forget(now_us)

    async def hear(self, place: str) -> None:
        """Somebody told of a place, or took it back. Errors: StateStoreUnavailableError."""
        told = await self._store.get_document(AVOIDED, place)
        if told is None:
            self._until_us.pop(place, None)
        else:
            self._take(place, told)

    async def look(self) -> None:
        """Take in all that was told, and take away what has ended. Errors: StateStoreUnavailableError."""
        now_us = self._snapshot.ledger_us(time.perf_counter())
        for place, told in (await self._store.list_documents(AVOIDED)).items():
            until_us = self._take(place, told)
            if until_us + LEFT_SECONDS * 1e6 < now_us:
                await self._drop(place)

    def _take(self, place: str, told: dict[str, Any]) -> int:
        until_us = told.get("until_us")
        if isinstance(until_us, bool) or not isinstance(until_us, int):
            return 0
        now = time.perf_counter()
        seconds = (until_us - self._snapshot.ledger_us(now)) / 1e6
        if seconds > 0 and (place in self._until_us or len(self._until_us) < 2 * PLACES_MAX):
            self._until_us[place] = until_us
            blocked = self._snapshot.blocked
            blocked[place] = max(now + seconds, blocked.get(place, 0.0))
        return until_us

    async def _forget(self, now_us: int) -> None:
        """What has ended, and of too many what ends first."""
        ended = [place for place, until_us in self._until_us.items() if until_us <= now_us]
        over = len(self._until_us) - len(ended) - PLACES_MAX
        if over > 0:
            ended += sorted(set(self._until_us).difference(ended), key=self._until_us.__getitem__)[:over]
        for place in ended:
            await self._drop(place)

    async def _drop(self, place: str) -> None:
        self._until_us.pop(place, None)
        await self._store.delete_document(AVOIDED, place)
