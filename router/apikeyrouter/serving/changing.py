"""A configuration file is put into force in one step, for every process on the store: no decision is of two files.

A decision says which version of the configuration it was made under, and the ledger refuses any other. So what changes
a file's parts one after the other first moves that version on, and whoever is refused waits for its end.
"""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator

import msgspec

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import LaneConfig, Limit, LimitKind, Metric
from apikeyrouter.domain.models.system_error import StateStoreError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger

__all__ = ["FileChanges", "digest_of", "file_lanes"]

NOTE = ("configuration_change", "file")
NOTE_SECONDS = 10
"""A process that died in the middle of a change keeps others waiting no longer; one that lives says so again."""
SETTLED_SECONDS_MAX = 120
"""Nobody waits longer for others' changes."""
LOOK_SECONDS = 0.02
_LANES = ("f:file", "f:whole")
_AMOUNT_BITS = 52
_encode = msgspec.json.Encoder(order="deterministic", enc_hook=str).encode


class FileChanges:
    """One process's part in changes of the file, its own and those of others."""

    def __init__(self, ledger: AnyLedger, store: StateStore) -> None:
        self._ledger, self._store = ledger, store

    @contextlib.asynccontextmanager
    async def under_way(self, digest: str, known: str) -> AsyncIterator[str]:
        """While inside, no process decides anything, unless that file is in force already.

        Gives the file that the ledger has all lanes of, if it is this one or the `known` one; else "".
        """
        mine = secrets.token_hex(8)
        await self._note(mine, NOTE_SECONDS)
        living = asyncio.create_task(self._live(mine), name="apikeyrouter.configuration_change")
        try:
            began, whole = file_lanes(digest)
            amounts = await self._amounts()
            there = next((file for file in (digest, known) if file and amounts == _amounts_of(file)), "")
            if there != digest:
                await self._ledger.put(lanes=[began, LaneConfig(id=whole.id)])
            yield there
        finally:
            await end_task(living)
            with contextlib.suppress(StateStoreError):  # the note ends by itself
                if await self._by() == mine:
                    await self._note("", 1)

    async def put_whole(self, digest: str) -> None:
        """All lanes of the file are in the ledger now."""
        await self._ledger.put(lanes=file_lanes(digest)[1:])

    async def _amounts(self) -> list[int]:
        """Which file was begun last, and which is there as a whole, as the two lanes say it."""
        for lane_id in _LANES:
            await self._ledger.record(lane_id)  # so it takes its configuration over
        return [limit.capacity for lane in await self._ledger.lanes(_LANES) for limit in lane.limits]

    async def settled(self) -> None:
        """Return when nobody is in the middle of a change."""
        deadline = time.monotonic() + SETTLED_SECONDS_MAX
        while await self._by() and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)

    async def _live(self, mine: str) -> None:
        """Renew the note for as long as the change takes."""
        while True:
            await asyncio.sleep(NOTE_SECONDS / 4)
            with contextlib.suppress(StateStoreError):
                if await self._by() in (mine, ""):
                    await self._note(mine, NOTE_SECONDS)

    async def _by(self) -> str:
        told = await self._store.get_note(*NOTE)
        return str(told["by"]) if told else ""

    async def _note(self, by: str, seconds: int) -> None:
        with contextlib.suppress(NotImplementedError):  # a user's own store is this process's alone
            await self._store.save_note(*NOTE, {"by": by}, seconds=seconds)


def file_lanes(digest: str) -> list[LaneConfig]:
    """Two lanes that no request passes: that the file was begun, and that all of it is there. Another file makes them
    other lanes, and so another version of the configuration."""
    amount = int(digest, 16) >> (len(digest) * 4 - _AMOUNT_BITS) if digest else 1
    limit = Limit(name="concurrency", metric=Metric.CONCURRENCY, kind=LimitKind.CONCURRENCY, amount=max(1, amount))
    return [LaneConfig(id=lane_id, limits=(limit,)) for lane_id in _LANES]


def _amounts_of(digest: str) -> list[int]:
    return [limit.amount for lane in file_lanes(digest) for limit in lane.limits]


def digest_of(config: CompiledConfig) -> str:
    """What tells one file from another: all that a decision may depend on, in hex. Nothing can be read out of it."""
    keys = [(key.id, key.provider_id, key.material, key.quota_group, key.models, key.weight) for key in config.keys]
    metadata = [key.metadata for key in config.keys]
    parts = (
        config.lanes, config.scopes, config.providers, keys, metadata, config.aliases, config.prices, config.budgets,
        config.clients, [policy.model_dump(mode="json") for policy in config.policies], config.routing, config.pools,
    )  # fmt: skip
    return hashlib.sha256(_encode(parts)).hexdigest()
