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
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger

__all__ = ["FileChanges", "digest_of", "file_lane"]

NOTE = ("configuration_change", "file")
NOTE_SECONDS = 10
"""A process that died in the middle of a change keeps others waiting no longer; one that lives says so again."""
SETTLED_SECONDS_MAX = 120
"""Nobody waits longer for others' changes."""
LOOK_SECONDS = 0.02
_AMOUNT_BITS = 52
_encode = msgspec.json.Encoder(order="deterministic", enc_hook=str).encode


class FileChanges:
    """One process's part in changes of the file, its own and those of others."""

    def __init__(self, ledger: ScriptLedger, store: StateStore) -> None:
        self._ledger, self._store = ledger, store

    @contextlib.asynccontextmanager
    async def under_way(self, digest: str) -> AsyncIterator[None]:
        """While inside, no process decides anything, unless that file is in force already."""
        mine = secrets.token_hex(8)
        await self._note(mine, NOTE_SECONDS)
        living = asyncio.create_task(self._live(mine), name="apikeyrouter.configuration_change")
        try:
            await self._ledger.put(lanes=[file_lane(digest)])
            yield
        finally:
            await end_task(living)
            with contextlib.suppress(StateStoreError):  # the note ends by itself
                if await self._by() == mine:
                    await self._note("", 1)

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


def file_lane(digest: str) -> LaneConfig:
    """A lane that no request passes: another file makes it another lane, and so another version."""
    amount = int(digest, 16) >> (len(digest) * 4 - _AMOUNT_BITS) if digest else 1
    limit = Limit(name="concurrency", metric=Metric.CONCURRENCY, kind=LimitKind.CONCURRENCY, amount=max(1, amount))
    return LaneConfig(id="f:file", limits=(limit,))


def digest_of(config: CompiledConfig) -> str:
    """What tells one file from another: all that a decision may depend on, in hex. Nothing can be read out of it."""
    keys = [(key.id, key.provider_id, key.material, key.quota_group, key.models, key.weight) for key in config.keys]
    metadata = [key.metadata for key in config.keys]
    parts = (
        config.lanes, config.scopes, config.providers, keys, metadata, config.aliases, config.prices, config.budgets,
        config.clients, [policy.model_dump(mode="json") for policy in config.policies], config.routing, config.pools,
    )  # fmt: skip
    return hashlib.sha256(_encode(parts)).hexdigest()
