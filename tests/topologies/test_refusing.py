"""A server that is full, cannot write, is a replica, is busy or evicts: what is said, and what goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Admission, ReserveRequest, Settlement
from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerRefusedError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.servers import Server, binaries, running
from tests.topologies.books import CANDIDATE, COST, booked, ledger_at, spent
from tests.topologies.deployments import until

PROTECTED = ("--enable-protected-configs", "yes")


@pytest.fixture(scope="module", params=list(binaries()))
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that tests may spoil."""
    with running(request.param, options=PROTECTED) as made:
        yield made


@asynccontextmanager
async def with_open(server: Server, count: int = 5) -> AsyncIterator[tuple[ScriptLedger, list[bytes], int]]:
    """A ledger, reservations that are open, and what was settled before."""
    async with ledger_at(server.url) as ledger:
        before, _ = await spent(ledger)
        rids = [new_rid() for _ in range(count)]
        for rid in rids:
            assert isinstance(await ledger.reserve(wish(rid)), Admission)
        yield ledger, rids, before


def wish(rid: bytes = b"") -> ReserveRequest:
    """A small one."""
    return ReserveRequest(rid=rid or new_rid(), candidates=(CANDIDATE,))


def end(rid: bytes) -> Settlement:
    """What it cost."""
    return Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=COST)


@contextmanager
def set_to(server: Server, **settings: str) -> Iterator[None]:
    """Other settings while it lasts."""
    with server.client() as client:
        words = {name.replace("_", "-"): value for name, value in settings.items()}
        before = {name: cast("Any", client.config_get(name))[name] for name in words}
        for name, value in words.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


async def test_when_memory_is_full_nothing_is_admitted_and_what_is_open_is_settled(own_server: Server) -> None:
    async with with_open(own_server, 40) as (ledger, rids, before):
        keys = own_server.client().dbsize()
        with set_to(own_server, maxmemory="1mb"):
            for _ in range(20):
                with pytest.raises(LedgerRefusedError, match=r"it is full \(maxmemory\).*settlements go on"):
                    await ledger.reserve(wish())
            assert (await ledger.scopes(["global:all"]))[0].held == 40 * COST
            await ledger.settle_many([end(rid) for rid in rids])
            assert await ledger.renew([rids[0]], lease_us=30_000_000) == [rids[0]]
            await ledger.sweep()
            assert await spent(ledger) == (before + 40 * COST, 0)
            assert own_server.client().dbsize() <= keys + 2
        assert await booked(ledger)
        assert await ledger.audit(lanes=["k:one"], scopes=["global:all"]) == []


async def test_a_refused_reserve_leaves_no_tombstone_in_full_memory(own_server: Server) -> None:
    async with with_open(own_server, 1) as (ledger, rids, _):
        with own_server.client() as client, set_to(own_server, maxmemory="1mb"):
            before = client.hlen("apikeyrouter:{c:main}:L")
            for _ in range(20):
                with pytest.raises(LedgerRefusedError):
                    await ledger.reserve(wish())
            await asyncio.sleep(0.1)
            assert client.hlen("apikeyrouter:{c:main}:L") == before
        await ledger.settle(end(rids[0]))


async def test_without_enough_replicas_nothing_is_written_and_nothing_is_lost(own_server: Server) -> None:
    async with with_open(own_server) as (ledger, rids, before):
        with set_to(own_server, min_replicas_to_write="1"):
            with pytest.raises(LedgerRefusedError, match="min-replicas-to-write"):
                await ledger.reserve(wish())
            with pytest.raises(LedgerRefusedError, match="min-replicas-to-write"):
                await ledger.settle(end(rids[0]))
        await ledger.settle_many([end(rid) for rid in rids])
        assert await spent(ledger) == (before + 5 * COST, 0)


async def test_a_disk_that_cannot_be_written_is_named(own_server: Server, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    async with with_open(own_server) as (ledger, rids, before):
        with own_server.client() as client, set_to(own_server, save="3600 1", dir=str(gone)):
            gone.rmdir()
            client.bgsave()
            until(lambda: cast("Any", client.info("persistence"))["rdb_last_bgsave_status"] == "err")
            with pytest.raises(LedgerRefusedError, match="cannot write to its disk"):
                await ledger.reserve(wish())
            gone.mkdir()
        await ledger.settle_many([end(rid) for rid in rids])
        assert await spent(ledger) == (before + 5 * COST, 0)


async def test_a_primary_that_becomes_a_replica_is_used_again_when_it_is_one_no_more(own_server: Server) -> None:
    async with with_open(own_server) as (ledger, rids, before):
        with own_server.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(LedgerUnavailableError, match=r"read-only replica|READONLY|no connection"):
                await ledger.reserve(wish())
            client.execute_command("REPLICAOF", "NO", "ONE")
        assert await booked(ledger)
        await ledger.settle_many([end(rid) for rid in rids])
        assert await spent(ledger) == (before + 6 * COST, 0)


async def test_a_server_that_another_script_holds_up_is_waited_for(own_server: Server) -> None:
    async with with_open(own_server) as (ledger, rids, before):
        with set_to(own_server, busy_reply_threshold="20"):
            endless = threading.Thread(target=_loop_for_ever, args=(own_server,))
            endless.start()
            with own_server.client() as client:
                until(lambda: _is_busy(client))
                with pytest.raises(LedgerUnavailableError, match=r"BUSY|deadline|did not answer|not asked"):
                    await ledger.reserve(wish())
                client.script_kill()
            endless.join()
        assert await booked(ledger)
        await ledger.settle_many([end(rid) for rid in rids])
        assert await spent(ledger) == (before + 6 * COST, 0)


def _loop_for_ever(server: Server) -> None:
    with server.client() as client, pytest.raises(redis.ResponseError):
        client.eval("while true do end", 0)


def _is_busy(client: "redis.Redis") -> bool:
    try:
        client.get("x")
    except redis.ResponseError as exc:
        return "BUSY" in str(exc) or "busy" in str(exc)
    return False


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"])
async def test_whatever_evicts_is_refused_with_the_remedy(own_server: Server, policy: str) -> None:
    with set_to(own_server, maxmemory_policy=policy):
        ledger = ScriptLedger(RedisEngine(own_server.url))
        with pytest.raises(LedgerConfigError, match=f"{policy}.*CONFIG SET maxmemory-policy noeviction"):
            await ledger.open()
        await ledger.close()
