"""A primary that Sentinels replace: the ledger and the entities follow it, wherever it is and however it went."""

import asyncio
import contextlib

import pytest

from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.system_error import (
    LedgerConfigError,
    LedgerUnavailableError,
    StateStoreUnavailableError,
)
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.servers import Server, free_port
from tests.topologies.books import COST, booked, ledger_at, spent
from tests.topologies.deployments import Sentinels, stopped, until

pytestmark = pytest.mark.timeout(120)


def primary_of(watched: Sentinels) -> Server:
    """The primary, once every Sentinel agrees and replicas follow it."""
    until(watched.settled)
    found = watched.primary()
    assert found is not None
    return found


def replicated(server: Server, replicas: int) -> None:
    """Wait until what was written is at the replicas."""
    with server.client() as client:
        until(lambda: client.wait(replicas, 1000) >= replicas)


async def test_a_name_that_no_sentinel_knows_is_a_configuration_error(watched: Sentinels) -> None:
    ledger = ScriptLedger(RedisEngine(watched.url.replace("/ledger/", "/other/")))
    with pytest.raises(LedgerConfigError, match="knows a primary of that name"):
        await ledger.open()
    await ledger.close()


async def test_sentinels_that_do_not_answer_are_named() -> None:
    ledger = ScriptLedger(RedisEngine(f"redis+sentinel://:secret@127.0.0.1:{free_port()}/ledger"))
    with pytest.raises(LedgerUnavailableError, match="no Sentinel at 127") as caught:
        await ledger.open()
    assert "secret" not in str(caught.value)
    await ledger.close()


async def test_one_dead_sentinel_in_front_costs_nothing(watched: Sentinels) -> None:
    url = watched.url.replace("redis+sentinel://", f"redis+sentinel://127.0.0.1:{free_port()},")
    async with ledger_at(url) as ledger:
        assert await booked(ledger)


async def test_a_replica_is_refused_with_the_remedy(watched: Sentinels) -> None:
    primary = primary_of(watched)
    replica = next(server for server in watched.servers if server is not primary)
    ledger = ScriptLedger(RedisEngine(replica.url))
    with pytest.raises(LedgerUnavailableError, match=r"read-only replica.*redis\+sentinel"):
        await ledger.open()
    await ledger.close()


async def test_keys_and_notices_follow_a_killed_primary(watched: Sentinels) -> None:
    primary = await asyncio.to_thread(primary_of, watched)
    store, heard = RedisStateStore(watched.url), asyncio.Event()

    async def listen() -> None:
        async for change in store.watch():
            if change.id in ("", "k2"):
                heard.set()

    async with ledger_at(watched.url) as ledger:
        before, _ = await spent(ledger)
        assert await booked(ledger)
        await store.save_key(APIKey(id="k1", provider_id="openai", encrypted_material="v1:x:y"))
        listening = asyncio.create_task(listen())
        await asyncio.to_thread(replicated, primary, 2)
        primary.stop()
        assert await booked(ledger)
        assert await spent(ledger) == (before + 2 * COST, 0)
    with contextlib.suppress(StateStoreUnavailableError):  # connections to the one before
        await store.get_key("k1")
    assert await store.get_key("k1") is not None
    await store.save_key(APIKey(id="k2", provider_id="openai", encrypted_material="v1:x:y"))
    async with asyncio.timeout(20):
        await heard.wait()
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    await store.aclose()


async def test_a_stopped_primary_is_left_for_its_successor(watched: Sentinels) -> None:
    primary = await asyncio.to_thread(primary_of, watched)
    async with ledger_at(watched.url) as ledger:
        before, _ = await spent(ledger)
        assert await booked(ledger)
        await asyncio.to_thread(replicated, primary, 1)
        with stopped(primary):
            assert await booked(ledger)
            assert watched.primary() is not primary
            assert ledger.forgotten == 1
        assert await booked(ledger)
        assert await spent(ledger) == (before + 3 * COST, 0)
